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

PNG_WINDOWS = {
    "full": "Full range (air to bone)",
    "bone": "Bone (-500 to 1500 HU)",
    "brain": "Brain (0 to 80 HU)",
}
"""What an 8- or 16-bit picture of a CT may show."""

PNG_WINDOW_LIMITS = {"bone": (-500.0, 1500.0), "brain": (0.0, 80.0)}

AIR_HU, BRAIN_HU, SATURATED_BONE_HU = -1000.0, 35.0, 700.0
MR_PERCENTILES = (0.0, 99.95)
"""MRI has no units: these percentiles of the volume become 0 and 1. The published data are scaled
by minimum and maximum; the upper percentile only keeps single bright voxels out."""


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


def to_uint8(image: np.ndarray) -> np.ndarray:
    """[0, 1] to 0..255, rounded; same shape."""
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


def guess_png_window(grey: np.ndarray) -> str:
    """Guess which window a CT picture (H, W) in [0, 1] shows: a key of `PNG_WINDOWS`.

    In a brain window the skull is one saturated area; in the others white is rare. A bone window
    shows soft tissue at about a quarter of the grey scale, the full range at about a third.
    """
    head = grey[grey > 0.04]
    if head.size == 0:
        return "full"
    if (grey > 0.97).sum() > 0.06 * head.size:
        return "brain"
    return "bone" if _mode(head) < 0.295 and (grey <= 0.004).mean() > 0.02 and _fat_is_wide(grey) else "full"


def _fat_is_wide(grey: np.ndarray) -> bool:
    """A bone window clips lung and air mixtures: nearly nothing lies between black and fat."""
    soft = _mode(grey[grey > 0.04])
    between = ((grey > 0.02) & (grey < 0.55 * soft)).sum()
    return between < 0.02 * (grey > 0.04).sum()


def _mode(values: np.ndarray) -> float:
    counts, edges = np.histogram(values, bins=64, range=(0, 1))
    counts = np.convolve(counts, [1, 1, 1], mode="same")
    return float(edges[counts.argmax()] + 0.5 / 64)


def png_ct_to_hu(grey: np.ndarray, shown: str) -> np.ndarray:
    """A CT picture (H, W) in [0, 1] that shows the window `shown` to HU (H, W).

    A full-range picture is anchored at two points, since its limits are unknown: black is air
    (-1000 HU) and the commonest grey of the head is brain (+35 HU). In a narrower window black and
    white are saturated: nearly all of that is air and bone, so that is what they become.
    """
    if shown == "full":
        head = grey[(grey > 0.08) & (grey < 0.7)]
        soft = np.clip(_mode(head) if head.size else 0.34, 0.2, 0.55)
        # Refine the histogram bin to the median of what lies in it.
        near = head[np.abs(head - soft) < 0.02]
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

    `shape`: native (rows, columns); `spacing`: mm per (row, column); `size`: side of the square.
    The longer side in mm fills the square, so anisotropic pixels become isotropic.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float] = (1.0, 1.0)
    size: int = 256

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the slice inside the square, in pixels."""
        extent = [n * mm for n, mm in zip(self.shape, self.spacing, strict=True)]
        scale = self.size / max(extent)
        height, width = (max(1, min(self.size, round(e * scale))) for e in extent)
        return (self.size - height) // 2, (self.size - width) // 2, height, width

    def fit(self, pixels: np.ndarray, fill: float) -> np.ndarray:
        """(rows, columns[, C]) to (size, size[, C]); the margin is set to `fill`."""
        top, left, height, width = self.box
        out = np.full((self.size, self.size, *pixels.shape[2:]), fill, np.float32)
        out[top : top + height, left : left + width] = _resize(pixels, (height, width))
        return out

    def restore(self, image: np.ndarray) -> np.ndarray:
        """(size, size[, C]) back to (rows, columns[, C]) of the native grid."""
        top, left, height, width = self.box
        return _resize(image[top : top + height, left : left + width], self.shape)


def _resize(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if pixels.shape[:2] == tuple(shape):
        return np.asarray(pixels, np.float32)
    shrinks = shape[0] * shape[1] < pixels.shape[0] * pixels.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(pixels, np.float32), shape[::-1], interpolation=how)
