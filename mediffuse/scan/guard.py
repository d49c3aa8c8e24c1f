"""Foreign files are read in a process of their own, so that none can end, stall or fill the one that asks.

Foreign readers (GDCM, OpenCV, nibabel, pydicom, zlib) crash on some damaged files and run away on others. `worker` is
started when first needed and forks a child for each call, with limits on its processor time and memory; values come
back through memory that both share. Elsewhere than on Linux the call is made in this process, without limits.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from mediffuse.scan import read, worker
from mediffuse.scan.types import MODALITIES, Scan, ScanError

MAX_AT_ONCE = 3
"""Calls that are made at once; more wait."""

SECONDS, SECONDS_PER_MIB, SECONDS_PER_FILE = 1.5, 0.5, 0.05
BYTES, BYTES_PER_BYTE, MOST_BYTES = 3 << 29, 60, 8 << 30
"""Processor time and memory that a call may take, and what it may take more for the size and number of its files."""

WALL = 6
"""How many times its processor time a call may take on a busy machine until it counts as hanging."""

Result = TypeVar("Result")


class _Size(NamedTuple):
    """Bytes and number of files."""

    bytes: int
    files: int


def read_scan(
    path: str | Path,
    modality: str,
    shown: str = "auto",
    *,
    series: str | None = None,
    allow_constant: bool = False,
    anatomies: Sequence[str] = ("head",),
) -> Scan:
    """`mediffuse.scan.read.read_scan`, with its arguments and errors, guarded as `call` does."""
    path = Path(path)
    if modality not in MODALITIES:
        raise ValueError(f"modality is CT or MR, not {modality!r}")
    asked = path.absolute(), modality, shown, series, allow_constant, tuple(anatomies)
    scan, order, head = call(_read, *asked, name=path.name, paths=[path])
    scan = replace(scan, voxels=scan.voxels[order])
    vars(scan)["head"] = head  # as if it had been asked for
    return scan


def _read(
    path: Path, modality: str, shown: str, series: str | None, allow_constant: bool, anatomies: tuple[str, ...]
) -> tuple[Scan, tuple[slice, ...], object]:
    """(a scan with its voxels as they lie in memory, the slices that order them, `Scan.head`)"""
    scan = read.read_scan(path, modality, shown, series=series, allow_constant=allow_constant, anatomies=anatomies)
    order = tuple(np.s_[:: -1 if stride < 0 else 1] for stride in scan.voxels.strides)
    return replace(scan, voxels=scan.voxels[order]), order, scan.head


def call(function: Callable[..., Result], *args: object, name: str, paths: Iterable[Path]) -> Result:
    """`function(*args)` in a child of the worker; what it raises of this package's errors is raised here.

    function: of the top level of a module of this package. name: of the scan, for messages. paths: the files and
    folders that are read, after whose size the limits are. Raises ScanError, too, where the reader crashes, or takes
    more time or memory than a scan of that size can need.
    """
    if sys.platform != "linux":
        return function(*args)
    size = _size(paths)
    seconds = SECONDS + SECONDS_PER_MIB * size.bytes / 2**20 + SECONDS_PER_FILE * (size.files - 1)
    memory = min(MOST_BYTES, BYTES + BYTES_PER_BYTE * size.bytes)
    job = worker.Job(function, args, seconds, seconds * WALL, memory)
    # What a child unpacks lies in a folder of ours, for a child that is ended removes nothing.
    with _places, tempfile.TemporaryDirectory(prefix="mediffuse-") as scratch:
        answer = _asked(job, scratch)
    if "value" in answer:
        return answer["value"]
    if "ended" in answer:
        raise ScanError(f"{name} {_TOO_LONG if answer['ended'] in _TIMED_OUT else _BROKEN}")
    cause = RuntimeError(answer["text"])
    if answer["lacks_memory"]:
        raise ScanError(f"{name} {_TOO_MUCH}") from cause
    if answer["error"]:
        kind, values, rest = answer["error"]
        error = kind.__new__(kind, *values)
        error.__dict__.update(rest)
        raise error from cause
    raise ScanError(f"{name} {_BROKEN}") from cause


_TIMED_OUT = (-signal.SIGPROF, -signal.SIGALRM)
_BROKEN = "cannot be read: it is damaged, or made so that its reader fails. Export it again."
_TOO_LONG = "takes far longer to read than a scan of its size should: it is damaged. Export it again."
_TOO_MUCH = "needs more memory than a scan of its size should. If it is no damaged file, crop or resample it first."


def warm_up() -> None:
    """Start the worker without waiting for it, so that the first file does not."""
    if sys.platform == "linux":
        with _lock:
            _started()


def _size(paths: Iterable[Path]) -> _Size:
    sizes = []
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else (path,):
            with contextlib.suppress(OSError):
                sizes.append(file.stat().st_size)
    return _Size(sum(sizes), max(1, len(sizes)))


class _Worker:
    """The worker and the socket that jobs are sent to it by. owner: the process that started it, for a fork of that
    has none."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
        # A fork needs a process of one thread; and more would be more memory, and as much processor time.
        threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", worker.__name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what libraries print of a file is nobody else's
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment | dict.fromkeys(threads, "1"),
                start_new_session=True,  # Ctrl+C is for the one that asks
            )

    def close(self) -> None:
        self.control.close()
        self.process.wait()


_worker: _Worker | None = None
_lock = threading.Lock()
_places = threading.BoundedSemaphore(MAX_AT_ONCE)


def _started() -> _Worker:
    """The worker, started if it is not there. For the holder of `_lock`."""
    global _worker  # noqa: PLW0603
    if _worker is None or _worker.owner != os.getpid() or _worker.process.poll() is not None:
        if _worker:
            _worker.control.close()
        _worker = _Worker()
    return _worker


def _forget_locks() -> None:
    """In a fork, others' locks may be held by threads that it does not have."""
    global _lock, _places
    _lock, _places = threading.Lock(), threading.BoundedSemaphore(MAX_AT_ONCE)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)


@atexit.register
def _end() -> None:
    if _worker and _worker.owner == os.getpid():
        _worker.close()


def _asked(job: worker.Job, scratch: str) -> dict:
    """The answer of a child to a job, or {"ended": its exit code}. A worker that is gone is replaced, once."""
    for _ in range(2):
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        number, places = worker.packed(job)
        with mine:
            try:
                with theirs, _lock:
                    message = places + b"\n" + os.fsencode(scratch)
                    socket.send_fds(_started().control, [message], [theirs.fileno(), number])
                answer, files, *_ = socket.recv_fds(mine, 1 << 16, 1)
            except OSError:
                continue
            finally:
                os.close(number)
            if files:
                return worker.unpacked(files[0], answer)  # type: ignore[return-value]
            if answer:
                return json.loads(answer)
    raise RuntimeError("Scans cannot be read here: the process that reads them does not start.")
