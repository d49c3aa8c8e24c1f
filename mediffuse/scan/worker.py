"""The process that guards the others from foreign files: it forks a child for each, with limits. Run by `guard`.

It has all readers loaded, so that a child is there in some milliseconds, and it reads nothing itself, so that nothing
breaks it: a child that crashes, hangs or fills its memory is gone, and the next one is as new. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import io
import json
import mmap
import os
import pickle
import resource
import select
import shutil
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PosixPath
from typing import NoReturn

import numpy as np

READERS = (
    "mediffuse.scan.guard",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "SimpleITK",
    "pydicom.filereader",
    "pydicom.pixels",
    "scipy.ndimage",
)
"""Loaded before any child is forked: what a child loads, every child loads anew."""

_APART = 1 << 16
"""Bytes from which on an array lies outside the pickle, where it is used as it lies."""

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """What a child is to do: call `function`, with these limits of processor time (s), of time (s) and of memory
    (bytes, beside what every child has)."""

    function: Callable
    args: tuple
    processor_seconds: float
    seconds: float
    memory: int


def packed(value: object) -> tuple[int, bytes]:
    """(a file in memory alone, what `unpacked` needs to read it) with a pickled `value`."""
    apart: list[memoryview] = []

    def is_small(buffer: pickle.PickleBuffer) -> bool:
        view = buffer.raw()
        if view.nbytes >= _APART:
            apart.append(view)
        return view.nbytes < _APART

    text = pickle.dumps(value, protocol=5, buffer_callback=is_small)
    number = os.memfd_create("mediffuse")
    place, places = 0, []
    for part in (memoryview(text), *apart):
        places.append((place, part.nbytes))
        done = 0
        while done < part.nbytes:  # the kernel writes 2 GiB at a time at most
            done += os.pwrite(number, part[done:], place + done)
        place += -(-part.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    return number, json.dumps(places).encode()


def unpacked(number: int, places: bytes) -> object:
    """The value that `packed` packed; closes the file. Arrays stay where they are. Raises pickle.UnpicklingError for
    what is neither plain data, nor numpy's, nor of this package."""
    (start, size), *apart = json.loads(places)
    try:
        memory = mmap.mmap(number, 0)
    finally:
        os.close(number)
    whole = memoryview(memory)
    return _Unpickler(
        io.BytesIO(whole[start : start + size]), buffers=[whole[place : place + n] for place, n in apart]
    ).load()


class _Unpickler(pickle.Unpickler):
    """Makes nothing but what scans consist of, whatever a broken reader wrote."""

    def find_class(self, module: str, name: str) -> object:
        package = module.partition(".")[0]
        if package in ("mediffuse", "numpy", "pathlib", "builtins") and "." not in name:
            found = super().find_class(module, name)
            if package == "mediffuse" and getattr(found, "__module__", "").startswith("mediffuse."):
                return found
            if found in _PLAIN or name in ("_reconstruct", "_frombuffer", "scalar"):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is not for scans")


_PLAIN = (np.ndarray, np.dtype, PosixPath, set, frozenset, bytearray, complex, slice, range)


def main(number: int) -> None:
    """Fork a child for each message of the socket `number`, until that closes or the parent is gone.

    A message is the places of a packed `Job`, a line break and a folder for its temporary files; with it come the
    job's socket and file. The child answers on that socket, and this process says how the child ended.
    """
    control = socket.socket(fileno=number)
    parent = os.getppid()
    # A crash is expected here, and its memory image would be somebody's scan.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for reader in READERS:
        importlib.import_module(reader)
    gc.collect()
    gc.freeze()  # or a collection in a child would copy all of this
    waker, woken = socket.socketpair()
    waker.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(waker.fileno())
    children: dict[int, tuple[socket.socket, str]] = {}
    while os.getppid() == parent:
        ready, *_ = select.select([control, woken], [], [], 1)
        if woken in ready:
            woken.recv(4096)
        _reap(children)
        if control in ready:
            message, files, *_ = socket.recv_fds(control, 1 << 16, 2)
            if not message:
                break
            places, _, scratch = message.partition(b"\n")
            job = socket.socket(fileno=files[0])
            child = os.fork()
            if not child:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (control, waker, woken, *(held for held, _ in children.values())):
                    other.close()
                _serve(job, files[1], places, os.fsdecode(scratch))
            os.close(files[1])
            children[child] = job, os.fsdecode(scratch)
    for child, (_, scratch) in children.items():
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        shutil.rmtree(scratch, ignore_errors=True)


def _reap(children: dict[int, tuple[socket.socket, str]]) -> None:
    """Take leave of the children that have ended, and say how."""
    for child in list(children):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            job, _ = children.pop(child)
            with job, contextlib.suppress(OSError):  # it may have its answer
                job.send(json.dumps({"ended": os.waitstatus_to_exitcode(status)}).encode(), socket.MSG_DONTWAIT)


def _serve(job: socket.socket, number: int, places: bytes, scratch: str) -> NoReturn:
    """Do a job in a child, and end it."""
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        tempfile.tempdir = scratch
        asked: Job = unpacked(number, places)  # type: ignore[assignment]
        signal.setitimer(signal.ITIMER_PROF, asked.processor_seconds)
        signal.setitimer(signal.ITIMER_REAL, asked.seconds)
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - before anything else
            pages = int(file.read().split()[0])
        most, (_, hard) = pages * mmap.PAGESIZE + asked.memory, resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        try:
            answer = {"value": asked.function(*asked.args)}
        except Exception as error:  # noqa: BLE001 - it is told to the one that asked
            answer = _told(error)
        number, places = packed(answer)
        socket.send_fds(job, [places], [number])
    except BaseException:  # noqa: BLE001 - as a crash
        os._exit(1)
    os._exit(0)


def _told(error: Exception) -> dict:
    """What there is to say of an error. Without its traceback, which would keep what lacked memory."""
    error.__traceback__, text = None, "".join(traceback.format_exception(error))
    own = type(error).__module__.startswith("mediffuse.")
    return {
        "lacks_memory": _lacks_memory(error),
        "error": (type(error), error.args, vars(error)) if own else None,
        "text": text,
    }


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that memory was lacking; C++ libraries say it in words."""
    while error:
        if isinstance(error, MemoryError) or any(w in str(error).lower() for w in ("bad_alloc", "failed to allocate")):
            return True
        error = error.__cause__ or error.__context__
    return False


if __name__ == "__main__":
    main(int(sys.argv[1]))
