"""Units to model image and back.

A *model image* is what a pipeline takes and gives: float32, shape (S, S, 3), values in [0, 1]
(diffusers rescales it to [-1, 1]). A CT is stored in it as three HU windows, one per colour
channel; an MRI is grey.
"""

from __future__ import annotations

import numpy as np

CT_WINDOWS = {"full": (-1000.0, 2000.0), "tissue": (-150.0, 250.0), "brain": (0.0, 80.0)}
"""HU limits of the three channels of a CT model image, in channel order."""

AIR_NOISE_HU = 20.0
"""HU above air (-1000) that a made CT may have where there is only air: see `clear_air`."""

AIR_HU = -1000.0
TISSUE_HU, BONE_HU = -300.0, 300.0
"""What is over the first is tissue, and under it air: around the head and in its sinuses. Bone is over the second."""

MR_WHITE = 99.95
"""MRI has no units: its background becomes 0, and this percentile of the volume 1. The published data are scaled
by minimum and maximum; what follows only keeps out what is no signal."""

DARK_OUTLIERS, BRIGHT_OUTLIERS = 0.25, 6.0
"""Below the 1st percentile by this share of the range, or above the 99.5th by this factor, a voxel is no signal.
In the example scan, and in Colin27's T1, the darkest is at 0.015, and white at 1.24 at the most."""

FILLED_SHARE = 0.02
"""Share of a scan's border from which on one exact value is not there by chance."""

MR_OUTPUT_LIMITS = (0.0, 255.0)
"""Arbitrary units of a synthetic MRI: black and white."""


def background(modality: str, limits: tuple[float, float] | None = MR_OUTPUT_LIMITS) -> float:
    """The value of air: -1000 HU, or the black of an MR's `limits`."""
    return AIR_HU if modality == "CT" else limits[0]


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
    """The MR values that become 0 and 1 in the model image: the darkest, and the brightest but for `MR_WHITE`, without
    outliers. A few negative voxels are outliers where the air is not negative."""
    dark, bright = np.percentile(some(voxels), (1, 99.5))
    black, white = float(voxels.min()), float(np.percentile(voxels, MR_WHITE))
    most = dark + BRIGHT_OUTLIERS * (bright - dark)
    if white > most > dark:
        white = float(np.percentile(voxels[voxels <= most], MR_WHITE))
    least = 0.0 if black < 0 <= dark else dark - DARK_OUTLIERS * (white - dark)
    if black < least and white > dark:
        black = float(voxels[voxels >= least].min())
    if white <= black:
        black, white = float(voxels.min()), float(voxels.max())
    return black, max(white, black + 1e-6)


def fillers(voxels: np.ndarray) -> np.ndarray:
    """Values that fill a part of the border of `voxels` (2D or 3D) without noise, commonest first: masked air, or what
    a scanner or a resampling put where nothing was measured. The ends of the shortest of three axes show the head."""
    axes = np.argsort(voxels.shape, kind="stable")[-2:]
    # Indexed, for np.take copies all of an array that lies as in a file.
    border = np.concatenate([np.moveaxis(voxels, axis, 0)[end].ravel() for axis in axes for end in (0, -1)])
    values, counts = np.unique(border, return_counts=True)
    beside = np.maximum(np.append(counts[1:], 0), np.append(0, counts[:-1]))
    found = (counts >= FILLED_SHARE * border.size) & (counts > 4 * beside)
    return values[found][np.argsort(-counts[found], kind="stable")]


def some(voxels: np.ndarray, most: int = 2_000_000) -> np.ndarray:
    """About `most` of the voxels at the most, evenly spread, in one dimension."""
    step = max(1, int(np.ceil((voxels.size / most) ** (1 / max(1, voxels.ndim)))))
    return voxels[tuple(np.s_[::step] for _ in range(voxels.ndim))].ravel()


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
