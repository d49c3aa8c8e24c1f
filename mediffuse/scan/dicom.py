"""DICOM volumes: frames in any order, of one file or of many, put together by where they lie.

The affine is put together from the slices' own positions, so that a tilted gantry stays the shear that it is.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from mediffuse.scan.frames import MOSAIC, Frame
from mediffuse.scan.headers import stored_values
from mediffuse.scan.nrrd_mha import LPS_TO_RAS
from mediffuse.scan.series import Volume
from mediffuse.scan.types import ScanError, check_size

MOST_PLANES = 4000
"""Slices of a volume at most, with those that are missing."""


def read_volume(volume: Volume, name: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(voxels float32 (X, Y, Z), affine to RAS mm, warnings) of a volume.

    Slices are ordered by their position along the normal. Gaps of missing slices, and uneven spacing, are
    filled by linear interpolation between the slices' real positions, and warned of. What the files do not say of
    their geometry is taken as usual, and said. Raises ScanError if most slices are missing.
    """
    frames = sorted(volume.frames, key=lambda frame: frame.place)
    _check(frames, name)
    places = np.array([frame.place for frame in frames])
    planes, missing, remarks = _grid(places) if len(frames) > 1 else (np.zeros(1), 0, [])
    if 2 * missing > len(planes):
        raise ScanError(f"{name} has only {len(frames)} of {len(planes)} slices. Export the whole series.")
    rows, columns = frames[0].traits.size
    check_size((columns, rows, len(planes)), name)
    voxels = _interpolated(_pixels(frames, name), planes)
    if frames[0].inverted:
        voxels = voxels.max() - voxels
        remarks.append("Its values are stored inverted (MONOCHROME1): they were turned round.")
    warnings = [*volume.left_out, *_unknown(frames), *_drift(frames), *remarks]
    return voxels, _affine(frames, len(planes)), warnings


def _check(frames: list[Frame], name: str) -> None:
    """Raise ScanError for what no volume can be made of, by the headers."""
    first = frames[0]
    if "colour" in first.unfit:
        raise ScanError(f"{name} is {first.unfit}. Choose the scan's own images.")
    if first.modality == "CT" and first.inverted:
        raise ScanError(f"{name} stores its values inverted (MONOCHROME1), not in HU. Export it as MONOCHROME2.")
    if MOSAIC in first.traits.words:
        raise ScanError(f"{name} holds many slices in each image (a mosaic). Convert it to NIfTI with dcm2niix first.")
    rows, columns = first.traits.size
    for of in {frame.path: frame.of for frame in frames}.values():
        check_size((columns, rows, of), name)
    check_size((columns, rows, len(frames)), name)


def _unknown(frames: list[Frame]) -> list[str]:
    """Sentences about the geometry that the files do not say."""
    found, apart = [], frames[0].apart
    if any(frame.spacing is None for frame in frames):
        found.append("The files give no pixel spacing: 1 mm was taken. Distances and sizes will be wrong.")
    if any(frame.orientation is None for frame in frames):
        found.append("The files give no orientation: they were taken as axial. Which side is left is not certain.")
    if any(frame.position is None for frame in frames):
        distance = f"{apart:.3g} mm as their thickness" if apart else "1 mm for want of anything better"
        order = "by their location" if frames[0].location is not None else f"by number, {distance} apart"
        found.append(f"The files give no position: slices were put {order}. Which end is up is not certain.")
    elif frames[0].in_a_row:
        found.append(
            "The file gives one position for all its slices: they were put one after the other, "
            f"{apart or 1.0:.3g} mm apart{'' if apart else ' for want of anything better'}."
        )
    elif len(frames) == 1 and apart is None:
        found.append("The file gives no slice thickness: 1 mm was taken.")
    return found


