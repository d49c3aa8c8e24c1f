"""Files are deleted in their time, and with their process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mediffuse.ui import store

LIVE = "from mediffuse.ui import store; print(store.own_folder(), flush=True); import time; time.sleep(60)"


@pytest.fixture
def folder():
    """A folder in that of this process."""
    made = store.own_folder() / "tested"
    made.mkdir(exist_ok=True)
    return made


def aged(folder: Path, name: str, seconds: float = 1.2) -> Path:
    """A file that was not used for so long."""
    path = folder / name
    path.write_text("scan")
    time.sleep(seconds)
    return path


def test_what_is_not_used_is_deleted_and_what_is_used_stays(folder):
    abandoned = aged(folder, "abandoned.nii.gz", 0)
    served = aged(folder, "served.png", 0)
    running = aged(folder, "running.nii.gz")
    version = served.stat().st_mtime_ns
    store.touch(served)
    store.sweep(1, [str(running)])
    assert not abandoned.exists()
    assert served.exists()
    assert running.exists()
    assert served.stat().st_mtime_ns == version
    time.sleep(1.2)
    store.sweep(1)
    assert not running.exists()
    time.sleep(1.2)
    store.sweep(1)
    assert not folder.exists()


def test_nothing_outside_is_touched(tmp_path):
    outside = aged(tmp_path, "outside", 0)
    before = outside.stat().st_ctime_ns
    time.sleep(0.05)
    store.touch(outside)
    store.touch(f"{store.own_folder()}/../../{'x' * 9000}\0")
    assert outside.stat().st_ctime_ns == before


def test_a_start_deletes_what_a_killed_process_left_and_nothing_of_a_live_one(tmp_path):
    environment = {**os.environ, store.VARIABLE: str(tmp_path)}
    live, killed = (
        subprocess.Popen([sys.executable, "-c", LIVE], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    try:
        of_live, of_killed = (Path(process.stdout.readline().strip()) for process in (live, killed))
        assert of_killed.stat().st_mode & 0o77 == 0  # nobody else reads it
        (of_killed / "scan").write_text("private")
        killed.kill()
        killed.wait()
        assert (of_killed / "scan").exists()
        code = "from mediffuse.ui import store; print(store.own_folder())"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        assert list(tmp_path.iterdir()) == [of_live]
    finally:
        live.send_signal(signal.SIGKILL)
        for process in (live, killed):
            process.wait()
            process.stdout.close()


@pytest.mark.parametrize("given", ["an hour", "0", "-1", "nan", "inf"])
def test_the_time_is_a_number_of_minutes(monkeypatch, given):
    monkeypatch.setenv(store.KEEP, given)
    with pytest.raises(ValueError, match="minutes above 0"):
        store.keep_seconds()
