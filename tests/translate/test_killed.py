"""The command line, killed at any moment: what it leaves is whole, and a rerun ends as if nothing had been."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from mediffuse import files
from tests import tiny
from tests.conftest import ROOT

_SERVER = """
import os, sys
from mediffuse.translate.__main__ import main
import torch, diffusers, transformers, accelerate
from diffusers import StableDiffusionInstructPix2PixPipeline
for line in sys.stdin:
    process = os.fork()
    if not process:
        sys.exit(main(line.rstrip("\\n").split("\\t")))
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""
"""The command line, forked from a process that has imported what it needs: so most of a run's time is its work."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="module")
def server():
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        cwd=ROOT,
        env=tiny.cpu_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def scan(ct_path, tmp_path):
    image = nib.load(ct_path)
    nib.save(image.slicer[:, :, ::4], tmp_path / "head.nii.gz")
    return tmp_path / "head.nii.gz"


def start(server, words) -> int:
    """Begin a run; the id of its process."""
    server.stdin.write("\t".join(map(str, words)) + "\n")
    server.stdin.flush()
    return int(server.stdout.readline())


def end(server) -> int:
    """Wait for the run; its exit code."""
    while not (line := server.stdout.readline().strip()).lstrip("-").isdigit():
        assert line, "the server ended"
    return int(line)


def contents(folder):
    """What a run left: files by name, without what is new in every DICOM series and so in its hash."""
    left = {p.relative_to(folder).as_posix() for p in folder.rglob("*")}
    nifti = {p.name: p.read_bytes() for p in folder.glob("*.nii.gz")}
    records = [json.loads(p.read_text()) for p in folder.glob("*.json")]
    for record in records:
        record["sha256"] = None
        record["made"]["dicom"] = None
    return left, nifti, records


def test_killed_at_random_and_run_again(server, scan, checkpoints, tmp_path):
    import os

    words = [scan, "--to", "mri", "--format", "nifti", "--format", "dicom", "--checkpoint", checkpoints, "--output"]
    began = time.monotonic()
    start(server, [*words, tmp_path / "whole"])
    assert end(server) == 0
    seconds = time.monotonic() - began
    whole = contents(tmp_path / "whole")
    assert len(whole[0]) == 3 + 5
    moments = random.Random(14)
    killed = 0
    for number in range(6):
        out = tmp_path / f"out{number}"
        process = start(server, [*words, out])
        time.sleep(moments.uniform(0.3, 1.0) * seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        killed += end(server) == -signal.SIGKILL
        for path in out.rglob("*.json") if out.is_dir() else []:
            assert json.loads(path.read_text())["source"]  # never half of one
        start(server, [*words, out])
        assert end(server) == 0
        assert contents(out) == whole
    assert killed


@pytest.fixture
def run(checkpoints, scan, tmp_path):
    def run(*options) -> subprocess.CompletedProcess:
        words = [sys.executable, "-m", "mediffuse.translate", scan, "--to", "mri", "--output", tmp_path / "out"]
        return subprocess.run(
            [*map(str, [*words, "--checkpoint", checkpoints, *options])],
            cwd=ROOT,
            env=tiny.cpu_environment(),
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )

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


def test_a_full_disk_is_said(run, tmp_path):
    import resource

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    before = tmp_path / "before.nii.gz"
    assert run().returncode == 0
    result = tmp_path / "out" / "head_synthetic_mri.nii.gz"
    shutil.copy(result, before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "run", lambda *words, real=subprocess.run, **o: real(*words, preexec_fn=limited, **o))
        done = run("--overwrite")
    assert done.returncode == 1
    assert "the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert result.read_bytes() == before.read_bytes()
    assert not list((tmp_path / "out").glob(".writing-*"))


def test_what_another_process_is_writing_stays(tmp_path):
    with files.complete(tmp_path / "a.txt") as part:
        part.write_text("whole")
        files.remove_leftovers(tmp_path)
        assert part.read_text() == "whole"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(RuntimeError), files.complete(tmp_path / "a.txt") as part:  # noqa: PT012
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