def _pixels(frames: list[Frame], name: str) -> list[np.ndarray]:
    """The image of each frame in HU or the MR's units, float32 (X, Y)."""
    wanted: dict = defaultdict(list)
    for place, frame in enumerate(frames):
        wanted[frame.path].append((place, frame))
    images: list[np.ndarray] = [np.empty(0)] * len(frames)
    for path, members in wanted.items():
        stored = stored_values(path, name if len(wanted) == 1 else f"{name} ({path.name})")
        for place, frame in members:
            # In float64 as long as it is computed: 16 bits times a slope of many digits.
            images[place] = (stored[frame.number].T * frame.slope + frame.intercept).astype(np.float32)
    return images


def _interpolated(images: list[np.ndarray], planes: np.ndarray) -> np.ndarray:
    """Voxels (X, Y, Z), float32, at `planes`: where each lies, as a fractional number of an image (X, Y)."""
    volume = np.empty((*images[0].shape, len(planes)), np.float32)
    after = np.clip(np.ceil(planes - 1e-6).astype(int), 0, len(images) - 1)
    for number, (plane, high) in enumerate(zip(planes, after, strict=True)):
        share = high - plane
        volume[:, :, number] = images[high]
        if share > 1e-6:
            volume[:, :, number] += share * (images[high - 1] - images[high])
    return volume


def _position(frame: Frame) -> np.ndarray:
    """Of the first pixel, LPS mm (3,)."""
    return frame.axes[2] * frame.place if frame.position is None else np.array(frame.position)


def _affine(frames: list[Frame], count: int) -> np.ndarray:
    """Affine (4, 4) to RAS mm of `count` planes from the first of `frames` to the last."""
    first, last = frames[0], frames[-1]
    down, across = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0] = first.axes[0] * across
    affine[:3, 1] = first.axes[1] * down
    step = first.axes[2] * (first.thickness or first.apart or 1.0)
    affine[:3, 2] = step if count == 1 else (_position(last) - _position(first)) / (count - 1)
    affine[:3, 3] = _position(first)
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine


def _drift(frames: list[Frame]) -> list[str]:
    """A sentence on slices that do not lie on one line, as a volume's do."""
    positions = np.array([_position(frame) for frame in frames])
    if len(frames) < 3:
        return []
    share = ((positions - positions[0]) @ frames[0].axes[2] / np.ptp([f.place for f in frames]))[:, None]
    off = np.linalg.norm(positions - positions[0] - share * (positions[-1] - positions[0]), axis=1).max()
    if off < 1:
        return []
    return [f"The slices are shifted against each other by up to {off:.3g} mm: they were laid on a straight line."]


def _grid(along: np.ndarray) -> tuple[np.ndarray, int, list[str]]:
    """An even grid for slices at `along` (mm, rising): (where each of its planes lies, as a fractional
    number of a slice; how many are missing slices; what to warn of)."""
    steps = np.diff(along)
    if along[-1] - along[0] > MOST_PLANES * np.median(steps):
        raise ScanError(
            f"Its slices lie up to {steps.max():.0f} mm apart, and most {np.median(steps):.3g} mm: they are no one "
            "volume. Export one series of it again."
        )
    numbers = np.concatenate([[0], np.cumsum(np.maximum(1, np.round(steps / np.median(steps))))])
    step = (along[-1] - along[0]) / numbers[-1]
    if np.abs(along - along[0] - numbers * step).max() <= 0.1 * step:
        count = int(numbers[-1]) + 1
        missing = count - len(along)
        remark = f"{missing} of {count} slices are missing; they were interpolated from their neighbours."
        return np.interp(np.arange(count), numbers, np.arange(len(along))), missing, [remark] if missing else []
    finest = max(steps.min(), np.median(steps) / 4)
    count = round((along[-1] - along[0]) / finest) + 1
    planes = np.interp(np.linspace(along[0], along[-1], count), along, np.arange(len(along)))
    remark = (
        f"The slices are unevenly spaced ({steps.min():.3g} to {steps.max():.3g} mm): they were interpolated to one "
        f"every {(along[-1] - along[0]) / (count - 1):.3g} mm, where they lie."
    )
    return planes, 0, [remark]
