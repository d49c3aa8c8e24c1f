"""Compare a translation with the real image of the same slice, by both protocols."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.metrics import Scores, air_share, body_mask, by_both_protocols, tissues
from mediffuse.scan import Scan, ScanError, Slice


@dataclass(frozen=True)
class Comparison:
    """error: signed, made - truth (rows, columns), HU for CT and MR output units for MR.

    tissues: of a CT, as `metrics.tissues` gives them, and share_air by `metrics.air_share`; empty without a body mask.
    """

    error: np.ndarray
    scores: tuple[Scores, ...]
    tissues: dict[str, float] = field(default_factory=dict)


def compare(made: np.ndarray, truth: Slice, ct: Slice | None = None) -> Comparison:
    """Compare `made` (rows, columns; HU or MR in `MR_OUTPUT_LIMITS`) with the real slice.

    `ct` is the CT of the pair; its body mask bounds protocol "synthrad", which is left out
    where that mask is empty. The truth's MR is scaled by its own limits, as any MR is.
    Raises ScanError if the sizes differ or the truth is constant.
    """
    if made.shape != truth.pixels.shape:
        raise ScanError(
            f"The ground truth slice is {_size(truth.pixels)} pixels and the translated one {_size(made)}. "
            "They must be registered and of the same size."
        )
    if np.ptp(truth.pixels) == 0:
        raise ScanError("The ground truth is one constant value in this slice: nothing to compare with.")
    low, high = MR_OUTPUT_LIMITS
    if truth.modality == "MR":
        black, white = truth.limits
        real = low + (high - low) * np.clip((truth.pixels - black) / (white - black), 0, 1)
    else:
        real = truth.pixels
    mask = body_mask(ct.pixels) if ct is not None else np.zeros(made.shape, bool)
    try:
        scores = by_both_protocols(real, made, mask, truth.modality, MR_OUTPUT_LIMITS)
    except ValueError as error:
        raise ScanError(f"This slice cannot be compared. {error}") from error
    return Comparison((made - real).astype(np.float32), scores, _by_tissue(real, made, mask, truth.modality))


def _by_tissue(real: np.ndarray, made: np.ndarray, mask: np.ndarray, modality: str) -> dict[str, float]:
    if modality != "CT" or not mask.any():
        return {}
    return {**tissues(real, made, mask), "share_air": air_share(real, mask)}


def matching_slice(scan: Scan, place: Slice, truth: Scan) -> Slice:
    """The slice of `truth` that shows the same place as the slice `place` of `scan`.

    A single-slice truth (a picture) is taken as that slice. Raises ScanError if the grids differ.
    """
    if truth.kind == "picture" or scan.kind == "picture":
        if truth.count(place.plane) == 1:
            return truth.slice(place.plane, 0)
        raise ScanError("The ground truth is a volume, and the scan one picture: give a picture of that slice.")
    if truth.count(place.plane) == 1 and scan.count(place.plane) > 1:
        scan.only(place.plane, place.index).check_same_grid(truth)
        return truth.slice(place.plane, 0)
    scan.check_same_grid(truth)
    return truth.slice(place.plane, place.index)


@dataclass(frozen=True)
class VolumeComparison:
    """error: signed, made - truth (X, Y, Z). slices: (index, scores) of the axial slices with a head.

    delta_z: mean |made's - truth's difference| between neighbouring axial slices in the head, HU or MR
    output units: what flickers. delta_z_truth: the mean |truth's difference| there. nan for one slice.
    tissues: as in `Comparison`, over all of these slices.
    """

    error: np.ndarray
    slices: tuple[tuple[int, tuple[Scores, ...]], ...]
    delta_z: float
    delta_z_truth: float
    tissues: dict[str, float]


def compare_volumes(made: np.ndarray, scan: Scan, truth: Scan) -> VolumeComparison:
    """Compare a made volume on `scan`'s canonical grid with a `truth` on the same grid, slice by slice.

    Raises ScanError if the grids differ, or nothing can be compared.
    """
    scan.check_same_grid(truth)
    ct = scan if scan.modality == "CT" else truth
    error = np.zeros(made.shape, np.float32)
    head = np.zeros(made.shape, bool)
    found = []
    for index in range(scan.count("axial")):
        ct_slice, real = ct.slice("axial", index), truth.slice("axial", index)
        body = body_mask(ct_slice.pixels)
        if not body.any() or np.ptp(real.pixels) == 0:
            continue
        compared = compare(Scan.shown_in(made, real), real, ct_slice)
        Scan.shown_in(error, real)[...] = compared.error
        Scan.shown_in(head, real)[...] = body
        found.append((index, compared.scores))
    if not found:
        raise ScanError("The ground truth shows nothing where the head is: there is nothing to compare with.")
    # `made - error` is the truth, in made's units.
    flat = (np.reshape(volume, (len(made), -1)) for volume in (made - error, made, head))
    by_tissue = _by_tissue(*flat, truth.modality)
    in_head_twice = head[:, :, 1:] & head[:, :, :-1]
    if not in_head_twice.any():
        return VolumeComparison(error, tuple(found), float("nan"), float("nan"), by_tissue)
    # The error's difference is the difference's error.
    changes = (float(np.abs(np.diff(x, axis=2)[in_head_twice]).mean()) for x in (error, made - error))
    return VolumeComparison(error, tuple(found), *changes, by_tissue)


def _size(pixels: np.ndarray) -> str:
    """Columns x rows, for messages."""
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
