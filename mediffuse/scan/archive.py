"""Unpack a zip within bounds, and the zips in it; or one file that is packed by gzip."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mediffuse.scan.types import MAX_VOXELS, ScanError

MAX_FILES, MAX_FOLDERS = 20_000, 2000
MAX_UNPACKED = 4 * MAX_VOXELS
MAX_DEPTH = 3
"""Bounds on a zip, checked in its directory and while unpacking: files and bytes are counted as they come, those of
the zips in it too, which may be so deep."""

LEAST = 256
"""Bytes in a zip that an image of a scan takes at least."""

_CHUNK = 1 << 20
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    EOFError,
    OSError,
    RuntimeError,
    NotImplementedError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
)


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with the files of a zip, gone afterwards. Names in the zip are not used as paths, but what lies in one
    folder of it lies in one folder.

    Raises ScanError for a damaged or encrypted zip, and for one that unpacks to more than can be read.
    """
    with tempfile.TemporaryDirectory(prefix="mediffuse-") as folder:
        unpacking = _Unpacking(Path(folder), path.name)
        try:
            with path.open("rb") as file:
                unpacking.add(file, 1)
        except _ZIP_ERRORS as error:
            if isinstance(error, ScanError):
                raise
            raise ScanError(
                f"{path.name} cannot be unpacked: it is damaged, cut short or encrypted. Zip it again."
            ) from error
        yield Path(folder)


def free_place(folder: Path, name: str) -> Path:
    """Where a file called `name` can lie in `folder`: beside the others or, where one is called so, below."""
    name = os.fsdecode(os.fsencode(Path(name.replace("\\", "/")).name)[-200:])
    return (Path(tempfile.mkdtemp(dir=folder, prefix=_NUMBER)) if os.path.lexists(folder / name) else folder) / name


def shown(path: Path, folder: Path) -> str:
    """How a file in an unpacked zip, or another folder, was called there."""
    parts = path.relative_to(folder).parts
    return "/".join(part for part in (re.sub(_NUMBER + r"(\d{6}_?|\w{8}$)", "", p) for p in parts) if part)


_NUMBER = "mediffuse-"
"""Begins the names of folders that are made here."""


class _Unpacking:
    """What has been unpacked so far into `folder`. name: of the zip that was given."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.bytes = self.files = self.folders = 0

    def add(self, file: BinaryIO, depth: int) -> None:
        """Unpack an open zip, or a file packed by gzip; raises what `zipfile` does, and ScanError for too much."""
        if file.read(2) == b"\x1f\x8b":
            file.seek(0)
            name = self.name.removesuffix(".gz") or "scan"
            with gzip.open(file) as source, free_place(self.folder, name).open("wb") as sink:
                self._copy(source, sink)
            return
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if not m.is_dir() and not _hidden(m.filename)]
            if len(members) > 100 and file.seek(0, os.SEEK_END) < LEAST * len(members):
                raise ScanError(
                    f"{self.name} holds {len(members)} files that are too small for images. Zip one scan only."
                )
            self.files += len(members)
            claimed = sum(m.file_size for m in members)
            if self.files > MAX_FILES or self.bytes + claimed > MAX_UNPACKED:
                raise ScanError(f"{self.name} unpacks to more than can be read here. Zip one scan only.")
            if shutil.disk_usage(self.folder).free < claimed + _CHUNK:
                raise ScanError(f"There is no room here to unpack {self.name}. Zip one scan only, or free some.")
            folders: dict[str, Path] = {}
            for member in members:
                inside = member.filename.replace("\\", "/").rpartition("/")[0]
                if inside not in folders:
                    last = re.sub(r"[^\w.-]+", "_", inside.rpartition("/")[2])[:40]
                    folders[inside] = self.folder / f"{_NUMBER}{self.folders:06d}_{last}"
                    folders[inside].mkdir()
                    self.folders += 1
                    if self.folders > MAX_FOLDERS:
                        raise ScanError(f"{self.name} has more folders than can be read here. Zip one scan only.")
                target = free_place(folders[inside], member.filename)
                with archive.open(member) as source, target.open("wb") as sink:
                    self._copy(source, sink)
                if target.suffix.lower() == ".zip" and depth < MAX_DEPTH:
                    self._open(target, depth + 1)

    def _open(self, inner: Path, depth: int) -> None:
        """Unpack a zip that was in a zip, and remove it; leave what is none."""
        with inner.open("rb") as file, contextlib.suppress(zipfile.BadZipFile):
            self.add(file, depth)
            inner.unlink()

    def _copy(self, source: BinaryIO, sink: BinaryIO) -> None:
        while chunk := source.read(min(_CHUNK, MAX_UNPACKED - self.bytes + 1)):
            self.bytes += len(chunk)
            if self.bytes > MAX_UNPACKED:  # the directory lied
                raise ScanError(f"{self.name} unpacks to more than can be read here.")
            sink.write(chunk)


def _hidden(name: str) -> bool:
    """Whether a name in a zip is one of those that macOS adds, or otherwise hidden."""
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or (parts[-1].startswith(".") and parts[-1] not in (".", ".."))
