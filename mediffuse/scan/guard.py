"""`read_scan` in a process of its own, so that no file can end, stall or fill the one that asks.

Foreign readers (GDCM, OpenCV, nibabel, zlib) crash on some damaged files and run away on others. A worker is started
when first needed, is used again, has limits on memory and processor time for each file, and is replaced when it dies.
Requests and answers are lines of JSON; voxels come through memory that both share. Elsewhere than on POSIX systems
there is nothing to limit a process with: scans are read in this one.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from mediffuse.scan.read import read_scan as read_unguarded
from mediffuse.scan.types import Scan, ScanError, SeveralSeriesError

MAX_WORKERS = 3
"""Files that are read at once; more wait."""

SECONDS, SECONDS_PER_MIB = 4, 0.5
BYTES, BYTES_PER_BYTE, MOST_BYTES = 2 << 30, 60, 8 << 30
"""Processor time and address space that a file may take, and what it may take more for its size."""

WALL = 8
"""How many times its processor time a worker may take on a busy machine until it counts as hanging."""


def read_scan(
    path: str | Path, modality: str, shown: str = "auto", *, series: str | None = None, allow_constant: bool = False
) -> Scan:
    """`mediffuse.scan.read_scan`, with its arguments and errors, in a worker process.

    Raises ScanError, too, where the reader crashes, or takes more time or memory than a scan of its size can need.
    """
    path = Path(path)
    if os.name != "posix":
        return read_unguarded(path, modality, shown, series=series, allow_constant=allow_constant)
    size = _size(path)
    seconds = SECONDS + SECONDS_PER_MIB * size / 2**20
    request = {
        "path": str(path.absolute()),
        "modality": modality,
        "shown": shown,
        "series": series,
        "allow_constant": allow_constant,
        "seconds": seconds,
        "bytes": min(MOST_BYTES, BYTES + BYTES_PER_BYTE * size),
    }
    with _worker() as worker:
        answer = worker.ask(request, seconds * WALL)
        if "scan" in answer:
            return _scan_of(answer["scan"], worker.memory)
    name, error = path.name, answer["error"]
    if error == "several":
        raise SeveralSeriesError(name, answer["choices"])
    if error == "value":
        raise ValueError(answer["text"])
    if error == "scan":
        raise ScanError(answer["text"])
    raise ScanError(f"{name} {_REASONS[error]}")


_REASONS = {
    "crash": "cannot be read: it is damaged, or made so that its reader fails. Export it again.",
    "time": "takes far longer to read than a scan of its size should: it is damaged. Export it again.",
    "memory": "needs more memory than a scan of its size should. If it is no damaged file, crop or resample it first.",
}


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    if not path.is_dir():
        return path.stat().st_size if path.exists() else 0
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


class _Worker:
    """A process that reads scans, one at a time. memory: the file, in memory alone, that its voxels come through."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.memory: IO[bytes] = os.fdopen(os.memfd_create("voxels"), "w+b")
        else:
            self.memory = tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        number = self.memory.fileno()
        root = Path(__file__).resolve().parents[2]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
        # More threads would be more memory, and as much processor time.
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        environment["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[number],
            env=environment,
            start_new_session=True,  # Ctrl+C is for the one that asks
        )
        self.process.stdout.readline()  # it is ready: what it takes to start is not the file's

    def ask(self, request: dict, seconds: float) -> dict:
        """The answer to a request, or {"error": "crash", "time" or "memory"}."""
        late = threading.Timer(seconds, self.process.kill)
        late.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = b""
        finally:
            late.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        return {"error": "time" if code in (-_SIGXCPU, -_SIGKILL) else "crash"}

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.memory):
            with contextlib.suppress(OSError):  # what it never read
                stream.close()


_SIGKILL, _SIGXCPU = 9, 24
_idle: list[_Worker] = []
_lock = threading.Lock()
_places = threading.BoundedSemaphore(MAX_WORKERS)


@atexit.register
def _close_idle() -> None:
    while _idle:
        _idle.pop().close()


def warm_up() -> None:
    """Start a worker, so that the first file does not wait for it."""
    if os.name == "posix":
        with _worker():
            pass


@contextlib.contextmanager
def _worker() -> Iterator[_Worker]:
    """A worker that nobody else uses meanwhile; it waits for the next one afterwards, if it lives."""
    with _places:
        with _lock:
            worker = _idle.pop() if _idle else None
        if worker is None or worker.process.poll() is not None:
            if worker:
                worker.close()
            worker = _Worker()
        try:
            yield worker
        except BaseException:
            worker.close()
            raise
        if worker.process.poll() is not None:
            worker.close()
            return
        with _lock:
            _idle.append(worker)


def _scan_of(plain: dict, memory: IO[bytes]) -> Scan:
    """The scan that `_plain` told of, its voxels from `memory`, which is emptied."""
    memory.seek(0)
    voxels = np.fromfile(memory, np.float32).reshape(plain.pop("shape"), order="F")
    memory.truncate(0)
    arrays = {name: np.array(plain.pop(name)) for name in ("affine", "native_affine")}
    tuples = {name: tuple(plain.pop(name)) for name in ("native_shape", "warnings", "wrong")}
    limits = plain.pop("limits")
    return Scan(voxels=voxels, **arrays, **tuples, limits=tuple(limits) if limits else None, **plain)


def _plain(scan: Scan, memory: IO[bytes]) -> dict:
    """A scan as JSON can say it; its voxels are written to `memory`."""
    memory.seek(0)
    memory.truncate(0)
    np.asfortranarray(scan.voxels, np.float32).T.tofile(memory)
    memory.flush()
    plain = {f.name: getattr(scan, f.name) for f in dataclasses.fields(scan) if f.name != "voxels"}
    plain |= {name: plain[name].tolist() for name in ("affine", "native_affine")}
    plain |= {"native_shape": [int(n) for n in scan.native_shape], "shape": scan.voxels.shape}
    return plain


def _answer(request: dict, memory: IO[bytes]) -> dict:
    """Read what a request asks for, within its limits."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + request.pop("seconds")) + 1
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_AS, request.pop("bytes"))
    try:
        scan = read_unguarded(**request)
        return {"scan": _plain(scan, memory)}
    except SeveralSeriesError as error:
        return {"error": "several", "choices": error.choices}
    except ScanError as error:
        return {"error": "memory" if _lacked_memory(error) else "scan", "text": str(error)}
    except MemoryError:
        return {"error": "memory"}
    except ValueError as error:
        return {"error": "value", "text": str(error)}
    except Exception as error:  # noqa: BLE001 - whatever a reader raises, it is the file's
        return {"error": "memory" if _lacked_memory(error) else "crash"}


def _lacked_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory was lacking; C++ libraries say it in words."""
    while error:
        if isinstance(error, MemoryError) or any(w in str(error).lower() for w in ("bad_alloc", "failed to allocate")):
            return True
        error = error.__cause__ or error.__context__
    return False


def _limit(what: int, value: int) -> None:
    """Set a soft limit of this process, within the hard one."""
    import resource

    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _serve(number: int) -> None:
    """Answer requests until there are no more. `number`: the file descriptor that voxels are written to."""
    import resource

    # A crash is expected here, and its memory image would be somebody's scan.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(number, "r+b") as memory, os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what libraries print must not get between the answers
        answers.write(b"ready\n")
        answers.flush()
        for line in sys.stdin.buffer:
            answers.write(json.dumps(_answer(json.loads(line), memory)).encode() + b"\n")
            answers.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
