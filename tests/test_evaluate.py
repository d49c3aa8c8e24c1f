"""The real command on a tiny dataset and tiny checkpoints, against a calculation of its own."""

import csv
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mediffuse.evaluate import main, score_rows, summarise
from tests import tiny
from tests.conftest import EXAMPLES, ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two patients' slices: one patient with twice as many, in the train and val splits."""
    work = tmp_path_factory.mktemp("evaluate")
    for patient in ("p1", "p2"):
        raw = work / "raw" / patient
        raw.mkdir(parents=True)
        shutil.copy(EXAMPLES / "head_ct.nii.gz", raw / "ct.nii.gz")
        shutil.copy(EXAMPLES / "head_t1.nii.gz", raw / "mr.nii.gz")
    command = ["train/prepare.py", "--input", work / "raw", "--output", work / "data", "--around", "1"]
    command += ["--size", "64", "--val", "1", "--test", "0"]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, check=True, capture_output=True)
    shutil.copytree(work / "data" / "val", work / "data" / "train")
    return work / "data"


def test_command_writes_results_that_agree_with_an_independent_calculation(folder, data, tmp_path):
    out = tmp_path / "out"
    assert main(["--checkpoint", str(folder), "--data", str(data), "--direction", "ct2mr", "--output", str(out)]) == 0
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert {"model", "direction", "speed", "protocol", "split", "n_images", "n_patients"} <= set(rows[0])
    black = next(r for r in rows if (r["model"], r["protocol"]) == ("black", "paper"))
    assert (black["n_images"], black["n_patients"]) == (6, 2)
    psnr, ssim = [], []
    for path in sorted((data / "val").glob("*_mr.png")):
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        data_range = int(grey.max()) - int(grey.min())
        psnr.append(peak_signal_noise_ratio(grey, np.zeros_like(grey), data_range=data_range))
        ssim.append(structural_similarity(grey, np.zeros_like(grey), data_range=data_range))
    assert black["psnr"] == pytest.approx(np.mean(psnr), abs=1e-6)
    assert black["ssim"] == pytest.approx(np.mean(ssim), abs=1e-6)
    # Both patients are the same head, so its mean image is nearly it.
    mean = next(r for r in rows if (r["model"], r["protocol"]) == ("mean image", "paper"))
    assert mean["psnr"] > black["psnr"] + 3
    table = (out / "results.md").read_text()
    assert table.count("\n") == 2 + len(rows)
    with (out / "images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6 * len(rows)


def test_runs_repeat(folder, data, tmp_path):
    given = ["--checkpoint", str(folder), "--data", str(data), "--direction", "mr2ct", "--speed", "diffusion"]
    given += ["--steps", "2", "--limit", "1"]
    results = []
    for name in ("one", "two"):
        assert main([*given, "--output", str(tmp_path / name)]) == 0
        rows = json.loads((tmp_path / name / "results.json").read_text())["rows"]
        results.append([(r["model"], r["protocol"], r["psnr"], r["mae"]) for r in rows])
    assert results[0] == results[1]


def test_means_are_over_patients():
    values = [("a", 10.0), ("a", 20.0), ("a", 30.0), ("b", 40.0)]
    results = [
        {"patient": p, "protocol": "paper", "psnr": v, "ssim": 0.5, "mae": 1.0, "seconds": 0.1} for p, v in values
    ]
    (row,) = summarise(results)
    assert row["psnr"] == pytest.approx(30)  # (20 + 40) / 2, not 25
    assert row["psnr_std"] == pytest.approx(10)


def test_a_perfect_prediction_is_perfect(data):
    from mediffuse.dataset import read_pair, read_rows

    rows = [r for r in read_rows(data / "val") if r["direction"] == "mr2ct"][:1]
    results = score_rows(data / "val", rows, lambda source, row: read_pair(data / "val", row)[1])
    assert [r["ssim"] for r in results] == pytest.approx([1, 1])
    assert all(r["psnr"] == float("inf") for r in results)
    assert all(r["mae"] == 0 for r in results)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "Run train/prepare.py first"),
        (["--data", "DATA", "--plane", "coronal"], "no coronal T1 pairs"),
        (["--data", "DATA", "--checkpoint", "nowhere"], "no checkpoint"),
    ],
)
def test_errors_are_clear(data, tmp_path, capsys, arguments, said):
    arguments = [str(data) if a == "DATA" else a for a in arguments]
    assert main([*arguments, "--output", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err
