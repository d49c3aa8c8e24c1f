"""The real command line on small data of every layout, made from the bundled example."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mediffuse.image.intensity import AIR_HU, decode_ct, decode_mr, to_uint8, window
from mediffuse.image.letterbox import Letterbox
from mediffuse.prepare.layouts import split_of
from mediffuse.prepare.make import around
from mediffuse.scan import read_scan

ROOT = Path(__file__).resolve().parents[1]
SIZE = 64
PATIENTS = [f"1BA{number:03d}" for number in range(10)]
SPLITS = ("train", "val", "test")
OPTION = {"alone": "--ct-only"}


def prepare(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "train/prepare.py", *map(str, arguments), "--size", str(SIZE)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def rows(output: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (output / split / "metadata.jsonl").read_text().splitlines()]


def model_image(path: Path) -> np.ndarray:
    """RGB in [0, 1], as the trainers read it."""
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) / np.float32(255)


@pytest.fixture(scope="module")
def synthrad(tmp_path_factory, ct, mr) -> Path:
    """<patient>/{ct,mr,mask}.nii.gz; two further patients are unusable and one has no mask."""
    folder = tmp_path_factory.mktemp("input") / "brain"
    hu, t1 = ct.voxels[::3, ::3, 4:16], mr.voxels[::3, ::3, 4:16]
    affine = ct.affine @ np.diag([3, 3, 1, 1])
    for number, patient in enumerate([*PATIENTS, "no_mr", "shifted"]):
        (folder / patient).mkdir(parents=True)
        # Told apart by one bright voxel in the corner of every slice.
        own = hu.astype(np.int16).copy()
        own[0, 0] = 100 * number
        volumes = {"ct": own, "mr": t1.astype(np.int16), "mask": (hu > -300).astype(np.uint8)}
        if patient == "no_mr":
            del volumes["mr"]
        if patient == PATIENTS[3]:
            del volumes["mask"]
        for name, voxels in volumes.items():
            moved = affine.copy()
            moved[0, 3] += 5 * (patient == "shifted" and name == "mr")
            nib.save(nib.Nifti1Image(voxels, moved), folder / patient / f"{name}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def volumes(tmp_path_factory, synthrad) -> tuple[Path, subprocess.CompletedProcess]:
    output = tmp_path_factory.mktemp("output")
    done = prepare("--input", synthrad, "--output", output, "--around", 1, "--val", 0.3, "--test", 0.3)
    assert done.returncode == 0, done.stderr
    return output, done


def test_patients_not_slices_are_split(volumes):
    output, _ = volumes
    homes = {}
    for split in SPLITS:
        assert rows(output, split), "the names of the test must fill every split"
        for row in rows(output, split):
            homes.setdefault(row["patient"], set()).add(split)
    assert homes == {patient: {split_of(patient, {"val": 0.3, "test": 0.3})} for patient in PATIENTS}


def test_every_slice_is_there_in_both_directions(volumes):
    output, _ = volumes
    every = [row for split in SPLITS for row in rows(output, split)]
    assert len(every) == len(PATIENTS) * 3 * 2
    assert {row["slice"] for row in every} == {5, 6, 7}
    assert {(row["direction"], row["edit_prompt"]) for row in every} == {
        ("ct2mr", "translate CT scan image to T1 MRI scan image"),
        ("mr2ct", "translate T1 MRI scan image to CT scan image"),
    }


def test_images_are_the_slices_themselves(volumes, synthrad):
    output, _ = volumes
    split, row = next(
        (split, row)
        for split in SPLITS
        for row in rows(output, split)
        if (row["patient"], row["slice"], row["direction"]) == (PATIENTS[7], 5, "ct2mr")
    )
    ct, mr, mask = (
        read_scan(synthrad / PATIENTS[7] / f"{name}.nii.gz", modality, allow_constant=name == "mask").slice("axial", 5)
        for name, modality in (("ct", "CT"), ("mr", "MR"), ("mask", "MR"))
    )
    assert ct.pixels[-1, -1] == 700, "the corner voxel that marks this patient"
    box = Letterbox(ct.pixels.shape, ct.spacing, SIZE)
    fitted = np.clip(box.fit(ct.pixels, AIR_HU), -1000, 2000)
    hu = decode_ct(model_image(output / split / row["input_image_file_name"]))
    np.testing.assert_allclose(hu, fitted, atol=6)
    made = decode_mr(model_image(output / split / row["edited_image_file_name"]), mr.limits)
    fitted = np.clip(box.fit(mr.pixels, mr.limits[0]), *mr.limits)
    np.testing.assert_allclose(made, fitted, atol=(mr.limits[1] - mr.limits[0]) / 509)
    inside = cv2.imread(str(output / split / row["mask_image_file_name"]), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_array_equal(inside, (box.fit(mask.pixels, 0) > 0.5) * 255)


def test_directions_share_their_images(volumes):
    output, _ = volumes
    pairs = {}
    for split in SPLITS:
        for row in rows(output, split):
            pairs.setdefault((row["patient"], row["slice"]), {})[row["direction"]] = (
                row["input_image_file_name"],
                row["edited_image_file_name"],
            )
    assert all(pair["ct2mr"] == pair["mr2ct"][::-1] for pair in pairs.values())


def test_unusable_patients_are_left_out_and_named(volumes):
    _, done = volumes
    assert "no_mr: left out: no MRI beside ct.nii.gz" in done.stderr
    assert "shifted: left out: The two scans do not lie on the same grid: they are up to 5.0 mm apart." in done.stderr
    assert "Traceback" not in done.stderr


def write_picture(path: Path, grey: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), grey)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, ct_pictures, mr_pictures) -> dict[str, Path]:
    """PNG folders: with a manifest and splits, brain windows without either, and CT only."""
    root = tmp_path_factory.mktemp("pictures")
    central, brain, alone = root / "central", root / "brain-t2", root / "alone"
    for split, patient in (("train", "p1"), ("train", "p2"), ("val", "p3")):
        write_picture(central / split / f"{patient}_axial_ct.png", ct_pictures["full"][10])
        write_picture(central / split / f"{patient}_axial_mr.png", mr_pictures[10])
        write_picture(central / split / f"{patient}_coronal_ct.png", ct_pictures["full"][9])
        write_picture(central / split / f"{patient}_coronal_mr.png", mr_pictures[9])
    with (central / "manifest.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["patient", "plane", "hu_slope", "hu_intercept"])
        table.writerow(["p1", "axial", 10, -900])
    write_picture(central / "train" / "p4_axial_ct.png", ct_pictures["full"][10])  # no MR
    write_picture(central / "train" / "p5_axial_ct.png", ct_pictures["full"][10])
    write_picture(central / "train" / "p5_axial_mr.png", mr_pictures[10][:100])  # another size
    write_picture(central / "train" / "p6_axial_ct.png", ct_pictures["full"][10])
    (central / "train" / "p6_axial_mr.png").write_bytes(b"")
    for index in (8, 9, 10):
        write_picture(brain / f"case4_{index}_ct.png", ct_pictures["brain"][index])
        write_picture(brain / f"case4_{index}_mr.png", mr_pictures[index])
        write_picture(alone / "deep" / f"s{index}.png", ct_pictures["full"][index])
    (alone / "cut.png").write_bytes((alone / "deep" / "s8.png").read_bytes()[:1000])
    return {"central": central, "brain": brain, "alone": alone}


@pytest.fixture(scope="module")
def from_pictures(tmp_path_factory, pictures) -> tuple[Path, subprocess.CompletedProcess]:
    output = tmp_path_factory.mktemp("output")
    inputs = [argument for name, folder in pictures.items() for argument in (OPTION.get(name, "--input"), folder)]
    done = prepare(*inputs, "--output", output, "--val", 0, "--test", 0)
    assert done.returncode == 0, done.stderr
    return output, done


def test_folders_named_by_split_are_kept(from_pictures):
    output, _ = from_pictures
    assert {row["patient"] for row in rows(output, "val")} == {"p3"}
    assert {row["patient"] for row in rows(output, "train")} == {"p1", "p2", "case4"}
    assert not (output / "test").exists()


def test_only_the_asked_planes_are_taken(from_pictures):
    output, _ = from_pictures
    assert {row["plane"] for split in ("train", "val") for row in rows(output, split)} == {"axial"}


def test_hu_comes_from_the_manifest_where_there_is_one(from_pictures, ct_pictures, ct_pixels):
    output, _ = from_pictures
    inputs = {
        row["patient"]: decode_ct(model_image(output / "train" / row["input_image_file_name"]))
        for row in rows(output, "train")
        if row["direction"] == "ct2mr" and row["source"] == "central"
    }
    box = Letterbox(ct_pixels.shape, size=SIZE)
    stated = np.clip(box.fit(ct_pictures["full"][10] * 10.0 - 900, AIR_HU), -1000, 2000)
    np.testing.assert_allclose(inputs["p1"], stated, atol=6)
    # Without one, air and brain are the anchors.
    fitted = box.fit(ct_pixels, AIR_HU)
    soft = (fitted > 10) & (fitted < 60)
    assert np.median(np.abs(inputs["p2"] - fitted)[soft]) < 8


def test_brain_windows_teach_ct_to_mr_only(from_pictures):
    output, _ = from_pictures
    made = [row for row in rows(output, "train") if row["source"] == "brain-t2"]
    assert len(made) == 3
    assert {(row["direction"], row["contrast"], row["edit_prompt"]) for row in made} == {
        ("ct2mr", "T2", "translate CT scan image to T2 MRI scan image")
    }
    assert {row["slice"] for row in made} == {8, 9, 10}


def test_ct_only_folders_are_unpaired(from_pictures, ct_pictures, ct):
    output, _ = from_pictures
    made = rows(output, "unpaired")
    assert {row["file_name"] for row in made} == {"alone_s8.png", "alone_s9.png", "alone_s10.png"}
    image = model_image(output / "unpaired" / "alone_s9.png")
    assert image.shape == (SIZE, SIZE, 3)
    fitted = Letterbox(ct_pictures["full"][9].shape, size=SIZE).fit(ct.slice("axial", 9).pixels, AIR_HU)
    assert np.abs(image[..., 0] - window(fitted, (-1000, 2000))).max() < 0.05


def test_damaged_pictures_are_left_out_and_named(from_pictures):
    _, done = from_pictures
    for name in ("p4_axial_mr.png", "p6_axial_mr.png"):
        assert f"{name} is missing or empty" in done.stderr
    assert re.search(r"left out: p5_axial_ct.png: (\d+) x \d+ pixels, and its MR picture \1 x 100", done.stderr)
    assert "cut: left out: cut.png cannot be read as a picture" in done.stderr
    assert "Traceback" not in done.stderr


def test_masks_names_and_manifests_that_mislead(tmp_path, ct_pictures, mr_pictures):
    folder = tmp_path / "test2"  # no T2
    for name in ("sub_0_axial", "sub_1_axial", "sub_2_axial"):
        write_picture(folder / f"{name}_ct.png", ct_pictures["full"][10])
        write_picture(folder / f"{name}_mr.png", mr_pictures[10])
    write_picture(folder / "sub_2_axial_mask.png", ct_pictures["full"][10][:50])
    output = tmp_path / "out"
    done = prepare("--input", folder, "--output", output, "--val", 0, "--test", 0)
    assert "sub_2_axial_mask.png is damaged, or not of the size" in done.stderr
    made = rows(output, "train")
    assert {row["patient"] for row in made} == {"sub_0", "sub_1"}
    assert {row["contrast"] for row in made} == {"T1"}
    twice = tmp_path / "twice"
    for part in ("a", "b"):
        write_picture(twice / part / "p_axial_ct.png", ct_pictures["full"][10])
        write_picture(twice / part / "p_axial_mr.png", mr_pictures[10])
    (folder / "manifest.csv").write_text("patient,plane\n0,axial\n")
    for given, message in ((folder, "hu_slope"), (twice, "Two pictures would be called")):
        done = prepare("--input", given, "--output", tmp_path / "other")
        assert done.returncode == 2
        assert message in done.stderr


def test_volumes_in_one_folder(tmp_path, ct_path, mr_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    for patient in ("one", "two"):
        (folder / f"{patient}_ct.nii.gz").symlink_to(ct_path)
        (folder / f"{patient}_{'t2' if patient == 'two' else 'mr'}.nii.gz").symlink_to(mr_path)
    done = prepare("--input", folder, "--output", tmp_path / "out", "--val", 0, "--test", 0)
    assert done.returncode == 0, done.stderr
    assert {(r["patient"], r["contrast"]) for r in rows(tmp_path / "out", "train")} == {("one", "T1"), ("two", "T2")}


def test_datasets_loads_it(tmp_path, synthrad, pictures, monkeypatch):
    """All sources in one, where some rows have a mask and others none, beside unpaired images."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    output = tmp_path / "output"
    inputs = ["--input", synthrad]
    inputs += [argument for name, folder in pictures.items() for argument in (OPTION.get(name, "--input"), folder)]
    done = prepare(*inputs, "--output", output, "--val", 0.3, "--test", 0.3)
    assert done.returncode == 0, done.stderr
    loaded = datasets.load_dataset("imagefolder", data_dir=str(output), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation", "test"}
    masked = set()
    for split, name in zip(SPLITS, ("train", "validation", "test"), strict=True):
        expected = rows(output, split)
        assert len(loaded[name]) == len(expected)
        for row, one in zip(expected, loaded[name], strict=True):
            assert (one["edit_prompt"], one["patient"]) == (row["edit_prompt"], row["patient"])
            for column in ("input_image", "edited_image"):
                on_disk = to_uint8(model_image(output / split / row[f"{column}_file_name"]))
                np.testing.assert_array_equal(np.asarray(one[column].convert("RGB")), on_disk)
            if one["mask_image"] is not None:
                assert set(np.unique(one["mask_image"])) == {0, 255}
                masked.add(one["patient"])
    assert masked == set(PATIENTS) - {PATIENTS[3]}


def test_a_patient_stays_in_its_split_whatever_is_added():
    fractions = {"val": 0.2, "test": 0.2}
    names = [f"patient{number}" for number in range(2000)]
    shares = {split: sum(split_of(name, fractions) == split for name in names) / len(names) for split in SPLITS}
    assert shares == pytest.approx({"train": 0.6, "val": 0.2, "test": 0.2}, abs=0.04)
    # Fixed for ever: moving one would put slices that a shipped model has seen into its test.
    assert [split_of(name, fractions) for name in PATIENTS[:6]] == ["val", "train", "train", "train", "test", "train"]


def test_around_is_centred_and_stays_inside():
    assert around(12, 0) == [6]
    assert around(11, 2) == [3, 4, 5, 6, 7]
    assert around(3, 5) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "{tmp}/nowhere"], "is not a folder"),
        (["--input", "{tmp}"], "holds no pairs, neither <patient>/ct.nii.gz nor pictures"),
        ([], "give --input"),
    ],
)
def test_wrong_input_ends_with_a_message(tmp_path, arguments, message):
    done = prepare(*(text.format(tmp=tmp_path) for text in arguments), "--output", tmp_path / "out")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_patient_in_two_inputs_is_in_one_split(tmp_path):
    grey = np.full((64, 64), 40, np.uint8)
    grey[20:44, 20:44] = 120
    for folder in ("first/val", "second/train"):
        (tmp_path / folder).mkdir(parents=True)
        for kind in ("ct", "mr"):
            cv2.imwrite(str(tmp_path / folder / f"p1_axial_{kind}.png"), grey)
    out = tmp_path / "out"
    prepare("--input", tmp_path / "first", "--input", tmp_path / "second", "--output", out, "--size", 64)
    assert not (out / "train").exists()
    assert len((out / "val" / "metadata.jsonl").read_text().splitlines()) == 4


