"""Reading in a process of its own: what a good file gives, and what of a bad one reaches the asker."""

import gzip
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from mediffuse.scan import ScanError, SeveralSeriesError, guard, worker
from mediffuse.scan.read import read_scan
from mediffuse.ui.examples import CT, CT_PICTURE, T1


@pytest.mark.parametrize(("path", "modality"), [(CT, "CT"), (T1, "MR"), (CT_PICTURE, "CT")])
def test_a_good_file_is_read_as_without_it(path, modality):
    guarded, plain = guard.read_scan(path, modality), read_scan(path, modality)
    for name, value in vars(plain).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(guarded, name), value, strict=True)
        else:
            assert getattr(guarded, name) == value
    assert guarded.voxels.strides == plain.voxels.strides
    np.testing.assert_array_equal(guarded.head, plain.head)


def nested_sequences(depth: int) -> bytes:
    """A DICOM whose sequences lie in each other, which ends GDCM."""

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        value += b" " * (len(value) % 2)
        return struct.pack("<HH", group, number) + kind + struct.pack("<H", len(value)) + value

    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1\0")
    head = bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta
    item = struct.pack("<HH", 8, 0x1140) + b"SQ\0\0\xff\xff\xff\xff" + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return head + element(8, 0x60, b"CS", b"CT") + item * depth


def test_a_crash_ends_the_reader_alone(tmp_path):
    path = tmp_path / "nested.dcm"
    path.write_bytes(nested_sequences(20_000))
    for _ in range(2):
        with pytest.raises(ScanError, match="cannot be read"):
            guard.read_scan(path, "CT")
        assert guard.read_scan(CT, "CT").count() == 20


def volume_of_zeros(path, shape, dtype, planes: int) -> None:
    """A NIfTI of `shape`, of whose planes the first are there."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_sform(np.diag([5.0, 5, 5, 1]), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    with gzip.open(path, "wb", 1) as file:
        file.write(header.binaryblock + bytes(4))
        for number in range(planes):
            file.write(bytes([number % 2 * 64]) * (shape[0] * shape[1] * np.dtype(dtype).itemsize))


def test_a_small_file_that_wants_much_memory_is_refused(tmp_path):
    path = tmp_path / "much.nii.gz"
    volume_of_zeros(path, (512, 512, 1200), np.float64, 1)
    with pytest.raises(ScanError, match="more memory than a scan of its size"):
        guard.read_scan(path, "CT")
    assert guard.read_scan(CT, "CT").count() == 20


def test_a_file_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "long.nii.gz"
    volume_of_zeros(path, (512, 512, 600), np.uint8, 600)
    monkeypatch.setattr(guard, "SECONDS", 0.5)
    with pytest.raises(ScanError, match="takes far longer"):
        guard.read_scan(path, "CT")


def test_what_a_child_had_unpacked_goes_with_it(tmp_path, monkeypatch):
    from tests.scan.test_dicom import zipped

    volume_of_zeros(tmp_path / "long.nii.gz", (512, 512, 600), np.uint8, 600)
    path = zipped(tmp_path / "long.zip", **{"long.nii.gz": (tmp_path / "long.nii.gz").read_bytes()})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(guard, "SECONDS", 0.5)
    with pytest.raises(ScanError, match="takes far longer"):
        guard.read_scan(path, "CT")
    assert not list(scratch.iterdir())


def test_errors_are_those_of_the_reader(tmp_path):
    from tests.scan.test_dicom import zipped

    with pytest.raises(ScanError, match=r"There is no file none\.nii"):
        guard.read_scan(tmp_path / "none.nii", "CT")
    with pytest.raises(ValueError, match="modality is CT or MR"):
        guard.read_scan(CT, "PET")
    empty = zipped(tmp_path / "empty.zip", **{"a.txt": b"nothing"})
    with pytest.raises(ScanError, match="holds no DICOM series"):
        guard.read_scan(empty, "CT")


def test_errors_keep_what_they_say_beside_their_text(two_series):
    with pytest.raises(SeveralSeriesError) as several:
        guard.read_scan(two_series, "CT")
    assert len(several.value.choices) == 2
    assert str(several.value).startswith("both.zip holds 2 series")


def test_several_are_read_at_once_and_a_slow_one_does_not_block(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 60)
    path = tmp_path / "long.nii.gz"
    volume_of_zeros(path, (512, 512, 600), np.uint8, 600)
    slow = threading.Thread(target=guard.read_scan, args=(path, "CT"))
    slow.start()
    found = []
    threads = [threading.Thread(target=lambda: found.append(guard.read_scan(CT, "CT").count())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [20] * 6
    assert slow.is_alive()
    slow.join()


def test_a_worker_that_was_killed_is_replaced():
    guard.read_scan(CT, "CT")
    before = guard._worker.process
    before.kill()
    before.wait()
    assert guard.read_scan(CT, "CT").count() == 20
    assert guard._worker.process.pid != before.pid


def test_only_what_scans_consist_of_comes_back():
    class Trap:
        def __reduce__(self):
            return os.system, ("touch trap",)

    assert worker.unpacked(*worker.packed({"a": np.arange(9), "b": [1.5, None, "c"]}))["b"] == [1.5, None, "c"]
    with pytest.raises(pickle.UnpicklingError, match="not for scans"):
        worker.unpacked(*worker.packed(Trap()))


def is_there(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def children_of(process: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def awaited(condition, what: str):
    for _ in range(200):
        if found := condition():
            return found
        time.sleep(0.05)
    return pytest.fail(what)


def test_nothing_outlives_the_one_that_asked(tmp_path):
    """Killed while a zip is read: neither worker, nor its child, nor a file is left."""
    from tests.scan.test_dicom import zipped

    volume_of_zeros(tmp_path / "long.nii.gz", (512, 512, 600), np.uint8, 600)
    path = zipped(tmp_path / "long.zip", **{"long.nii.gz": (tmp_path / "long.nii.gz").read_bytes()})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import sys; from mediffuse.scan import guard; guard.SECONDS = 60; guard.warm_up();"
        "print(guard._worker.process.pid, flush=True); guard.read_scan(sys.argv[1], 'CT')"
    )
    asker = subprocess.Popen(
        [sys.executable, "-c", code, path], env={**os.environ, "TMPDIR": str(scratch)}, stdout=subprocess.PIPE
    )
    process = int(asker.stdout.readline())
    awaited(lambda: any(scratch.rglob("*.nii.gz")), "nothing was unpacked")
    (child,) = children_of(process)
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    asker.stdout.close()
    awaited(lambda: not is_there(process) and not is_there(child), "a process is still there")
    assert not list(scratch.iterdir())


def test_a_fork_of_the_asker_has_a_worker_of_its_own():
    """As ZeroGPU forks the server."""
    code = """
import os
from mediffuse.scan import guard
guard.read_scan(CT, "CT")
first = guard._worker.process.pid
child = os.fork()
if not child:
    guard.read_scan(CT, "CT")
    os._exit(0 if guard._worker.process.pid != first else 1)
ended = os.waitpid(child, 0)[1]
guard.read_scan(CT, "CT")
assert guard._worker.process.pid == first
raise SystemExit(ended)
""".replace("CT, ", f"{str(CT)!r}, ")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_child_is_forked_from_one_thread_without_torch():
    guard.read_scan(CT, "CT")
    process = Path(f"/proc/{guard._worker.process.pid}")
    assert len(list((process / "task").iterdir())) == 1
    maps = (process / "maps").read_text()
    assert "torch" not in maps
