"""Which volumes the command line means, and what their results are called."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mediffuse.directions import DIRECTION_TO, WITH_ARTICLE, modalities
from mediffuse.scan import MODALITIES, ScanError, guard
from mediffuse.scan.formats import may_be_volume, stem_of
from mediffuse.scan.headers import is_dicom
from mediffuse.scan.series import Series, group_series
from mediffuse.scan.write import SYNTHETIC_NOTE

MOST_FOLDERS = 4
"""Folders above a file that its result is called after, at most."""


@dataclass(frozen=True)
class Job:
    """One volume: a file, or one series of a folder; `name` is its path below the output, without suffix.

    named: whether it was named, or matched a pattern. What was found in a folder may be no scan to translate.
    """

    path: Path
    name: Path
    series: str | None = None
    named: bool = True


def find_jobs(inputs: Sequence[str], output: Path, to: str, series: str | None = None) -> tuple[list[Job], list[str]]:
    """(the volumes that the inputs name and that are to be made "ct" or "mri", what is wrong with some inputs).

    Results keep the folders below an input folder, or below the fixed part of a pattern.
    Raises ValueError if two would have one name.
    """
    jobs, problems, files = [], [], []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found, wrong = _jobs_below(path, output, to, series)
            jobs += found
            problems += wrong
        elif path.exists():
            files.append((path, Path()))
        else:
            matches = sorted(Path(p) for p in glob.glob(given, recursive=True))  # noqa: PTH207 - may be absolute
            parts = Path(given).parts
            fixed = Path(*parts[: next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))])
            scans = [(p, p.parent.relative_to(fixed)) for p in matches if p.is_file() and _may_be_scan(p)]
            files += scans
            folders = [p for p in matches if p.is_dir()]
            for folder in folders:
                if not any(other in folder.parents for other in folders):
                    found, wrong = _jobs_below(folder, output, to, series)
                    jobs += [replace(job, name=folder.relative_to(fixed) / job.name) for job in found]
                    problems += wrong
            if not matches:
                problems.append(f"{given}: there is no such file or folder")
            elif not folders and not scans:
                problems.append(f"{given}: matches no scan")
    jobs += _jobs_of(files, to, series, named=True)
    unique = {(job.path.resolve(), job.series): job for job in jobs}
    return _named_apart(list(unique.values())), problems


def _jobs_below(path: Path, output: Path, to: str, series: str | None) -> tuple[list[Job], list[str]]:
    """The jobs of a folder and those below it, without the output and what is hidden."""
    if output.resolve() == path.resolve():
        return [], [f"{path}: is the output folder"]
    inside = path.resolve() in output.resolve().parents
    files = []
    for place, folders, names in os.walk(path):
        folder = Path(place)
        folders[:] = sorted(
            f for f in folders if not f.startswith(".") and not (inside and (folder / f).resolve() == output.resolve())
        )
        files += [(folder / name, folder.relative_to(path)) for name in sorted(names) if not name.startswith(".")]
    jobs = _jobs_of(files, to, series, named=False)
    return jobs, [] if jobs else [f"{path}: holds no scan to make {WITH_ARTICLE[modalities(DIRECTION_TO[to])[1]]} of"]


@dataclass(frozen=True)
class _Part:
    """What of a DICOM series lies in one folder; `below`: folder of its result, below the output."""

    folder: Path
    below: Path
    series: Series


def _jobs_of(files: Iterable[tuple[Path, Path]], to: str, series: str | None, *, named: bool) -> list[Job]:
    """The jobs of (file, folder of its result). DICOM files are put together to series.

    named: whether the files themselves were named, or matched a pattern: then they are meant, and are jobs even
    if nothing is known of them. Files that were found in a folder are not.
    """
    jobs: list[Job] = []
    dicom: dict[Path, tuple[Path, list[Path]]] = {}  # by folder: folder of the result, files
    for file, below in files:
        name = file.name.lower()
        if may_be_volume(file):
            if (f"_synthetic_{to}" if named else "_synthetic_") in name:
                print(f"{file}: left out, for it is synthetic", file=sys.stderr)
            elif not series or named or name.endswith(".zip"):
                jobs.append(Job(file, below / stem_of(file.name), series, named))
        elif is_dicom(file):
            dicom.setdefault(file.parent, (below, []))[1].append(file)
        elif named:
            jobs.append(Job(file, below / stem_of(file.name), series))
    parts: list[_Part] = []
    for folder, (below, members) in dicom.items():
        if named and len(members) == 1:
            # It alone is wanted, and not the rest of its series.
            jobs.append(Job(members[0], below / stem_of(members[0].name), series))
        else:
            parts += [_Part(folder, below, found) for found in _series_of(folder, members)]
    return jobs + _jobs_of_series(parts, to, series, named=named)


def _series_of(folder: Path, files: list[Path]) -> list[Series]:
    """The DICOM series among files of a folder; none where they cannot be read."""
    try:
        return guard.call(group_series, files, name=str(folder), paths=files)
    except ScanError as error:
        print(error, file=sys.stderr)
        return []


def _jobs_of_series(parts: list[_Part], to: str, wanted: str | None, *, named: bool) -> list[Job]:
    """The jobs of the DICOM series of which there are `parts`, or of the `wanted` one; tells which are left out."""
    by_uid: dict[str, list[_Part]] = {}
    for part in parts:
        if not wanted or wanted.partition(":")[0] == part.series.uid:
            by_uid.setdefault(part.series.uid, []).append(part)
    jobs, left_out = [], []
    source = modalities(DIRECTION_TO[to])[0]
    for uid, found in by_uid.items():
        # A folder for each slice is one volume. Whole copies of a series stay apart, they may be another patient's.
        scattered = len(found) > 1 and all(len(part.series.frames) == 1 for part in found)
        for part in [_together(found)] if scattered else found:
            folder, modality, title = part.folder, part.series.modality, part.series.title
            if not part.series.usable or (modality in MODALITIES and modality != source):
                left_out.append(f"{folder}: left out, for it is {modality or 'no CT or MR'}: {title}")
            elif not named and SYNTHETIC_NOTE in title:
                left_out.append(f"{folder}: left out, for it is synthetic: {title}")
            else:
                ends = (wanted or uid).partition(":")
                name = f"{folder.resolve().name}_{uid[-12:]}" + (f"_{ends[2]}" if ends[2] else "")
                jobs.append(Job(folder, part.below / name, wanted or uid, named))
    for text in left_out:
        print(text, file=sys.stderr)
    return jobs


def _together(parts: list[_Part]) -> _Part:
    """Parts of one series as one, in the folder that holds all of theirs."""
    first = parts[0]
    common = Path(os.path.commonpath([part.folder for part in parts]))
    levels_up = len(first.folder.parts) - len(common.parts)
    below = first.below.parts[: max(0, len(first.below.parts) - levels_up)]
    return _Part(common, Path(*below), first.series)


def _named_apart(jobs: list[Job]) -> list[Job]:
    """The jobs, with the suffix in the names of files that differ in nothing else, and with as many of their folders
    as are needed in those of files from several folders, as the shell expands */mr.nii.gz.

    Raises ValueError if two have one name all the same.
    """
    beside = Counter((job.name, job.path.resolve().parent) for job in jobs)
    jobs = [
        replace(job, name=job.name.with_name(job.path.name.replace(".", "_")))
        if beside[job.name, job.path.resolve().parent] > 1 and job.path.is_file()
        else job
        for job in jobs
    ]
    for levels in range(1, MOST_FOLDERS + 1):
        counts = Counter(job.name for job in jobs)
        jobs = [
            replace(job, name=Path(*job.path.resolve().parent.parts[-levels:], job.name.name))
            if counts[job.name] > 1 and job.path.is_file() and len(job.path.resolve().parent.parts) > levels
            else job
            for job in jobs
        ]
    for name, count in Counter(job.name for job in jobs).items():
        if count > 1:
            paths = ", ".join(str(job.path) for job in jobs if job.name == name)
            raise ValueError(f"{paths} would get one name, {name}: give their common folder, or a pattern.")
    return jobs


def _may_be_scan(path: Path) -> bool:
    """Whether a file that matched a pattern is worth a try."""
    return not path.name.startswith(".") and (may_be_volume(path) or is_dicom(path))
