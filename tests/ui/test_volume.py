"""The Volume tab's action, as a visitor of a served page gets it."""

import gzip
import json
import re

import nibabel as nib
import numpy as np

from mediffuse.scan import read_scan
from mediffuse.scan.deface import face_mask
from mediffuse.ui.examples import CT, T1
from tests.serving import in_a_loop
from tools.load import volume_values


def test_on_request_no_file_of_a_volume_has_a_face(visitor):
    async def run() -> list[bytes]:
        async with visitor() as one:
            scan, truth = await one.upload(CT), [await one.upload(T1)]
            made = await one.run("volume", volume_values(scan, deface=True, truth=truth))
            paths = sorted(set(re.findall(r'"path": "([^"]+\.nii\.gz)"', json.dumps(made))))
            return [(await one.http.get(f"/gradio_api/file={path}")).raise_for_status().content for path in paths]

    scan = read_scan(CT, "CT")
    face = face_mask(scan)
    files = in_a_loop(run())
    assert face.any()
    assert files
    for content in files:
        voxels = nib.as_closest_canonical(nib.Nifti1Image.from_bytes(gzip.decompress(content))).get_fdata()
        assert np.ptp(voxels[face]) == 0
        assert np.ptp(voxels[~face]) > 0
