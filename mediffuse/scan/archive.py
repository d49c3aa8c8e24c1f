"""Unpack a zip within bounds."""

from __future__ import annotations

import lzma
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mediffuse.scan.types import MAX_VOXELS, ScanError

MAX_FILES = 20_000
MAX_UNPACKED = 4 * MAX_VOXELS
"""Bounds on a zip, checked in its directory and while unpacking: bytes are counted as they come."""

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
    """A folder with the files of a zip, gone afterwards. Names in the zip are not used as paths.

    Raises ScanError for a damaged or encrypted zip, and for one that unpacks to more than can be read.
    """
    with tempfile.TemporaryDirectory(prefix="mediffuse-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir() and not _hidden(m.filename)]
                if len(members) > MAX_FILES or sum(m.file_size for m in members) > MAX_UNPACKED:
                    raise ScanError(f"{path.name} unpacks to more than can be read here. Zip one scan only.")
                if shutil.disk_usage(folder).free < sum(m.file_size for m in members) + _CHUNK:
                    raise ScanError(f"There is no room here to unpack {path.name}. Zip one scan only, or free some.")
                left = MAX_UNPACKED
                for number, member in enumerate(members):
                    # The end of the name tells NIfTI and the like; the number keeps files apart.
                    target = Path(folder) / f"{number:06d}" / Path(member.filename.replace("\\", "/")).name[-60:]
                    target.parent.mkdir()
                    with archive.open(member) as source, target.open("wb") as sink:
                        while chunk := source.read(min(_CHUNK, left + 1)):
                            left -= len(chunk)
                            if left < 0:  # the directory lied
                                raise ScanError(f"{path.name} unpacks to more than can be read here.")
                            sink.write(chunk)
        except _ZIP_ERRORS as error:
            if isinstance(error, ScanError):
                raise
            raise ScanError(
                f"{path.name} cannot be unpacked: it is damaged, cut short or encrypted. Zip it again."
            ) from error
        yield Path(folder)


def _hidden(name: str) -> bool:
    """Whether a name in a zip is one of those that macOS adds, or otherwise hidden."""
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or (parts[-1].startswith(".") and parts[-1] not in (".", ".."))
