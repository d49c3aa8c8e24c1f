"""Hostile files through every reader, and hostile values through every endpoint of a real server.

    python tools/fuzz.py --readers --cases 10000 --seed 0
    python tools/fuzz.py --api --cases 1000 --seed 0
    python tools/fuzz.py --readers --only 17 --keep DIR      # one case again, and its file

A case is made from its number and the seed alone. Those of the readers are a good file that is damaged (`DAMAGE`) or
one that is made to do harm (`FORGED`). What a page does with a scan is done with each that can be read. Prints a table
by kind of file or endpoint, and ends with 1 where anything crashed, took over five seconds, was refused without a
sentence, left a file, read another file, or showed a path or a stack trace.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gzip
import io
import json
import os
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SLOW = 5.0
"""Seconds that no file may take to read, and no call to be refused."""

LOST = 60.0
"""Seconds after which a process that does not answer is ended, and counted as a crash."""

START = 300.0
"""Seconds that such a process may take to start."""

SECRET = b"NOT-FOR-VISITORS"
"""What stands in the file that headers try to name; voxels that hold it were read from there."""


@dataclass(frozen=True)
class Case:
    """A file: kind is for the table, name what it is called, content its bytes."""

    kind: str
    name: str
    content: bytes


# Good files, small.

SIDE = 20


@cache
def voxels() -> np.ndarray:
    """A ball in air, int16 HU (SIDE, SIDE, SIDE)."""
    place = np.indices((SIDE, SIDE, SIDE)) - SIDE / 2
    ball = (place**2).sum(0) < (0.4 * SIDE) ** 2
    return (np.where(ball, 40, -1000) + np.random.default_rng(0).integers(-9, 9, ball.shape)).astype(np.int16)


@cache
def nifti() -> bytes:
    import nibabel as nib

    return nib.Nifti1Image(voxels(), np.diag([-8.0, 8, 8, 1])).to_bytes()


NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 20 20 20\nencoding: {encoding}\nendian: little\n{more}\n"
PLACE = "space: left-posterior-superior\nspace directions: (8,0,0) (0,8,0) (0,0,8)\nspace origin: (0,0,0)\n"
MHA = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 8 8 8\nDimSize = 20 20 20\n"
    "{more}ElementType = MET_SHORT\nElementDataFile = {data}\n"
)


def raw() -> bytes:
    return voxels().tobytes(order="F")


def nrrd(encoding: str = "raw", more: str = PLACE, content: bytes | None = None) -> bytes:
    return NRRD.format(encoding=encoding, more=more).encode() + (raw() if content is None else content)


def mha(more: str = "", data: str = "LOCAL", content: bytes | None = None) -> bytes:
    return MHA.format(more=more, data=data).encode() + (raw() if content is None else content)


def picture(mode: str, name: str, **options) -> bytes:
    from PIL import Image

    grey = np.clip(np.repeat(np.repeat(voxels()[:, :, 10], 4, 0), 4, 1) / 8 + 125, 0, 255).astype(np.uint8)
    image = Image.fromarray(grey.astype(np.uint16) * 200) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(buffer := io.BytesIO(), name, **options)
    return buffer.getvalue()


@cache
def dicom(number: int = 10, syntax: str = "explicit", compressed: bool = False, place: str | None = None) -> bytes:
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{number + 1}"
    one.Modality, one.SeriesDescription, one.PatientName = "CT", "Head", "Nobody"
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = "1.2.4", "1.2.5", "1.2.6"
    one.ImageType, one.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], number + 1
    one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, place or 8 * number], [1, 0, 0, 0, 1, 0]
    one.PixelSpacing, one.SliceThickness = [8, 8], 8
    one.Rows = one.Columns = SIDE
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation = 15, 1
    one.RescaleSlope, one.RescaleIntercept = 1, 0
    one.PixelData = np.ascontiguousarray(voxels()[:, :, number].T).tobytes()
    one["PixelData"].VR = "OW"
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = {
        "explicit": pydicom.uid.ExplicitVRLittleEndian,
        "implicit": pydicom.uid.ImplicitVRLittleEndian,
        "deflated": pydicom.uid.DeflatedExplicitVRLittleEndian,
    }[syntax]
    if compressed:
        one.compress(pydicom.uid.RLELossless)
    one.save_as(buffer := io.BytesIO(), enforce_file_format=True)
    return buffer.getvalue()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@cache
def good() -> dict[str, Case]:
    """Files that can be read, by kind."""
    packed = zlib.compress(raw())
    files = {
        "nifti": ("a.nii", nifti()),
        "nifti gz": ("a.nii.gz", gzip.compress(nifti())),
        "nrrd": ("a.nrrd", nrrd()),
        "nrrd gz": ("a.nrrd", nrrd("gzip", content=gzip.compress(raw()))),
        "mha": ("a.mha", mha()),
        "mha zlib": ("a.mha", mha(f"CompressedData = True\nCompressedDataSize = {len(packed)}\n", content=packed)),
        "png": ("a.png", picture("L", "PNG")),
        "png 16": ("a.png", picture("I;16", "PNG")),
        "png rgba": ("a.png", picture("RGBA", "PNG")),
        "jpeg": ("a.jpg", picture("L", "JPEG")),
        "jpeg progressive": ("a.jpg", picture("L", "JPEG", progressive=True)),
        "dicom": ("a.dcm", dicom()),
        "dicom implicit": ("a.dcm", dicom(syntax="implicit")),
        "dicom deflated": ("a.dcm", dicom(syntax="deflated")),
        "dicom rle": ("a.dcm", dicom(compressed=True)),
        "zip of dicom": ("a.zip", zipped({f"s/{n}.dcm": dicom(n) for n in range(SIDE)})),
        "zip of nifti": ("a.zip", zipped({"head.nii": nifti()})),
        "zip of lzma": ("a.zip", zipped({"head.nii": nifti()}, zipfile.ZIP_LZMA)),
    }
    return {kind: Case(kind, *file) for kind, file in files.items()}


# Damage to any file.

NUMBERS = (
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\1\0\0\0",
    b"\0\0\1\0",
    b"\0\0\0\x40",
)
WORDS = (
    b"-1",
    b"0",
    b"1e308",
    b"nan",
    b"inf",
    b"99999999999999999999",
    b"A" * 300,
    b"2147483648",
    b"-0.0",
    b"",
    b"1e-300",
)


def _place(rng: Generator, content: bytes) -> int:
    """A place in a file; mostly in its first 600 bytes, where headers are."""
    return int(rng.integers(0, max(1, min(len(content), 600) if rng.random() < 0.7 else len(content))))


def _cut(rng: Generator, content: bytes) -> bytes:
    return content[: _place(rng, content)]


def _flip_bits(rng: Generator, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 17)):
        damaged[_place(rng, content)] ^= 1 << rng.integers(0, 8)
    return bytes(damaged)


def _overwrite(rng: Generator, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        place, number = _place(rng, content), NUMBERS[rng.integers(0, len(NUMBERS))]
        size = int(rng.choice([1, 2, 4]))
        damaged[place : place + size] = number[:size]
    return bytes(damaged)


def _insert(rng: Generator, content: bytes) -> bytes:
    place, size = _place(rng, content), int(rng.choice([1, 2, 16, 4096, 1 << 16]))
    return content[:place] + rng.bytes(size) + content[place:]


def _remove(rng: Generator, content: bytes) -> bytes:
    place = _place(rng, content)
    return content[:place] + content[place + int(rng.choice([1, 2, 4, 100, 1000])) :]


def _repeat(rng: Generator, content: bytes) -> bytes:
    start = _place(rng, content)
    part = content[start : start + int(rng.choice([8, 64, 512]))]
    return content[:start] + part * int(rng.choice([2, 10, 200])) + content[start:]


def _other_words(rng: Generator, content: bytes) -> bytes:
    """A number in the text of a header replaced."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", content[:2000]))
    if not found:
        return _overwrite(rng, content)
    one = found[rng.integers(0, len(found))]
    return content[: one.start()] + WORDS[rng.integers(0, len(WORDS))] + content[one.end() :]


