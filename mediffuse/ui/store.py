"""Where visitors' files lie, and when they are deleted.

All of it, what is uploaded, made and unpacked, lies in one folder of this process, which only its user may read. A file
goes when it was not used for a while; the folder goes with its process, or, if that was killed, when the next starts.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mediffuse import files

VARIABLE = "GRADIO_TEMP_DIR"
KEEP = "MEDIFFUSE_KEEP_MINUTES"
_PREFIX, _VISITORS, _WORK = "process-", "visitors", "work"


def keep_seconds() -> float:
    """How long a file is kept after its last use: the environment variable MEDIFFUSE_KEEP_MINUTES, or an hour.

    Raises ValueError if that is no number above 0.
    """
    given = os.environ.get(KEEP, "60")
    try:
        minutes = float(given)
    except ValueError:
        minutes = 0
    if not 0 < minutes < float("inf"):
        raise ValueError(f"{KEEP} is a number of minutes above 0, not {given!r}.")
    return minutes * 60


@functools.cache
def own_folder() -> Path:
    """The folder of this process, made when first asked for; Gradio puts files there from then on.

    It lies in the folder that GRADIO_TEMP_DIR names, or else in the system's folder for temporary files. What killed
    processes left beside it is deleted.
    """
    given = os.environ.get(VARIABLE)
    parent = Path(given or Path(tempfile.gettempdir()) / f"mediffuse-{getattr(os, 'getuid', lambda: 0)()}").resolve()
    if parent.parent.name.startswith(_PREFIX):  # of the process that started this one
        parent = parent.parent.parent
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = contextlib.ExitStack()
    folder = kept.enter_context(files.locked_folder(parent, _PREFIX))
    if os.name == "posix":  # elsewhere there is no telling whose process lives
        files.remove_unlocked(parent.glob(f"{_PREFIX}*"))
    # Gradio copies no file that is in its folder already: what is made elsewhere must not be.
    (folder / _VISITORS).mkdir()
    os.environ[VARIABLE] = str(folder / _VISITORS)
    atexit.register(_leave, kept, os.getpid())
    return folder


def _leave(kept: contextlib.ExitStack, process: int) -> None:
    if os.getpid() == process:  # not in a fork of it
        kept.close()


def take_all_temporary_files() -> None:
    """Have this process and those it starts put all their temporary files into its folder too."""
    folder = own_folder() / _WORK
    folder.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)


def leave_on_sigterm() -> None:
    """End the process at SIGTERM, with those it forked (ZeroGPU's) and its folder deleted, whatever its threads are
    doing. For the main thread."""

    def end(*_) -> None:
        for child in multiprocessing.active_children():
            child.kill()
        shutil.rmtree(own_folder(), ignore_errors=True)
        os._exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)


def is_own(path: str | Path) -> bool:
    """Whether a path leads into the folder of this process."""
    return Path(os.path.abspath(path)).is_relative_to(own_folder())  # noqa: PTH100 - `resolve` follows links


def exists(path: str | Path) -> bool:
    with contextlib.suppress(OSError, ValueError):  # too long a name, a null character
        return Path(path).exists()
    return False


def touch(path: str | Path) -> None:
    """Remember that one of our files is in use now."""
    if is_own(path):
        with contextlib.suppress(OSError, ValueError):
            found = Path(path).stat()
            # The time of this change counts; those that say which version of a file it is stay.
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def sweep(seconds: float, in_use: Iterator[str] = ()) -> int:
    """Delete what was last used longer than `seconds` ago, but for the files in use; returns how many files."""
    for path in in_use:
        touch(path)
    oldest, deleted = time.time() - seconds, 0
    for place, folders, names in os.walk(own_folder(), topdown=False):
        for name in names:
            deleted += _delete_if_older(Path(place) / name, oldest, Path.unlink)
        for name in folders:
            if name not in (_VISITORS, _WORK):
                _delete_if_older(Path(place) / name, oldest, Path.rmdir)
    return deleted


def _delete_if_older(path: Path, oldest: float, delete) -> bool:
    # Whatever changes an inode, `touch` and copies too, sets its ctime, and nothing can set it back.
    with contextlib.suppress(OSError):
        if path.lstat().st_ctime < oldest:
            delete(path)
            return True
    return False


def has_room(size: int, reserve: int) -> bool:
    """Whether `size` bytes more leave `reserve` bytes free."""
    return shutil.disk_usage(own_folder()).free - size >= reserve
