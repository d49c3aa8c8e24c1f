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

MAX_FILES, MAX_FOLDERS = 20_000, 2000
MAX_UNPACKED = 4 * MAX_VOXELS
"""Bounds on a zip, checked in its directory and while unpacking: bytes are counted as they come."""

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
    """A folder with the files of a zip, gone afterwards. Names in the zip are not used as paths.

    Raises ScanError for a damaged or encrypted zip, and for one that unpacks to more than can be read.
    """
    with tempfile.TemporaryDirectory(prefix="mediffuse-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir() and not _hidden(m.filename)]
                if len(members) > 100 and path.stat().st_size < LEAST * len(members):
                    raise ScanError(
                        f"{path.name} holds {len(members)} files that are too small for images. Zip one scan only."
                    )
                if len(members) > MAX_FILES or sum(m.file_size for m in members) > MAX_UNPACKED:
                    raise ScanError(f"{path.name} unpacks to more than can be read here. Zip one scan only.")
                if shutil.disk_usage(folder).free < sum(m.file_size for m in members) + _CHUNK:
                    raise ScanError(f"There is no room here to unpack {path.name}. Zip one scan only, or free some.")
                left, places = MAX_UNPACKED, _Places(Path(folder))
                for member in members:
                    target = places.of(member.filename)
                    if len(places.folders) > MAX_FOLDERS:
                        raise ScanError(f"{path.name} has more folders than can be read here. Zip one scan only.")
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


class _Places:
    """Where the files of a zip go below `folder`: as many folders as it has, and one name for one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders: dict[str, Path] = {}
        self.files: set[Path] = set()

    def of(self, name: str) -> Path:
        """The place of a file called `name` in the zip; its folder is there."""
        inside, _, own = name.replace("\\", "/").rpartition("/")
        if inside not in self.folders:
            self.folders[inside] = self.folder / f"{len(self.folders):06d}"
            self.folders[inside].mkdir()
        place = self.folders[inside] / own[-60:]  # the end tells NIfTI and the like
        if own in ("", ".", "..") or place in self.files:
            place = place.with_name(f"{len(self.files):06d}_{own[-60:]}")
        self.files.add(place)
        return place


def _hidden(name: str) -> bool:
    """Whether a name in a zip is one of those that macOS adds, or otherwise hidden."""
    parts = name.replace("\\", "/").split("/")
    return "__MACOSX" in parts or (parts[-1].startswith(".") and parts[-1] not in (".", ".."))
