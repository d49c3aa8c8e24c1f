"""The real command on tiny datasets and tiny checkpoints, against calculations of its own."""

import csv
import json
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
import yaml
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mediffuse.dataset import read_pair, read_rows
from mediffuse.evaluate import summary
from mediffuse.evaluate.__main__ import main
from mediffuse.evaluate.calibration import FRACTIONS, calibration
from mediffuse.evaluate.candidates import Sources
from mediffuse.evaluate.measure import Store
from mediffuse.evaluate.registration import misregistration
from mediffuse.evaluate.score import grey, score_rows
from mediffuse.metrics import body_mask
from tests import tiny
from tests.conftest import EXAMPLES, ROOT
from train import networks

FIELDS = {
    *("model", "direction", "speed", "protocol", "split", "n_images", "n_patients"),
    *("psnr", "ssim", "mae", "seconds_per_image"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny checkpoints: ip2p, controlnet and a direct U-Net."""
    return tiny.save_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two patients, both the bundled head: three slices each, in the train and val splits."""
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


def evaluate(output, *arguments) -> dict:
    assert main([*map(str, arguments), "--output", str(output)]) == 0
    return json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def full(folder, data, tmp_path_factory):
    """Everything at once: both speeds and splits, samples, sweeps, zero-shot, and pairs from elsewhere."""
    output = tmp_path_factory.mktemp("full")
    given = ["--data", data, "--split", "val", "--split", "train", "--checkpoint", folder, "--limit", 3]
    given += ["--speed", "fast", "--speed", "diffusion", "--steps", 2, "--samples", 2, "--zero-shot", folder / "ip2p"]
    given += ["--sweep", 1, "--sweep-steps", 2, 3, "--sweep-guidance", 1, 2, "--wild", EXAMPLES]
    given += ["--sweep-thresholds", 1, 9]
    return output, evaluate(output, *given)


def rows_of(results: dict, **wanted) -> list[dict]:
    return [r for r in results["rows"] if all(r[k] == v for k, v in wanted.items())]


def test_rows_agree_with_an_independent_calculation(folder, data, tmp_path):
    results = evaluate(tmp_path, "--checkpoint", folder, "--data", data, "--direction", "ct2mr")
    assert set(results["rows"][0]) >= FIELDS
    (black,) = rows_of(results, model="black", protocol="paper")
    assert (black["n_images"], black["n_patients"]) == (6, 2)
    psnr, ssim = [], []
    for path in sorted((data / "val").glob("*_mr.png")):
        truth = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        data_range = int(truth.max()) - int(truth.min())
        psnr.append(peak_signal_noise_ratio(truth, np.zeros_like(truth), data_range=data_range))
        ssim.append(structural_similarity(truth, np.zeros_like(truth), data_range=data_range))
    assert black["psnr"] == pytest.approx(np.mean(psnr), abs=1e-6)
    assert black["ssim"] == pytest.approx(np.mean(ssim), abs=1e-6)
    (copied,) = rows_of(results, model="input copied", protocol="paper")
    errors = []
    for row in [r for r in read_rows(data / "val") if r["direction"] == "ct2mr"]:
        source, target, _ = read_pair(data / "val", row)
        errors.append(np.abs(grey(source, "CT").astype(float) - grey(target, "MR")).mean())
    assert copied["mae"] == pytest.approx(np.mean(errors), abs=0.01)
    # Both patients are the same head, so its mean image is nearly it.
    (mean,) = rows_of(results, model="mean image", protocol="paper")
    assert mean["psnr"] > black["psnr"] + 3
    with (tmp_path / "images.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6 * len(results["rows"])


def test_synthrad_rows_agree_with_the_formulae_worked_out_by_hand(data, tmp_path, folder):
    """Black, i.e. -1000 HU everywhere: MAE and PSNR in the mask, worked out from the stored picture."""
    results = evaluate(tmp_path, "--checkpoint", folder, "--data", data, "--direction", "mr2ct", "--limit", 1)
    (black,) = rows_of(results, model="black", protocol="synthrad")
    row = next(r for r in read_rows(data / "val") if r["direction"] == "mr2ct")
    _, target, _ = read_pair(data / "val", row)
    from mediffuse.image.intensity import decode_ct

    hu = decode_ct(target).astype(np.float64)
    mask = body_mask(hu)
    assert black["mae"] == pytest.approx(np.abs(hu[mask] + 1000).mean(), rel=1e-6)
    mse = np.mean((np.clip(hu[mask], -1024, 3000) + 1000) ** 2)
    assert black["psnr"] == pytest.approx(10 * np.log10(4024**2 / mse), rel=1e-6)


def test_every_model_direction_and_split_has_its_row(full):
    _, results = full
    assert all(set(r) >= FIELDS for r in results["rows"])
    found = {(r["direction"], r["model"], r["speed"]) for r in rows_of(results, split="val", protocol="paper")}
    baselines = {"black", "input copied", "mean image"}
    expected = {(d, b, "none") for d in ("ct2mr", "mr2ct", "contour2mr") for b in baselines}
    for direction, name in (("ct2mr", "ip2p"), ("mr2ct", "ip2p"), ("contour2mr", "controlnet")):
        expected |= {(direction, name, "fast"), (direction, name, "diffusion")}
        expected |= {(direction, f"{name}, mean of 2", "diffusion")}
    expected |= {(d, "direct U-Net", "fast") for d in ("ct2mr", "mr2ct")}
    expected |= {(d, "zero-shot ip2p", "diffusion") for d in ("ct2mr", "mr2ct")}
    assert found == expected
    assert {r["split"] for r in results["rows"]} == {"val", "train", "wild"}
    (wild,) = rows_of(results, split="wild", model="ip2p", speed="fast", direction="ct2mr", protocol="paper")
    assert (wild["dataset"], wild["n_images"]) == (EXAMPLES.name, 1)
    (row,) = rows_of(results, split="val", model="ip2p", speed="fast", direction="ct2mr", protocol="paper")
    assert row["parameters"] == sum(p.numel() for part in tiny.modules(tiny.ip2p()) for p in part.parameters())
    assert row["training_steps"] == 3
    assert 0 < row["lpips"] < 5
    assert row["peak_memory_mib"] > 100


def test_sweeps_and_uncertainty_are_measured(full):
    _, results = full
    steps = {s["steps"] for s in results["sweeps"] if s["direction"] == "ct2mr" and s["guidance"] == 1}
    scales = {s["guidance"] for s in results["sweeps"] if s["direction"] == "ct2mr" and s["steps"] == 2}
    assert (steps, scales) == ({2, 3}, {1.0, 2.0})
    of_contours = [s for s in results["sweeps"] if s["speed"] == "fast"]
    assert [(s["direction"], s["thresholds"], s["steps"]) for s in of_contours] == [
        ("contour2mr", 1, None),
        ("contour2mr", 9, None),
    ]
    assert {u["direction"] for u in results["uncertainty"]} == {"ct2mr", "mr2ct", "contour2mr"}
    assert all(-1 <= u["spearman"] <= 1 for u in results["uncertainty"])


def test_a_threshold_sweep_changes_the_contours(data, tmp_path):
    pipeline = tiny.controlnet()
    tiny.strengthen(pipeline.controlnet)
    networks.save_half(pipeline, tmp_path / "controlnet")
    own, wide = Sources([str(tmp_path)]).threshold_sweeps(["fast", "diffusion"], [1, 9])
    assert own.identity != wide.identity
    row = next(r for r in read_rows(data / "val") if r["direction"] == "ct2mr")
    source = read_pair(data / "val", row)[0]
    assert not np.array_equal(own.load()(source, row), wide.load()(source, row))


def test_report_stands_alone_and_shows_every_figure(full):
    output, _ = full
    page = (output / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    drawn = {p.stem for p in (output / "figures").glob("*.png")}
    assert drawn == {p.stem for p in (output / "figures").glob("*.svg")}
    assert drawn == set(re.findall(r'<figure id="(\w+)">', page))
    for kind in ("quality", "grid", "sheet", "uncertainty", "losses", "sweep_steps", "sweep_thresholds"):
        assert any(name.startswith(kind) for name in drawn), kind
    assert "In the wild" in page
    assert "LPIPS" in page


def test_pictures_of_data_are_left_out_on_request(folder, data, tmp_path):
    given = ["--checkpoint", folder, "--data", data, "--limit", 1, "--direction", "ct2mr", "--wild", EXAMPLES]
    evaluate(tmp_path, *given, "--no-pictures")
    drawn = {p.stem for p in (tmp_path / "figures").glob("*.png")}
    assert not any(name.startswith(("sheet_data", "grid_data")) for name in drawn)
    assert any(name.startswith(f"sheet_{EXAMPLES.name}") for name in drawn)
    assert "left out of this copy" in (tmp_path / "report.html").read_text()


def test_card_has_metadata_that_the_hub_reads(full):
    from huggingface_hub import ModelCard

    output, results = full
    card = ModelCard.load(output / "card_ip2p.md")
    values = {(r.task_name, r.metric_name, r.dataset_split): r.metric_value for r in card.data.eval_results}
    (row,) = rows_of(results, split="val", model="ip2p", speed="fast", direction="ct2mr", protocol="paper")
    assert values["CT → MRI, fast", "PSNR (paper)", "val"] == pytest.approx(row["psnr"], abs=1e-4)


def test_a_stopped_run_goes_on_and_gives_the_same(folder, data, tmp_path):
    given = ["--checkpoint", folder, "--data", data, "--direction", "mr2ct", "--speed", "diffusion", "--steps", 2]
    whole = evaluate(tmp_path / "whole", *given, "--limit", 2)
    # As if stopped: one image done, another cut short while it was written.
    evaluate(tmp_path / "part", *given, "--limit", 1)
    measured = tmp_path / "part" / "measured-0.jsonl"
    with measured.open("a") as file:
        file.write('{"key": "ab')
    before = measured.read_text().count("\n")
    resumed = evaluate(tmp_path / "part", *given, "--limit", 2)
    both = [[(r["model"], r["protocol"], r["psnr"], r["mae"]) for r in x["rows"]] for x in (whole, resumed)]
    assert both[0] == both[1]
    again = measured.read_text().count("\n")
    assert again > before
    evaluate(tmp_path / "part", *given, "--limit", 2)
    assert measured.read_text().count("\n") == again, "nothing is measured twice"


def test_what_was_measured_counts_only_with_its_picture_as_it_was(tmp_path):
    store = Store(tmp_path)
    picture, digest = store.picture("one", np.eye(8, dtype=np.uint8))
    store.add("one", {"picture": picture, "picture_sha256": digest})
    left = store.pictures / ".writing-abc"
    left.mkdir()
    again = Store(tmp_path)
    assert not left.exists()
    assert again.get("one")["picture"] == picture
    whole = (tmp_path / picture).read_bytes()
    for damaged in (whole[:-1], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]):
        (tmp_path / picture).write_bytes(damaged)
        assert again.get("one") is None
    (tmp_path / picture).unlink()
    assert again.get("one") is None


def test_another_checkpoint_is_measured_anew(folder, data, tmp_path):
    given = ["--data", data, "--direction", "ct2mr", "--limit", 1]
    one = evaluate(tmp_path / "out", "--checkpoint", folder, *given)
    other = shutil.copytree(folder / "ip2p", tmp_path / "ip2p")
    tiny.change(other / "unet")
    two = evaluate(tmp_path / "out", "--checkpoint", other, *given)
    psnr = [rows_of(r, model="ip2p", protocol="paper")[0]["psnr"] for r in (one, two)]
    assert psnr[0] != psnr[1]


def test_two_processes_share_the_work(folder, data, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = ["--checkpoint", folder, "--data", data, "--direction", "ct2mr", "--output", tmp_path / "two"]
    command = [*launch, "-m", "mediffuse.evaluate", *given]
    environment = tiny.cpu_environment()
    done = subprocess.run(
        [str(c) for c in command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    files = sorted(p.name for p in (tmp_path / "two").glob("measured-*.jsonl"))
    assert files == ["measured-0.jsonl", "measured-1.jsonl"]
    one = evaluate(tmp_path / "one", "--checkpoint", folder, "--data", data, "--direction", "ct2mr")
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    both = [[(r["model"], r["protocol"], r["n_images"]) for r in x["rows"]] for x in (one, two)]
    assert both[0] == both[1]
    for a, b in zip(one["rows"], two["rows"], strict=True):
        assert a["psnr"] == pytest.approx(b["psnr"], abs=1e-3)


def test_a_folder_that_is_not_prepared_is_read_too(folder, tmp_path, ct_pictures, mr_pictures):
    """Pictures as in the shared data; one pair is shifted, and one has two sizes."""
    raw = tmp_path / "pictures" / "val"
    raw.mkdir(parents=True)
    for number, patient in enumerate(("a", "b", "c")):
        ct, mr = ct_pictures["full"][8 + number], mr_pictures[8 + number]
        if patient == "b":
            mr = np.roll(mr, 12, axis=1)
        if patient == "c":
            mr = mr[:-4]
        cv2.imwrite(str(raw / f"{patient}_axial_ct.png"), ct)
        cv2.imwrite(str(raw / f"{patient}_axial_mr.png"), mr)
    given = ["--checkpoint", folder, "--data", raw.parent, "--direction", "ct2mr"]
    results = evaluate(tmp_path / "out", *given)
    (row,) = rows_of(results, model="ip2p", protocol="paper")
    assert (row["n_images"], row["n_flagged"]) == (2, 1)
    (flagged,) = results["flagged"]
    assert "b_axial" in flagged["image"]
    assert flagged["shift_pixels"] == pytest.approx(12, abs=3)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "b_axial" in page
    assert "c_axial_ct.png" in page, "the pair that was left out is told of"


def test_a_registered_pair_is_not_flagged_and_a_turned_one_is(ct_pixels, mr_pixels, mr):
    from mediffuse.image.intensity import to_uint8, window
    from mediffuse.metrics import ct_to_grey

    fixed, moving = ct_to_grey(ct_pixels), to_uint8(window(mr_pixels, mr.limits))
    body = body_mask(ct_pixels)
    assert not misregistration(fixed, moving, body)["flagged"]
    height, width = moving.shape
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 8, 1)
    turned = misregistration(fixed, cv2.warpAffine(moving, turn, (width, height)), body)
    assert turned["flagged"]
    assert turned["mutual_information"][1] > turned["mutual_information"][0]


def test_calibration_against_cases_with_a_known_answer():
    rng = np.random.default_rng(0)
    truth, body = np.zeros((40, 40)), np.ones((40, 40), bool)
    spread = rng.uniform(0.1, 10, truth.shape)
    # The error is the deviation itself, so it is predicted perfectly.
    samples = np.stack([2 * spread, spread * 0])
    known = calibration(samples, truth, body)
    assert known["spearman"] == pytest.approx(1)
    assert known["sparsified"] == pytest.approx(known["oracle"])
    assert known["sparsified"][0] == pytest.approx(spread.mean())
    half = np.abs(FRACTIONS - 0.5).argmin()
    assert known["sparsified"][half] == pytest.approx(np.sort(spread.ravel())[:800].mean())
    assert np.all(np.diff(known["deviation"]) > 0)
    # Unrelated: no rank correlation, and removal does not help.
    noise = rng.normal(0, 1, (2, 40, 40))
    unrelated = calibration(samples[:1] * 0 + noise, rng.normal(0, 50, truth.shape), body)
    assert abs(unrelated["spearman"]) < 0.1
    with pytest.raises(ValueError, match="two or more"):
        calibration(samples[:1], truth, body)


def table(values: dict[str, list[float]], direction="ct2mr") -> pd.DataFrame:
    """An images table with a patient per value."""
    facts = {"dataset": "d", "split": "val", "direction": direction, "speed": "none", "protocol": "paper"}
    return pd.DataFrame(
        {**facts, "model": model, "patient": f"p{i}", "psnr": v, "ssim": v / 100, "mae": 1.0, "seconds": 0.1}
        for model, of in values.items()
        for i, v in enumerate(of)
    )


def test_means_are_over_patients():
    values = [("a", 10.0), ("a", 20.0), ("a", 30.0), ("b", 40.0)]
    results = [
        {"patient": p, "protocol": "paper", "psnr": v, "ssim": 0.5, "mae": 1.0, "seconds": 0.1} for p, v in values
    ]
    (row,) = summary.summarise(results)
    assert row["psnr"] == pytest.approx(30)  # (20 + 40) / 2, not 25
    assert row["psnr_std"] == pytest.approx(np.std([20, 40], ddof=1))
    assert (row["n_images"], row["n_patients"]) == (4, 2)


def test_intervals_cover_the_mean_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        low, high = summary.interval(rng.normal(5, 2, 25))
        covered += low < 5 < high
    assert 50 <= covered <= 60  # 95 % of 60 is 57
    assert summary.interval(np.array([1.0, 2.0])) is None
    assert summary.interval(np.array([3.0, 3.0, 3.0])) == [3.0, 3.0]


def test_wilcoxon_by_hand():
    # Six differences of one sign: the exact two-sided p is 2 / 2**6.
    images = table({"one": [1, 2, 3, 4, 5, 6], "two": [2, 4, 6, 8, 10, 12], "same": [1, 2, 3, 4, 5, 6]})
    tests = {(t["a"], t["b"], t["metric"]): t for t in summary.compare(images)}
    assert tests["one", "two", "psnr"]["p"] == pytest.approx(2 / 2**6)
    assert tests["one", "two", "psnr"]["difference"] == pytest.approx(-3.5)
    assert tests["one", "same", "psnr"]["p"] == 1
    assert all(t["q"] >= t["p"] for t in tests.values())


def test_a_perfect_prediction_is_perfect(data):
    rows = [r for r in read_rows(data / "val") if r["direction"] == "mr2ct"][:1]
    results = score_rows(data / "val", rows, lambda source, row: read_pair(data / "val", row)[1][None])
    assert [r["ssim"] for r in results] == pytest.approx([1, 1])
    assert all(r["psnr"] == float("inf") for r in results)
    assert all(r["mae"] == 0 for r in results)
    assert summary.finite(summary.summarise(results))[0]["psnr"] is None


def test_images_of_another_size_than_the_checkpoint_are_resized(folder, data, tmp_path):
    larger = tmp_path / "large"
    shutil.copytree(data, larger)
    for path in larger.rglob("*.png"):
        cv2.imwrite(str(path), cv2.resize(cv2.imread(str(path)), (96, 96), interpolation=cv2.INTER_NEAREST))
    results = evaluate(tmp_path / "out", "--checkpoint", folder, "--data", larger, "--limit", 1, "--direction", "mr2ct")
    assert rows_of(results, model="ip2p", protocol="paper")[0]["n_images"] == 1


def test_nothing_is_counted_twice(folder, data, tmp_path):
    """Repeated options, one checkpoint by two paths, and two of one name."""
    other = tmp_path / "other" / "ip2p"
    shutil.copytree(folder / "ip2p", other)
    tiny.change(other / "unet")
    again = [tmp_path / "other" / "direct", tmp_path / "wild" / EXAMPLES.name]
    shutil.copytree(folder / "direct", again[0])
    tiny.change(again[0])
    shutil.copytree(EXAMPLES, again[1])
    given = ["--data", data, "--limit", 1]
    given += [*["--direction", "ct2mr"] * 2, *["--split", "val"] * 2, *["--speed", "fast"] * 2]
    given += ["--checkpoint", folder, "--checkpoint", folder / "ip2p", "--checkpoint", other, "--checkpoint", again[0]]
    results = evaluate(tmp_path / "out", *given, "--wild", EXAMPLES, "--wild", EXAMPLES, "--wild", again[1])
    assert all(r["n_images"] == 1 for r in results["rows"])
    val = [r for r in results["rows"] if r["split"] == "val" and r["protocol"] == "paper" and r["speed"] != "none"]
    assert len({r["model"] for r in val}) == len(val) == 4
    assert len({r["psnr"] for r in val}) == 4
    assert len({r["dataset"] for r in results["rows"] if r["split"] == "wild"}) == 2


def test_rows_tell_the_settings_that_they_were_made_with(full):
    _, results = full
    for row in results["rows"]:
        sampled = row["speed"] == "diffusion"
        assert (row["steps"], row["guidance"], row["seed"]) == ((2, 1.0, 0) if sampled else (None, None, None))
        assert row["samples"] == (None if not sampled else 2 if "mean of" in row["model"] else 1)
    of_one = rows_of(results, split="val", direction="ct2mr", model="ip2p", speed="diffusion", protocol="paper")
    zero_shot = rows_of(results, split="val", direction="ct2mr", model="zero-shot ip2p", protocol="paper")
    # The same weights here, so the same picture: one sample, not the mean of two.
    assert of_one[0]["psnr"] == zero_shot[0]["psnr"]


def test_the_mean_image_follows_the_training_images(folder, data, tmp_path):
    copy = shutil.copytree(data, tmp_path / "data")
    given = ["--checkpoint", folder, "--data", copy, "--direction", "ct2mr", "--limit", 1]
    before = evaluate(tmp_path / "out", *given)
    for path in (copy / "train").glob("*_mr.png"):
        cv2.imwrite(str(path), cv2.imread(str(path)) // 2)
    after = evaluate(tmp_path / "out", *given)
    psnr = [rows_of(r, model="mean image", protocol="paper")[0]["psnr"] for r in (before, after)]
    assert psnr[0] > psnr[1] + 1


def test_another_contrast_in_the_wild_has_no_mean_image(folder, data, tmp_path, ct_pictures, mr_pictures):
    wild = tmp_path / "brain-t2"
    wild.mkdir()
    cv2.imwrite(str(wild / "x_10_ct.png"), ct_pictures["brain"][10])
    cv2.imwrite(str(wild / "x_10_mr.png"), mr_pictures[10])
    given = ["--checkpoint", folder, "--data", data, "--limit", 1, "--wild", wild]
    results = evaluate(tmp_path / "out", *given)
    models = {(r["direction"], r["model"]) for r in results["rows"] if r["split"] == "wild"}
    assert ("ct2mr", "ip2p") in models
    assert not any(direction == "mr2ct" for direction, _ in models), "a brain window holds no HU to compare with"
    assert not any(model == "mean image" for _, model in models)


def test_unseen_patients_are_claimed_only_where_that_is_known(folder, data, tmp_path, capsys):
    import hashlib

    known = shutil.copytree(folder / "ip2p", tmp_path / "ip2p")
    sha = hashlib.sha256((data / "train" / "metadata.jsonl").read_bytes()).hexdigest()
    (known / "mediffuse.json").write_text(json.dumps({"training": {"steps": 1, "data_sha256": sha}}))
    given = ["--data", data, "--direction", "ct2mr", "--limit", 1]
    seen = evaluate(tmp_path / "out", *given, "--checkpoint", known)
    assert seen["settings"]["unseen"] is False, "the val split here is a copy of the train split"
    assert "patients are in the train split, too" in capsys.readouterr().err
    assert "were trained on, so the figures flatter" in (tmp_path / "out" / "card_ip2p.md").read_text()
    unknown = evaluate(tmp_path / "out", *given, "--checkpoint", folder)
    assert unknown["settings"]["unseen"] is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "nowhere"], "not a folder"),
        ([], "Give --data"),
        (["--data", "DATA", "--split", "test"], "Run train/prepare.py first"),
        (["--data", "DATA", "--plane", "coronal"], "no coronal pairs for"),
        (["--data", "DATA", "--contrast", "T2"], "no axial T2 pairs"),
        (["--data", "DATA", "--source", "elsewhere"], "of source elsewhere"),
        (["--data", "DATA", "--checkpoint", "nowhere"], "no checkpoint"),
        (["--data", "DATA", "--checkpoint", "TINY/ip2p", "--direction", "contour2mr"], "no checkpoint for this"),
        (["--data", "DATA", "--checkpoint", "ONE_WAY", "--direction", "ct2mr"], "no checkpoint for this"),
        (["--data", "EMPTY"], "holds no pairs"),
        (["--data", "DATA", "--samples", "4"], "add --speed diffusion"),
        (["--data", "DATA", "--steps", "0"], "Steps must be between"),
        (["--data", "DAMAGED"], "line 1, is damaged"),
        (["--data", "DATA", "--checkpoint", "TRUNCATED"], "is damaged"),
        (["--data", "OUT"], "must not lie in each other"),
        (["--data", "UNEQUAL", "--checkpoint", "TINY"], "different sizes"),
        (["--data", "DATA", "--checkpoint", "TINY", "--fid", "nowhere.pth"], "no file nowhere.pth"),
    ],
)  # fmt: skip
def test_errors_are_clear(folder, data, tmp_path, capsys, arguments, said):
    def place(argument: str) -> str:
        if argument == "EMPTY":
            (tmp_path / "empty").mkdir()
            return str(tmp_path / "empty")
        if argument == "UNEQUAL":
            copy = shutil.copytree(data, tmp_path / "unequal")
            path = next((copy / "val").glob("*_mr.png"))
            cv2.imwrite(str(path), cv2.imread(str(path))[:, :-8])
            return str(copy)
        if argument == "ONE_WAY":
            copy = shutil.copytree(folder / "ip2p", tmp_path / "one_way")
            (copy / "mediffuse.json").write_text('{"directions": ["mr2ct"]}')
            return str(copy)
        if argument == "DAMAGED":
            copy = shutil.copytree(data, tmp_path / "damaged")
            (copy / "val" / "metadata.jsonl").write_text('{"file')
            return str(copy)
        if argument == "TRUNCATED":
            copy = shutil.copytree(folder / "ip2p", tmp_path / "truncated")
            (path,) = (copy / "unet").glob("*.safetensors")
            path.write_bytes(path.read_bytes()[:100])
            return str(copy)
        if argument == "OUT":
            return str(tmp_path)
        return argument.replace("DATA", str(data)).replace("TINY", str(folder))

    assert main([*map(place, arguments), "--output", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err


def test_fid_says_which_packages_it_needs(data, folder, tmp_path, capsys, monkeypatch):
    weights = tmp_path / "inception.pth"
    weights.touch()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    given = ["--data", data, "--checkpoint", folder, "--fid", weights, "--output", tmp_path / "out"]
    assert main([str(g) for g in given]) == 1
    assert "pip install torchmetrics torchvision" in capsys.readouterr().err


def test_impossible_numbers_are_refused(data, tmp_path, capsys):
    for option, value in (("--limit", "0"), ("--limit", "-1"), ("--sweep", "-1"), ("--around", "-1")):
        with pytest.raises(SystemExit):
            main(["--data", str(data), option, value, "--output", str(tmp_path / "out")])
        assert f"argument {option}: must be" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_told_of(data, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--data", str(data), "--output", str(tmp_path / "file" / "out")]) == 1
    assert "error:" in capsys.readouterr().err


def test_the_bundled_report_is_what_readme_and_cards_quote():
    from mediffuse.translate.checkpoints import limits
    from tools import publish

    rows = json.loads((ROOT / "assets" / "results" / "results.json").read_text())["rows"]
    assert publish.readme_table(rows) in (ROOT / "README.md").read_text()
    for path in (ROOT / "assets" / "checkpoints").glob("*/README.md"):
        text = path.read_text()
        assert text == publish.card(text, path.parent.name, rows, limits(str(path.parent)))
        assert "model-index" in yaml.safe_load(text.split("---")[1])


def test_the_bundled_report_holds_no_picture_of_the_data():
    page = (ROOT / "assets" / "results" / "report.html").read_text()
    assert "left out of this copy" in page
    shown = re.findall(r'<figure id="(sheet|grid)_(\w+)">', page)
    assert shown
    assert all(name.startswith(f"{EXAMPLES.name}_wild") for _, name in shown)


def test_a_report_is_laid_out_again_from_its_figures(tmp_path, capsys):
    shutil.copytree(ROOT / "assets" / "results", tmp_path / "again")
    page = tmp_path / "again" / "report.html"
    before = page.read_text()
    page.write_text(before.replace("<h1>", "<h1>Old: "))
    assert main(["--again", "--output", str(tmp_path / "again")]) == 0
    assert page.read_text() == before  # the bundled one is laid out as the template says
    assert main(["--again", "--output", str(tmp_path)]) == 1
    assert "holds no report.html" in capsys.readouterr().err
