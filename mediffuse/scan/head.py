"""Where the head is: the largest connected region of tissue, which leaves out the table and the head rest."""

from __future__ import annotations

import numpy as np

from mediffuse.image.intensity import TISSUE_HU

TISSUE_SHARE = 0.1
"""Share of an MR's range from black to white from which on a voxel is tissue or bone and not air."""

MOST = 300
"""Samples of a scan along an axis at most: a head of 2 mm samples has half as many."""


def tissue_from(modality: str, limits: tuple[float, float] | None) -> float:
    """The value from which on a voxel is tissue, in HU or in the MR's own units; `limits` are for MR."""
    if modality == "CT":
        return TISSUE_HU
    black, white = limits
    return black + TISSUE_SHARE * (white - black)


def head_bounds(voxels: np.ndarray, spacing: np.ndarray, tissue: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Voxel bounds (low, high), each (3,), of the head in `voxels` (X, Y, Z), to about 4 mm; None where there is none.

    spacing: mm per voxel along each axis. tissue: the value from which on a voxel is tissue.
    """
    step = _step(voxels.shape, spacing, 4)
    head = _largest_region(voxels, step, tissue)
    if head is None:
        return None
    within = [np.flatnonzero(head.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    return np.array([w[0] for w in within]) * step, np.array([w[-1] + 1 for w in within]) * step


def head_mask(voxels: np.ndarray, spacing: np.ndarray, tissue: float) -> np.ndarray:
    """Where the head is, bool (X, Y, Z), to about 2 mm and with its holes filled; otherwise as `head_bounds`."""
    from scipy import ndimage

    step = _step(voxels.shape, spacing, 2)
    head = _largest_region(voxels, step, tissue)
    if head is None:
        return np.zeros(voxels.shape, bool)
    for axis in range(3):
        for index in range(head.shape[axis]):
            plane = tuple(index if a == axis else np.s_[:] for a in range(3))
            head[plane] = ndimage.binary_fill_holes(head[plane])
    return head[np.ix_(*(np.arange(n) // s for n, s in zip(voxels.shape, step, strict=True)))]


def _step(shape: tuple[int, ...], spacing: np.ndarray, mm: float) -> tuple[int, ...]:
    """Every how many voxels along each axis make about `mm`; more where that would leave over `MOST` of them."""
    return tuple(max(1, round(mm / side), -(-n // MOST)) for n, side in zip(shape, spacing, strict=True))


def _largest_region(voxels: np.ndarray, step: tuple[int, ...], tissue: float) -> np.ndarray | None:
    """The largest connected region of tissue in every `step`-th voxel, bool; None where there is no tissue."""
    from scipy import ndimage

    labels, count = ndimage.label(voxels[tuple(np.s_[::s] for s in step)] > tissue)
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1 if count else None
