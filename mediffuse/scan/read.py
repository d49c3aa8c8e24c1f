"""Read a scan: which reader takes a file, and what is odd about what it read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from mediffuse.image.intensity import mr_limits
from mediffuse.scan.archive import shown as shown_name
from mediffuse.scan.archive import unpacked
from mediffuse.scan.dicom import read_volume
from mediffuse.scan.formats import PICTURES, kind_of, may_be_volume, place_of, read_nifti
from mediffuse.scan.headers import known_tags, listed_in, read_header
from mediffuse.scan.labels import is_label_map, named
from mediffuse.scan.nrrd_mha import read_mha, read_nrrd
from mediffuse.scan.picture import read_picture
from mediffuse.scan.plausibility import oddities
from mediffuse.scan.series import NEVER_SCANS, Series, Volume, find_series, group_series
from mediffuse.scan.types import MODALITIES, LabelMapError, Scan, ScanError, SeveralSeriesError, canonical
from mediffuse.scan.values import other_modality, with_checked_values


def read_scan(
    path: str | Path,
    modality: str,
    shown: str = "auto",
    *,
    series: str | None = None,
    allow_constant: bool = False,
    anatomies: Sequence[str] = ("head",),
) -> Scan:
    """Read a picture, NIfTI, Analyze, NRRD, MetaImage, MGZ or DICOM: a file, or a folder or zip that holds one.

    modality: "CT" or "MR", what the user says it is; `Scan.warnings` says where it looks
    otherwise. shown: for a picture of a CT, a key of `ct_picture.PNG_WINDOWS` or "auto".
    series: which volume to read where there are several: a key of `SeveralSeriesError.choices`, or a
    SeriesInstanceUID. allow_constant: for a mask, of which nothing is checked. anatomies: of
    `directions.ANATOMIES`, those that it should show one of; `Scan.warnings` says where it does not.
    Raises ScanError, with a message for the user, for anything that cannot be used, and
    SeveralSeriesError where `series` must be given.
    """
    scan = _read(Path(path), modality, shown, series, allow_constant)
    if allow_constant or (scan.wrong and scan.kind != "picture"):
        return scan
    return replace(scan, warnings=(*scan.warnings, *oddities(scan, anatomies)))


def _read(path: Path, modality: str, shown: str, series: str | None, allow_constant: bool = False) -> Scan:
    """`read_scan`, without what is odd about what is shown."""
    if modality not in MODALITIES:
        raise ValueError(f"modality is CT or MR, not {modality!r}")
    if path.is_dir():
        return _read_one_of(_in_folder(path, shown), path.name, modality, series)
    if not path.is_file():
        raise ScanError(f"There is no file {path.name}.")
    if path.stat().st_size == 0:
        raise ScanError(f"{path.name} is empty (0 bytes). Was the upload or copy cut short?")
    kind = kind_of(path)
    if kind == "zip":
        with unpacked(path) as folder:
            return _read_one_of(_in_folder(folder, shown), path.name, modality, series)
    if kind == "dicom":
        return _read_one_of(_in_dicom(path), path.name, modality, series)
    if kind == "picture":
        scan, guess = read_picture(path, modality, shown)
        return _checked(scan, allow_constant=allow_constant, guess=guess)
    reader = {"nrrd": read_nrrd, "mha": read_mha}.get(kind, read_nifti)
    voxels, affine, warnings = reader(path)
    scan = replace(canonical(voxels, affine, modality, kind, path.name), place=place_of(path))
    return _checked(scan, None, warnings, allow_constant)


@dataclass(frozen=True)
class _Candidate:
    """A volume in a folder or file. modality: what its header or name says, or None. read: (name, modality) to Scan."""

    key: str
    title: str
    modality: str | None
    read: Callable[[str, str], Scan]


def _in_dicom(path: Path) -> list[_Candidate]:
    """What a DICOM file holds, or what it lists as a DICOMDIR. Raises ScanError where that is nothing."""
    listed = listed_in(path)
    found = _of_series(group_series([path] if listed is None else listed))
    if found:
        return found
    if listed is not None:
        raise ScanError(
            f"{path.name} lists the images of a disc, and {'those' if listed else 'none'} beside it "
            f"{'are no scans' if listed else 'can be found'}. Give the whole folder, or a zip of it."
        )
    header = read_header(path, ("Modality", "Rows"))
    modality = str(header.get("Modality") or "") if header else ""
    if modality in NEVER_SCANS:
        raise ScanError(f"{path.name} is no scan, but drawn or noted on one ({modality}). Choose the scan itself.")
    raise ScanError(
        f"{path.name} cannot be read as DICOM: it is damaged, cut short, has no pixel data, "
        "or is compressed in a way that is not supported."
    )


def _of_series(found: list[Series]) -> list[_Candidate]:
    """The volumes of DICOM series; those that are no CT or MR only where there are no others."""
    found = [s for s in found if s.modality not in NEVER_SCANS]
    found = [s for s in found if s.usable] or found
    return [
        _Candidate(v.key, v.title, v.modality if v.modality in MODALITIES else None, partial(_read_dicom, v))
        for s in found
        for v in s.volumes
    ]


def _read_dicom(volume: Volume, name: str, modality: str) -> Scan:
    voxels, affine, warnings = read_volume(volume, name)
    scan = replace(canonical(voxels, affine, modality, "dicom", name), tags=known_tags(volume.files[0]))
    return _checked(scan, volume.modality if volume.modality in MODALITIES else None, warnings)


def _in_folder(folder: Path, window: str) -> list[_Candidate]:
    """The volumes in a folder, or else the pictures in it: DICOM series, and files that `read_scan` reads.

    window: `shown` of `read_scan`.
    """
    found = _of_series(find_series(folder))
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.is_symlink() and not p.name.startswith(".")]
    volumes = [p for p in files if may_be_volume(p)]
    if not (found or volumes):
        volumes = [p for p in files if p.name.lower().endswith(PICTURES)]
    for path in volumes:
        name, said = shown_name(path, folder), named(path.name)
        if said != "label" or len(volumes) == 1:
            found.append(_Candidate(name, "", said if said in MODALITIES else None, partial(_read_file, path, window)))
    return found


def _read_file(path: Path, window: str, _name: str, modality: str) -> Scan:
    return _read(path, modality, window, None)


MOST_TRIED = 8
"""Volumes of a folder that are read to see which is meant, at most."""


def _read_one_of(found: list[_Candidate], name: str, modality: str, series: str | None) -> Scan:
    """The volume that `series` names, or else the only one of the modality. Raises SeveralSeriesError, ScanError."""
    if series:
        known = ", ".join(c.key for c in found)
        found = [c for c in found if c.key == series] or [c for c in found if c.key.rpartition(":")[0] == series]
        if not found:
            raise ScanError(f"{name} has no series {series}{f'. It has {known}' if known else ''}.")
    if not found:
        raise ScanError(f"{name} holds no DICOM series or other scan.")
    fitting = [c for c in found if c.modality == modality]
    unknown = [c for c in found if c.modality is None]
    several = fitting or unknown or found
    if len(several) == 1:
        return several[0].read(name, modality)
    if several is unknown and len(unknown) <= MOST_TRIED:
        scans = {c.key: scan for c in unknown if (scan := _tried(c, name, modality)) is not None}
        right = [scan for scan in scans.values() if scan.looks == modality]
        if len(right) == 1 or len(scans) == 1:
            return right[0] if right else next(iter(scans.values()))
        several = [c for c in unknown if c.key in scans] or unknown
    raise SeveralSeriesError(name, {c.key: c.title for c in several})


def _tried(candidate: _Candidate, name: str, modality: str) -> Scan | None:
    """A volume, or None where it is no scan."""
    try:
        return candidate.read(name, modality)
    except LabelMapError:
        return None


def _checked(
    scan: Scan,
    stated: str | None = None,
    warnings: Sequence[str] = (),
    allow_constant: bool = False,
    guess: str | None = None,
) -> Scan:
    """`scan` with its MR limits and the warnings of its values after those given.

    Raises ScanError for what cannot be used.

    stated: the modality that the file states. guess: the one that a picture looks like.
    """
    if scan.voxels.min() == scan.voxels.max() and not allow_constant:
        raise ScanError(f"{scan.name} is one constant value: there is nothing to see in it.")
    unchecked = scan.kind in ("picture", "dicom") or allow_constant or not np.isfinite(scan.voxels).all()
    if not unchecked and is_label_map(scan.voxels):
        raise LabelMapError(f"{scan.name} is a mask or label map (few values, in patches). Choose the scan itself.")
    scan = replace(scan, warnings=(*warnings, *scan.warnings))
    if allow_constant:
        return replace(scan, limits=mr_limits(scan.voxels) if scan.modality == "MR" else None)
    if scan.kind != "picture":
        scan = with_checked_values(scan, stated)
    elif guess and guess != scan.modality:
        wrong = other_modality(guess, scan.modality, sure=False)
        scan = replace(scan, warnings=(wrong, *scan.warnings), wrong=(*scan.wrong, wrong))
    return scan
