"""Files that once read other files, ended the process that read them, or ran away with memory or time; and those that
never did. Each is built small here, and read and shown as the page does, in a process with 4 GB of memory."""

from __future__ import annotations

import io
import re
import resource
import struct
import zipfile

import numpy as np
import pytest

from tools import fuzz

MANY = dict.fromkeys(map(str, range(20_000)), b"x")


def far_slice() -> bytes:
    """A series of which one slice lies a million kilometres off."""
    return fuzz.zipped({f"{n}.dcm": fuzz.dicom(n) for n in range(4)} | {"4.dcm": fuzz.dicom(4, place="1e12")})


def damaged_length() -> bytes:
    """A DICOM whose pixels claim 2 GB."""
    whole = fuzz.dicom()
    place = whole.index(struct.pack("<HH", 0x7FE0, 0x10)) + 8
    return whole[:place] + b"\xfe\xff\xff\x7f" + whole[place + 4 :]


def volume(shape: tuple[int, ...], *mm: float) -> bytes:
    """A NIfTI (.nii.gz) of little in it, with voxels of `mm` along each axis."""
    head = fuzz.header(shape, rows=np.hstack([np.diag(mm), np.zeros((3, 1))]))
    return fuzz.zeros(2 * int(np.prod(shape)), head=head)


def sharing(count: int) -> bytes:
    """A zip whose entries are all the same bytes."""
    whole = bytearray(fuzz.zipped({"head.nii": fuzz.nifti()}))
    start, end = whole.rindex(b"PK\1\2"), whole.rindex(b"PK\5\6")
    entry, last = bytes(whole[start:end]), whole[end:]
    struct.pack_into("<HHI", last, 8, count, count, count * len(entry))
    return bytes(whole[:start]) + entry * count + bytes(last)


def wide() -> bytes:
    """A DICOM of 20 x 65,535 pixels that are there."""
    whole = fuzz.dicom()
    place = whole.index(struct.pack("<HH", 0x28, 0x11)) + 8
    pixels = whole.index(struct.pack("<HH", 0x7FE0, 0x10)) + 8
    size = 20 * 65_535 * 2
    return whole[:place] + struct.pack("<H", 65_535) + whole[place + 2 : pixels] + struct.pack("<I", size) + bytes(size)


SECRET_COMMENTS = fuzz.PLACE + "# comment\n" * 7000 + "data file: {secret}\n"
PAST = {
    # Read another file.
    "two data files": ("a.mha", lambda: fuzz.mha("ElementDataFile = {secret}\n"), "damaged|another file"),
    "a data file behind a carriage return": (
        "a.nrrd",
        lambda: fuzz.nrrd(more=fuzz.PLACE + "#\rdata file: {secret}\n"),
        "damaged",
    ),
    "a data file behind many comments": ("a.nrrd", lambda: fuzz.nrrd(more=SECRET_COMMENTS), "far longer|another file"),
    # Ended the process.
    "dimensions that are not": ("a.mha", lambda: fuzz.mha("NDims = -1\n").replace(b"NDims = 3\n", b""), "no 3D volume"),
    "a dimension in letters": (
        "a.nrrd",
        lambda: fuzz.nrrd().replace(b"dimension: 3", b"dimension: " + b"A" * 300),
        "3D",
    ),
    "nested sequences": ("a.dcm", lambda: fuzz.nested(20_000), "cannot be read"),
    # Took gigabytes, or minutes.
    "large voxels": ("a.nii.gz", lambda: volume((400, 400, 160), 5, 5, 5), None),
    "long voxels": ("a.nii.gz", lambda: volume((400, 400, 40), 0.01, 0.01, 900), "no usable position"),
    "voxels to register": ("register.nii.gz", lambda: volume((150, 150, 150), 60, 60, 60), "too large"),
    "a far slice": ("a.zip", far_slice, "apart|no usable position"),
    "a length that is not there": ("a.dcm", damaged_length, "cannot be read|more memory"),
    "a place beyond numbers": (
        "a.mha",
        lambda: fuzz.mha().replace(b"Offset = 0", b"Offset = 1e308"),
        "no usable position",
    ),
    "the keyboard as data": ("a.nrrd", lambda: fuzz.nrrd(more=fuzz.PLACE + "data file: -\n"), "another file|beside"),
    "a header of keys": (
        "a.nrrd",
        lambda: fuzz.nrrd(more=fuzz.PLACE + "".join(f"k{n}:=v\n" for n in range(300_000))),
        "far longer",
    ),
    "a JPEG that goes over itself": ("a.jpg", lambda: fuzz.many_scans(5000, 500), "more steps"),
    "a zip of many files": ("a.zip", lambda: fuzz.zipped(MANY, zipfile.ZIP_STORED), "too small for images"),
    "a zip of one file many times": ("a.zip", lambda: sharing(3000), "too small for images|unpacks to more"),
    # What the fuzzer found since.
    "more pixels in a row than a NIfTI has": ("a.dcm", wide, "too large"),
    "one slice to register": ("register.dcm", fuzz.dicom, "cannot be registered"),
}


