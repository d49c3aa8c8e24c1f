"""Pictures of a CT have no units: which window one shows, and what HU its grey levels are."""

from __future__ import annotations

import numpy as np

from mediffuse.image.intensity import AIR_HU

PNG_WINDOWS = {
    "full": "Full range (air to bone)",
    "bone": "Bone (-500 to 1500 HU)",
    "brain": "Brain (0 to 80 HU)",
}
"""What an 8- or 16-bit picture of a CT may show."""

PNG_WINDOW_LIMITS = {"bone": (-500.0, 1500.0), "brain": (0.0, 80.0)}
"""HU that are black and white in the narrower windows."""

BRAIN_HU, SATURATED_BONE_HU = 35.0, 700.0
"""What the commonest grey of a head is taken for, and what is white in a narrow window at the least."""

HEAD_GREY = 0.08
SATURATED_SHARE = 0.1
FLAT_SHARES = (0.25, 0.3)
"""Grey, of 1, above which a pixel is of the head; share of white pixels above which its skull is saturated; shares of
one grey below which it is an MRI, and above which it is a CT with a flat brain. Set on 2,571 CT and MR slices of
SynthRAD2023 and the Whole Brain Atlas."""


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


def png_ct_to_hu(grey: np.ndarray, window: str) -> np.ndarray:
    """A CT picture (H, W) in [0, 1] that shows `window`, a key of `PNG_WINDOWS`, to HU (H, W).

    A full-range picture is anchored at two points, since its limits are unknown: black is air
    (-1000 HU) and the commonest grey of the head is brain (+35 HU). In a narrower window black and
    white are saturated: nearly all of that is air and bone, so that is what they become.
    """
    if window == "full":
        soft = np.clip(_head_greys(grey)[0], 0.2, 0.55)
        # Refine the histogram bin to the median of what lies in it.
        near = grey[np.abs(grey - soft) < 0.02]
        soft = float(np.median(near)) if near.size else soft
        low, high = AIR_HU, AIR_HU + (BRAIN_HU - AIR_HU) / soft
        return (low + (high - low) * grey).astype(np.float32)
    low, high = PNG_WINDOW_LIMITS[window]
    hu = low + (high - low) * grey
    hu[grey <= 0.5 / 255] = AIR_HU
    hu[grey >= 254.5 / 255] = max(high, SATURATED_BONE_HU)
    return hu.astype(np.float32)


def _head_greys(grey: np.ndarray) -> tuple[float, float, float]:
    """Commonest grey of the head (not white), share of the head within 5 levels of it, and white share."""
    levels = np.round(grey * 255).astype(np.int64).ravel()
    counts = np.bincount(levels[grey.ravel() > HEAD_GREY], minlength=256)
    near = np.convolve(counts, np.ones(11), mode="same")[:245]
    size = max(1, counts.sum())
    return float(near.argmax() / 255), float(near.max() / size), float(counts[247:].sum() / size)
