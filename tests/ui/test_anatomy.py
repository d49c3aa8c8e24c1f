"""The page with a model that knows several parts of the body."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from gradio_client import Client, handle_file

from mediffuse.translate import Settings, Translator
from mediffuse.translate.checkpoints import Checkpoints
from mediffuse.ui import uploads
from tests import serving, tiny


@pytest.fixture
def folder(tmp_path):
    folder = tiny.save_all(tmp_path / "tiny")
    path = folder / "ip2p" / "mediffuse.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "anatomies": ["head", "pelvis"]}))
    yield folder
    uploads.expect(("head",))


def test_a_slice_is_translated_as_what_its_scan_shows(folder, tmp_path, ct):
    translator = Translator(Checkpoints(str(folder)))
    with serving.served(folder) as demo:
        client = Client(demo.local_url, verbose=False, download_files=str(tmp_path / "made"))
        for shown, size in (("head", 1.0), ("pelvis", 2.2)):
            scan = replace(ct, affine=ct.affine @ np.diag([size, size, size, 1]))
            nib.save(scan.to_nifti(scan.voxels.astype(np.int16)), tmp_path / "scan.nii.gz")
            files = client.predict(scan=handle_file(tmp_path / "scan.nii.gz"), api_name="/ct_to_mri")[8]
            made = np.sort(nib.load(next(file for file in files if file.endswith(".nii.gz"))).get_fdata(), axis=None)
            for anatomy in ("head", "pelvis"):
                wanted = translator.translate(scan.slice(), "ct2mr", Settings(anatomy=anatomy)).pixels
                assert np.allclose(made, np.sort(wanted, axis=None), atol=1e-3) == (anatomy == shown)
