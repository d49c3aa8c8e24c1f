"""Whether the two images of a pair show the same place: a rigid registration that should not move."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from mediffuse.scan.resample import registration_method

WORST_PIXELS = 3.0
"""Mean displacement over the body from which a pair counts as misregistered. On the 18 val patients of
SynthRAD2023 it is at most 1.1 of 256 pixels; a shift by 6 is measured as 5 to 6.4."""


class Registration(TypedDict):
    """How far rigid registration moves one image of a pair on the other.

    shift_pixels: mean displacement over the body. mutual_information: before and after, normalised (Studholme 1999,
    in [1, 2]). flagged: the shift reaches `WORST_PIXELS`, and the mutual information grew by it.
    """

    shift_pixels: float
    mutual_information: list[float]
    flagged: bool


def misregistration(fixed: np.ndarray, moving: np.ndarray, body: np.ndarray) -> Registration:
    """Register one image of a pair to the other rigidly: it should not move.

    fixed, moving: grey (H, W) of any modality; body: bool (H, W). Maximises Mattes' mutual information
    (SimpleITK, Euler2DTransform).
    """
    import SimpleITK as sitk
    from skimage.metrics import normalized_mutual_information

    if not body.any() or np.ptp(fixed) == 0 or np.ptp(moving) == 0:
        return Registration(shift_pixels=0.0, mutual_information=[1.0, 1.0], flagged=False)
    images = [sitk.GetImageFromArray(np.asarray(x, np.float32)) for x in (fixed, moving)]
    smooth = [sitk.SmoothingRecursiveGaussian(x, 1.5) for x in images]
    rows, columns = np.nonzero(body)
    start = sitk.Euler2DTransform((float(columns.mean()), float(rows.mean())), 0.0, (0.0, 0.0))
    method = registration_method(32)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.02, 60, gradientMagnitudeTolerance=1e-6)
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2, 1])
    method.SetInitialTransform(start, inPlace=False)
    found = method.Execute(*smooth)
    points = np.stack([columns, rows], axis=1)[:: max(1, len(rows) // 500)].astype(float)
    moved = np.array([found.TransformPoint(p.tolist()) for p in points])
    shift = float(np.linalg.norm(moved - points, axis=1).mean())
    resampled = sitk.GetArrayFromImage(sitk.Resample(smooth[1], smooth[0], found, sitk.sitkLinear))
    base = sitk.GetArrayFromImage(smooth[0])
    information = [
        float(normalized_mutual_information(base, x, bins=32)) for x in (sitk.GetArrayFromImage(smooth[1]), resampled)
    ]
    flagged = shift >= WORST_PIXELS and information[1] > information[0]
    return Registration(shift_pixels=shift, mutual_information=information, flagged=bool(flagged))
