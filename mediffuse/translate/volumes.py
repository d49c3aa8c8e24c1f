"""Translate a whole volume: every slice, put back in its place, on the scan's own grid.

Intensities and the head's frame are those of the volume, never of a slice, and one seed gives every
slice the same noise, so that neighbours agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np

from mediffuse.contours import Thresholds
from mediffuse.intensity import AIR_HU, MR_OUTPUT_LIMITS
from mediffuse.prompts import modalities
from mediffuse.scan import PLANES, Scan, ScanError, check_size
from mediffuse.translate import Settings, Translator, prepare, restore

MARGIN_MM = 8.0
"""What is made further than this from the input's head is taken for air."""

OBLIQUE_DEGREES = 20.0
"""From this angle between the scan's axes and the patient's on, slices are taken on a grid along the
patient's axes: the models know heads that lie about straight."""

SLAB_MM = 60.0
"""A scan thinner than this stays on its own axes: slices across it would show strips of the head."""


@dataclass(frozen=True)
class Passes:
    """Which slices are translated. More than one pass is averaged, and their spread is an uncertainty.

    planes: of "axial", "coronal", "sagittal". mirror: each slice mirrored left to right is a pass of its own.
    batch: slices that go through the model together; by default 8 on a GPU, and on a processor one, which is
    faster there (benchmarks/volumes.md).
    """

    planes: tuple[str, ...] = ("axial",)
    mirror: bool = False
    batch: int | None = None

    def __post_init__(self) -> None:
        if not self.planes or set(self.planes) - set(PLANES):
            raise ValueError(f"Planes are {', '.join(PLANES)}, not {self.planes}.")
        if self.batch is not None and self.batch < 1:
            raise ValueError("A batch has at least one slice.")


@dataclass(frozen=True)
class VolumeTranslation:
    """What was made, on the scan's canonical grid (X, Y, Z): see `Scan.to_nifti`.

    voxels: float32, HU or MR in `intensity.MR_OUTPUT_LIMITS`. deviation: standard deviation of
    samples and passes, None where there was one. slices: how many went through the model.
    """

    voxels: np.ndarray
    deviation: np.ndarray | None
    modality: str
    slices: int
    seconds: float
    settings: Settings


def translate_volume(
    translator: Translator,
    scan: Scan,
    direction: str,
    settings: Settings | None = None,
    passes: Passes | None = None,
    thresholds: Thresholds | None = None,
    on_slices: Callable[[int, int], None] | None = None,
) -> VolumeTranslation:
    """Translate every slice of `scan` in which there is a head; elsewhere the result is air.

    `on_slices(done, of)` is called after each batch; what it raises ends the run. Beside the result
    (three volumes with passes or samples) memory does not grow with the number of slices.
    Raises CheckpointError if the checkpoint cannot be used, ScanError for a scan without a head.
    """
    settings, passes = settings or Settings(), passes or Passes()
    started = time.perf_counter()
    if passes.mirror:
        settings = replace(settings, mirror=False)
    source, target = modalities(direction)
    if scan.modality != source:
        raise ValueError(f"{direction} translates {source}, not {scan.modality}")
    checkpoint = translator.checkpoints.get(direction)
    size = checkpoint.size
    together = passes.batch or (1 if checkpoint.pipeline.device.type == "cpu" else 8)
    upright = straightened(scan)
    head = head_mask(upright)
    if not head.any():
        raise ScanError(f"{scan.name} shows no head: there is nothing to translate in it.")
    planes = passes.planes if min(upright.voxels.shape) > 1 else (upright.plane,)
    todo = [(plane, index) for plane in planes for index in _with_head(head, upright, plane)]
    fill = AIR_HU if target == "CT" else MR_OUTPUT_LIMITS[0]
    voxels = np.zeros(upright.voxels.shape, np.float32)
    estimates = np.zeros(voxels.shape, np.uint16)
    several = settings.speed == "diffusion" and settings.samples > 1
    squares = np.zeros_like(voxels) if several or passes.mirror or len(planes) > 1 else None
    count = len(todo) * (2 if passes.mirror else 1)
    done = 0
    for mirrored in (False, True) if passes.mirror else (False,):
        for batch in _batches(todo, together):
            slices = [upright.slice(plane, index) for plane, index in batch]
            boxes = [one.letterbox(size) for one in slices]
            images = np.stack([prepare(one, box) for one, box in zip(slices, boxes, strict=True)])
            made = translator.generate(direction, _flip(images, mirrored), settings, thresholds)
            made = _flip(made, mirrored).reshape(len(slices), -1, *made.shape[1:])
            for one, box, samples in zip(slices, boxes, made, strict=True):
                parts = [None if x is None else upright.shown_in(x, one) for x in (voxels, estimates, squares)]
                for image in samples:
                    _add(restore(image, target, box), *parts)
            done += len(slices)
            if on_slices:
                on_slices(done, count)
    deviation = None if squares is None else np.sqrt(squares / np.maximum(estimates, 1))
    air = ~_widened(head, upright.spacing) | (estimates == 0)
    voxels[air] = fill
    if deviation is not None:
        deviation[air] = 0
    if upright is not scan:
        voxels = resampled(replace(upright, voxels=voxels), scan, fill)
        deviation = None if deviation is None else resampled(replace(upright, voxels=deviation), scan, 0.0)
    return VolumeTranslation(voxels, deviation, target, count, time.perf_counter() - started, settings)


