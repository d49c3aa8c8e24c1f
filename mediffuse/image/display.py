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

Curve = tuple[tuple[float, float], ...]
"""Greys in [0, 1] by value, (value, grey) in rising order; linear between."""

BRAIN_AND_BONE = "Brain and bone in one (not linear)"
_BRAIN_AND_BONE: Curve = ((-1000.0, 0.0), (-100.0, 0.08), (0.0, 0.14), (80.0, 0.66), (300.0, 0.76), (1700.0, 1.0))
SLICE_VIEWS: dict[str, tuple[float, float] | Curve] = {BRAIN_AND_BONE: _BRAIN_AND_BONE, **CT_VIEWS}
"""How a slice of a CT may be shown: the presets, and one curve in which brain and bone are told apart at once."""

ERROR_SCALE = {"CT": 500.0, "MR": 0.5 * (MR_OUTPUT_LIMITS[1] - MR_OUTPUT_LIMITS[0])}
"""Error, in HU or MR output units, at which the colours of the error map saturate. Fixed, so that
maps can be compared."""

UNITS = {"CT": "HU", "MR": "of 255"}
"""Of what is made."""

UNCERTAINTY_SCALE = {"CT": 250.0, "MR": 0.25 * (MR_OUTPUT_LIMITS[1] - MR_OUTPUT_LIMITS[0])}
SHOWN_SIDE, MOST_SIDE = 512, 4096
"""Pixels of the longer side of a picture: it is enlarged to the first, and reduced to the second."""


def picture(
    pixels: np.ndarray,
    limits: tuple[float, float] | Curve,
    spacing: tuple[float, float] = (1.0, 1.0),
    synthetic: bool = False,
    sides: str = "",
) -> np.ndarray:
    """A slice (rows, columns) in HU or MR units as a grey picture (H, W, 3), isotropic, enlarged.

    `limits` are black and white, or a curve; `synthetic` writes that word on it; `sides` as in `Slice`.
    """
    curved = isinstance(limits[0], tuple)
    share = np.interp(pixels, *zip(*limits, strict=True)) if curved else window(pixels, limits)
    grey = enlarge((share * 255).round().astype(np.uint8), spacing)
    image = with_sides(np.repeat(grey[..., None], 3, axis=-1), sides)
    return label(image) if synthetic else image


def error_map(error: np.ndarray, modality: str, spacing=(1.0, 1.0), sides: str = "") -> np.ndarray:
    """Signed error made - truth (rows, columns): red too high, blue too low, white none; with its colour bar."""
    signed = np.clip(error / ERROR_SCALE[modality], -1, 1).astype(np.float32)
    image = label(with_sides(error_colours(enlarge(signed, spacing)), sides, dark=True), dark=True)
    most, unit = f"{ERROR_SCALE[modality]:.0f}", UNITS[modality]
    bar = error_colours(np.linspace(-1, 1, image.shape[1], dtype=np.float32))
    return with_bar(image, bar, (f"-{most} too low", "0", f"too high +{most} {unit}"))


def error_colours(share: np.ndarray) -> np.ndarray:
    """Errors as shares of `ERROR_SCALE`, in [-1, 1], as RGB, (..., 3)."""
    high, low = np.clip(share, 0, 1), np.clip(-share, 0, 1)
    rgb = np.stack([1 - low, 1 - low - high, 1 - high], axis=-1)
    return np.round(np.clip(rgb, 0, 1) * 255).astype(np.uint8)


def uncertainty_map(deviation: np.ndarray, modality: str, spacing=(1.0, 1.0), sides: str = "") -> np.ndarray:
    """Standard deviation of samples (rows, columns), black none, yellow `UNCERTAINTY_SCALE`; with its colour bar."""
    share = np.clip(deviation / UNCERTAINTY_SCALE[modality], 0, 1)
    image = label(with_sides(uncertainty_colours(enlarge(share.astype(np.float32), spacing)), sides))
    bar = uncertainty_colours(np.linspace(0, 1, image.shape[1], dtype=np.float32)[None])[0]
    return with_bar(image, bar, ("0", "", f"{UNCERTAINTY_SCALE[modality]:.0f} {UNITS[modality]}"))


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


LIGHT, DARK = ((255, 190, 60), (0, 0, 0)), ((90, 60, 0), (255, 255, 255))
"""Colours of letters and of their outline, on dark pictures and on light ones."""
LABEL_WIDTH = 0.46
"""Of the picture's: to be read when it is a few centimetres wide."""


def label(image: np.ndarray, dark: bool = False, right: bool = False) -> np.ndarray:
    """Write SYNTHETIC in the lower left corner of an RGB picture (H, W, 3), or in the right one; in dark letters on a
    light picture."""
    height, width = image.shape[:2]
    scale = LABEL_WIDTH * width / cv2.getTextSize("SYNTHETIC", cv2.FONT_HERSHEY_SIMPLEX, 1, 2)[0][0]
    left = (0.98 - LABEL_WIDTH if right else 0.02) * width
    return _write(image, "SYNTHETIC", (left, height - 0.02 * width), scale, DARK if dark else LIGHT)


def with_sides(image: np.ndarray, sides: str, dark: bool = False) -> np.ndarray:
    """Write the two letters of `sides` (as in `Slice`; none for "") at the left and right of a picture (H, W, 3)."""
    height, width = image.shape[:2]
    scale = max(height, width) / 500
    for letter, left in zip(sides, (0.015 * width, 0.985 * width - 20 * scale), strict=False):
        image = _write(image, letter, (left, height / 2 + 10 * scale), scale, DARK if dark else LIGHT)
    return image


def with_bar(image: np.ndarray, bar: np.ndarray, texts: tuple[str, str, str]) -> np.ndarray:
    """A picture (H, W, 3) with colours (W, 3) below it, and what is at their left, middle and right."""
    width = image.shape[1]
    scale = width / 520
    colours = np.repeat(bar[None], max(1, round(14 * scale)), axis=0)
    below = np.full((max(1, round(30 * scale)), width, 3), 255, np.uint8)
    for text, share in zip(texts, (0, 0.5, 1), strict=True):
        length = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.75 * scale, 1)[0][0]
        left = np.clip(share * width - length / 2, 6 * scale, width - length - 6 * scale)
        below = _write(below, text, (left, 23 * scale), 0.75 * scale, ((0, 0, 0), (255, 255, 255)))
    return np.vstack([image, colours, below])


def _write(image: np.ndarray, text: str, place: tuple[float, float], scale: float, colours: tuple) -> np.ndarray:
    """Write on an RGB picture (H, W, 3), from its lower left corner (x, y), in (letters, outline)."""
    image, where = np.ascontiguousarray(image), tuple(round(float(p)) for p in place)
    stroke = max(1, round(1.8 * scale))
    for colour, thickness in zip(colours[::-1], (stroke + max(2, round(4 * scale)), stroke), strict=True):
        cv2.putText(image, text, where, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)
    return image