def linked() -> bytes:
    """A zip with a link to another file."""
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        link = zipfile.ZipInfo("link.nii")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "{secret}")
    return buffer.getvalue()


def encrypted() -> bytes:
    whole = bytearray(fuzz.zipped({"head.nii": fuzz.nifti()}))
    whole[6] |= 1
    whole[whole.rindex(b"PK\1\2") + 8] |= 1
    return bytes(whole)


def lying(size: int) -> bytes:
    """A zip that says its file has `size` bytes."""
    whole = bytearray(fuzz.zipped({"head.nii": fuzz.nifti()}))
    struct.pack_into("<I", whole, 22, size)
    struct.pack_into("<I", whole, whole.rindex(b"PK\1\2") + 24, size)
    return bytes(whole)


def laughing() -> bytes:
    """A NIfTI with XML behind its header that would grow to a billion words."""
    entities = "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    text = f'<!DOCTYPE a [<!ENTITY a "ha">{entities}]><CIFTI Version="2">&j;</CIFTI>'.encode()
    head = bytearray(fuzz.header((fuzz.SIDE,) * 3))
    head[348] = 1
    struct.pack_into("<f", head, 108, 352 + len(text) + 8)
    return bytes(head) + struct.pack("<ii", len(text) + 8, 32) + text + fuzz.raw()


KEPT = {
    "a zip that climbs": ("a.zip", lambda: fuzz.zipped({"../../out.nii": fuzz.nifti()}), None),
    "a zip with a link": ("a.zip", linked, "cannot be|holds no"),
    "an encrypted zip": ("a.zip", encrypted, "encrypted"),
    "a zip that says less": ("a.zip", lambda: lying(10), "cannot be|damaged"),
    "a zip that says more": ("a.zip", lambda: lying(0xFFFFFFF0), "cannot be|unpacks to more|no room"),
    "a picture of 400 million pixels": ("a.png", lambda: fuzz.png_of(20_000, true=True), "too large"),
    "a picture that claims them": ("a.png", lambda: fuzz.png_of(20_000), "too large"),
    "XML that grows": ("a.nii", laughing, None),
    "a volume that claims a terabyte": ("a.nii", lambda: fuzz.header((30_000,) * 3) + fuzz.raw(), "too large"),
    "an NRRD that claims it": ("a.nrrd", lambda: fuzz.nrrd().replace(b"20 20 20", b"30000 30000 30000"), "too large"),
    "more packed than claimed": ("a.nii.gz", lambda: fuzz.zeros(1 << 28, head=fuzz.header((fuzz.SIDE,) * 3)), None),
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    found = fuzz.Reader(tmp_path_factory.mktemp("scratch"), fuzz.Peak())
    found.ask(path="none.nii", modality="CT", number=1)
    resource.prlimit(found.process.pid, resource.RLIMIT_AS, (4 << 30, 4 << 30))
    yield found
    found.close()


@pytest.mark.parametrize("what", PAST | KEPT)
def test_a_hostile_file_is_read_or_refused_and_nothing_else(reader, tmp_path, what):
    name, made, refusal = (PAST | KEPT)[what]
    secret = tmp_path / "secret.raw"
    secret.write_bytes(fuzz.SECRET * 1000)
    (tmp_path / "place").mkdir()
    path = tmp_path / "place" / name
    path.write_bytes(made().replace(b"{secret}", str(secret).encode()))
    before, process = fuzz.everything_in(tmp_path), reader.process
    found = reader.ask(path=str(path), modality="CT", number=0 if name.startswith("register") else 1)
    assert reader.process is process
    assert found["outcome"] == ("refused" if refusal else "read"), found["text"]
    if refusal:
        assert re.search(refusal, found["text"])
        assert not fuzz.tells(found["text"], name)
    assert not found.get("other file")
    assert fuzz.everything_in(tmp_path) == before
    assert not list(reader.folder.iterdir())
