"""The command line, killed at any moment: what it leaves is whole, and a rerun ends as if nothing had been."""

import contextlib
import json
import random
import resource
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from mediffuse import files
from tests import tiny
from tests.conftest import ROOT
from tests.serving import python


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("killed"))


@pytest.fixture
def scan(ct_path, tmp_path):
    image = nib.load(ct_path)
    nib.save(image.slicer[:, :, ::4], tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"


def contents(folder):
    """What a run left: files by name, without what is new in every DICOM series and so in its hash."""
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
    nifti = {p.name: p.read_bytes() for p in folder.glob("*.nii.gz")}
    records = [json.loads(p.read_text()) for p in folder.glob("*.json")]
    for record in records:
        record["sha256"] = None
        record["made"]["dicom"] = None
    return left, nifti, records


def test_killed_at_random_and_run_again(scan, checkpoints, tmp_path):
    def start(output) -> subprocess.Popen:
        words = [scan, "--to", "mri", "--deface", "--format", "nifti", "--format", "dicom"]
        command = [sys.executable, "-m", "mediffuse.translate", *words, "--checkpoint", checkpoints, "--output", output]
        return subprocess.Popen(
            [*map(str, command)],
            cwd=ROOT,
            env=tiny.cpu_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start(tmp_path / "whole").wait() == 0
    whole = contents(tmp_path / "whole")
    assert len(whole[0]) == 3 + 5
    moments = random.Random(14)
    for number in range(3):
        out = tmp_path / f"out{number}"
        process = start(out)
        # From when it begins to write on, what comes before leaves nothing.
        while process.poll() is None and not (out.is_dir() and any(out.iterdir())):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.wait()
        for path in out.glob("*.json"):
            assert json.loads(path.read_text())["source"]  # never half of one
        assert start(out).wait() == 0
        assert contents(out) == whole


@pytest.fixture
def run(checkpoints, scan, tmp_path):
    def run(*options) -> subprocess.CompletedProcess:
        words = ["-m", "mediffuse.translate", scan, "--to", "mri", "--output", tmp_path / "out"]
        return python(*words, "--checkpoint", checkpoints, *options)

    return run


def test_damage_is_noticed_and_mended(run, tmp_path):
    assert run().returncode == 0
    result, record = tmp_path / "out" / "head_synthetic_mri.nii.gz", tmp_path / "out" / "head_synthetic_mri.json"
    good, said = result.read_bytes(), record.read_text()
    result.write_bytes(good[:500] + bytes([good[500] ^ 1]) + good[501:])
    left = tmp_path / "out" / ".writing-abc"
    left.mkdir()
    (left / "head_synthetic_mri.nii.gz").write_bytes(good[:100])
    done = run()
    assert "1 translated" in done.stdout
    assert "head_synthetic_mri.nii.gz had changed since it was made, so it was made again." in done.stderr
    assert not left.exists()
    for damaged in (said[: len(said) // 2], said.replace('"steps": 6', '"steps": 7')):
        record.write_text(damaged)
        done = run()
        assert "1 translated" in done.stdout, done.stderr
        assert "its .json was damaged, so it was made again." in done.stderr
        assert (result.read_bytes(), record.read_text()) == (good, said)
    assert "1 skipped" in run().stdout


def test_a_full_disk_is_said_and_loses_nothing(tmp_path):
    files.write_text(tmp_path / "a.txt", "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="large") as error:
            files.write_text(tmp_path / "a.txt", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "the disk is full" in files.trouble(error.value)
    assert (tmp_path / "a.txt").read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_another_process_is_writing_stays(tmp_path):
    with files.complete(tmp_path / "a.txt") as part:
        part.write_text("whole")
        files.remove_leftovers(tmp_path)
        assert part.read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with contextlib.suppress(RuntimeError), files.complete(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "whole"
    with files.complete(tmp_path / "folder") as part:
        part.mkdir()
        (part / "one").write_bytes(b"1")
    first = files.sha256_of(tmp_path / "folder")
    with files.complete(tmp_path / "folder") as part:
        part.mkdir()
        (part / "one").write_bytes(b"2")
    assert files.sha256_of(tmp_path / "folder") != first
    assert np.array_equal([p.name for p in (tmp_path / "folder").iterdir()], ["one"])
