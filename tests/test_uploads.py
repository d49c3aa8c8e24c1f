"""Several files in one upload: parts of one scan, under the names that the visitor gave them."""

import nibabel as nib
import numpy as np
import pytest

from mediffuse.scan import ScanError
from mediffuse.ui.uploads import read_volume


def test_the_two_files_of_a_pair_are_one_scan(tmp_path, ct, ct_path):
    image = nib.load(ct_path)
    nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine), tmp_path / "head.hdr")
    scan = read_volume([str(tmp_path / "head.img"), str(tmp_path / "head.hdr")], "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)


def test_files_of_one_name_are_all_read_and_messages_name_no_temporary_folder(tmp_path, series, ct):
    paths = []
    for number, path in enumerate(series.iterdir()):
        (tmp_path / str(number)).mkdir()
        paths.append(tmp_path / str(number) / "IM0001")
        paths[-1].write_bytes(path.read_bytes())
    scan = read_volume([str(path) for path in paths], "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)
    assert scan.name == "IM0001 and 19 more"
    for path in paths[:2]:
        path.write_bytes(b"no scan")
    with pytest.raises(ScanError, match=r"^IM0001 and 1 more holds no DICOM series or other scan"):
        read_volume([str(path) for path in paths[:2]], "CT")
