"""Scans on other grids: straightened, resampled, registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import nibabel as nib
import numpy as np
from nibabel.spaces import vox2out_vox

from mediffuse.scan.types import MAX_VOXELS, Scan, ScanError, check_size

OBLIQUE_DEGREES = 20.0
"""From this angle between the scan's axes and the patient's on, slices are taken on a grid along the
patient's axes: the models know heads that lie about straight."""

SLAB_MM = 60.0
"""A scan thinner than this stays on its own axes: slices across it would show strips of the head."""

REGISTRATION_MM, MAX_REGISTERED = 3.0, 256**3
"""Side of the cubic voxels on which scans are registered, and their number at most: 0.77 m each way."""


def straightened(scan: Scan) -> Scan:
    """`scan`, or where its axes are oblique by `OBLIQUE_DEGREES` or more and it is no slab, `scan` on a
    grid along the patient's axes that covers it with the spacing of its own axes next to them."""
    axes = scan.affine[:3, :3] / scan.spacing
    angle = np.rad2deg(np.arccos(np.clip(np.abs(np.diag(axes)), 0, 1))).max()
    extent = np.array(scan.voxels.shape) * scan.spacing
    if scan.kind == "picture" or angle < OBLIQUE_DEGREES or extent.min() < SLAB_MM:
        return scan
    grid = along_the_patient(scan, scan.spacing)
    return replace(grid, voxels=resampled(scan, grid, scan.background))


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
    displacement in mm over the fixed head): the same each time. The heads' centres are aligned first where they are far
    apart.
    Raises ScanError for scans that are too unlike, or too large.
    """
    import SimpleITK as sitk

    images = []
    for scan in (fixed, moving):
        grid = along_the_patient(scan, [REGISTRATION_MM] * 3, MAX_REGISTERED)
        image = sitk.GetImageFromArray(np.ascontiguousarray(resampled(scan, grid, scan.background).T))
        image.SetSpacing([float(mm) for mm in grid.spacing])
        image.SetOrigin(grid.affine[:3, 3].tolist())  # in RAS: one frame for both is all that matters
        images.append(sitk.Clamp(image, lowerBound=-1000, upperBound=2000) if scan.modality == "CT" else image)
    try:
        found = _registration(images)
    except RuntimeError as error:  # in the words of its source code
        raise ScanError(
            f"{moving.name} and {fixed.name} cannot be registered: they have too little in common."
        ) from error
    points = np.argwhere(fixed.head_mask())
    if not len(points):
        raise ScanError(f"{fixed.name} shows no head: nothing can be registered to it.")
    points = nib.affines.apply_affine(fixed.affine, points[:: max(1, len(points) // 1000)])
    moved = np.array([found.TransformPoint(p.tolist()) for p in points])
    corners = np.vstack([np.zeros(3), np.eye(3)])
    ends = np.array([found.TransformPoint(c.tolist()) for c in corners])
    transform = nib.affines.from_matvec((ends[1:] - ends[0]).T, ends[0])
    return transform, float(np.linalg.norm(moved - points, axis=1).mean())


def registration_method(bins: int):
    """A SimpleITK registration by Mattes' mutual information (2003) over histograms of `bins`, optimiser, levels and
    start not set. Its result is the same to the bit each time; who samples the metric must give a seed."""
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(bins)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetNumberOfWorkUnits(1)  # several add up in the order in which they come to their end
    return method


def _registration(images: list):
    """The rigid transform between two SimpleITK images, world of the first to that of the second."""
    import SimpleITK as sitk

    centred = sitk.CenteredTransformInitializerFilter.GEOMETRY
    start = sitk.Euler3DTransform(sitk.CenteredTransformInitializer(*images, sitk.Euler3DTransform(), centred))
    method = registration_method(40)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(0.3, seed=1)
    method.SetOptimizerAsRegularStepGradientDescent(
        2.0, 0.01, 200, relaxationFactor=0.7, gradientMagnitudeTolerance=1e-6
    )
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
    return method.Execute(*images)


def along_the_patient(scan: Scan, spacing: Sequence[float], most: int = MAX_VOXELS) -> Scan:
    """A scan of zeros that covers `scan` with voxels of `spacing` (mm) along the patient's axes. Takes no memory.

    Raises ScanError where that takes more than `most` voxels.
    """
    shape, affine = vox2out_vox((scan.voxels.shape, scan.affine), spacing)
    check_size(shape, f"{scan.name}, put upright,", most)
    return replace(scan, voxels=np.broadcast_to(np.float32(0), shape), affine=affine)
