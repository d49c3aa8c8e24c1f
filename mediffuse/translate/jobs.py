"""Which volumes the command line means, and what their results are called."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mediffuse.directions import modalities
from mediffuse.scan import MODALITIES
from mediffuse.scan.dicom import group_series
from mediffuse.scan.formats import VOLUMES
from mediffuse.scan.write import SYNTHETIC_NOTE

DIRECTIONS = {"mri": "ct2mr", "ct": "mr2ct"}
_WORDS = {"mri": "an MRI", "ct": "a CT"}


@dataclass(frozen=True)
class Job:
    """One volume: a file, or one series of a folder; `name` is its path below the output, without suffix."""

    path: Path
    name: Path
    series: str | None = None


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
    found, wrong = _jobs_of(files, to, series)
    unique = {(job.path.resolve(), job.series): job for job in (*jobs, *found)}
    return _named_apart(list(unique.values())), problems + wrong


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
    jobs, problems = _jobs_of(files, to, series, of_folder=path)
    return jobs, problems or ([] if jobs else [f"{path}: holds no scan to make {_WORDS[to]} of"])


def _jobs_of(
    files: Iterable[tuple[Path, Path]], to: str, series: str | None, of_folder: Path | None = None
) -> tuple[list[Job], list[str]]:
    """The jobs of (file, folder of its result), and what is wrong. DICOM files are put together to series;
    files that were not found in a folder were meant, and are jobs even if nothing is known of them."""
    jobs, dicom = [], {}
    for file, below in files:
        name = file.name.lower()
        if name.endswith((*VOLUMES, ".zip")):
            made = f"_synthetic_{to}" if of_folder is None else "_synthetic_"
            if made in name:
                print(f"{file}: left out, for it is synthetic", file=sys.stderr)
            elif not series or of_folder is None or name.endswith(".zip"):
                jobs.append(Job(file, below / _stem(file), series))
        elif _is_dicom(file):
            dicom.setdefault(file.parent, (below, []))[1].append(file)
        elif of_folder is None:
            jobs.append(Job(file, below / _stem(file), series))
    parts: dict[str, list] = {}  # by series: (folder, folder of the result, series) wherever some of it lies
    for folder, (below, members) in dicom.items():
        for one in group_series(members):
            parts.setdefault(one.uid, []).append((folder, below, one))
        if of_folder is None and len(members) == 1:
            # One file that was named: it alone is wanted.
            jobs.append(Job(members[0], below / _stem(members[0]), None))
            parts = {uid: [p for p in places if p[0] != folder] for uid, places in parts.items()}
    source, left_out = modalities(DIRECTIONS[to])[0], []
    for uid, places in parts.items():
        if series not in (None, uid) or not places:
            continue
        one = places[0][2]
        if len(places) > 1 and all(len(p[2].files) == 1 for p in places):
            # A folder for each slice. Whole copies of a series stay apart, they may be another patient's.
            common = Path(os.path.commonpath([p[0] for p in places]))
            up = len(places[0][0].parts) - len(common.parts)
            below = places[0][1].parts[: max(0, len(places[0][1].parts) - up)]
            places = [(common, Path(*below), one)]  # noqa: PLW2901
        for folder, below, found in places:
            if not found.usable or (found.modality in MODALITIES and found.modality != source):
                left_out.append(f"{folder}: left out, for it is {found.modality or 'no CT or MR'}: {found.title}")
            elif of_folder is not None and SYNTHETIC_NOTE in found.title:
                left_out.append(f"{folder}: left out, for it is synthetic: {found.title}")
            else:
                jobs.append(Job(folder, below / f"{folder.resolve().name}_{uid[-12:]}", uid))
    for text in left_out:
        print(text, file=sys.stderr)
    return jobs, []


def _named_apart(jobs: list[Job]) -> list[Job]:
    """The jobs, with the suffix in the names of files that differ in nothing else.

    Raises ValueError if two have one name all the same.
    """
    counts = Counter(job.name for job in jobs)
    jobs = [
        replace(job, name=job.name.with_name(job.path.name.replace(".", "_")))
        if counts[job.name] > 1 and job.path.is_file()
        else job
        for job in jobs
    ]
    for name, count in Counter(job.name for job in jobs).items():
        if count > 1:
            both = ", ".join(str(job.path) for job in jobs if job.name == name)
            raise ValueError(f"{both} would get one name, {name}: give their common folder, or a pattern.")
    return jobs


def _is_dicom(path: Path) -> bool:
    if path.suffix.lower() in (".dcm", ".ima"):
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _may_be_scan(path: Path) -> bool:
    return not path.name.startswith(".") and (path.name.lower().endswith((*VOLUMES, ".zip")) or _is_dicom(path))


def _stem(path: Path) -> str:
    name = path.name
    suffix = next((s for s in (".nii.gz", *VOLUMES, ".zip", ".dcm", ".ima") if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)] if suffix else name