def _add(pixels: np.ndarray, mean: np.ndarray, estimates: np.ndarray, squares: np.ndarray | None) -> None:
    """Take one more estimate into views of the mean and the sum of squared deviations (Welford 1962)."""
    estimates += 1
    off = pixels - mean
    mean += off / estimates
    if squares is not None:
        squares += off * (pixels - mean)


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


def _widened(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    for axis, width in enumerate(np.round(MARGIN_MM / spacing).astype(int)):
        mask = ndimage.maximum_filter1d(mask, 2 * int(width) + 1, axis=axis)
    return mask


def straightened(scan: Scan) -> Scan:
    """`scan`, or where its axes are oblique by `OBLIQUE_DEGREES` or more and it is no slab, `scan` on a
    grid along the patient's axes that covers it with the spacing of its own axes next to them."""
    axes = scan.affine[:3, :3] / scan.spacing
    angle = np.rad2deg(np.arccos(np.clip(np.abs(np.diag(axes)), 0, 1))).max()
    extent = np.array(scan.voxels.shape) * scan.spacing
    if scan.kind == "picture" or angle < OBLIQUE_DEGREES or extent.min() < SLAB_MM:
        return scan
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(scan.voxels.shape) - 1)
    world = nib.affines.apply_affine(scan.affine, corners)
    spacing = scan.spacing
    shape = tuple(int(n) for n in np.ceil(np.ptp(world, axis=0) / spacing) + 1)
    check_size(shape, scan.name)
    affine = nib.affines.from_matvec(np.diag(spacing), world.min(0))
    grid = replace(scan, voxels=np.broadcast_to(np.float32(0), shape), affine=affine)
    fill = AIR_HU if scan.modality == "CT" else scan.limits[0]
    upright = replace(grid, voxels=resampled(scan, grid, fill))
    if scan.modality == "MR":
        upright.__dict__["limits"] = scan.limits  # those of the scan, not of the air around it
    return upright


