"""Units to model image and back.

A *model image* is what a pipeline takes and gives: float32, shape (S, S, 3), values in [0, 1]
(diffusers rescales it to [-1, 1]). A CT is stored in it as three HU windows, one per colour
channel; an MRI is grey.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CT_WINDOWS = {"full": (-1000.0, 2000.0), "tissue": (-150.0, 250.0), "brain": (0.0, 80.0)}
"""HU limits of the three channels of a CT model image, in channel order."""

AIR_NOISE_HU = 20.0
"""HU above air (-1000) that a made CT may have where there is only air: see `clear_air`."""

PNG_WINDOWS = {
    "full": "Full range (air to bone)",
    "bone": "Bone (-500 to 1500 HU)",
    "brain": "Brain (0 to 80 HU)",
}
"""What an 8- or 16-bit picture of a CT may show."""

PNG_WINDOW_LIMITS = {"bone": (-500.0, 1500.0), "brain": (0.0, 80.0)}

AIR_HU, BRAIN_HU, SATURATED_BONE_HU = -1000.0, 35.0, 700.0

# Pictures have no units: these tell air, a saturated skull and a flat brain. Set on 2,571 CT and MR
# slices of SynthRAD2023 and the Whole Brain Atlas; see `guess_picture_modality`.
HEAD_GREY = 0.08
SATURATED_SHARE = 0.1
FLAT_SHARES = (0.25, 0.3)
MR_PERCENTILES = (0.0, 99.95)
"""MRI has no units: these percentiles of the volume become 0 and 1. The published data are scaled
by minimum and maximum; the upper percentile only keeps single bright voxels out."""

MR_OUTPUT_LIMITS = (0.0, 255.0)
"""Arbitrary units of a synthetic MRI: black and white."""


def window(hu: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Clip HU to `limits` and scale to [0, 1], float32, same shape."""
    low, high = limits
    return ((np.clip(hu, low, high) - low) / (high - low)).astype(np.float32)


def encode_ct(hu: np.ndarray) -> np.ndarray:
    """HU (H, W) to a CT model image (H, W, 3) in [0, 1]."""
    return np.stack([window(hu, limits) for limits in CT_WINDOWS.values()], axis=-1)


def decode_ct(image: np.ndarray) -> np.ndarray:
    """CT model image (H, W, 3) in [0, 1] to HU (H, W), clipped to the full window.

    The full window gives the value; a narrower one refines it where it is not saturated and
    agrees. A predicted image is blurred at edges, where the narrow windows mislead, so the
    agreement is weighted, not assumed. Inverse of `encode_ct` on [-1000, 2000] HU.
    """
    image = np.clip(np.asarray(image, np.float32), 0, 1)
    low, high = CT_WINDOWS["full"]
    hu = low + (high - low) * image[..., 0]
    for channel, name, tolerance in ((1, "tissue", 80.0), (2, "brain", 30.0)):
        low, high = CT_WINDOWS[name]
        value = image[..., channel]
        finer = low + (high - low) * value
        unsaturated = np.clip(np.minimum(value, 1 - value) / 0.02, 0, 1)
        agrees = np.clip(2 - np.abs(finer - hu) / tolerance, 0, 1)
        hu = hu + unsaturated * agrees * (finer - hu)
    return hu.astype(np.float32)


def mr_limits(voxels: np.ndarray) -> tuple[float, float]:
    """The MR values that become 0 and 1 in the model image (`MR_PERCENTILES` of `voxels`)."""
    low, high = np.percentile(voxels, MR_PERCENTILES)
    if high <= low:
        low, high = float(voxels.min()), float(voxels.max())
    return float(low), float(max(high, low + 1e-6))