def _joined(rng: Generator, content: bytes) -> bytes:
    """A file that is two: another one behind or before it."""
    other = list(good().values())[rng.integers(0, len(good()))].content
    return content + other if rng.random() < 0.7 else other + content


DAMAGE = (_cut, _flip_bits, _flip_bits, _overwrite, _overwrite, _insert, _remove, _repeat, _other_words, _joined)


# Files that are made to do harm. Each takes a generator and gives (name, content).

Forged = tuple[str, bytes]


def header(shape: tuple[int, ...], code: int = 4, bits: int = 16, mm: float = 5.0, rows=None) -> bytes:
    """A NIfTI header (352 bytes) that claims `shape`; rows: of its affine."""
    head = bytearray(nifti()[:352])
    struct.pack_into("<8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", head, 70, code, bits)
    for row in range(3):
        values = [0.0] * 4
        values[row] = mm
        struct.pack_into("<4f", head, 280 + 16 * row, *(rows[row] if rows is not None else values))
    return bytes(head)


def zeros(count: int, pack=lambda: zlib.compressobj(9, wbits=31), head: bytes = b"") -> bytes:
    """`head` and `count` bytes, packed: a piece of each MiB is not zero."""
    packer = pack()
    block = np.random.default_rng(0).bytes(4000) + bytes((1 << 20) - 4000)
    out = [packer.compress(head)]
    out += [packer.compress(block) for _ in range(count >> 20)]
    out += [packer.compress(bytes(count % (1 << 20))), packer.flush()]
    return b"".join(out)


def large_voxels(rng: Generator) -> Forged:
    """A small file of many large voxels."""
    side = int(rng.choice([200, 320, 400]))
    mm = float(rng.choice([5, 60, 0.01, 900]))
    return "big.nii.gz", zeros(2 * side**3, head=header((side, side, side), mm=mm))