def resampled(scan: Scan, onto: Scan, fill: float, transform: np.ndarray | None = None) -> np.ndarray:
    """`scan`'s voxels on `onto`'s grid (its X, Y, Z), linearly; `fill` outside.

    transform: 4x4, world mm of `onto` to world mm of `scan`; by default they are the same.
    """
    import SimpleITK as sitk

    # In voxel indices, since ITK knows no sheared axes.
    between = np.linalg.inv(scan.affine) @ (np.eye(4) if transform is None else transform) @ onto.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(scan.voxels.T, np.float32))
    size = [int(n) for n in onto.voxels.shape]
    index = sitk.AffineTransform(between[:3, :3].ravel().tolist(), between[:3, 3].tolist())
    made = sitk.Resample(image, size, index, sitk.sitkLinear, [0.0] * 3, [1.0] * 3, np.eye(3).ravel().tolist(), fill)
    return np.ascontiguousarray(sitk.GetArrayFromImage(made).T)


def registered(moving: Scan, fixed: Scan) -> tuple[np.ndarray, float]:
    """Rigidly register `moving` to `fixed` by Mattes' mutual information (SimpleITK, two levels, 3 mm).

    Returns (transform 4x4, world mm of `fixed` to those of `moving`, for `resampled`; the mean
    displacement in mm over the fixed head). The heads' centres are aligned first where they are far apart.
    """
    import SimpleITK as sitk

    grid = _coarse_grid(fixed)
    fills = [AIR_HU if s.modality == "CT" else s.limits[0] for s in (fixed, moving)]
    own = _coarse_grid(moving)
    images = []
    for scan, where, fill in ((fixed, grid, fills[0]), (moving, own, fills[1])):
        image = sitk.GetImageFromArray(np.ascontiguousarray(resampled(scan, where, fill).T))
        image.SetSpacing([float(mm) for mm in where.spacing])
        image.SetOrigin(where.affine[:3, 3].tolist())  # in RAS: one frame for both is all that matters
        images.append(sitk.Clamp(image, lowerBound=-1000, upperBound=2000) if scan.modality == "CT" else image)
    centred = sitk.CenteredTransformInitializerFilter.GEOMETRY
    start = sitk.Euler3DTransform(sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), centred))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(40)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.3)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        2.0, 0.01, 200, relaxationFactor=0.7, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([2, 1])
    guesses = [sitk.Euler3DTransform(), start]
    for guess in guesses:
        guess.SetCenter(start.GetCenter())
    values = []
    for guess in guesses:
        method.SetInitialTransform(guess, inPlace=False)
        values.append(method.MetricEvaluate(*images))
    method.SetInitialTransform(guesses[int(np.argmin(values))], inPlace=False)
    found = method.Execute(*images)
    points = np.argwhere(head_mask(fixed))
    points = nib.affines.apply_affine(fixed.affine, points[:: max(1, len(points) // 1000)])
    moved = np.array([found.TransformPoint(p.tolist()) for p in points])
    corners = np.vstack([np.zeros(3), np.eye(3)])
    ends = np.array([found.TransformPoint(c.tolist()) for c in corners])
    transform = nib.affines.from_matvec((ends[1:] - ends[0]).T, ends[0])
    return transform, float(np.linalg.norm(moved - points, axis=1).mean())


def _coarse_grid(scan: Scan, mm: float = 3.0) -> Scan:
    """An empty scan that covers `scan` with cubic voxels along the patient's axes."""
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(scan.voxels.shape) - 1)
    world = nib.affines.apply_affine(scan.affine, corners)
    shape = tuple(int(n) for n in np.ceil(np.ptp(world, axis=0) / mm) + 1)
    affine = nib.affines.from_matvec(np.diag([mm] * 3), world.min(0))
    return replace(scan, voxels=np.broadcast_to(np.float32(0), shape), affine=affine)


def _with_head(head: np.ndarray, scan: Scan, plane: str) -> list[int]:
    """The slices of a plane that show some of the head."""
    axis = PLANES[::-1].index(plane)
    return [i for i in range(scan.count(plane)) if np.take(head, i, axis).any()]


def _batches(items: list, size: int) -> Iterator[list]:
    """Runs of at most `size` items of one plane: slices of one plane are of one size."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _flip(images: np.ndarray, mirrored: bool) -> np.ndarray:
    return np.ascontiguousarray(images[:, :, ::-1]) if mirrored else images
