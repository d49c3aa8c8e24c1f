"""DICOM series: many files of one scan, in a folder, in any order.

SimpleITK (GDCM) reads the pixels and applies the rescale slope and intercept. The affine is put
together from the slices' own positions, so that a tilted gantry stays the shear that it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mediffuse.scan import plausibility
from mediffuse.scan.archive import MAX_FILES
from mediffuse.scan.nrrd_mha import LPS_TO_RAS
from mediffuse.scan.types import MODALITIES, ScanError, check_size

ENDINGS = (".dcm", ".ima")
MOST_PLANES = 4000
"""Slices of a series at most, with those that are missing."""
KEPT_TAGS = (
    "0008|0020",  # study date
    "0008|0030",  # study time
    "0008|0050",  # accession number
    "0008|0090",  # referring physician
    "0010|0010",  # patient's name
    "0010|0020",  # patient ID
    "0010|0030",  # patient's birth date
    "0010|0040",  # patient's sex
    "0018|5100",  # patient position
    "0020|000d",  # study instance UID
    "0020|0010",  # study ID
    "0020|0052",  # frame of reference UID
)
"""What a derived series has in common with its source: the patient, the study, the frame of reference."""
_TAGS = {
    "modality": "0008|0060",
    "description": "0008|103e",
    "uid": "0020|000e",
    "position": "0020|0032",
    "orientation": "0020|0037",
    "frames": "0028|0008",
    "type": "0008|0008",
    "samples": "0028|0002",
    "rows": "0028|0010",
    "columns": "0028|0011",
    "echo": "0018|0081",
    "phase": "0020|0100",
}
_CHARSET, _PHOTOMETRIC = "0008|0005", "0028|0004"
_CODECS = {
    "ISO_IR 13": "shift_jis",
    "ISO_IR 166": "tis_620",
    "GB18030": "gb18030",
    "GBK": "gbk",
    **{f"ISO_IR {k}": f"iso8859_{v}" for k, v in ((100, 1), (101, 2), (109, 3), (110, 4), (144, 5))},
    **{f"ISO_IR {k}": f"iso8859_{v}" for k, v in ((127, 6), (126, 7), (138, 8), (148, 9))},
}
"""Python's names of the character sets of PS3.3 C.12.1.1.2 without code extensions."""


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by the end of its name or by its first bytes."""
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@dataclass(frozen=True)
class Series:
    """The files of one DICOM series. `uid` tells it from the others, `title` is for people.

    usable: whether it may be a volume: a CT or MR, grey, no localiser. left_out: how many images of it
    are not in `files`, for they are unlike the most.
    """

    uid: str
    files: tuple[Path, ...]
    modality: str
    title: str
    usable: bool = True
    left_out: int = 0


def find_series(folder: Path, *, below: bool = True) -> list[Series]:
    """The DICOM image series in a folder (and those `below` it): usable ones first, the largest first.

    Raises ScanError where there are more than `MAX_FILES` files.
    """
    files = sorted(p for p in (folder.rglob("*") if below else folder.iterdir()) if p.is_file() and not p.is_symlink())
    if len(files) > MAX_FILES:
        raise ScanError(f"{folder.name} holds {len(files)} files; give the folder of one scan.")
    return group_series(file for file in files if not file.name.startswith("."))


def group_series(files: Iterable[Path]) -> list[Series]:
    """The DICOM image series among files. Of a series the largest part of one kind is taken:
    of one size, orientation, echo time and temporal position, without localisers and colour pictures."""
    groups: dict[str, list[tuple[Path, dict[str, str]]]] = {}
    for file in files:
        tags = _tags(file)
        if tags and tags["uid"]:
            groups.setdefault(tags["uid"], []).append((file, tags))
    found = []
    for uid, members in groups.items():
        slices = [m for m in members if _is_slice(m[1])]
        kinds: list[list[tuple[Path, dict[str, str]]]] = []
        for member in slices or members:
            kind = next((k for k in kinds if _alike(k[0][1], member[1])), None)
            if kind:
                kind.append(member)
            else:
                kinds.append([member])
        taken = max(kinds, key=len)
        first = taken[0][1]
        title = f"{first['description'] or 'Series'}: {first['modality'] or '?'}, {len(taken)} files"
        paths = tuple(path for path, _ in taken)
        found.append(Series(uid, paths, first["modality"], title, bool(slices), len(members) - len(taken)))
    return sorted(found, key=lambda s: (not s.usable, -len(s.files)))


def _is_slice(tags: dict[str, str]) -> bool:
    """Whether an image may be a slice of a volume: a CT or MR, grey, no localiser."""
    known = tags["modality"] in ("", *MODALITIES)
    return known and tags["samples"] in ("", "1") and "LOCALIZER" not in tags["type"].upper()


def _alike(first: dict[str, str], second: dict[str, str]) -> bool:
    """Whether two images may be slices of one volume, by their headers."""
    if any(first[k] != second[k] for k in ("rows", "columns", "frames", "echo", "phase")):
        return False
    try:
        turns = [[float(v) for v in t["orientation"].split("\\") if v] for t in (first, second)]
    except ValueError:
        return first["orientation"] == second["orientation"]
    return len(turns[0]) == len(turns[1]) and np.allclose(*turns, atol=1e-2)


def known_tags(path: Path) -> dict[str, str]:
    """The `KEPT_TAGS` and `plausibility.TAGS` of a DICOM file that it has."""
    reader = _reader(path)
    reader.ReadImageInformation()
    return {tag: _text(reader, tag) for tag in (*KEPT_TAGS, *plausibility.TAGS) if reader.HasMetaDataKey(tag)}


def read_series(series: Series, name: str) -> tuple[np.ndarray, np.ndarray, str, list[str]]:
    """(voxels float32 (X, Y, Z), affine to RAS mm, modality, warnings) of a series.

    Slices are ordered by their position along the normal. Gaps of missing slices, and uneven spacing, are
    filled by linear interpolation between the slices' real positions, and warned of. Raises ScanError if
    the slices do not make one volume, or most are missing.
    """
    warnings = []
    if series.left_out:
        warnings.append(
            f"{series.left_out} images of this series were left out: they differ from the others in size, "
            "orientation or echo (a localiser or screenshot, perhaps)."
        )
    if len(series.files) == 1:
        return (*read_file(series.files[0], name), warnings)
    reader = _reader(series.files[0])
    reader.ReadImageInformation()
    # All headers say the same size (`group_series`), so that this bounds what is read below.
    check_size((*reader.GetSize()[:2], len(series.files)), name)
    slices = sorted((_read_slice(file, name) for file in series.files), key=lambda s: s.place)
    if len({s.pixels.shape for s in slices}) > 1 or len({tuple(np.round(s.spacing, 3)) for s in slices}) > 1:
        raise ScanError(
            f"The slices of {name} differ in size or spacing: they are no one volume. Export one series of it again."
        )
    apart = [slices[0]]
    for candidate in slices[1:]:
        if candidate.place - apart[-1].place > 1e-2:
            apart.append(candidate)
    if len(apart) < len(slices):
        warnings.append(f"{len(slices) - len(apart)} slices lie where another one does; the first was taken.")
    if len(apart) == 1:
        raise ScanError(f"All slices of {name} lie in one place: they are no volume.")
    planes, missing, remarks = _grid(np.array([s.place for s in apart]))
    if 2 * missing > len(planes):
        raise ScanError(f"{name} has only {len(apart)} of {len(planes)} slices. Export the whole series.")
    check_size((*apart[0].pixels.shape, len(planes)), name)
    return _interpolated(apart, planes), _affine(apart, len(planes)), series.modality, warnings + remarks


@dataclass(frozen=True)
class _Slice:
    """One image of a series, in LPS mm.

    place: along the normal of the slices. position: (3,), of the first pixel. pixels: float32 (X, Y).
    spacing: (2,), mm per pixel. orientation: (2, 3), unit vectors along X and Y.
    """

    place: float
    position: np.ndarray
    pixels: np.ndarray
    spacing: np.ndarray
    orientation: np.ndarray


def _interpolated(slices: list[_Slice], planes: np.ndarray) -> np.ndarray:
    """Voxels (X, Y, Z), float32, at `planes`: where each lies, as a fractional number of a slice."""
    volume = np.empty((*slices[0].pixels.shape, len(planes)), np.float32)
    after = np.clip(np.ceil(planes - 1e-6).astype(int), 0, len(slices) - 1)
    for number, (plane, high) in enumerate(zip(planes, after, strict=True)):
        share = high - plane
        volume[:, :, number] = slices[high].pixels
        if share > 1e-6:
            volume[:, :, number] += share * (slices[high - 1].pixels - slices[high].pixels)
    return volume


def _affine(slices: list[_Slice], count: int) -> np.ndarray:
    """Affine (4, 4) to RAS mm of `count` planes from the first of `slices` to the last."""
    first, last = slices[0], slices[-1]
    affine = np.eye(4)
    affine[:3, 0] = first.orientation[0] * first.spacing[0]
    affine[:3, 1] = first.orientation[1] * first.spacing[1]
    affine[:3, 2] = (last.position - first.position) / (count - 1)
    affine[:3, 3] = first.position
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine


def _grid(along: np.ndarray) -> tuple[np.ndarray, int, list[str]]:
    """An even grid for slices at `along` (mm, rising): (where each of its planes lies, as a fractional
    number of a slice; how many are missing slices; what to warn of)."""
    steps = np.diff(along)
    if along[-1] - along[0] > MOST_PLANES * np.median(steps):
        raise ScanError(
            f"Its slices lie up to {steps.max():.0f} mm apart, and most {np.median(steps):.3g} mm: they are no one "
            "volume. Export one series of it again."
        )
    numbers = np.concatenate([[0], np.cumsum(np.maximum(1, np.round(steps / np.median(steps))))])
    step = (along[-1] - along[0]) / numbers[-1]
    if np.abs(along - along[0] - numbers * step).max() <= 0.1 * step:
        count = int(numbers[-1]) + 1
        missing = count - len(along)
        remark = f"{missing} of {count} slices are missing; they were interpolated from their neighbours."
        return np.interp(np.arange(count), numbers, np.arange(len(along))), missing, [remark] if missing else []
    finest = max(steps.min(), np.median(steps) / 4)
    count = round((along[-1] - along[0]) / finest) + 1
    planes = np.interp(np.linspace(along[0], along[-1], count), along, np.arange(len(along)))
    remark = (
        f"The slices are unevenly spaced ({steps.min():.3g} to {steps.max():.3g} mm): they were interpolated to one "
        f"every {(along[-1] - along[0]) / (count - 1):.3g} mm, where they lie."
    )
    return planes, 0, [remark]


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
        modality = _text(reader, _TAGS["modality"])
        if modality == "CT" and _text(reader, _PHOTOMETRIC) == "MONOCHROME1":
            raise ScanError(f"{name} stores its values inverted (MONOCHROME1), not in HU. Export it as MONOCHROME2.")
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


def _text(reader, tag: str) -> str:
    """A tag's value by the file's own character set; "" where it has none. SimpleITK decodes none."""
    if not reader.HasMetaDataKey(tag):
        return ""
    raw = reader.GetMetaData(tag).encode("utf-8", "surrogateescape").strip(b" \0")
    charset = reader.GetMetaData(_CHARSET) if reader.HasMetaDataKey(_CHARSET) else ""
    # Several sets, of which escape sequences choose: those of Japan have a codec, the others' first set serves.
    first = charset.split("\\")[0].strip().replace("ISO 2022 IR", "ISO_IR")
    codec = "iso2022_jp_2" if "ISO 2022 IR 87" in charset else _CODECS.get(first, "latin_1")
    for attempt in (codec,) if b"\x1b" in raw else ("utf-8", codec):
        try:
            return raw.decode(attempt)
        except UnicodeDecodeError:
            continue
    return raw.decode("ascii", "replace")


def _tags(path: Path) -> dict[str, str] | None:
    """The tags that group and order slices; None for what is no DICOM image."""
    if not is_dicom(path):
        return None
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return None
    return {k: _text(reader, t) for k, t in _TAGS.items()}


def _read_slice(path: Path, name: str) -> _Slice:
    """One image of the series `name`. Raises ScanError for a file that holds several."""
    voxels, affine, _ = read_file(path, f"{name} ({path.name})")
    if voxels.shape[2] != 1:
        raise ScanError(f"{name} mixes single slices and volumes. Choose another series.")
    lps = LPS_TO_RAS @ affine[:3]
    spacing = np.linalg.norm(lps[:, :2], axis=0)
    orientation = (lps[:, :2] / spacing).T
    position = lps[:, 3]
    return _Slice(float(position @ np.cross(*orientation)), position, voxels[:, :, 0], spacing, orientation)