def absurd_affine(rng: Generator) -> Forged:
    numbers = [0, 1, -1, 8, 1e-30, 1e30, 3e38, float("nan"), float("inf"), 1e-3, 1e5, 300]
    rows = rng.choice(numbers, (3, 4))
    if rng.random() < 0.6:
        rows[:, :3] = np.diag(rng.choice([1e-3, 0.01, 1, 8, 60, 1000, 3e4, 1e5], 3))
        rows[:, 3] = rng.choice([0, -80, 300, 9e4], 3)
    how = rng.integers(0, 3)
    if how == 0:
        return "affine.nii", header((SIDE,) * 3, rows=rows) + raw()
    words = [[f"{v:.9g}" for v in row] for row in rows.T]
    if how == 1:
        axes = " ".join(f"({','.join(row)})" for row in words[:3])
        return "affine.nrrd", nrrd(more=f"space: RAS\nspace directions: {axes}\nspace origin: ({','.join(words[3])})\n")
    matrix = " ".join(" ".join(row) for row in words[:3])
    return "affine.mha", mha().replace(b"1 0 0 0 1 0 0 0 1", matrix.encode()).replace(
        b"8 8 8", " ".join(words[3][:3]).encode()
    )


def claimed_size(rng: Generator) -> Forged:
    """A header that claims more, or less, than there is."""
    shape = tuple(int(n) for n in rng.choice([-1, 0, 1, 2, 16, 100, 1200, 32767], 3))
    how = rng.integers(0, 3)
    if how == 0:
        code, bits = [(4, 16), (64, 64), (2, 8), (1792, 128), (0, 0), (2304, 32)][rng.integers(0, 6)]
        return "claims.nii", header(shape, code, bits) + raw()
    text = " ".join(str(n * int(rng.choice([1, 1, 10**9]))) for n in shape)
    if how == 1:
        return "claims.nrrd", nrrd().replace(b"20 20 20", text.encode())
    return "claims.mha", mha().replace(b"DimSize = 20 20 20", f"DimSize = {text}".encode())


