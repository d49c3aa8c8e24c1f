"""The Volume tab's action, as a visitor of a served page gets it."""

import gzip
import json
import re
from dataclasses import replace

import nibabel as nib
import numpy as np

from mediffuse.scan import read_scan
from mediffuse.scan.deface import face_mask
from mediffuse.ui.asked import AskedVolume
from mediffuse.ui.examples import CT, T1
from tests.serving import in_a_loop
from tools.load import volume_values

NEVER_MATTERS = {"steps": 9, "samples": 3, "start": "noise", "seed": 4}
MATTERS = {
    "paths": ["b.nii"],
    "direction": "mr2ct",
    "series": "1",
    "contrast": "T2",
    "speed": "diffusion",
    "planes": ("axial", "coronal"),
    "mirror": True,
    "deface": True,
}
OF_THE_COMPARISON = {"truth": ["t.nii"], "register": True, "dicom": True, "truth_contrast": "T2"}


def test_a_volume_is_of_what_decides_it_and_of_nothing_else():
    asked = AskedVolume(["a.nii"])
    for name, value in {**NEVER_MATTERS, **OF_THE_COMPARISON}.items():
        assert replace(asked, **{name: value}).recipe() == asked.recipe(), name
    for name, value in MATTERS.items():
        assert replace(asked, **{name: value}).recipe() != asked.recipe(), name
    sampled = replace(asked, speed="diffusion")
    for name, value in NEVER_MATTERS.items():
        assert replace(sampled, **{name: value}).recipe() != sampled.recipe(), name
    to_ct = replace(asked, direction="mr2ct")
    assert replace(to_ct, contrast="T2").recipe() == to_ct.recipe()


def test_no_volume_is_scored_across_contrasts(visitor):
    async def run(name: str, **changed) -> tuple[str, list, list]:
        async with visitor() as one:
            scan, truth = await one.upload(CT), [await one.upload(T1, name)]
            said, _, about, _, scores, *_ = await one.run("volume", volume_values(scan, truth=truth, **changed))
            return said, [layer["title"] for layer in json.loads(about)["layers"]], scores["data"]

    for name, changed, titles, expected in (
        ("t1.nii.gz", {"contrast": "T2"}, ["Synthetic MRI (T2)", "Real MRI (T1)"], "a T1, and this a synthetic T2"),
        ("scan.nii.gz", {}, ["Synthetic MRI (T1)", "Real MRI (contrast not known)"], "a T1 or a T2?"),
        ("scan.nii.gz", {"truth_contrast": "T1"}, ["Synthetic MRI (T1)", "Real MRI (T1)"], None),
    ):
        said, found, rows = in_a_loop(run(name, **changed))
        assert found[1:3] == titles
        assert bool(rows) == (expected is None)
        assert expected is None or expected in said


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
