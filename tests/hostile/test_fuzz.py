"""A part of what `tools/fuzz.py` does at length."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tools import fuzz


def test_a_case_is_made_from_its_number_alone():
    assert fuzz.case(3, 17) == fuzz.case(3, 17)
    assert fuzz.case(3, 17) != fuzz.case(4, 17)
    assert len({fuzz.case(0, number).kind for number in range(150)}) > 20


def test_what_is_looked_for_is_found():
    """The judge of the fuzzer."""
    row = fuzz.Row()
    for text, said in (
        ("a.nii is damaged. Copy it again.", ""),
        ("/tmp/gradio/1/a.nii is not a scan.", "path"),
        ("Traceback (most recent call last) and so on.", "path"),
        ("None", "no sentence"),
    ):
        assert fuzz.tells(text, "a.nii") == said
        fuzz.judged({"outcome": "refused", "text": text, "seconds": 9}, "a.nii", row)
    fuzz.judged({"outcome": "crash", "text": "", "seconds": 0, "left": ["x"]}, "a.nii", row)
    assert row.troubles == {"slow": 4, "path": 2, "no sentence": 1, "crash": 1, "left": 1}
    assert "| 5 | 4 | 0 | 1 | 4 | 1 | 1 | 0 | 2 | 9.0 |" in fuzz.table({"a": row}, {})


def test_a_process_that_does_not_start_is_no_finding(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "START", 0.0)
    with pytest.raises(RuntimeError, match="does not start"):
        fuzz.Reader(tmp_path, fuzz.Peak()).ask(path="none.nii", modality="CT", number=1)


def run(*options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "tools" / "fuzz.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_readers_stand_two_hundred_cases():
    done = run("--readers", "--cases", "198", "--seed", "1", "--jobs", "2")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "| all | 198 |" in done.stdout


def test_endpoints_stand_some_calls():
    done = run("--api", "--cases", "40", "--seed", "1", "--minutes", "3")
    assert "| all | 40 |" in done.stdout, done.stderr
    for trouble in ("crash", "left", "other file", "path"):
        assert f": {trouble}" not in done.stderr