def bomb(rng: Generator) -> Forged:
    """Much in little, in each container: the 500 MiB that it unpacks to, claimed or not."""
    size = int(rng.choice([64, 500])) << 20
    how = rng.integers(0, 8)
    if how == 0:
        return "bomb.nii.gz", zeros(size, head=header((512, 512, min(1200, size >> 19))))
    if how == 1:
        return "bomb.nii.gz", zeros(size, head=header((SIDE,) * 3))
    if how == 2:
        return "bomb.png", png_of(int(rng.choice([4096, 20_000])), true=True)
    if how == 3:
        return "bomb.zip", zipped({"a.nii": bytes(size)})
    if how == 4:
        meta = dicom(syntax="deflated")
        start = meta.index(b"1.2.840.10008.1.2.1.99") + 30
        return "bomb.dcm", meta[:start] + zeros(size, lambda: zlib.compressobj(9, wbits=-15))
    if how == 5:
        return "bomb.nrrd", nrrd("gzip", content=zeros(size))
    if how == 6:
        return "bomb.nrrd", nrrd("bzip2", content=bz2.compress(bytes(size >> 2)))
    return "bomb.mha", mha("CompressedData = True\n", content=zeros(size))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(side: int, *, true: bool = False) -> bytes:
    """A black PNG that claims `side` x `side` pixels of one bit; true: they are there."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    pixels = zeros((side // 8 + 1) * side, zlib.compressobj) if true else zlib.compress(bytes(64))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def odd_picture(rng: Generator) -> Forged:
    from PIL import Image

    how = rng.integers(0, 5)
    if how == 0:
        Image.new("L", (1, 1)).save(buffer := io.BytesIO(), "PNG")
        return "one.png", buffer.getvalue()
    if how == 1:
        return "huge.png", png_of(20_000, true=bool(rng.integers(0, 2)))
    if how == 2:
        text = chunk(b"zTXt", b"a\0\0" + zeros(200 << 20, zlib.compressobj))
        whole = picture("L", "PNG")
        return "text.png", whole[:33] + text + whole[33:]
    if how == 3:
        return "scans.jpg", many_scans(int(rng.choice([50, 500, 5000])))
    return "drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


def many_scans(count: int, side: int = 2000) -> bytes:
    """A progressive JPEG whose last scan comes `count` times."""
    from PIL import Image

    Image.new("L", (side, side), 90).save(buffer := io.BytesIO(), "JPEG", progressive=True)
    whole = buffer.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    """A DICOM element with a short length (explicit VR, little endian)."""
    value += b" " * (len(value) % 2)
    return struct.pack("<HH", group, number) + kind + struct.pack("<H", len(value)) + value


def nested(depth: int) -> bytes:
    """A DICOM whose sequences lie in each other."""
    meta = element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1\0")
    head = bytes(128) + b"DICM" + element(2, 0, b"UL", struct.pack("<I", len(meta))) + meta
    item = struct.pack("<HH", 8, 0x1140) + b"SQ\0\0\xff\xff\xff\xff" + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    return head + element(8, 0x60, b"CS", b"CT") + item * depth


def odd_dicom(rng: Generator) -> Forged:
    how = rng.integers(0, 5)
    if how == 0:
        return "nested.dcm", nested(int(rng.choice([10, 900, 5000, 20_000])))
    whole = dicom()
    if how == 1:  # a length that the file does not have
        place = whole.index(struct.pack("<HH", 0x7FE0, 0x10)) + 8
        return "length.dcm", whole[:place] + NUMBERS[rng.integers(0, len(NUMBERS))] + whole[place + 4 :]
    if how == 2:  # sides and frames
        damaged = whole
        for tag in (0x10, 0x11):
            place = damaged.index(struct.pack("<HH", 0x28, tag)) + 8
            damaged = damaged[:place] + struct.pack("<H", int(rng.choice([0, 1, 20, 65535]))) + damaged[place + 2 :]
        return "sides.dcm", damaged
    if how == 3:  # a far slice
        far = str(rng.choice(["1e9", "1e30", "nan", "-1e8", "4000", "1e300"]))
        files = {f"{n}.dcm": dicom(n) for n in range(4)} | {"4.dcm": dicom(4, place=far)}
        return "far.zip", zipped(files)
    letters = "".join(chr(c) for c in rng.integers(1, 128, 60)).encode()
    place = whole.index(b"Nobody")
    return "named.dcm", whole[: place - 2] + struct.pack("<H", 60) + letters + whole[place + 6 :]


def odd_zip(rng: Generator) -> Forged:
    how = rng.integers(0, 8)
    name = "odd.zip"
    if how == 0:
        where = ["../../out.nii", "/var/out.nii", "a\\..\\..\\out.nii", "C:\\out.nii", "a/" * 500 + "out.nii"]
        return name, zipped({where[rng.integers(0, len(where))]: nifti()})
    if how == 1:  # a link to another file
        with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
            link = zipfile.ZipInfo("link.nii")
            link.create_system, link.external_attr = 3, 0o120777 << 16
            archive.writestr(link, "/etc/passwd")
        return name, buffer.getvalue()
    whole = bytearray(zipped({"head.nii": nifti()}))
    if how == 2:  # encrypted
        whole[6] |= 1
        whole[whole.rindex(b"PK\1\2") + 8] |= 1
        return name, bytes(whole)
    if how == 3:  # sizes that are not so
        for start, offset in ((0, 22), (whole.rindex(b"PK\1\2"), 24)):
            struct.pack_into("<I", whole, start + offset, int(rng.choice([0, 10, 1 << 20, 0xFFFFFFFF])))
        return name, bytes(whole)
    if how == 4:
        return name, zipped({f"{n}": b"" for n in range(int(rng.choice([3000, 19_000, 30_000])))}, zipfile.ZIP_STORED)
    if how == 5:
        inner = zipped({"head.nii": nifti()})
        for _ in range(int(rng.choice([1, 3, 50]))):
            inner = zipped({"in.zip": inner})
        return name, inner
    if how == 6:  # entries that share their bytes
        start = whole.rindex(b"PK\1\2")
        entry, end = bytes(whole[start : whole.rindex(b"PK\5\6")]), whole[whole.rindex(b"PK\5\6") :]
        count = int(rng.choice([100, 3000]))
        struct.pack_into("<HHI", end, 8, count, count, count * len(entry))
        return name, bytes(whole[:start]) + entry * count + bytes(end)
    return name, zipped({f"{n}.dcm": dicom(n % SIDE)[: -int(rng.integers(1, 900))] for n in range(30)})


def many_entries(_: Generator) -> Forged:
    return "many.zip", zipped(dict.fromkeys(map(str, range(100_000)), b""), zipfile.ZIP_STORED)


def odd_header(rng: Generator) -> Forged:
    """Headers in text that are long, repeat themselves, or name another file."""
    path = str(rng.choice(["{secret}", "/etc/passwd", "-", "../secret.raw", "LIST", "%03d.raw 1 9 1", "a.raw", ""]))
    how = rng.integers(0, 9)
    if how == 0:
        return "keys.nrrd", nrrd(more=PLACE + "".join(f"key{n}:=v\n" for n in range(int(rng.choice([99, 300_000])))))
    if how == 1:
        return "comments.nrrd", nrrd(more="# " + "c" * int(rng.choice([100, 1 << 16, 1 << 23])) + "\n" + PLACE)
    if how == 2:
        line = str(rng.choice(["data file", "datafile", "Data File", "#\rdata file", "data file:", "\tdata file"]))
        return "named.nrrd", nrrd(more=PLACE + f"{line}: {path}\n")
    if how == 3:
        return "twice.mha", mha(f"ElementDataFile = {path}\n")
    if how == 4:
        return "named.mha", mha(data=path)
    if how == 5:
        return "keys.mha", mha("".join(f"Key{n} = v\n" for n in range(int(rng.choice([99, 100_000])))))
    if how == 6:
        key = str(rng.choice(["NDims = -1", "NDims = 3000", "HeaderSize = -1", "ElementNumberOfChannels = 99999999"]))
        return "odd.mha", mha(key + "\n").replace(b"NDims = 3\n", b"")
    if how == 7:
        return "odd.nrrd", nrrd(
            more=PLACE + str(rng.choice(["byte skip: -1\n", "line skip: 1000000000\n", "type: block\n"]))
        )
    return "odd.nrrd", nrrd().replace(b"dimension: 3", b"dimension: " + WORDS[rng.integers(0, len(WORDS))])


def odd_extension(rng: Generator) -> Forged:
    """A NIfTI with something behind its header: XML that grows (CIFTI), a DICOM, a wrong size."""
    laughs = b'<!DOCTYPE a [<!ENTITY a "ha">' + b"".join(
        f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">'.encode() for n in range(9)
    )
    code, content = [(32, laughs + b"]><CIFTI Version='2'>&j;</CIFTI>"), (2, nested(5000)), (6, b"text")][
        rng.integers(0, 3)
    ]
    size = int(rng.choice([len(content) + 8, 8, 0, 1 << 30, -16]))
    head = bytearray(header((SIDE,) * 3))
    head[348] = 1
    struct.pack_into("<f", head, 108, 352 + len(content) + 8)
    return "more.nii", bytes(head) + struct.pack("<ii", size, code) + content + raw()


NAMES = (
    "<img src=x onerror=alert(1)>{}", "[a](http:b){}", "a\x07\x1b[31mb{}", "a\nb{}", "%s%n{0}", "\u202egpj{}", "ä🧠{}",
    "{{}}{}", "a" * 200 + "{}", " {}", "-rf{}", "$(id){}", "..{}", "a'b\"c{}",
)  # fmt: skip


def odd_name(rng: Generator) -> Forged:
    one = list(good().values())[rng.integers(0, len(good()))]
    content = one.content if rng.random() < 0.5 else _cut(rng, one.content)
    ending = one.name[1:] if rng.random() < 0.7 else str(rng.choice([".png", ".dcm", ".nii", "", ".zip", ".NRRD"]))
    return NAMES[rng.integers(0, len(NAMES))].format(ending), content


FORGED: tuple[Callable[[Generator], Forged], ...] = (
    absurd_affine, absurd_affine, claimed_size, claimed_size, odd_picture, odd_dicom, odd_dicom, odd_zip, odd_header,
    odd_header, odd_extension, odd_name, odd_name,
)  # fmt: skip
HEAVY = (large_voxels, bomb, bomb, many_entries)
"""Those that take seconds to make; one case in two hundred."""


def case(seed: int, number: int) -> Case:
    """The case of a number."""
    rng = np.random.default_rng([seed, number])
    if number % 200 == 199:
        make = HEAVY[rng.integers(0, len(HEAVY))]
        return Case(make.__name__, *make(rng))
    if number % 3 == 2:
        make = FORGED[rng.integers(0, len(FORGED))]
        return Case(make.__name__, *make(rng))
    one = list(good().values())[rng.integers(0, len(good()))]
    content = one.content
    for _ in range(rng.integers(1, 3)):
        content = DAMAGE[rng.integers(0, len(DAMAGE))](rng, content)
    return Case(one.kind, one.name, content)


# What became of it.

_SHOWS_PATH = re.compile(r"Traceback|File \"|line \d+, in|site-packages|/tmp|/home|/root|/usr/|/etc/|0x[0-9a-f]{8}")


def tells(text: str, name: str) -> str:
    """What is wrong with a text for users: "path", "no sentence" or "". name: of the file, which it may hold."""
    rest = text.replace(name, "") if name.strip() else text
    if _SHOWS_PATH.search(rest) or str(ROOT) in rest or tempfile.gettempdir() in rest:
        return "path"
    return "" if len(rest.split()) > 3 and rest.rstrip()[-1:] in (".", "?", "!", "]") else "no sentence"


@dataclass
class Row:
    """The counts of one line of the table. troubles: how many of each kind there were."""

    cases: int = 0
    refused: int = 0
    read: int = 0
    slowest: float = 0.0
    troubles: Counter = field(default_factory=Counter)

    def __add__(self, other: Row) -> Row:
        return Row(
            self.cases + other.cases,
            self.refused + other.refused,
            self.read + other.read,
            max(self.slowest, other.slowest),
            self.troubles + other.troubles,
        )


TROUBLES = {
    "crash": "crashes",
    "slow": f"over {SLOW:.0f} s",
    "no sentence": "no sentence",
    "left": "files left",
    "other file": "other files read",
    "path": "path or trace",
}


def table(rows: dict[str, Row], peaks: dict[str, float]) -> str:
    """The rows and their sum, as Markdown."""
    whole = sum(rows.values(), Row())
    lines = ["| | cases | refused | read | " + " | ".join(TROUBLES.values()) + " | slowest (s) |", "|" + " --- |" * 11]
    lines += [
        f"| {name} | {row.cases} | {row.refused} | {row.read} | "
        + " | ".join(str(row.troubles[trouble]) for trouble in TROUBLES)
        + f" | {row.slowest:.1f} |"
        for name, row in [*sorted(rows.items()), ("all", whole)]
    ]
    lines += ["", *(f"Peak memory of {what}: {mib:.0f} MiB." for what, mib in peaks.items())]
    return "\n".join(lines)


# Readers: a process that reads as the page does, told case by case.


def use(scan) -> Iterator[None]:
    """What the page does with a scan before a model sees it: with a slice, and then with the whole."""
    from mediffuse.image.display import CT_VIEWS, picture
    from mediffuse.scan import PLANES, ScanError
    from mediffuse.scan.resample import straightened
    from mediffuse.ui.viewer import describe

    for plane in PLANES:
        with contextlib.suppress(ScanError):
            one = scan.slice(plane)
            limits = next(iter(CT_VIEWS.values())) if scan.modality == "CT" else scan.limits
            picture(one.pixels, limits, one.spacing)
            fitted = one.letterbox(256).fit(one.pixels, one.background)
            one.letterbox(256).restore(fitted)
            scan.slice_to_nifti(one, one.pixels).to_bytes()
    yield
    scan.head_mask()
    describe([], scan)
    straightened(scan)


def read(path: Path, modality: str, number: int) -> dict:
    """What came of reading a file and using it. number: one of forty is registered to itself too."""
    from mediffuse.scan import ScanError
    from mediffuse.scan.guard import read_scan
    from mediffuse.scan.resample import registered

    started = time.perf_counter()
    found: dict = {"outcome": "read", "text": ""}
    try:
        scan = read_scan(path, modality)
        found["other file"] = SECRET in np.ascontiguousarray(scan.voxels.T).astype(np.uint8).tobytes()
        steps = use(scan)
        next(steps)
        # The rest takes as long with a good scan of that size.
        found |= {"text": " ".join(scan.warnings), "seconds": time.perf_counter() - started}
        next(steps, None)
        if number % 40 == 0:
            registered(scan, scan)  # which takes its time with good scans too
    except ScanError as error:
        found |= {"outcome": "refused", "text": str(error)}
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        found |= {"outcome": "crash", "text": f"{type(error).__name__}: {error}"}
    return {"seconds": time.perf_counter() - started, **found}


def serve() -> None:
    """Answer lines of JSON, each a file to read, until there are no more."""
    import SimpleITK  # noqa: F401 - what it takes to load is no file's

    import mediffuse.ui.viewer  # noqa: F401

    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(read(Path(asked["path"]), asked["modality"], asked["number"])), file=answers, flush=True)


class Peak(threading.Thread):
    """Looks every few hundredths of a second at how much memory a process and those below it take. mib: the most of the
    process, and of one below it."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process = 0
        self.mib = [0.0, 0.0]

    def run(self) -> None:
        while True:
            process = self.process
            if process:
                self._look(process, 0)
            time.sleep(0.03)

    def _look(self, process: int, depth: int) -> None:
        with contextlib.suppress(OSError, StopIteration, ValueError):
            lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
            high = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
            self.mib[min(depth, 1)] = max(self.mib[min(depth, 1)], high)
            for child in Path(f"/proc/{process}/task/{process}/children").read_text(encoding="utf-8").split():
                self._look(int(child), depth + 1)


