"""Reading in a process of its own: what a good file gives, and what of a bad one reaches the asker."""

import gzip
import os
import signal
import struct
import subprocess
import sys
import threading
import time

import nibabel as nib
import numpy as np
import pytest

from mediffuse.scan import ScanError, SeveralSeriesError, guard
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


def test_errors_are_those_of_the_reader(tmp_path):
    from tests.scan.test_dicom import zipped

    with pytest.raises(ScanError, match=r"There is no file none\.nii"):
        guard.read_scan(tmp_path / "none.nii", "CT")
    with pytest.raises(ValueError, match="modality is CT or MR"):
        guard.read_scan(CT, "PET")
    assert issubclass(SeveralSeriesError, ScanError)
    empty = zipped(tmp_path / "empty.zip", **{"a.txt": b"nothing"})
    with pytest.raises(ScanError, match="holds no DICOM series"):
        guard.read_scan(empty, "CT")


def test_several_are_read_at_once(tmp_path):
    found = []
    threads = [threading.Thread(target=lambda: found.append(guard.read_scan(CT, "CT").count())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [20] * 6
    assert len(guard._idle) <= guard.MAX_WORKERS


def test_a_worker_does_not_outlive_the_one_that_asked():
    code = "from mediffuse.scan import guard; guard.warm_up(); print(guard._idle[0].process.pid, flush=True); input()"
    asker = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    worker = int(asker.stdout.readline())
    os.kill(worker, 0)
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker is still there")
    asker.stdin.close()
    asker.stdout.close()
