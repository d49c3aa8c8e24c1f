"""What a script hands back as the viewer's layers, which the page wrote itself."""

import nibabel as nib
import numpy as np
import pytest

from mediffuse.scan import ScanError
from mediffuse.ui.volume_result import anatomy_layer, voxels_of
from tools import fuzz


def test_a_layer_comes_back_as_it_was_written(ct, tmp_path):
    made = np.clip(ct.voxels, 0, 255)
    layer = anatomy_layer(ct, made, "made", "MR", tmp_path)
    np.testing.assert_allclose(voxels_of(layer.path, ct, "MR"), made, atol=1e-3)


def test_another_file_in_its_place_is_refused(ct, ct_path, tmp_path):
    short = tmp_path / "made.nii.gz"
    nib.save(nib.load(ct_path).slicer[:, :, 1:], short)
    with pytest.raises(ScanError, match="differ in size"):
        voxels_of(str(short), ct, "CT")
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(fuzz.nested(20_000))
    with pytest.raises(ScanError, match="cannot be read"):
        voxels_of(str(broken), ct, "CT")
    with pytest.raises(ScanError, match="There is no file"):
        voxels_of(str(tmp_path / "none.nii.gz"), ct, "CT")