class Reader:
    """A process that `serve`s, started again where it ends; its temporary files are in `folder`."""

    def __init__(self, folder: Path, peak: Peak) -> None:
        self.folder, self.peak, self.process = folder, peak, None

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the readers' own warnings
            text=True,
            env={**os.environ, "TMPDIR": str(self.folder)},
        )
        self.peak.process = self.process.pid
        # What it takes to start is no file's.
        if not self._answer({"path": "none.nii", "modality": "CT", "number": 1}, START):
            self.close()
            raise RuntimeError("The process that reads does not start.")

    def ask(self, **asked: object) -> dict:
        """Its answer; {"outcome": "crash"} where it ended, or did not answer. Raises RuntimeError if it does not
        start."""
        if self.process is None:
            self._start()
        started = time.perf_counter()
        if line := self._answer(asked, LOST):
            return json.loads(line)
        self.close()
        return {"outcome": "crash", "text": "The process ended.", "seconds": time.perf_counter() - started}

    def _answer(self, asked: dict, patience: float) -> str:
        """The line that it answers within so many seconds; empty if none came."""
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            if select.select([self.process.stdout], [], [], patience)[0]:
                return self.process.stdout.readline()
        return ""

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


def everything_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def judged(found: dict, name: str, row: Row) -> list[str]:
    """Count what came of a case; what is wrong with it."""
    row.cases += 1
    row.slowest = max(row.slowest, found["seconds"])
    row.read += found["outcome"] == "read"
    row.refused += found["outcome"] == "refused"
    wrong = [found["outcome"]] if found["outcome"] == "crash" else []
    wrong += ["slow"] if found["seconds"] > SLOW and not found.get("may take") else []
    wrong += [trouble for trouble in ("left", "other file") if found.get(trouble)]
    if found["text"] and found["outcome"] != "crash" and (said := tells(found["text"], name)):
        wrong.append(said)
    row.troubles.update(wrong)
    return wrong


