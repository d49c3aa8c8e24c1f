"""What is unlike a head is said, and what is a head is not."""

from dataclasses import replace

import numpy as np
import pydicom
import pytest

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
