"""Defacing: where the face and ears are, by registration to a head whose face is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np

from mediffuse.scan.resample import SLAB_MM, along_the_patient, registration_method, resampled
from mediffuse.scan.types import Scan, ScanError

TEMPLATE = Path(__file__).resolve().parents[2] / "assets" / "template" / "head_t1.nii.gz"
"""T1 of a whole head in MNI space (Colin 27, Holmes et al. 1998), 4 mm: see the README beside it."""

FACE = (-1.1, 0.98, 107.0)
"""Plane in MNI mm: the face is where y, z and 1 times these are negative. It runs in front of the brain, from the
eyebrows to the throat: that of `spm_deface` (Ashburner, SPM 12), 5 mm further from the brain."""

EAR_MM, EAR_BEHIND, EAR_ABOVE = 74.0, -55.0, 5.0
"""In MNI mm: ears are further from the midline than the first, in front of the second, and below the third."""

REGISTRATION_MM = 4.0
_TOP_MM = 92.0
"""Height of the template's vertex in MNI mm."""

MIN_AGREEMENT, MIN_INFORMATION = 0.85, 0.3
"""From which overlap (Dice) of the heads, in what scan and template both show, and from which mutual information on a
registration is taken for right. Right ones have over 0.93 and 0.32; heads turned round or upside down under 0.28."""


def face_mask(scan: Scan) -> np.ndarray:
    """Where the face and ears of a head CT or MR are, bool (X, Y, Z): what is to be blanked.

    The scan is registered to a template (mutual information; rotation, translation and scale), in
    whose space the face is known: the same mask each time. Air in front of it is part of it, so that no outline stays.
    Raises ScanError where the face cannot be found: in pictures, single slices and slabs, and where the registration
    does not fit.
    """
    extent = np.array(scan.voxels.shape) * scan.spacing
    if scan.kind == "picture" or extent.min() < SLAB_MM:
        raise ScanError(
            f"{scan.name} shows too little of the head to find the face in it ({SLAB_MM:.0f} mm are needed in every "
            "direction): it cannot be defaced. Use a whole volume."
        )
    to_template = _register(scan)
    return _in_face(to_template @ scan.affine, scan.voxels.shape)


def blanked(voxels: np.ndarray, face: np.ndarray | None, fill: float) -> np.ndarray:
    """`voxels` (X, Y, Z) with `fill` where the face is; themselves where `face` is None."""
    return voxels if face is None else np.where(face, np.float32(fill), voxels)


def defaced(scan: Scan, face: np.ndarray | None) -> Scan:
    """`scan` with its face blanked to air; itself where `face` is None."""
    return scan if face is None else replace(scan, voxels=blanked(scan.voxels, face, scan.background))