def encode_mr(mr: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """MR (H, W) in any units to a grey model image (H, W, 3); `limits` become 0 and 1."""
    return np.repeat(window(mr, limits)[..., None], 3, axis=-1)


def decode_mr(image: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Model image (H, W, 3) in [0, 1] to MR (H, W) in the units of `limits`."""
    low, high = limits
    grey = np.clip(np.asarray(image, np.float32), 0, 1).mean(axis=-1)
    return (low + (high - low) * grey).astype(np.float32)


def encode(pixels: np.ndarray, modality: str, limits: tuple[float, float] | None = None) -> np.ndarray:
    """HU or MR (H, W) to a model image (H, W, 3); `limits` are for MR."""
    return encode_ct(pixels) if modality == "CT" else encode_mr(pixels, limits)


def clear_air(image: np.ndarray) -> np.ndarray:
    """A made CT model image (..., 3) in [0, 1] with what is within `AIR_NOISE_HU` of air made air.

    A network's air is uneven by some HU, which is not seen but costs 0.015 of SSIM (18 val patients).
    """
    low, high = CT_WINDOWS["full"]
    return np.where(image[..., :1] < AIR_NOISE_HU / (high - low), 0, image).astype(image.dtype)


def decode(image: np.ndarray, modality: str, limits: tuple[float, float] = MR_OUTPUT_LIMITS) -> np.ndarray:
    """Model image (H, W, 3) to HU or MR (H, W); `limits` are for MR."""
    return decode_ct(image) if modality == "CT" else decode_mr(image, limits)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded; same shape."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def guess_picture_modality(grey: np.ndarray) -> str | None:
    """Guess what a picture (H, W) in [0, 1] is of: "CT", "MR", or None where it may be either.

    In a CT the brain is one flat grey (full range, bone window) or the skull is saturated
    (narrower windows); in an MRI neither holds.
    """
    _, flat, saturated = _head_greys(grey)
    if saturated > SATURATED_SHARE or flat > FLAT_SHARES[1]:
        return "CT"
    return "MR" if flat < FLAT_SHARES[0] else None


def guess_png_window(grey: np.ndarray) -> str:
    """Guess which window a CT picture (H, W) in [0, 1] shows: a key of `PNG_WINDOWS`.

    In a brain window the skull is one saturated area. A bone window shows the brain at about a
    quarter of the grey scale, as only the widest full ranges do, and clips noise, cloth and head
    rest to black, so that next to nothing is dark and not black.
    """
    soft, _, saturated = _head_greys(grey)
    if saturated > SATURATED_SHARE:
        return "brain"
    dark = grey[grey <= HEAD_GREY]
    return "bone" if 0.2 < soft < 0.295 and dark.size and (dark < 0.5 / 255).mean() > 0.97 else "full"


def _head_greys(grey: np.ndarray) -> tuple[float, float, float]:
    """Commonest grey of the head (not white), share of the head within 5 levels of it, and white share."""
    levels = np.round(grey * 255).astype(np.int64).ravel()
    counts = np.bincount(levels[grey.ravel() > HEAD_GREY], minlength=256)
    near = np.convolve(counts, np.ones(11), mode="same")[:245]
    size = max(1, counts.sum())
    return float(near.argmax() / 255), float(near.max() / size), float(counts[247:].sum() / size)


def png_ct_to_hu(grey: np.ndarray, shown: str) -> np.ndarray:
    """A CT picture (H, W) in [0, 1] that shows the window `shown` to HU (H, W).

    A full-range picture is anchored at two points, since its limits are unknown: black is air
    (-1000 HU) and the commonest grey of the head is brain (+35 HU). In a narrower window black and
    white are saturated: nearly all of that is air and bone, so that is what they become.
    """
    if shown == "full":
        soft = np.clip(_head_greys(grey)[0], 0.2, 0.55)
        # Refine the histogram bin to the median of what lies in it.
        near = grey[np.abs(grey - soft) < 0.02]
        soft = float(np.median(near)) if near.size else soft
        low, high = AIR_HU, AIR_HU + (BRAIN_HU - AIR_HU) / soft
        return (low + (high - low) * grey).astype(np.float32)
    low, high = PNG_WINDOW_LIMITS[shown]
    hu = low + (high - low) * grey
    hu[grey <= 0.5 / 255] = AIR_HU
    hu[grey >= 254.5 / 255] = max(high, SATURATED_BONE_HU)
    return hu.astype(np.float32)


@dataclass(frozen=True)
class Letterbox:
    """Fits a slice into a square model image without distortion, and back to the native grid.

    `shape`: native (rows, columns); `spacing`: mm per (row, column); `size`: side of the square;
    `crop`: (top, left, height, width) of the part that is used, by default all.
    The longer side in mm fills the square, so anisotropic pixels become isotropic.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float] = (1.0, 1.0)
    size: int = 256
    crop: tuple[int, int, int, int] | None = None

    @property
    def part(self) -> tuple[slice, slice]:
        """The used part of the native grid."""
        top, left, height, width = self.crop or (0, 0, *self.shape)
        return np.s_[top : top + height, left : left + width]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) of that part inside the square, in pixels."""
        sides = self.crop[2:] if self.crop else self.shape
        extent = [n * mm for n, mm in zip(sides, self.spacing, strict=True)]
        scale = self.size / max(extent)
        height, width = (max(1, min(self.size, round(e * scale))) for e in extent)
        return (self.size - height) // 2, (self.size - width) // 2, height, width

    def fit(self, pixels: np.ndarray, fill: float) -> np.ndarray:
        """(rows, columns[, C]) to (size, size[, C]); the margin is set to `fill`."""
        top, left, height, width = self.box
        out = np.full((self.size, self.size, *pixels.shape[2:]), fill, np.float32)
        out[top : top + height, left : left + width] = _resize(pixels[self.part], (height, width))
        return out

    def restore(self, image: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """(size, size[, C]) back to (rows, columns[, C]); what was cropped away is set to `fill`."""
        top, left, height, width = self.box
        out = np.full((*self.shape, *image.shape[2:]), fill, np.float32)
        sides = out[self.part].shape[:2]
        out[self.part] = _resize(image[top : top + height, left : left + width], sides)
        return out


def _resize(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if pixels.shape[:2] == tuple(shape):
        return np.asarray(pixels, np.float32)
    shrinks = shape[0] * shape[1] < pixels.shape[0] * pixels.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(pixels, np.float32), shape[::-1], interpolation=how)
