"""DICOM series: many files of one scan, in a folder or a zip, in any order.

SimpleITK (GDCM) reads the pixels and applies the rescale slope and intercept. The affine is put
together from the slices' own positions, so that a tilted gantry stays the shear that it is.
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mediffuse import plausibility
from mediffuse.scan import MAX_VOXELS, ScanError, check_size

MAX_FILES = 20_000
MAX_UNPACKED = 4 * MAX_VOXELS
"""Bounds on a zip, checked in its directory and while unpacking: bytes are counted as they come."""

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
KEPT_TAGS = (
    "0008|0020",
    "0008|0030",
    "0008|0050",
    "0008|0090",
    "0010|0010",
    "0010|0020",
    "0010|0030",
    "0010|0040",
    "0018|5100",
    "0020|000d",
    "0020|0010",
    "0020|0052",
)
"""What a derived series has in common with its source: the patient, the study, the frame of reference."""

_CHUNK = 1 << 20
_TAGS = {
    "modality": "0008|0060",
    "description": "0008|103e",
    "uid": "0020|000e",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "frames": "0028|0008",
}


@dataclass(frozen=True)
class Series:
    """The files of one DICOM series. `uid` tells it from the others, `title` is for people."""

    uid: str
    files: tuple[Path, ...]
    modality: str
    title: str


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """A folder with the files of a zip, gone afterwards. Names in the zip are not used as paths.

    Raises ScanError for a damaged or encrypted zip, and for one that unpacks to more than can be read.
    """
    with tempfile.TemporaryDirectory(prefix="mediffuse-") as folder:
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir()]
                if len(members) > MAX_FILES or sum(m.file_size for m in members) > MAX_UNPACKED:
                    raise ScanError(f"{path.name} unpacks to more than can be read here. Zip one scan only.")
                if shutil.disk_usage(folder).free < sum(m.file_size for m in members) + _CHUNK:
                    raise ScanError(f"There is no room here to unpack {path.name}. Zip one scan only, or free some.")
                left = MAX_UNPACKED
                for number, member in enumerate(members):
                    # The end of the name tells NIfTI and the like; the number keeps files apart.
                    target = Path(folder) / f"{number:06d}_{Path(member.filename).name[-60:]}"
                    with archive.open(member) as source, target.open("wb") as sink:
                        while chunk := source.read(min(_CHUNK, left + 1)):
                            left -= len(chunk)
                            if left < 0:  # the directory lied
                                raise ScanError(f"{path.name} unpacks to more than can be read here.")
                            sink.write(chunk)
        except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
            if isinstance(error, ScanError):
                raise
            raise ScanError(
                f"{path.name} cannot be unpacked: it is damaged, cut short or encrypted. Zip it again."
            ) from error
        yield Path(folder)


def find_series(folder: Path, *, below: bool = True) -> list[Series]:
    """The DICOM image series in a folder (and those `below` it), the largest first.

    Raises ScanError where there are more than `MAX_FILES` files.
    """
    groups: dict[str, list[tuple[Path, dict]]] = {}
    files = sorted(p for p in (folder.rglob("*") if below else folder.iterdir()) if p.is_file() and not p.is_symlink())
    if len(files) > MAX_FILES:
        raise ScanError(f"{folder.name} holds {len(files)} files; give the folder of one scan.")
    for file in files:
        tags = _tags(file)
        if tags and tags["uid"]:
            groups.setdefault(tags["uid"], []).append((file, tags))
    found = []
    for uid, members in groups.items():
        first = members[0][1]
        title = f"{first['description'] or 'Series'}: {first['modality'] or '?'}, {len(members)} files"
        found.append(Series(uid, tuple(file for file, _ in members), first["modality"], title))
    return sorted(found, key=lambda s: -len(s.files))


def known_tags(path: Path) -> dict[str, str]:
    """The `KEPT_TAGS` and `plausibility.TAGS` of a DICOM file that it has."""
    reader = _reader(path)
    reader.ReadImageInformation()
    return {
        tag: reader.GetMetaData(tag).strip() for tag in (*KEPT_TAGS, *plausibility.TAGS) if reader.HasMetaDataKey(tag)
    }


def read_series(series: Series, name: str) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """(voxels float32 (X, Y, Z), affine to RAS mm, modality, warnings) of a series.

    Slices are ordered by their position along the normal. A gap of missing slices is filled by
    linear interpolation, and warned of. Raises ScanError if the slices do not make one volume.
    """
    if len(series.files) == 1:
        return (*read_file(series.files[0], name), [])
    slices = sorted((_slice(file, name) for file in series.files), key=lambda s: s[0])
    shapes, spacings = {s[2].shape for s in slices}, {tuple(np.round(s[3], 3)) for s in slices}
    turns = np.array([s[4] for s in slices])
    if len(shapes) > 1 or len(spacings) > 1 or np.ptp(turns, axis=0).max() > 1e-2:
        raise ScanError(
            f"The slices of {name} differ in size, spacing or orientation: they are no one volume "
            "(a localiser, perhaps). Choose another series."
        )
    check_size((*slices[0][2].shape, len(slices)), name)
    warnings, different = [], [slices[0]]
    for one in slices[1:]:
        if one[0] - different[-1][0] > 1e-2:
            different.append(one)
    if len(different) < len(slices):
        warnings.append(f"{len(slices) - len(different)} slices lie where another one does; the first was taken.")
    if len(different) == 1:
        raise ScanError(f"All slices of {name} lie in one place: they are no volume.")
    along = np.array([s[0] for s in different])
    steps = np.diff(along)
    step = float(np.median(steps))
    numbers = np.concatenate([[0], np.cumsum(np.maximum(1, np.round(steps / step)))]).astype(int)
    uneven = np.abs(along - along[0] - numbers * step).max() / step
    if uneven > 0.1:
        warnings.append("The slices are not evenly spaced; they were taken as if they were, and may be off by a part.")
    count = int(numbers[-1]) + 1
    check_size((*slices[0][2].shape, count), name)
    volume = np.empty((*slices[0][2].shape, count), np.float32)
    for number, one in zip(numbers, different, strict=True):
        volume[:, :, number] = one[2]
    missing = sorted(set(range(count)) - set(numbers.tolist()))
    for number in missing:
        after = int(np.searchsorted(numbers, number))
        low, high = numbers[after - 1], numbers[after]
        share = (number - low) / (high - low)
        volume[:, :, number] = (1 - share) * volume[:, :, low] + share * volume[:, :, high]
    if missing:
        warnings.append(f"{len(missing)} of {count} slices are missing; they were interpolated from their neighbours.")
    positions = np.array([s[1] for s in different])
    orientation = different[0][4].reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = orientation[0] * different[0][3][0]
    affine[:3, 1] = orientation[1] * different[0][3][1]
    affine[:3, 2] = (positions[-1] - positions[0]) / numbers[-1]
    affine[:3, 3] = positions[0]
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return volume, affine, series.modality, warnings


def read_file(path: Path, name: str | None = None) -> tuple[np.ndarray, np.ndarray, str]:
    """(voxels float32 (X, Y, Z), affine to RAS mm, modality or "") of one DICOM file, multi-frame too."""
    import SimpleITK as sitk

    reader = _reader(path)
    name = name or path.name
    try:
        reader.ReadImageInformation()
        check_size(reader.GetSize(), name)
        if reader.GetNumberOfComponents() != 1:
            raise ScanError(f"{name} is a colour DICOM (a screenshot or report). Choose the scan's own images.")
        modality = reader.GetMetaData(_TAGS["modality"]).strip() if reader.HasMetaDataKey(_TAGS["modality"]) else ""
        image = reader.Execute()
    except ScanError:
        raise
    except RuntimeError as error:
        raise ScanError(
            f"{name} cannot be read as DICOM: it is damaged, cut short, has no pixel data, "
            "or is compressed in a way that is not supported."
        ) from error
    return *from_sitk(image if image.GetDimension() == 3 else sitk.JoinSeries(image)), modality


def from_sitk(image) -> tuple[np.ndarray, np.ndarray]:
    """A 3D SimpleITK image as (voxels float32 (X, Y, Z), affine to RAS mm)."""
    import SimpleITK as sitk

    affine = np.eye(4)
    affine[:3, :3] = LPS_TO_RAS @ np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = LPS_TO_RAS @ np.array(image.GetOrigin())
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32), affine


def _reader(path: Path):
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _tags(path: Path) -> dict | None:
    """The tags that group and order slices; None for what is no DICOM image."""
    with path.open("rb") as file:
        head = file.read(132)
    if head[128:] != b"DICM" and path.suffix.lower() not in (".dcm", ".ima"):
        return None
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return {k: reader.GetMetaData(t).strip() if reader.HasMetaDataKey(t) else "" for k, t in _TAGS.items()}


def _slice(path: Path, name: str) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(place along the normal, position (3,), pixels (X, Y), spacing (2,), orientation (6,)), in LPS mm."""
    voxels, affine, _ = read_file(path, f"{name} ({path.name})")
    if voxels.shape[2] != 1:
        raise ScanError(f"{name} mixes single slices and volumes. Choose another series.")
    lps = LPS_TO_RAS @ affine[:3]
    spacing = np.linalg.norm(lps[:, :2], axis=0)
    orientation = (lps[:, :2] / spacing).T
    position = lps[:, 3]
    return float(position @ np.cross(*orientation)), position, voxels[:, :, 0], spacing, orientation.ravel()