def _in_face(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Which voxels are of the face. affine: voxel indices to MNI mm."""
    face = np.empty(shape, bool)
    _, j, k = np.ogrid[:1, : shape[1], : shape[2]]
    for i in range(shape[0]):  # a whole volume of coordinates would be six times the scan
        x, y, z = (row[0] * i + row[1] * j[0] + row[2] * k[0] + row[3] for row in affine[:3])
        before = FACE[0] * y + FACE[1] * z + FACE[2] < 0
        face[i] = before | ((np.abs(x) > EAR_MM) & (y > EAR_BEHIND) & (z < EAR_ABOVE))
    return face


def _register(scan: Scan) -> np.ndarray:
    """4x4, world mm of `scan` to MNI mm. Raises ScanError where nothing fits."""
    import SimpleITK as sitk

    template = nib.load(TEMPLATE)
    grid = along_the_patient(scan, [REGISTRATION_MM] * 3)
    shown = resampled(replace(scan, voxels=np.ones_like(scan.voxels)), grid, 0.0) > 0.5
    grid = replace(grid, voxels=resampled(scan, grid, scan.background))
    head = grid.head_mask() & shown
    if not head.any():
        raise ScanError(f"{scan.name} shows no head: it cannot be defaced.")
    fixed, moving = (
        _image(np.clip(grid.voxels, -1000, 1500) if scan.modality == "CT" else grid.voxels, grid.affine),
        _image(np.asarray(template.dataobj, np.float32), template.affine),
    )
    method = registration_method(32)
    method.SetMetricFixedMask(
        sitk.Cast(_image((_widened(head) & shown).astype(np.float32), grid.affine), sitk.sitkUInt8)
    )
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 0.02, 150, relaxationFactor=0.6)
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([4, 0])
    method.SetSmoothingSigmasAreSpecifiedInPhysicalUnits(True)
    starts = _starts(head, grid.affine)
    values = []
    for start in starts:
        method.SetInitialTransform(start, inPlace=False)
        try:
            values.append(method.MetricEvaluate(fixed, moving))
        except RuntimeError:  # they do not overlap
            values.append(np.inf)
    tried = []
    for place in np.argsort(values)[:2]:
        method.SetInitialTransform(starts[place], inPlace=False)
        try:
            found = method.Execute(fixed, moving)
        except RuntimeError:
            continue
        transform = _matrix(found)
        if _plausible(transform) and _agreement(transform, head, shown, grid, template) > MIN_AGREEMENT:
            tried.append((-method.GetMetricValue(), transform))
    information, best = max(tried, key=lambda each: each[0], default=(0.0, None))
    if information < MIN_INFORMATION:
        raise ScanError(
            f"The face was not found in {scan.name}, so it cannot be defaced: its head is cut off, tilted or of a kind "
            "that is not known here."
        )
    return best


def _image(voxels: np.ndarray, affine: np.ndarray):
    """A SimpleITK image of voxels (X, Y, Z) on a grid along the patient's axes, in RAS."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.T, np.float32))
    image.SetSpacing(np.diag(affine)[:3].tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def _widened(head: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return ndimage.binary_dilation(head, iterations=3)


def _starts(head: np.ndarray, affine: np.ndarray) -> list:
    """Where the optimiser may start: by the head's top or thereabouts, nodding or not."""
    import SimpleITK as sitk

    points = nib.affines.apply_affine(affine, np.argwhere(head))
    top = points[:, 2].max()
    upper = points[points[:, 2] > top - 90]
    x, y = ((part.min() + part.max()) / 2 for part in (upper[:, 0], upper[:, 1]))
    starts = []
    for missing in (-20, 0, 20, 40, 60):  # of the vertex, in mm
        for nod in np.deg2rad((-20, 0, 20)):
            transform = sitk.Similarity3DTransform()
            transform.SetCenter([x, y, top - 60])
            transform.SetRotation([1, 0, 0], float(nod))
            transform.SetTranslation([-x, -18 - y, _TOP_MM - missing - top])
            starts.append(transform)
    return starts


def _matrix(transform) -> np.ndarray:
    """4x4 of a SimpleITK transform that is affine."""
    origin = np.array(transform.TransformPoint([0.0, 0.0, 0.0]))
    axes = [np.array(transform.TransformPoint(axis.tolist())) - origin for axis in np.eye(3)]
    return nib.affines.from_matvec(np.array(axes).T, origin)


def _plausible(transform: np.ndarray) -> bool:
    """Whether a head may differ from the template by a transform: in size by a third, in tilt by 45 degrees."""
    scales = np.linalg.norm(transform[:3, :3], axis=0)
    tilt = np.diag(transform[:3, :3]) / scales
    return bool((scales > 0.75).all() and (scales < 1.35).all() and (tilt > np.cos(np.deg2rad(45))).all())


def _agreement(transform: np.ndarray, head: np.ndarray, shown: np.ndarray, grid: Scan, template) -> float:
    """Dice of the scan's head and the template's, where both show something."""
    from scipy import ndimage

    tissue = np.asarray(template.dataobj, np.float32)
    there = np.linalg.inv(template.affine) @ transform @ grid.affine
    arguments = {"matrix": there[:3, :3], "offset": there[:3, 3], "output_shape": head.shape, "order": 1, "cval": -1}
    moved = ndimage.affine_transform(tissue, **arguments)
    known = (moved >= 0) & shown
    of_template = ndimage.binary_fill_holes(moved > 25)
    return float(2 * (of_template & head & known).sum() / max(1, (of_template & known).sum() + (head & known).sum()))