def fuzz_readers(
    seed: int, numbers: range, folder: Path, end: float, keep: Path | None = None
) -> tuple[dict[str, Row], dict]:
    """(rows by kind, peak memory) of reading the cases of some numbers. folder: for temporary files. end: on
    `time.monotonic`, after which there are no more.

    keep: where the files stay, of which more is told then.
    """
    peak, rows = Peak(), defaultdict(Row)
    peak.start()
    reader = Reader(folder, peak)
    secret = folder / "secret.raw"
    secret.write_bytes(SECRET * 1000)
    place = folder / "case"
    before = everything_in(folder) | {place}
    for number in numbers:
        if time.monotonic() > end:
            break
        one = case(seed, number)
        place.mkdir()
        path = place / (f"{one.name}_" if one.name in (".", "..") else one.name.replace("/", "_"))
        path.write_bytes(one.content.replace(b"{secret}", str(secret).encode()))
        found = reader.ask(path=str(path), modality=("CT", "MR")[number // 7 % 2], number=number)
        if keep:
            keep.mkdir(exist_ok=True)
            shutil.copy(path, keep / f"{number}{path.suffix}")
            print(f"{number} ({one.kind}, {one.name!r}): {found}")
        shutil.rmtree(place)
        found["left"] = [str(path) for path in everything_in(folder) - before]
        before |= everything_in(folder)
        if wrong := judged(found, one.name, rows[one.kind]):
            print(f"{number} ({one.kind}, {one.name[:40]!r}): {', '.join(wrong)}: {found}", file=sys.stderr, flush=True)
    reader.close()
    return rows, {"the process that reads": peak.mib[0], "a child of its worker": peak.mib[1]}


# Endpoints: a real server, by raw JSON.


HOSTILE_VALUES = (
    None, True, -1, 0, 1e308, -1e308, 10**30, 0.5, "", "nan", "NaN", "A" * 100_000, "<script>alert(1)</script>", [],
    [[]], {}, {"path": "/etc/passwd"}, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "../../../etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"path": "a.nii", "url": "http://127.0.0.1:1/a.nii", "meta": {"_type": "gradio.FileData"}},
    {"path": "", "meta": {"_type": "gradio.FileData"}}, [1, 2, 3], ["axial", "axial", "nowhere"], "../../etc/passwd",
    "\0", "{secret}", {"__type__": "update", "value": 5}, 2**31, "fast", "diffusion", "1; DROP TABLE", "ä🧠\u202e",
    ["a"] * 10_000,
)  # fmt: skip


@contextlib.contextmanager
def server(folder: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """(address, process) of the app, its temporary files in `folder`."""
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "GRADIO_SERVER_PORT": str(port),
        "TMPDIR": str(folder),
        "GRADIO_TEMP_DIR": str(folder / "g"),
    }
    command = [sys.executable, str(ROOT / "app.py")]
    with (folder.parent / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{address}/config", timeout=5).status_code == 200:
                    break
            if process.poll() is not None:
                raise RuntimeError("The server does not start; its last words are in server.log.")
            time.sleep(0.1)
        yield address, process
    finally:
        process.terminate()
        process.wait(30)


def _answer_of(client, address: str, body: dict) -> tuple[str, str]:
    """("read" or "refused", text) of a call by /queue/join, which takes any handler's number."""
    joined = client.post(f"{address}/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return "refused", _text_of(joined.json() if "json" in joined.headers.get("content-type", "") else joined.text)
    with client.stream(
        "GET", f"{address}/gradio_api/queue/data", params={"session_hash": body["session_hash"]}
    ) as lines:
        for line in lines.iter_lines():
            if not line.startswith("data:"):
                continue
            told = json.loads(line[5:])
            if told["msg"] == "process_completed":
                if told["success"]:
                    return "read", ""
                return "refused", _text_of(told["output"])
            if told["msg"] == "unexpected_error":
                return "refused", _text_of(told)
    return "refused", "The stream ended."


def _text_of(told: object) -> str:
    if isinstance(told, dict):
        told = next((told[key] for key in ("error", "detail", "message") if key in told), told)
    return str(told)


def fuzz_api(seed: int, numbers: range, folder: Path, end: float) -> tuple[dict[str, Row], dict]:
    """(rows by endpoint, peak memory) of calling every handler, private ones too, with hostile values and files."""
    import httpx

    rows: dict[str, Row] = defaultdict(Row)
    inside = folder / "server"
    inside.mkdir()
    (folder / "secret.raw").write_bytes(SECRET * 1000)
    peak = Peak()
    peak.start()
    with server(inside) as (address, process), httpx.Client(timeout=LOST) as client:
        peak.process = process.pid
        config = client.get(f"{address}/config").json()
        components = {part["id"]: part for part in config["components"]}
        handlers = [d for d in config["dependencies"] if d["backend_fn"]]
        public = [d for d in handlers if d.get("api_visibility") == "public"]
        example = ROOT / "assets" / "examples" / "head_ct.nii.gz"
        for handler in handlers:
            if str(handler.get("api_name")) in ("ct_to_mri", "contours_to_mri", "mri_to_ct"):  # they load the models
                uploaded = _uploaded(client, address, rng := np.random.default_rng(0), None, example)
                data = [_value(rng, components[i], uploaded) for i in handler["inputs"]]
                _answer_of(client, address, {"data": data, "fn_index": handler["id"], "session_hash": "first"})
        for number in numbers:
            if time.monotonic() > end:
                break
            rng = np.random.default_rng([seed, number])
            handler = public[number % len(public)] if rng.random() < 0.7 else handlers[number % len(handlers)]
            uploaded = _uploaded(
                client, address, rng, case(seed, 3 * number + 2) if rng.random() < 0.5 else None, example
            )
            data = [_value(rng, components[i], uploaded) for i in handler["inputs"]]
            for place in rng.integers(0, max(1, len(data)), rng.integers(0, 3)) if data else ():
                data[place] = HOSTILE_VALUES[rng.integers(0, len(HOSTILE_VALUES))]
            if rng.random() < 0.05:
                data = data[: rng.integers(0, len(data) + 1)] + [1] * int(rng.integers(0, 3))
            body = {"data": data, "fn_index": handler["id"], "session_hash": f"{seed}-{number}", "trigger_id": None}
            text = json.dumps(body).replace("{secret}", str(folder / "secret.raw"))
            started = time.perf_counter()
            try:
                outcome, said = _answer_of(client, address, json.loads(text))
            except (httpx.HTTPError, ValueError) as error:
                outcome, said = "crash", type(error).__name__
            # A translation takes what it takes: what is refused must be so at once.
            found = {
                "outcome": outcome,
                "text": said,
                "seconds": time.perf_counter() - started,
                "may take": outcome == "read",
            }
            if process.poll() is not None:
                found["outcome"] = "crash"
            name = re.sub(r"_\d+$", "", handler.get("api_name") or f"handler {handler['id']}")
            if wrong := judged(found, str(folder / "secret.raw"), rows[name]):
                print(f"{number} ({name}): {', '.join(wrong)}: {found['text'][:200]!r} {text[:300]}", file=sys.stderr)
            if process.poll() is not None:
                break
        memory = {"the server": peak.mib[0], "a process below it": peak.mib[1]}
    rows["after the end"].troubles["left"] = sum(
        1 for path in everything_in(inside) if path.name.startswith("mediffuse-")
    )
    return rows, memory


def _uploaded(client, address: str, rng: Generator, one: Case | None, example: Path) -> dict:
    """An upload, hostile or the example, as the API names it."""
    name, content = (
        (one.name, one.content) if one and len(one.content) < 1 << 22 else (example.name, example.read_bytes())
    )
    sent = client.post(f"{address}/gradio_api/upload", files={"files": (name.replace("/", "_"), content)})
    path = sent.json()[0] if sent.status_code == 200 else "nowhere"
    return {"path": path, "orig_name": name, "size": len(content), "meta": {"_type": "gradio.FileData"}}


def _value(rng: Generator, component: dict, uploaded: dict) -> object:
    """A value that fits a component; what is costly is small."""
    props, label = component.get("props", {}), component.get("props", {}).get("label") or ""
    kind = component["type"]
    if kind == "file":
        if "truth" in label and rng.random() < 0.7:
            return None
        return [uploaded] if props.get("file_count") == "multiple" else uploaded
    if label.startswith(("Steps", "Samples")):
        return 2
    if label == "Speed" and rng.random() < 0.8:
        return "fast"
    if kind in ("radio", "dropdown"):
        choices = [choice[1] for choice in props.get("choices") or []]
        return choices[rng.integers(0, len(choices))] if choices else None
    return props.get("value")


def at_once(
    run: Callable, jobs: int, seed: int, numbers: range, folder: Path, end: float
) -> tuple[dict[str, Row], dict]:
    """`run` with every so manieth of the numbers in each of some threads; what came of all."""
    folders = [folder / str(job) for job in range(jobs)]
    for each in folders:
        each.mkdir()
    with ThreadPoolExecutor(jobs) as pool:
        parts = list(pool.map(run, [seed] * jobs, [numbers[job::jobs] for job in range(jobs)], folders, [end] * jobs))
    rows, peaks = defaultdict(Row), {}
    for part, peak in parts:
        for name, row in part.items():
            rows[name] = rows[name] + row
        peaks = {what: max(mib, peaks.get(what, 0)) for what, mib in peak.items()}
    return rows, peaks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", action="store_true", help="files through the readers (the default)")
    parser.add_argument("--api", action="store_true", help="values through the endpoints of a server started for it")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=1, help="files that are read at once")
    parser.add_argument("--minutes", type=float, default=60, help="end after so long, with fewer cases")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one case, which is told of in full")
    parser.add_argument("--keep", type=Path, help="folder for the files of --only")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve()
        return 0
    numbers = range(asked.first, asked.first + asked.cases)
    if asked.only is not None:
        numbers = range(asked.only, asked.only + 1)
    bad = False
    for wanted, run in ((asked.readers or not asked.api, fuzz_readers), (asked.api, fuzz_api)):
        if not wanted:
            continue
        started, end = time.perf_counter(), time.monotonic() + 60 * asked.minutes
        with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
            if run is fuzz_readers and asked.only is not None:
                rows, peaks = fuzz_readers(asked.seed, numbers, Path(name), end, asked.keep or Path(name) / "kept")
            else:
                jobs = asked.jobs if run is fuzz_readers else 1
                rows, peaks = at_once(run, jobs, asked.seed, numbers, Path(name), end)
        print(table(rows, peaks))
        done, seconds = sum(row.cases for row in rows.values()), time.perf_counter() - started
        print(f"Seed {asked.seed}, {done} of the cases {numbers.start} to {numbers.stop - 1}, {seconds:.0f} s.\n")
        bad |= any(sum(row.troubles.values()) for row in rows.values())
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
