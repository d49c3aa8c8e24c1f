"""NRRD and MetaImage: a header in text, and the voxels behind it or (.nhdr, .mhd) in a file beside it.

Read here rather than by ITK, whose readers open whatever file a header names, and crash on malformed ones. A header is
parsed once, strictly, and nothing but what was parsed is used. (teem.sourceforge.net/nrrd/format.html; MetaIO.)
"""

from __future__ import annotations

import bz2
import math
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from mediffuse.scan.types import ScanError, check_size

MAX_HEADER, MAX_LINES = 1 << 16, 1000
"""Bounds on a header, in bytes and lines."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_TO_RAS = {
    "left-posterior-superior": LPS_TO_RAS,
    "lps": LPS_TO_RAS,
    "left-anterior-superior": np.diag([-1.0, 1.0, 1.0]),
    "las": np.diag([-1.0, 1.0, 1.0]),
    "right-anterior-superior": np.eye(3),
    "ras": np.eye(3),
}
"""By the space that an NRRD names; where it names none, positions are taken as LPS, as ITK does."""

_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_MHA_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


class _HeaderError(ValueError):
    """What is wrong with a header, in words that stand behind a file's name."""


def read_nrrd(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(voxels float32 (X, Y, Z), affine to RAS mm, warnings) of an NRRD file. Raises ScanError."""
    return _read(path, _parse_nrrd)


def read_mha(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(voxels float32 (X, Y, Z), affine to RAS mm, warnings) of a MetaImage file. Raises ScanError."""
    return _read(path, _parse_mha)


def _read(path: Path, parse) -> tuple[np.ndarray, np.ndarray, list[str]]:
    with path.open("rb") as file:
        try:
            shape, dtype, encoding, affine, warnings, elsewhere = parse(_lines(file))
            check_size(shape, path.name)
            size = math.prod(shape) * dtype.itemsize
            if elsewhere is None:
                values = _values(file, size, encoding)
            else:
                with _beside(path, elsewhere).open("rb") as data:
                    values = _values(data, size, encoding)
        except ScanError:
            raise
        except _HeaderError as error:
            raise ScanError(f"{path.name} {error}") from error
        except (ValueError, KeyError, OverflowError, EOFError, OSError, zlib.error) as error:
            raise ScanError(f"{path.name} cannot be read: it is damaged or cut short. Copy it again.") from error
    voxels = np.frombuffer(values, dtype).reshape(shape, order="F").astype(np.float32)
    return voxels, affine, warnings


def _lines(file: BinaryIO) -> Iterator[str]:
    """The lines of a header. Raises _HeaderError for one that is too long, or no text."""
    left = MAX_HEADER
    for _ in range(MAX_LINES):
        line = file.readline(left + 1)
        left -= len(line)
        if left < 0:
            break
        if not line:  # the end of a header by itself, or of one that is cut short
            return
        text = line.removesuffix(b"\n").removesuffix(b"\r").decode("latin-1")
        if any(ord(c) < 32 and c != "\t" for c in text):
            raise _HeaderError("cannot be read: its header is damaged. Copy it again.")
        yield text
    raise _HeaderError("has a header far longer than a scan needs. Save it again without what was noted in it.")


def _beside(path: Path, name: str) -> Path:
    """The file that a header names, in the folder of `path`. Raises _HeaderError for a path, or where it is not."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if len(parts) != 1 or parts[0] == "..":
        raise _HeaderError("has its voxels in several files, or in another folder. Save it as one file.")
    found = path.parent / parts[0]
    if not found.is_file() or found.is_symlink():
        raise _HeaderError(f"has its voxels in {parts[0]}, which is not beside it. Give both, in one folder or zip.")
    return found


def _parse_nrrd(lines: Iterator[str]) -> tuple:
    """(shape, dtype, encoding, affine, warnings, name of the file of the voxels or None) of an NRRD header; leaves its
    file behind it."""
    if not next(lines, "").startswith("NRRD000"):
        raise _HeaderError("cannot be read: it is no NRRD inside. Export it again.")
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            break
        if line.startswith("#") or ":=" in line:  # a comment, or a key with a value of its own
            continue
        name, colon, value = line.partition(": ")
        name = name.lower().replace(" ", "")
        if not colon or name in fields:
            raise _HeaderError("cannot be read: its header is damaged. Copy it again.")
        fields[name] = value.strip()
    if any(int(fields.get(skip, "0")) for skip in ("lineskip", "byteskip")):
        raise _HeaderError("has something between its header and its voxels. Save it again.")
    if fields["dimension"] != "3":
        raise _HeaderError(_NOT_3D)
    encodings = {"raw": "raw", "gz": "zlib", "gzip": "zlib", "bz2": "bz2", "bzip2": "bz2"}
    if fields["encoding"].lower() not in encodings:
        raise _HeaderError("has its voxels as text. Save it raw or compressed.")
    if fields["type"].lower() not in _NRRD_TYPES:
        raise _HeaderError(_NO_NUMBERS)
    big = {"little": False, "big": True}[fields.get("endian", "little").lower()]
    affine, warnings = np.eye(4), []
    if "spacedirections" in fields:
        affine[:3, :3] = np.array([_vector(v) for v in _vectors(fields["spacedirections"])]).T
    elif "spacings" in fields:
        affine[:3, :3] = np.diag(_numbers(fields["spacings"], 3))
    else:
        warnings.append(_NO_SPACING)
    if "spaceorigin" in fields:
        affine[:3, 3] = _vector(fields["spaceorigin"])
    affine[:3] = _TO_RAS.get(fields.get("space", "").lower(), LPS_TO_RAS) @ affine[:3]
    dtype = np.dtype(_NRRD_TYPES[fields["type"].lower()]).newbyteorder(">" if big else "<")
    encoding = encodings[fields["encoding"].lower()]
    return _shape(fields["sizes"]), dtype, encoding, affine, warnings, fields.get("datafile")


def _parse_mha(lines: Iterator[str]) -> tuple:
    """(shape, dtype, encoding, affine, warnings, name of the file of the voxels or None) of a MetaImage header; leaves
    its file behind it."""
    fields: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals or name in fields:
            raise _HeaderError("cannot be read: its header is damaged. Copy it again.")
        fields[name] = value
        if name == "elementdatafile":
            break
    elsewhere = None if fields["elementdatafile"].upper() == "LOCAL" else fields["elementdatafile"]
    if int(fields.get("headersize", "0")) > 0:
        raise _HeaderError("has something between its header and its voxels. Save it again.")
    if fields["ndims"] != "3" or fields.get("elementnumberofchannels", "1") != "1":
        raise _HeaderError(_NOT_3D)
    if fields.get("binarydata", "True").lower() not in ("true", "1"):
        raise _HeaderError("has its voxels as text. Save it raw or compressed.")
    if fields["elementtype"].upper() not in _MHA_TYPES:
        raise _HeaderError(_NO_NUMBERS)
    warnings, spacing = [], fields.get("elementspacing", fields.get("elementsize"))
    if spacing is None:
        warnings.append(_NO_SPACING)
    axes = next((fields[n] for n in ("transformmatrix", "rotation", "orientation") if n in fields), "1 0 0 0 1 0 0 0 1")
    origin = next((fields[n] for n in ("offset", "position", "origin") if n in fields), "0 0 0")
    affine = np.eye(4)
    affine[:3, :3] = _numbers(axes, 9).reshape(3, 3).T * (_numbers(spacing, 3) if spacing else 1.0)
    affine[:3, 3] = _numbers(origin, 3)
    affine[:3] = LPS_TO_RAS @ affine[:3]
    big = fields.get("binarydatabyteordermsb", fields.get("elementbyteordermsb", "False")).lower() in ("true", "1")
    dtype = np.dtype(_MHA_TYPES[fields["elementtype"].upper()]).newbyteorder(">" if big else "<")
    packed = fields.get("compresseddata", "False").lower() in ("true", "1")
    return _shape(fields["dimsize"]), dtype, "zlib" if packed else "raw", affine, warnings, elsewhere


_NOT_3D = "is no 3D volume of single values. Save one volume of it and use that."
_NO_NUMBERS = "is a volume of something else than numbers of 8 to 64 bits. Save the scan's own values."
_NO_SPACING = "Its header gives no voxel size: 1 mm was taken. Export it with its geometry, or distances will be wrong."


def _values(file: BinaryIO, size: int, encoding: str) -> bytes:
    """The `size` bytes of voxels in the rest of a file; no more are unpacked."""
    if encoding == "raw":
        values = file.read(size)
    elif encoding == "zlib":
        values = zlib.decompressobj(wbits=47).decompress(file.read(), size)  # 47: zlib's or gzip's, by its head
    else:
        values = bz2.BZ2Decompressor().decompress(file.read(), size)
    if len(values) != size:
        raise EOFError("cut short")
    return values


def _shape(text: str) -> tuple[int, ...]:
    shape = tuple(int(n) for n in text.split())
    if len(shape) != 3:
        raise _HeaderError(_NOT_3D)
    return shape


def _numbers(text: str, count: int) -> np.ndarray:
    """`count` numbers (count,), float64, in a text. Raises ValueError for others, or another number of them."""
    words = text.split()
    if len(words) != count:
        raise ValueError(f"{count} numbers are needed")
    return np.array([float(w) for w in words])


def _vector(text: str) -> np.ndarray:
    """An NRRD's "(x,y,z)" as (3,), float64."""
    return _numbers(text.strip().removeprefix("(").removesuffix(")").replace(",", " "), 3)


def _vectors(text: str) -> list[str]:
    """The vectors in an NRRD's "(x,y,z) (x,y,z) (x,y,z)"."""
    vectors = [v for v in text.replace(") (", ")|(").replace(")(", ")|(").split("|") if v]
    if len(vectors) != 3:
        raise ValueError("three vectors are needed")
    return vectors
