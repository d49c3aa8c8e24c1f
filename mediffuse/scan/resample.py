"""Scans on other grids: straightened, resampled, registered."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np

from mediffuse.image.intensity import AIR_HU
from mediffuse.scan.head import head_mask
from mediffuse.scan.types import Scan, check_size

OBLIQUE_DEGREES = 20.0
"""From this angle between the scan's axes and the patient's on, slices are taken on a grid along the
patient's axes: the models know heads that lie about straight."""

SLAB_MM = 60.0
"""A scan thinner than this stays on its own axes: slices across it would show strips of the head."""


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
