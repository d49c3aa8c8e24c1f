"""Where the head is."""

from __future__ import annotations

import numpy as np

from mediffuse.scan.types import Scan


def head_mask(scan: Scan) -> np.ndarray:
    """Where the head is, bool (X, Y, Z): the largest solid region at about 2 mm, with its holes filled."""
    from scipy import ndimage

    step = [max(1, round(2 / mm)) for mm in scan.spacing]
    some = scan.voxels[tuple(np.s_[::s] for s in step)]
    low, high = scan.limits or (0, 0)
    labels, found = ndimage.label(some > (-300 if scan.modality == "CT" else low + 0.1 * (high - low)))
    if not found:
        return np.zeros(scan.voxels.shape, bool)
    coarse = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    for axis in range(3):
        for index in range(coarse.shape[axis]):
            where = tuple(index if a == axis else np.s_[:] for a in range(3))
            coarse[where] = ndimage.binary_fill_holes(coarse[where])
    return coarse[np.ix_(*(np.arange(n) // s for n, s in zip(scan.voxels.shape, step, strict=True)))]
