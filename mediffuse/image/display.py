"""Pictures for people: windowed slices, signed error maps, uncertainty maps. All uint8 RGB."""

from __future__ import annotations

import cv2
import numpy as np

from mediffuse.image.intensity import MR_OUTPUT_LIMITS, window

CT_VIEWS = {
    "Brain (W 80, L 40)": (0.0, 80.0),
    "Soft tissue (W 400, L 40)": (-160.0, 240.0),
    "Bone (W 2500, L 480)": (-770.0, 1730.0),
    "Full range (-1000 to 1000 HU)": (-1000.0, 1000.0),
}
"""HU limits of the view presets by title (W: window width, L: level)."""

BRAIN, SOFT_TISSUE, BONE, FULL_RANGE = CT_VIEWS
"""Their titles."""

ERROR_SCALE = {"CT": 500.0, "MR": 0.5 * (MR_OUTPUT_LIMITS[1] - MR_OUTPUT_LIMITS[0])}
"""Error, in HU or MR output units, at which the colours of the error map saturate. Fixed, so that
maps can be compared."""

UNCERTAINTY_SCALE = {"CT": 250.0, "MR": 0.25 * (MR_OUTPUT_LIMITS[1] - MR_OUTPUT_LIMITS[0])}
SHOWN_SIDE, MOST_SIDE = 512, 4096
"""Pixels of the longer side of a picture: it is enlarged to the first, and reduced to the second."""


def picture(
    pixels: np.ndarray,
    limits: tuple[float, float],
    spacing: tuple[float, float] = (1.0, 1.0),
    synthetic: bool = False,
) -> np.ndarray:
    """A slice (rows, columns) in HU or MR units as a grey picture (H, W, 3), isotropic, enlarged.

    `limits` are black and white; `synthetic` writes that word on it.
    """
    grey = enlarge((window(pixels, limits) * 255).round().astype(np.uint8), spacing)
    image = np.repeat(grey[..., None], 3, axis=-1)
    return label(image) if synthetic else image


def error_map(error: np.ndarray, modality: str, spacing=(1.0, 1.0)) -> np.ndarray:
    """Signed error made - truth (rows, columns): red too high, blue too low, white none."""
    signed = np.clip(error / ERROR_SCALE[modality], -1, 1).astype(np.float32)
    return label(error_colours(enlarge(signed, spacing)), dark=True)


def error_colours(share: np.ndarray) -> np.ndarray:
    """Errors as shares of `ERROR_SCALE`, in [-1, 1], as RGB, (..., 3)."""
    high, low = np.clip(share, 0, 1), np.clip(-share, 0, 1)
    rgb = np.stack([1 - low, 1 - low - high, 1 - high], axis=-1)
    return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def uncertainty_map(deviation: np.ndarray, modality: str, spacing=(1.0, 1.0)) -> np.ndarray:
    """Standard deviation of samples (rows, columns), black none, yellow `UNCERTAINTY_SCALE`."""
    share = np.clip(deviation / UNCERTAINTY_SCALE[modality], 0, 1)
    return label(uncertainty_colours(enlarge(share.astype(np.float32), spacing)))


def uncertainty_colours(share: np.ndarray) -> np.ndarray:
    """Deviations (rows, columns) as shares of `UNCERTAINTY_SCALE`, in [0, 1], as RGB (rows, columns, 3)."""
    grey = np.round(share * 255).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def enlarge(image: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """Make pixels square (spacing is mm per row and column) and the longer side `SHOWN_SIDE` to `MOST_SIDE`."""
    height, width = (n * mm / min(spacing) for n, mm in zip(image.shape[:2], spacing, strict=True))
    scale = min(max(1.0, SHOWN_SIDE / max(height, width)), MOST_SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def label(image: np.ndarray, dark: bool = False) -> np.ndarray:
    """Write SYNTHETIC in the lower left corner of an RGB picture (H, W, 3); in dark letters on a light one."""
    image = np.ascontiguousarray(image)
    scale = max(0.4, image.shape[1] / 1000)
    colour = (90, 60, 0) if dark else (255, 190, 60)
    where = (round(12 * scale), image.shape[0] - round(14 * scale))
    return cv2.putText(
        image, "SYNTHETIC", where, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, max(1, round(1.6 * scale)), cv2.LINE_AA
    )
