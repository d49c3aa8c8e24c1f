"""What is unlike a head is said, and what is a head is not."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from mediffuse.scan import read_scan
from mediffuse.scan.plausibility import oddities


def test_the_examples_are_heads(ct, mr, ct_path):
    assert oddities(ct) == oddities(mr) == []
    assert read_scan(ct_path, "CT").warnings == ()


def test_metal(ct):
    voxels = ct.voxels.copy()
    voxels[80:84, 100:104, 3:5] = 3071  # 0.2 ml
    assert "0.2 ml" in oddities(replace(ct, voxels=voxels))[0]


@pytest.mark.parametrize(("scale", "said"), [(2.0, "more than a head"), (0.4, "no head, or a part")])
def test_size(ct, scale, said):
    affine = ct.affine @ np.diag([scale, scale, 1, 1])
    assert said in oddities(replace(ct, affine=affine))[0]


def test_no_skull(ct):
    assert "no head (0 % bone)" in oddities(replace(ct, voxels=np.minimum(ct.voxels, 290)))[0]


@pytest.mark.parametrize(
    ("tag", "value", "said"),
    [
        ("BodyPartExamined", "CHEST", "shows CHEST"),
        ("ContrastBolusAgent", "Omnipaque 350", "Omnipaque"),
        ("BodyPartExamined", "HEAD", None),
        ("ContrastBolusAgent", "NONE", None),
    ],
)
def test_what_a_dicom_says_of_itself(series, tmp_path, tag, value, said):
    for path in series.iterdir():
        dataset = pydicom.dcmread(path)
        setattr(dataset, tag, value)
        dataset.save_as(tmp_path / path.name)
    warnings = read_scan(tmp_path, "CT").warnings
    assert said in warnings[0] if said else warnings == ()


def test_a_late_echo_is_t2(mr):
    assert "T2-weighted" in oddities(replace(mr, tags={"EchoTime": "95"}))[0]
    assert oddities(replace(mr, tags={"EchoTime": "9"})) == []


def alone(ct) -> np.ndarray:
    """Where the brain of the example is."""
    brain = ndimage.binary_erosion((ct.voxels > 0) & (ct.voxels < 80))
    labels, _ = ndimage.label(brain)
    brain = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return ndimage.binary_fill_holes(ndimage.binary_dilation(brain, iterations=2))


def saved(tmp_path, voxels, affine):
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), affine), tmp_path / "scan.nii")
    return tmp_path / "scan.nii"


def test_a_brain_without_its_skull(ct, mr, tmp_path):
    scan = read_scan(saved(tmp_path, np.where(alone(ct), mr.voxels, 0), mr.affine), "MR")
    assert ["no scalp and skull" in text for text in scan.warnings] == [True]


def test_a_slab(mr, tmp_path):
    assert "a slab of 20 mm" in read_scan(saved(tmp_path, mr.voxels[:, :, 8:13], mr.affine), "MR").warnings[0]


def test_a_head_that_is_cut_off(ct, mr, tmp_path):
    assert "cut off at the left" in read_scan(saved(tmp_path, mr.voxels[60:], mr.affine), "MR").warnings[0]


def test_a_face_that_was_cut_away(mr):
    """A ball of a head with a forehead, on a block of a face that reaches as far forward, or not."""
    x, y, z = np.ogrid[:180, :220, :200]
    ball = ((x - 90) / 75) ** 2 + ((y - 110) / 90) ** 2 + ((z - 136) / 60) ** 2 < 1
    for front, missing in ((200, False), (130, True)):
        face = (np.abs(x - 90) < 50) & (y > 60) & (y < front) & (z < 80) & (z > 5)
        voxels = np.where(ball | face, 500, 0).astype(np.float32)
        scan = replace(mr, voxels=voxels, affine=np.eye(4), limits=(0, 1000))
        assert any("face seems to be cut away" in text for text in oddities(scan)) == missing