def test_an_output_that_holds_a_dataset_is_not_mixed_with_another(volumes, synthrad):
    output, _ = volumes
    done = subprocess.run(
        [sys.executable, "train/prepare.py", "--input", str(synthrad), "--output", str(output)],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode != 0
    assert "already holds a dataset" in done.stderr


# What must not be learnt from


@pytest.fixture(scope="module")
def rubbish(tmp_path_factory, ct, mr) -> tuple[Path, Path, subprocess.CompletedProcess]:
    """(input, output, what was printed) of a good pair among bad ones, two levels down, beside screenshots."""
    folder = tmp_path_factory.mktemp("rubbish") / "Task1"
    hu, t1 = ct.voxels.astype(np.int16), mr.voxels.astype(np.float32)
    head = hu > -300
    scores = np.where(head, (t1 - t1[head].mean()) / t1[head].std(), 0).astype(np.float32)
    pairs = {
        "good": (hu, t1),
        "swapped": (t1, hu),
        "plus1024": (np.maximum(hu + 1024, 0).astype(np.uint16), t1),
        "window": (np.round(np.clip(hu, 0, 80) / 80 * 255).astype(np.uint8), t1),
        "scores": (hu, scores),
        "apart": (hu, np.roll(t1, 16, axis=0)),
    }
    for patient, scans in pairs.items():
        (folder / "brain" / patient).mkdir(parents=True)
        for name, voxels in zip(("ct", "mr"), scans, strict=True):
            image = sitk.GetImageFromArray(np.ascontiguousarray(voxels.transpose(2, 1, 0)))
            image.SetSpacing(ct.spacing.tolist())
            sitk.WriteImage(image, str(folder / "brain" / patient / f"{name}.mha"))
    write_picture(folder / "brain" / "overview" / "good.png", np.full((100, 100), 200, np.uint8))
    output = tmp_path_factory.mktemp("output")
    done = prepare("--input", folder, "--output", output, "--val", 0, "--test", 0)
    assert done.returncode == 0, done.stderr
    return folder, output, done


def test_what_is_surely_wrong_is_left_out(rubbish):
    _, output, done = rubbish
    assert {row["patient"] for row in rows(output, "train")} == {"good", "plus1024", "scores"}
    assert not (output / "unpaired").exists()
    with (output / "report.csv").open(newline="") as file:
        report = {row["patient"]: row for row in csv.DictReader(file)}
    expected = {
        "swapped": ("left out", "CT and MRI are swapped"),
        "window": ("left out", "The values are no HU"),
        "apart": ("left out", "do not lie on each other"),
        "plus1024": ("warning", "HU + 1024"),
        "scores": ("warning", "it was made black"),
    }
    assert set(report) == set(expected)
    for patient, (outcome, message) in expected.items():
        assert report[patient]["outcome"] == outcome
        assert message in report[patient]["message"]
        assert f"{patient}: {outcome}: " in done.stderr


def test_what_was_put_right_teaches_the_same(rubbish):
    _, output, _ = rubbish
    made = {row["patient"]: row for row in rows(output, "train") if row["direction"] == "ct2mr"}
    ct, moved = (model_image(output / "train" / made[name]["input_image_file_name"]) for name in ("good", "plus1024"))
    assert np.abs(ct - moved).max() < 0.01
    mr, scored = (model_image(output / "train" / made[name]["edited_image_file_name"]) for name in ("good", "scores"))
    assert np.abs(mr - scored).mean() < 0.02


def test_strict_stops(rubbish, tmp_path):
    done = prepare("--input", rubbish[0], "--output", tmp_path / "out", "--strict")
    assert done.returncode == 2
    assert "--strict stops here" in done.stderr
    assert not list(tmp_path.glob("out/*/metadata.jsonl"))


def test_unpaired_folders_are_not_taken_for_pairs(tmp_path, ct_pictures, mr_pictures):
    for name, grey in (("trainA", ct_pictures["brain"][10]), ("trainB", mr_pictures[10])):
        write_picture(tmp_path / "cyclegan" / name / "10.png", grey)
        write_picture(tmp_path / "loose" / f"{name}.png", grey)
    for folder, message in (("cyclegan", "CycleGAN: those are not pairs"), ("loose", "by --ct-only")):
        done = prepare("--input", tmp_path / folder, "--output", tmp_path / "out")
        assert done.returncode == 2
        assert message in done.stderr


def test_pictures_that_are_swapped_or_apart(tmp_path, ct_pictures, mr_pictures):
    for patient, ct, mr in (
        ("good", ct_pictures["full"][10], mr_pictures[10]),
        ("swapped", mr_pictures[10], ct_pictures["full"][10]),
        ("apart", ct_pictures["full"][10], np.roll(mr_pictures[10], 15, axis=1)),
    ):
        write_picture(tmp_path / "in" / f"{patient}_axial_ct.png", ct)
        write_picture(tmp_path / "in" / f"{patient}_axial_mr.png", mr)
    done = prepare("--input", tmp_path / "in", "--output", tmp_path / "out", "--val", 0, "--test", 0)
    assert {row["patient"] for row in rows(tmp_path / "out", "train")} == {"good"}
    assert re.search("swapped: left out: .*swapped", done.stderr)
    assert re.search("apart: left out: .*do not lie on each other", done.stderr)
