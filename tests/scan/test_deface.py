"""Defacing: the face goes, the brain stays."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from mediffuse.scan import ScanError, deface
from mediffuse.scan.resample import along_the_patient, resampled
from mediffuse.scan.types import canonical
from tests.conftest import rotation


@pytest.fixture(scope="module")
def face(ct):
    return deface.face_mask(ct)


def cavity(ct) -> np.ndarray:
    """The inside of the skull without what is nearest to bone: the largest soft region that bone encloses."""
    soft = (ct.voxels > -20) & (ct.voxels < 100)
    labels, _ = ndimage.label(ndimage.binary_erosion(soft, iterations=3))
    return labels == np.bincount(labels.ravel())[1:].argmax() + 1


def test_the_face_goes_and_the_brain_stays(ct, face):
    brain, head = cavity(ct), ct.head_mask()
    assert brain.sum() * np.prod(ct.spacing) > 500_000
    assert not (brain & face).any()
    assert 0.02 < (face & head).sum() / head.sum() < 0.15
    # The example begins at the orbits: in front nothing is left at the bottom, and all is at the vertex and behind.
    (low, high), middle = ct.head, ct.voxels.shape[0] // 2
    assert face[middle, high[1] - int(15 / ct.spacing[1]) :, 0].all()
    assert not face[middle, : (low[1] + high[1]) // 2].any()
    assert not (face & head)[middle, :, -1].any()
    blank = deface.defaced(ct, face)
    assert (blank.voxels[face] == -1000).all()
    np.testing.assert_array_equal(blank.voxels[~face], ct.voxels[~face])


def test_the_mri_of_the_same_head_is_cut_alike(ct, mr, face):
    other = deface.face_mask(mr)
    head = ct.head_mask()
    assert 2 * (face & other & head).sum() / ((face & head).sum() + (other & head).sum()) > 0.65
    assert not (cavity(ct) & other).any()


def test_turned_axes_and_a_tilted_head(ct, face):
    flipped = nib.Nifti1Image(ct.voxels[::-1].transpose(2, 1, 0), ct.affine @ _turn(ct))
    turned = canonical(np.asarray(flipped.dataobj), flipped.affine, "CT", "nifti", "turned.nii.gz")
    np.testing.assert_allclose(turned.affine, ct.affine, atol=1e-4)
    np.testing.assert_array_equal(turned.voxels, ct.voxels)
    matrix = nib.affines.from_matvec(rotation(np.random.default_rng(3), 12), [20, -15, 30])
    tilted = replace(ct, affine=matrix @ ct.affine)
    mask = deface.face_mask(tilted)
    assert (mask == face)[ct.head_mask()].mean() > 0.97


def _turn(ct):
    """Indices of (z, y, -x) to those of (x, y, z)."""
    matrix = np.zeros((4, 4))
    matrix[0, 2], matrix[1, 1], matrix[2, 0], matrix[3, 3] = -1, 1, 1, 1
    matrix[0, 3] = ct.voxels.shape[0] - 1
    return matrix


def test_where_no_face_can_be_found_it_is_said(ct):
    with pytest.raises(ScanError, match="too little of the head"):
        deface.face_mask(ct.only("axial", 5))
    grid = along_the_patient(ct, [4.0] * 3)
    upside_down = replace(grid, voxels=resampled(ct, grid, -1000.0)[:, :, ::-1][:, ::-1])
    with pytest.raises(ScanError, match="face was not found"):
        deface.face_mask(upside_down)
