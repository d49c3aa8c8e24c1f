"""Whether the two images of a pair lie on each other, by their mutual information."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SHIFT = 10
"""Pixels (about mm) by which an image is shifted for comparison."""

APART, DOUBTFUL = (0.9, 1.0), (1.0, 1.15)
"""`alignment` below which a pair does not lie on each other, and below which that is in doubt: of one plane, and of the
mean of several. Of the 153 patients of SynthRAD2023, the mean of three planes is at least 1.19; shifted by 6 mm it is
at most 0.96, with the MRI of another patient 0.97 in the median (95 %: below 1.11). Of single slices, 623 real pairs
from three sources are at least 0.97; shifted by 10 mm or more they are at most 0.91."""


def alignment(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    """How much more two images tell of each other as they lie than shifted by `SHIFT` pixels: mutual information,
    normalised (Studholme 1999), over the best of four shifts; the mean over `pairs` of images (H, W) of one size.

    Infinite where there is nothing to be compared.
    """
    ratios = []
    for pair in pairs:
        fixed, moving = (_smooth(image) for image in pair)
        here = _mutual_information(fixed, moving)
        turns = [(axis, step) for axis in (0, 1) for step in (-SHIFT, SHIFT)]
        best = max(_mutual_information(fixed, _shifted(moving, *turn)) for turn in turns)
        if best > 0:
            ratios.append(here / best)
    return float(np.mean(ratios)) if ratios else float("inf")


def _smooth(image: np.ndarray) -> np.ndarray:
    import cv2

    image = np.asarray(image, np.float32)
    scale = 256 / max(image.shape)
    if scale < 0.8:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(image, (0, 0), 1.5)


def _shifted(image: np.ndarray, axis: int, step: int) -> np.ndarray:
    """`image` moved along an axis; what comes in is the commonest of its first row."""
    moved = np.full_like(image, np.median(image[0]))
    source, target = [slice(None)] * 2, [slice(None)] * 2
    source[axis], target[axis] = (
        (slice(-step, None), slice(None, step)) if step < 0 else (slice(None, -step), slice(step, None))
    )
    moved[tuple(target)] = image[tuple(source)]
    return moved


def _mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Normalised mutual information less 1, in [0, 1]: 0 for images that tell nothing of each other."""
    from skimage.metrics import normalized_mutual_information

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(normalized_mutual_information(first, second, bins=32)) - 1
