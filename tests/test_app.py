"""The app as a script sees it: a real server, called by gradio_client."""

import shutil
import zipfile

import cv2
import nibabel as nib
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from mediffuse.scan import read_scan
from tests import serving, tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def demo(folder):
    with serving.served(folder) as demo:
        yield demo


@pytest.fixture(scope="module")
def client(demo, tmp_path_factory):
    return Client(demo.local_url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def call(client, api, scan, truth=None, **changed):
    """Call a tab's action; its outputs by name."""
    values = client.predict(scan=handle_file(scan), truth=truth and handle_file(truth), api_name=api, **changed)
    names = ["input", "made", "truth", "slider", "error", "spread", "gallery", "scores", "files", "seed", "status"]
    return dict(zip(names, values, strict=True))


def value(update):
    return update["value"] if isinstance(update, dict) and "value" in update else update


def test_import_is_light():
    import subprocess
    import sys

    code = "import app, sys; app.demo; print('torch' in sys.modules, 'diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split()[-2:] == ["False", "False"]


def test_library_does_not_import_gradio():
    import subprocess
    import sys

    code = "import mediffuse.translate, mediffuse.compare, mediffuse.image.display, sys; print('gradio' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split()[-1] == "False"


def test_every_action_has_a_name(client):
    named = client.view_api(return_format="dict")["named_endpoints"]
    for tab in ("ct_to_mri", "contours_to_mri", "mri_to_ct"):
        assert {f"/{tab}", f"/{tab}_preview"} <= set(named)
    assert "/contours_preview" in named
    assert not [name for name in named if "lambda" in name]


def test_parameters_and_defaults_are_those_of_the_dataclasses(client):
    from mediffuse.ui.asked import AskedContours, AskedSlice, AskedVolume, parameters

    named = client.view_api(return_format="dict")["named_endpoints"]
    for api, asked in (("/ct_to_mri", AskedSlice), ("/contours_to_mri", AskedContours), ("/volume", AskedVolume)):
        taken = named[api]["parameters"]
        assert [p["parameter_name"] for p in taken] == parameters(asked)
        for parameter in taken:
            if parameter["parameter_has_default"]:
                default = getattr(asked, parameter["parameter_name"])
                assert parameter["parameter_default"] == (list(default) if isinstance(default, tuple) else default)


@pytest.mark.parametrize("api", ["/ct_to_mri", "/contours_to_mri"])
def test_ct_volume_with_ground_truth(client, ct_path, mr_path, api):
    out = call(client, api, ct_path, mr_path)
    assert "Done in" in out["status"]
    rows = value(out["scores"])["data"]
    assert [row[0].split()[0] for row in rows] == ["paper", "synthrad"]
    assert 0 < float(rows[0][1]) < 60
    png, nifti = sorted(out["files"], key=lambda p: p.endswith(".nii.gz"))
    assert "SYNTHETIC" in Image.open(png).info["Description"]
    made, source = nib.load(nifti), nib.load(ct_path)
    assert made.shape == (*source.shape[:2], 1)
    assert "SYNTHETIC" in str(made.header["descrip"])
    middle = source.shape[2] // 2
    np.testing.assert_allclose(made.affine @ [3, 4, 0, 1], source.affine @ [3, 4, middle, 1], atol=1e-3)


def test_mri_to_ct_writes_hu(client, mr_path, ct_path):
    out = call(client, "/mri_to_ct", mr_path, ct_path, index=5)
    hu = np.asarray(nib.load(out["files"][1]).dataobj)
    assert hu.min() >= -1000
    assert hu.max() <= 2000
    assert "axial005_synthetic_CT" in out["files"][1]
    assert value(out["scores"])["data"][1][3].endswith("HU")


def test_a_picture_gives_a_picture(client, tmp_path, ct):
    grey = np.clip(ct.slice().pixels / 80, 0, 1) * 255
    cv2.imwrite(str(tmp_path / "ct.png"), grey.astype(np.uint8))
    out = call(client, "/ct_to_mri", tmp_path / "ct.png")
    assert len(out["files"]) == 1
    assert not out["scores"]["data"]


def test_sampling_returns_its_seed_and_repeats(client, ct_path):
    wanted = {"speed": "diffusion", "steps": 2, "samples": 2}
    first = call(client, "/ct_to_mri", ct_path, random=True, **wanted)
    assert first["spread"]
    assert len(value(first["gallery"])) == 2
    again = call(client, "/ct_to_mri", ct_path, random=False, seed=first["seed"], **wanted)
    assert again["seed"] == first["seed"]
    one, two = (np.asarray(Image.open(value(out["made"]))) for out in (first, again))
    np.testing.assert_array_equal(one, two)


def test_steps_are_streamed(client, ct_path):
    job = client.submit(
        scan=handle_file(ct_path), truth=None, speed="diffusion", steps=4, random=False, seed=3, api_name="/ct_to_mri"
    )
    job.result(timeout=60)
    said = [output[-1] for output in job.outputs() if isinstance(output[-1], str)]
    assert [s for s in said if "Step 2 of 4" in s]
    assert "Done in" in said[-1]


def test_contours_follow_the_thresholds_without_the_model(client, ct_path):
    api = "/contours_preview"
    few, many = (
        np.asarray(Image.open(client.predict(handle_file(ct_path), -1, "auto", "windows", *limits, api_name=api)))
        for limits in ((490, 500) * 3, (20, 60) * 3)
    )
    assert (few > 128).sum() < (many > 128).sum()


BAD = {
    "text.png": (b"not a picture", "damaged, cut short"),
    "empty.nii.gz": (b"", "empty"),
    "notes.docx": (b"hello", "not a file type"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_explained_and_the_app_lives(client, ct_path, tmp_path, name):
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(AppError, match=said):
        call(client, "/ct_to_mri", tmp_path / name)
    assert "Done" in call(client, "/ct_to_mri", ct_path)["status"]


def test_ground_truth_of_another_grid_is_refused(client, ct_path, mr_path, tmp_path):
    image = nib.load(mr_path)
    nib.save(image.slicer[:, :, 2:], tmp_path / "short.nii.gz")
    with pytest.raises(AppError, match="differ in size"):
        call(client, "/ct_to_mri", ct_path, tmp_path / "short.nii.gz")
    affine = image.affine.copy()
    affine[0, 3] += 5
    moved = nib.Nifti1Image(np.asarray(image.dataobj), affine)
    nib.save(moved, tmp_path / "moved.nii.gz")
    with pytest.raises(AppError, match="not lie on the same grid"):
        call(client, "/ct_to_mri", ct_path, tmp_path / "moved.nii.gz")


def test_an_mri_in_the_ct_tab_is_warned_of(client, mr_path):
    notice = client.predict(scan=handle_file(mr_path), api_name="/ct_to_mri_preview")[1]
    assert "looks like an MRI" in value(notice)


def test_one_broken_checkpoint_leaves_the_other_tabs(folder, tmp_path, ct_path):
    shutil.copytree(folder / "controlnet", tmp_path / "controlnet")
    with serving.served(tmp_path) as demo:
        client = Client(demo.local_url, verbose=False)
        with pytest.raises(AppError, match="There is no checkpoint for this direction"):
            call(client, "/ct_to_mri", ct_path)
        assert "Done" in call(client, "/contours_to_mri", ct_path)["status"]


def test_nothing_is_left_of_a_run(client, ct_path):
    import tempfile
    from pathlib import Path

    before = set(Path(tempfile.gettempdir()).glob("tmp*"))
    call(client, "/ct_to_mri", ct_path)
    left = [p for p in set(Path(tempfile.gettempdir()).glob("tmp*")) - before if any(p.rglob("*synthetic*"))]
    assert not left


def test_bundled_example_is_read(ct_path):
    from mediffuse.ui.examples import CT_EXAMPLES, MR_EXAMPLES

    for example in CT_EXAMPLES:
        assert not read_scan(example.scan, "CT").warnings
    for example in MR_EXAMPLES:
        assert not read_scan(example.scan, "MR").warnings


def test_a_series_is_chosen_by_its_uid_in_every_tab(client, series, two_series, mr_path):
    import pydicom

    uid = pydicom.dcmread(next(series.iterdir())).SeriesInstanceUID
    given = {"scan": handle_file(two_series)}
    for api in ("/ct_to_mri", "/contours_to_mri"):
        with pytest.raises(AppError, match=f"holds 2 series.*{uid}"):
            call(client, api, two_series)
        out = call(client, api, two_series, mr_path, series=uid)
        assert "Ground truth" not in out["status"]
        client.predict(**given, series=uid, api_name=f"{api}_preview")
    client.predict(**given, series=uid, api_name="/contours_preview")
    made = client.predict(paths=[handle_file(two_series)], truth=None, series=uid, api_name="/volume")
    assert any("20 slices" in str(part) for part in made)


def test_a_zip_of_both_serves_either_direction(client, ct_and_mr):
    for api in ("/ct_to_mri", "/mri_to_ct"):
        out = call(client, api, ct_and_mr, ct_and_mr)
        assert "and this needs" not in out["status"]
        assert value(out["truth"])


@pytest.mark.parametrize("api", ["/ct_to_mri_batch", "/contours_to_mri_batch"])
def test_several_at_once(client, ct_path, mr_path, ct_pictures, tmp_path, api):
    paths = [ct_path, mr_path, tmp_path / "a.png", tmp_path / "<b>a.txt"]
    cv2.imwrite(str(paths[2]), ct_pictures["brain"][10])
    paths[3].write_text("hello")
    out = client.predict(files=[handle_file(path) for path in paths], api_name=api)
    table, gallery, packed = map(value, out[:3])
    said = [row[2] for row in table["data"]]
    assert [("Done" in text, "looks like an MRI" in text, "not a file type" in text) for text in said] == [
        (True, False, False),
        (False, True, False),
        (True, False, False),
        (False, False, True),
    ]
    assert len(gallery) == 2
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
    assert names == [
        "01_head_ct_axial010_synthetic_MR.png",
        "01_head_ct_axial010_synthetic_MR.nii.gz",
        "03_a_axial000_synthetic_MR.png",
    ]
    assert "2 of 4" in out[3]


def test_a_batch_has_bounds(client, ct_path):
    with pytest.raises(AppError, match="1 to 16"):
        client.predict(files=[], api_name="/ct_to_mri_batch")
    with pytest.raises(AppError, match="1 to 16"):
        client.predict(files=[handle_file(ct_path)] * 17, api_name="/ct_to_mri_batch")
    out = client.predict(files=[handle_file(ct_path)] * 9, speed="diffusion", steps=50, api_name="/ct_to_mri_batch")
    assert all("450 steps" in row[2] for row in value(out[0])["data"])
