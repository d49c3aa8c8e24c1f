"""train/prepare.py on SynthRAD's layouts: other parts of the body, killed and started again, the published split."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from mediffuse.dataset import shared_patients
from mediffuse.directions import prompt_for
from mediffuse.files import sha256_of
from mediffuse.prepare import Plan
from mediffuse.prepare.layouts import anatomy_by_name, contrast_by_name
from mediffuse.prepare.make import chosen
from mediffuse.scan import read_scan
from mediffuse.scan.plausibility import likeliest, oddities
from tests.test_prepare import ROOT, prepare, rows

SHAPE, SPACING = (24, 120, 160), (2.5, 2.5, 5.0)  # (Z, Y, X), mm along X, Y, Z


def body(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """CT in HU, T1 and mask (Z, Y, X) of a pelvis of ellipses: fat around muscle, hips with marrow, a bladder."""
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    x, y = (x - SHAPE[2] / 2) * SPACING[0], (y - SHAPE[1] / 2) * SPACING[1]
    wide = 1 + 0.04 * np.sin(z / 4 + seed)

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return ((x - cx) / (rx * wide)) ** 2 + ((y - cy) / (ry * wide)) ** 2 < 1

    hu, t1 = np.full(SHAPE, -1000.0), np.zeros(SHAPE)
    parts = [((0, 0, 175, 115), -100, 800), ((0, 5, 150, 90), 55, 300), ((0, 20, 35, 28), 8, 120)]
    for side in (-1, 1):
        parts += [((80 * side, 0, 32, 30), 700, 60), ((80 * side, 0, 24, 22), 250, 650)]
    for shape, density, signal_ in parts:
        hu[ellipse(*shape)], t1[ellipse(*shape)] = density, signal_
    mask = hu > -300
    hu += rng.normal(0, 12, SHAPE)
    t1 = np.abs(t1 + rng.normal(0, 15, SHAPE))
    return hu.astype(np.int16), t1.astype(np.float32), mask.astype(np.uint8)


def write(folder: Path, ending: str, seed: int, **changed: np.ndarray) -> None:
    folder.mkdir(parents=True)
    for name, voxels in (dict(zip(("ct", "mr", "mask"), body(seed), strict=True)) | changed).items():
        image = sitk.GetImageFromArray(voxels)
        image.SetSpacing(SPACING)
        image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))
        sitk.WriteImage(image, str(folder / f"{name}.{ending}"))


@pytest.fixture(scope="module")
def synthrad(tmp_path_factory) -> Path:
    """SynthRAD2023's pelves and SynthRAD2025's thorax, with their overviews, and a patient of Task 2 among them."""
    root = tmp_path_factory.mktemp("synthrad")
    for number, patient in enumerate(("1PA001", "1PC002", "1PA003")):
        write(root / "Task1" / "pelvis" / patient, "nii.gz", number)
    write(root / "Task1" / "TH" / "1THA001", "mha", 7, mask=np.zeros(SHAPE, np.uint8))
    (root / "Task1" / "TH" / "overviews").mkdir()
    (root / "Task1" / "TH" / "overviews" / "1_TH_train_parameters.xlsx").write_bytes(b"PK")
    write(root / "Task1" / "pelvis" / "2PA001", "nii.gz", 9)
    (root / "Task1" / "pelvis" / "2PA001" / "mr.nii.gz").rename(root / "Task1" / "pelvis" / "2PA001" / "cbct.nii.gz")
    return root / "Task1"


OPTIONS = ("--val", 0, "--test", 0, "--every", 20)


@pytest.fixture(scope="module")
def made(synthrad, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    output = tmp_path_factory.mktemp("made") / "out"
    done = prepare("--input", synthrad, "--output", output, *OPTIONS, "--jobs", 2)
    assert done.returncode == 0, done.stderr
    return output, done


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in folder.rglob("*") if p.is_file()}


def test_parts_of_the_body_and_contrasts_are_known_by_synthrads_names(made):
    output, done = made
    of = {row["patient"]: row for row in rows(output, "train") if row["direction"] == "ct2mr"}
    assert {name: (row["anatomy"], row["contrast"]) for name, row in of.items()} == {
        "1PA001": ("pelvis", "T1"),
        "1PC002": ("pelvis", "T2"),
        "1PA003": ("pelvis", "T1"),
        "1THA001": ("thorax", "T1"),
    }
    assert of["1PC002"]["edit_prompt"] == "translate pelvis CT scan image to T2 MRI scan image"
    assert "mask_image_file_name" in of["1PA001"]
    assert "mask_image_file_name" not in of["1THA001"]
    assert "1THA001: warning: mask.mha is empty" in done.stderr
    assert "2PA001: left out: no MRI beside ct.nii.gz, but a cone-beam CT" in done.stderr
    assert "1 left out: 2PA001 (report.csv says why)" in done.stdout
    # Nothing else is odd about a pelvis that is to be one.
    assert done.stderr.count("warning:") == 1
    assert {row["slice"] for row in rows(output, "train")} == set(range(0, SHAPE[0], 4))


def test_started_again_it_makes_what_is_missing_alone(made, synthrad):
    output, _ = made
    before, source = files(output), files(synthrad)
    times = {p.name: p.stat().st_mtime_ns for p in output.rglob("*.png")}
    lost = output / "train" / rows(output, "train")[0]["input_image_file_name"]
    lost.unlink()
    done = prepare("--input", synthrad, "--output", output, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert files(output) == before
    assert files(synthrad) == source
    stem = lost.name.split("_axial")[0]
    again = {p.name for p in output.rglob("*.png") if p.stat().st_mtime_ns != times[p.name]}
    assert again == {name for name in times if name.startswith(stem)}
    records = [json.loads(line) for line in (output / "manifest.jsonl").read_text().splitlines()][1:]
    assert len(records) == 5
    for record in records:
        for name, hashed in record["sources"].items():
            assert source[name] == hashed
        for name, hashed in record["pictures"].items():
            assert before[f"train/{name}"] == hashed


def test_other_options_are_refused_and_what_is_gone_is_removed(made, synthrad, tmp_path):
    output, _ = made
    done = prepare("--input", synthrad, "--output", output, "--val", 0, "--test", 0, "--every", 10)
    assert done.returncode == 2
    assert "already holds a dataset that was made otherwise: every was 20.0 and is 10.0" in done.stderr
    one, two = tmp_path / "in" / "pelvis", tmp_path / "out"
    for patient in ("1PA001", "1PA003"):
        (one / patient).mkdir(parents=True)
        for path in (synthrad / "pelvis" / patient).iterdir():
            (one / patient / path.name).write_bytes(path.read_bytes())
    given = ("--input", one, "--output", two, "--val", 0, "--test", 0)
    assert prepare(*given).returncode == 0
    for path in (one / "1PA001").iterdir():
        path.unlink()
    assert prepare(*given).returncode == 0
    assert {row["patient"] for row in rows(two, "train")} == {"1PA003"}
    assert {p.name.split("_")[1] for p in (two / "train").glob("*.png")} == {"1PA003"}


def test_killed_it_goes_on_and_ends_with_the_same_files(made, synthrad, tmp_path):
    output, words = tmp_path / "out", ["--size", "64", *map(str, OPTIONS)]
    command = [sys.executable, "train/prepare.py", "--input", str(synthrad), "--output", str(output), *words]
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        manifest = output / "manifest.jsonl"
        while process.poll() is None and not (manifest.is_file() and len(manifest.read_bytes().splitlines()) > 1):
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
    assert not list(output.glob("*/metadata.jsonl"))
    with manifest.open("a") as file:
        file.write('{"item": "cut')
    done = prepare("--input", synthrad, "--output", output, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert files(output) == files(made[0])


def test_the_published_split_shuffles_slices_and_is_told_of(synthrad, tmp_path):
    output = tmp_path / "out"
    given = ("--input", synthrad / "pelvis", "--output", output, "--every", 5, "--split", "published")
    done = prepare(*given)
    assert done.returncode == 0, done.stderr
    assert "figures on that test split flatter" in done.stdout
    count = {split: len(rows(output, split)) for split in ("train", "test")}
    assert count == {"train": 2 * (3 * SHAPE[0] - 4), "test": 2 * 4}  # 126 of 2524
    assert shared_patients(output, "test")
    for split in count:
        named = {row[key] for row in rows(output, split) for key in row if key.endswith("file_name")}
        assert named == {path.name for path in (output / split).glob("*.png")}
    before = files(output)
    assert prepare(*given).returncode == 0
    assert files(output) == before


def test_slices_lie_the_millimetres_apart_that_are_asked_for(ct):
    step = 3 * ct.spacing[2]
    every = chosen(ct, "axial", Plan(every=step))
    assert set(np.diff(every)) == {3}
    assert ct.count() // 2 in every
    assert min(every) < 3
    assert chosen(ct, "axial", Plan(every=step, around=1)) == [ct.count() // 2 + k for k in (-3, 0, 3)]


def test_names_tell_the_part_of_the_body():
    assert anatomy_by_name("1HNA001", ["x"]) == "head-neck"
    assert anatomy_by_name("p1", ["Task1", "AB"]) == "abdomen"
    assert anatomy_by_name("1BA001", ["pelvis"]) == "head"
    assert anatomy_by_name("p1", ["mine"]) == "head"
    assert contrast_by_name("1PC001", None) == "T2"
    assert contrast_by_name("1BC001", None) == "T1"
    assert prompt_for("mr2ct", "T1", "head-neck") == "translate head and neck T1 MRI scan image to CT scan image"


def test_a_scan_of_another_part_of_the_body_than_the_model_knows_is_told_of(ct, synthrad):
    pelvis = read_scan(synthrad / "pelvis" / "1PA001" / "ct.nii.gz", "CT", anatomies=["pelvis"])
    assert pelvis.warnings == ()
    assert "more than a head" in oddities(pelvis)[0]
    assert "pelves only" in oddities(ct, ["pelvis"])[0]
    assert oddities(ct, ["head", "pelvis"]) == oddities(pelvis, ["head", "pelvis"]) == []
    assert [likeliest(scan, ["head", "pelvis"]) for scan in (ct, pelvis)] == ["head", "pelvis"]
