"""Files that are there whole or not at all: written under another name beside their own, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_PREFIX = ".writing-"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def complete(path: Path) -> Iterator[Path]:
    """A path to write a file or a folder at, which takes the place of `path` when the block ends well.

    It lies in a hidden folder beside `path`. What a killed process leaves there, `remove_leftovers` removes.
    """
    with locked_folder(path.parent, _PREFIX) as folder:
        part = folder / path.name
        yield part
        for written in part.iterdir() if part.is_dir() else [part]:
            _sync(written)
        if path.is_dir():
            path.replace(folder / "before")
        part.replace(path)
        _sync(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8 with its newlines as they are, that is never seen in part."""
    with complete(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an 8-bit picture, grey (H, W) or BGR (H, W, 3). Raises OSError, where cv2.imwrite is silent."""
    import cv2

    path.write_bytes(cv2.imencode(".png", image)[1].tobytes())


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left of files that they were writing in `folder` and below."""
    remove_unlocked(folder.rglob(f"{_PREFIX}*"))


def remove_unlocked(folders: Iterable[Path]) -> None:
    """Remove the folders, made by `locked_folder`, of processes that do not live any more."""
    for left in [path for path in folders if path.is_dir() and not path.is_symlink()]:
        with contextlib.suppress(OSError), _lock(left):  # elsewhere a process is at work on it
            shutil.rmtree(left, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Hash of a file, or of the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(f"{file.name}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left to write to."""
    return isinstance(error, OSError) and error.errno in _FULL


def trouble(error: OSError) -> str | None:
    """Why a file could not be written, as a sentence for the user; None if it is for another cause."""
    if is_full(error):
        return "There is no space left to write to: the disk is full. Free some, and try again."
    if error.errno in _FORBIDDEN:
        return "The folder may not be written to. Choose another, or change its permissions."
    return None


@contextlib.contextmanager
def locked_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `parent`, its name begun by `prefix`: locked for as long as this process lives, and gone after
    the block."""
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(_lock(folder))
            except OSError:  # `remove_leftovers` of another process was there first
                continue
            if not folder.is_dir():
                continue
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock a folder, until the block or the process ends. Raises OSError if it is locked, or gone."""
    if os.name != "posix":  # run one command at a time there
        yield
        return
    import fcntl

    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(place)


def _sync(path: Path) -> None:
    """Have a file or a folder written to the disk."""
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not every file system can
            raise
    finally:
        os.close(place)
