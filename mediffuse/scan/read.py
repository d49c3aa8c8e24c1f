"""Read a scan: which reader takes a file, and what is odd about what it read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mediffuse.image.intensity import mr_limits
from mediffuse.scan.archive import unpacked
from mediffuse.scan.dicom import find_series, known_tags, read_file, read_series
from mediffuse.scan.formats import PICTURES, VOLUMES, kind_of, read_nifti
from mediffuse.scan.nrrd_mha import read_mha, read_nrrd
from mediffuse.scan.picture import read_picture
from mediffuse.scan.plausibility import oddities
from mediffuse.scan.types import MODALITIES, Scan, ScanError, SeveralSeriesError, canonical
from mediffuse.scan.values import other_modality, with_checked_values


def read_scan(
    path: str | Path, modality: str, shown: str = "auto", *, series: str | None = None, allow_constant: bool = False
) -> Scan:
    """Read a PNG/JPEG, NIfTI (.nii, .nii.gz), NRRD, MHA, or DICOM: a file, a folder or a zip of a series.

    modality: "CT" or "MR", what the user says it is; `Scan.warnings` says where it looks
    otherwise. shown: for a picture of a CT, a key of `ct_picture.PNG_WINDOWS` or "auto".
    series: the SeriesInstanceUID to read where there are several.
    Raises ScanError, with a message for the user, for anything that cannot be used, and
    SeveralSeriesError where `series` must be given.
    """
    path = Path(path)
    if modality not in MODALITIES:
        raise ValueError(f"modality is CT or MR, not {modality!r}")
    if path.is_dir():
        return _read_folder(path, path.name, modality, shown, series)
    if not path.is_file():
        raise ScanError(f"There is no file {path.name}.")
    if path.stat().st_size == 0:
        raise ScanError(f"{path.name} is empty (0 bytes). Was the upload or copy cut short?")
    kind, stated, tags, warnings = kind_of(path), None, {}, []
    if kind == "zip":
        with unpacked(path) as folder:
            return _read_folder(folder, path.name, modality, shown, series)
    if kind == "picture":
        scan, guess = read_picture(path, modality, shown)
        return _checked(scan, allow_constant=allow_constant, guess=guess)
    if kind == "dicom":
        voxels, affine, stated = read_file(path)
        tags = known_tags(path)
    else:
        voxels, affine, warnings = {"nifti": read_nifti, "nrrd": read_nrrd, "mha": read_mha}[kind](path)
    scan = replace(canonical(voxels, affine, modality, kind, path.name), tags=tags)
    return _checked(scan, stated if stated in MODALITIES else None, warnings, allow_constant)


def _checked(
    scan: Scan,
    stated: str | None = None,
    warnings: Sequence[str] = (),
    allow_constant: bool = False,
    guess: str | None = None,
) -> Scan:
    """`scan` with its MR limits and its warnings after those given. Raises ScanError for what cannot be used.

    stated: the modality that the file states. guess: the one that a picture looks like.
    """
    if scan.voxels.min() == scan.voxels.max() and not allow_constant:
        raise ScanError(f"{scan.name} is one constant value: there is nothing to see in it.")
    scan = replace(scan, warnings=(*warnings, *scan.warnings))
    if allow_constant:
        return replace(scan, limits=mr_limits(scan.voxels) if scan.modality == "MR" else None)
    if scan.kind != "picture":
        scan = with_checked_values(scan, stated)
    elif guess and guess != scan.modality:
        wrong = other_modality(guess, scan.modality, sure=False)
        scan = replace(scan, warnings=(wrong, *scan.warnings), wrong=(*scan.wrong, wrong))
    if scan.wrong and scan.kind != "picture":
        return scan
    return replace(scan, warnings=(*scan.warnings, *oddities(scan)))


def _read_folder(folder: Path, name: str, modality: str, shown: str, series: str | None) -> Scan:
    """The one volume in a folder: a DICOM series, or a file that `read_scan` reads."""
    found = find_series(folder)
    found = [s for s in found if s.usable] or found
    if series:
        found = [s for s in found if s.uid == series]
        if not found:
            raise ScanError(f"{name} has no series {series}.")
    if len(found) > 1:
        raise SeveralSeriesError(name, {s.uid: s.title for s in found})
    if found:
        voxels, affine, stated, warnings = read_series(found[0], name)
        scan = replace(canonical(voxels, affine, modality, "dicom", name), tags=known_tags(found[0].files[0]))
        return _checked(scan, stated if stated in MODALITIES else None, warnings)
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    others = [p for p in files if p.name.lower().endswith((*VOLUMES, *PICTURES))]
    if len(others) != 1:
        raise ScanError(f"{name} holds no DICOM series{f', but {len(others)} other scans' if others else ''}.")
    return read_scan(others[0], modality, shown)
