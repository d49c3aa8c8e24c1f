"""The commands of docs/training.md, as they stand there, on two generated patients in SynthRAD's layout."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from mediffuse.prepare.layouts import split_of
from mediffuse.scan import Slice
from mediffuse.translate import Settings, Translator
from mediffuse.translate.checkpoints import VARIABLE
from tests import tiny
from tests.conftest import EXAMPLES, ROOT

TINY = ["--steps", "2", "--batch-size", "1", "--workers", "0", "--mixed-precision", "no", "--validate-images", "1"]
"""So that training takes a moment."""


def commands(heading: str) -> list[list[str]]:
    """The words of the commands in the first block below a heading of docs/training.md."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    block = re.search(rf"^## {re.escape(heading)}$.*?```bash\n(.*?)```", text, re.MULTILINE | re.DOTALL)[1]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def run(words: list[str], folder: Path) -> None:
    program = {"python": [sys.executable], "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"]}
    done = subprocess.run(
        [*program[words[0]], *words[1:]],
        cwd=folder,
        env=tiny.cpu_environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_reader_ends_with_a_checkpoint_in_the_app(tmp_path, monkeypatch):
    prepare, train, app = commands("From SynthRAD, or pairs of one's own, to a checkpoint in the app")
    for name in ("train", "assets"):
        (tmp_path / name).symlink_to(ROOT / name)
    patients = [f"1BA{number:03d}" for number in range(1, 100)]
    for split in ("train", "val"):
        patient = next(name for name in patients if split_of(name, {"val": 0.2, "test": 0.0}) == split)
        folder = tmp_path / "Task1" / "brain" / patient
        folder.mkdir(parents=True)
        shutil.copy(EXAMPLES / "head_ct.nii.gz", folder / "ct.nii.gz")
        shutil.copy(EXAMPLES / "head_t1.nii.gz", folder / "mr.nii.gz")
    run(prepare, tmp_path)
    run([*train, *TINY], tmp_path)

    variable, _, folder = app[0].partition("=")
    assert (variable, app[1:]) == (VARIABLE, ["python", "app.py"])
    monkeypatch.setenv(VARIABLE, str(tmp_path / folder))
    details = json.loads((tmp_path / folder / "mediffuse.json").read_text())
    assert details["training"]["steps"] == 2
    assert details["anatomies"] == ["head"]
    assert details["earlier"]
    one = Slice(np.random.default_rng(0).normal(0, 300, (40, 40)).astype(np.float32), (1, 1), "CT")
    made = Translator().translate(one, "ct2mr", Settings())
    assert np.isfinite(made.pixels).all()
    assert np.ptp(made.pixels) > 0
