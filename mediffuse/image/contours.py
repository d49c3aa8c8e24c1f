"""The one function that turns a CT slice into the hint of the contour model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np

from mediffuse.image.intensity import to_uint8, window

CONTOUR_WINDOWS = {"bone": (-200.0, 1300.0), "tissue": (-150.0, 250.0), "brain": (-10.0, 70.0)}
SINGLE_WINDOW = (-1000.0, 1000.0)
MODES = ("windows", "single")


@dataclass(frozen=True)
class Thresholds:
    """Canny's hysteresis thresholds (low, high) per window, on 8-bit gradients.

    mode "windows": edges of the bone, soft-tissue and brain windows in red, green and blue.
    mode "single": edges of one -1000..1000 HU window in white, as published; uses `bone`.
    """

    bone: tuple[float, float] = (80.0, 200.0)
    tissue: tuple[float, float] = (100.0, 220.0)
    brain: tuple[float, float] = (50.0, 110.0)
    mode: str = "windows"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"Contour mode {self.mode!r} is none of {', '.join(MODES)}.")

    def as_dict(self) -> dict:
        return asdict(self)

    def times(self, factor: float) -> Thresholds:
        """All thresholds times a factor: below 1 there are more edges."""
        scaled = {name: tuple(factor * end for end in getattr(self, name)) for name in ("bone", "tissue", "brain")}
        return replace(self, **scaled)


def contour_hint(hu: np.ndarray, thresholds: Thresholds | None = None) -> np.ndarray:
    """Edges of a CT slice: HU (H, W) to uint8 (H, W, 3), 255 on an edge (Canny, PAMI 1986).

    The soft windows are smoothed first: a few HU of noise, or of 8-bit rounding, are edges there.
    """
    thresholds = thresholds or Thresholds()
    if thresholds.mode == "single":
        edges = _canny(window(hu, SINGLE_WINDOW), thresholds.bone, sigma=0)
        return np.repeat(edges[..., None], 3, axis=-1)
    planes = [
        _canny(window(hu, CONTOUR_WINDOWS[name]), getattr(thresholds, name), sigma)
        for name, sigma in (("bone", 0.0), ("tissue", 0.8), ("brain", 1.5))
    ]
    return np.stack(planes, axis=-1)


def _canny(grey: np.ndarray, limits: tuple[float, float], sigma: float) -> np.ndarray:
    """Edges of a picture (H, W) in [0, 1], smoothed by `sigma` pixels first: uint8 (H, W), 255 on an edge."""
    if sigma:
        grey = cv2.GaussianBlur(grey, (0, 0), sigma)
    low, high = sorted(limits)
    return cv2.Canny(to_uint8(grey), low, high)
