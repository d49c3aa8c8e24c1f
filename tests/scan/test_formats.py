from __future__ import annotations

import pytest

from mediffuse.scan.formats import stem_of


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("head.nii.gz", "head"),
        ("a.b.nii.gz", "a.b"),
        ("a.b.NII.GZ", "a.b"),
        ("a.b.nii", "a.b"),
        ("head.png", "head"),
        ("1.2.840.dcm", "1.2.840"),
        ("1.2.840.113", "1.2.840.113"),
        ("series.zip", "series"),
    ],
)
def test_a_name_loses_its_ending_and_nothing_else(name, stem):
    assert stem_of(name) == stem
