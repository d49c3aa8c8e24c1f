"""Headers and stored values of DICOM files, read with pydicom within bounds.

Compressed pixels are decoded by GDCM (SimpleITK): pydicom needs further packages for most of their formats.
"""

from __future__ import annotations

import io
import struct
import tempfile
import warnings
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mediffuse.scan import plausibility
from mediffuse.scan.types import MAX_VOXELS, ScanError

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS = (".dcm", ".ima")
MAX_HEADER, MAX_INFLATED = 64 << 20, 4 * MAX_VOXELS
"""Bytes of a header that are read, and bytes that a deflated file is inflated to, at most."""

KEPT = (
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientPosition",
    "StudyInstanceUID",
    "StudyID",
    "FrameOfReferenceUID",
)
"""What a derived series has in common with its source: the patient, the study, the frame of reference."""

_PIXELS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
)
_DICOMDIR, _DEFLATED = "1.2.840.10008.1.3.10", b"1.2.840.10008.1.2.1.99"
_GREY_FRAMES = "1.2.840.10008.5.1.4.1.1.7.3"  # Multi-frame Grayscale Word Secondary Capture: has no rescaling
_FIRST_VRS = (b"UL", b"OB", b"UI", b"CS", b"SH", b"LO", b"DA", b"TM", b"DT", b"AE")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its first bytes."""
    try:
        with path.open("rb") as file:
            return begins_dicom(file.read(132))
    except OSError:
        return False


def begins_dicom(head: bytes) -> bool:
    """Whether the first 132 bytes of a file are those of a DICOM: with a preamble, or without."""
    return head[128:132] == b"DICM" or _begins_a_dataset(head)


def _begins_a_dataset(head: bytes) -> bool:
    """Whether bytes may be the first element, of group 2 or 8, of a file without a preamble."""
    if len(head) < 132:
        return False
    for order in "<>":
        group, element = struct.unpack(f"{order}HH", head[:4])
        if (group == 2 and element <= 0x16) or (group == 8 and element <= 0x70):
            return head[4:6] in _FIRST_VRS or struct.unpack("<I", head[4:8])[0] <= 256
    return False


def read_header(path: Path, keywords: tuple[str, ...]) -> Dataset | None:
    """What a DICOM file says under `keywords`, without its pixels; None for what is no DICOM, or damaged."""
    if not is_dicom(path):
        return None
    try:
        with path.open("rb") as file:
            return _dataset(_Bounded(file, MAX_HEADER), MAX_HEADER, keywords, until_pixels=True)
    except Exception:  # noqa: BLE001 - whatever a reader raises, it is the file's
        return None


def known_tags(path: Path) -> dict[str, str]:
    """The `KEPT` and `plausibility.TAGS` of a DICOM file that it has, by keyword, in its own character set."""
    keywords = (*KEPT, *plausibility.TAGS)
    header, tags = read_header(path, keywords), {}
    for keyword in keywords:
        try:
            value = header and header.get(keyword)
        except (ValueError, TypeError, OverflowError, UnicodeError):
            continue
        if value not in (None, ""):
            tags[keyword] = "\\".join(map(str, value)) if _is_several(value) else str(value)
    return tags


def listed_in(path: Path) -> list[Path] | None:
    """The files that a DICOMDIR lists, as far as they are beside or below it; None for any other file."""
    header = read_header(path, ("MediaStorageSOPClassUID", "DirectoryRecordSequence"))
    if header is None or header.file_meta.get("MediaStorageSOPClassUID") != _DICOMDIR:
        return None
    files = []
    for record in header.get("DirectoryRecordSequence") or []:
        parts = record.get("ReferencedFileID")
        parts = [str(p) for p in parts] if _is_several(parts) else [str(parts or "")]
        if all(p not in ("", "..") and len(PurePosixPath(p.replace("\\", "/")).parts) == 1 for p in parts):
            file = path.parent.joinpath(*parts)
            if file.is_file() and path.parent.resolve() in file.resolve().parents:
                files.append(file)
    return files


def _is_several(value: object) -> bool:
    from pydicom.multival import MultiValue

    return isinstance(value, (MultiValue, list, tuple))


class _Bounded:
    """A file of which no more than `left` bytes can be read; what is skipped does not count."""

    def __init__(self, file: BinaryIO, left: int) -> None:
        self._file, self._left = file, left
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left + 1 if size < 0 else min(size, self._left + 1))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("the header is longer than any scan's")
        return data


def pixel_bytes(path: Path) -> bytes | None:
    """The pixels of a DICOM file as it stores them, packed or not; None for a damaged file."""
    try:
        with path.open("rb") as file:
            return _dataset(file, MAX_INFLATED, ("PixelData",), until_pixels=False).PixelData
    except Exception:  # noqa: BLE001 - whatever a reader raises, it is the file's
        return None


def stored_values(path: Path, name: str) -> np.ndarray:
    """The pixels of a DICOM file as they are stored, not rescaled: (frames, rows, columns).

    All of them are read: check what the header claims before. Raises ScanError.
    """
    try:
        with path.open("rb") as file:
            data = _dataset(file, MAX_INFLATED, _PIXELS, until_pixels=False)
        shape = (int(data.get("NumberOfFrames") or 1), int(data.Rows), int(data.Columns))
        return _decoded(data).reshape(shape)
    except MemoryError:
        raise
    except Exception as error:
        raise ScanError(
            f"{name} cannot be read as DICOM: it is damaged, cut short, has no pixel data, "
            "or is compressed in a way that is not supported."
        ) from error


def _decoded(data: Dataset) -> np.ndarray:
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = data.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        implicit, little = data.original_encoding
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    if syntax.is_encapsulated or data.BitsAllocated % 8:
        return _decoded_by_gdcm(data, syntax)
    data.PhotometricInterpretation = "MONOCHROME2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bytes behind the pixels
        return get_decoder(syntax).as_array(data, raw=True)[0]


def _decoded_by_gdcm(data: Dataset, syntax: str) -> np.ndarray:
    """The pixels alone, in a file that tells GDCM nothing to rescale them by."""
    import SimpleITK as sitk
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import generate_uid

    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = _GREY_FRAMES
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    data.PhotometricInterpretation = "MONOCHROME2"
    with tempfile.TemporaryDirectory(prefix="mediffuse-") as folder:
        path = Path(folder) / "pixels.dcm"
        data.save_as(path, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(str(path))
        return sitk.GetArrayFromImage(reader.Execute())


def _dataset(file: BinaryIO | _Bounded, most: int, keywords: tuple[str, ...], *, until_pixels: bool) -> Dataset:
    """What an open DICOM file says under `keywords`; no more than `most` bytes are inflated."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset, read_partial
    from pydicom.tag import Tag
    from pydicom.uid import ExplicitVRLittleEndian

    def stop(tag: int, *_: object) -> bool:
        return until_pixels and int(tag) >= 0x7FE00000

    tags = [Tag(tag_for_keyword(k) or k) for k in keywords]
    head = file.read(1024)
    file.seek(0)
    if head[128:132] != b"DICM" or _DEFLATED not in head:
        return read_partial(file, stop, force=True, specific_tags=tags)
    # pydicom inflates without a bound. The length of the group before the deflated part is its first element.
    file.seek(144 + struct.unpack("<I", head[140:144])[0])
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), most)
    data = read_dataset(io.BytesIO(inflated), False, True, stop_when=stop, specific_tags=tags)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return data
