"""Translate whole volumes, as many as there are: what `python -m mediffuse.translate` runs."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from mediffuse.checkpoints import CheckpointError, Checkpoints, locate
from mediffuse.processes import shared_work
from mediffuse.prompts import CONTRASTS, modalities
from mediffuse.scan import MODALITIES, PLANES, VOLUMES, ScanError, read_scan
from mediffuse.translate import SPEEDS, Settings, Translator
from mediffuse.volume import Passes, translate_volume
from mediffuse.write import SYNTHETIC_NOTE, write_dicom, write_nifti

DIRECTIONS = {"mri": "ct2mr", "ct": "mr2ct"}
FORMATS = ("nifti", "dicom")
_ENDS = {"nifti": ".nii.gz", "dicom": "_dicom", "deviation": "_std.nii.gz"}
_WORDS = {"mri": "an MRI", "ct": "a CT"}

_DOC = """Translate head volumes: CT to MRI, or MRI to CT.

    python -m mediffuse.translate scan.nii.gz --to mri --output out
    python -m mediffuse.translate patients/ 'more/**/*.nrrd' --to ct --output out --format nifti --format dicom
    accelerate launch -m mediffuse.translate ...                      # many GPUs or machines

An input is a NIfTI, NRRD, MHA or zip file, a DICOM file, a folder (all scans in it and below, each DICOM
series one), or a quoted pattern. What this made before from the same input with the same settings is not
made again. An input that cannot be translated is reported and does not stop the rest; the exit code is
then 1. Beside each result a .json says what it was made from, and how."""


@dataclass(frozen=True)
class Job:
    """One volume: a file, or one series of a folder; `name` is its path below the output, without suffix."""

    path: Path
    name: Path
    series: str | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m mediffuse.translate", description=_DOC, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", nargs="+", help="files, folders, or quoted patterns")
    parser.add_argument("--to", choices=DIRECTIONS, required=True, help="what to make")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--format", choices=FORMATS, action="append", help="default nifti; may be given twice")
    parser.add_argument("--contrast", choices=CONTRASTS, default="T1", help="of the MRI")
    parser.add_argument("--checkpoint", help="as MEDIFFUSE_CHECKPOINTS; default: that, or the bundled ones")
    parser.add_argument("--speed", choices=SPEEDS, default="fast")
    parser.add_argument("--steps", type=int, default=20, help="of diffusion")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--image-guidance", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=1, help="of diffusion; the mean is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plane", choices=PLANES, action="append", help="default axial; several are averaged")
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="mirrored slices as a pass of their own, for --uncertainty; default: in one step averaged at once; "
        "--no-mirror: none, in half the time",
    )
    parser.add_argument("--uncertainty", action="store_true", help="also write the standard deviation (NIfTI)")
    parser.add_argument("--batch-size", type=int, help="slices at once; default: 8 on a GPU, 1 on a processor")
    parser.add_argument("--series", help="SeriesInstanceUID, for a zip or folder with several")
    parser.add_argument("--overwrite", action="store_true", help="make again what is there already")
    args = parser.parse_args(argv)
    direction = DIRECTIONS[args.to]
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output {args.output} is a file: give a folder.")
    try:
        settings = Settings(
            args.speed,
            args.steps,
            args.guidance,
            args.image_guidance,
            args.seed,
            args.samples,
            args.contrast,
            mirror=args.mirror is not False,
        )
        passes = Passes(tuple(dict.fromkeys(args.plane or ["axial"])), bool(args.mirror), args.batch_size)
        locate(direction, args.checkpoint)
        jobs, problems = find_jobs(args.input, args.output, args.to, args.series)
        args.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, CheckpointError, OSError) as error:
        parser.error(str(error))
    several = len(passes.planes) > 1 or passes.mirror or (settings.speed == "diffusion" and settings.samples > 1)
    if args.uncertainty and not several:
        parser.error("--uncertainty needs several estimates: --mirror, several --plane, or diffusion with --samples.")
    return run(jobs, problems, direction, settings, passes, args)


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
    from mediffuse.series import group_series

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


def run(jobs: list[Job], problems: list[str], direction: str, settings: Settings, passes: Passes, args) -> int:
    """Translate this process's share of the jobs; the main process prints the summary of all."""
    import diffusers
    import transformers
    from accelerate.utils import gather_object
    from tqdm import tqdm

    # What loading says would hide what is said of the scans.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    translator = Translator(Checkpoints(args.checkpoint))
    started, report = time.perf_counter(), []
    with shared_work() as state, state.split_between_processes(list(enumerate(jobs))) as share:
        for _, job in tqdm(share, desc="volumes", disable=not state.is_main_process or not sys.stderr.isatty()):
            try:
                report.append((*translate_job(job, direction, settings, passes, translator, args), str(job.path)))
            except (ScanError, CheckpointError) as error:
                report.append(("failed", str(error), 0, str(job.path)))
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one must not stop the rest
                report.append(("failed", f"{type(error).__name__}: {error}", 0, str(job.path)))
            outcome, said, _, path = report[-1]
            if said or not sys.stderr.isatty():
                tqdm.write(f"{path}: {outcome}{': ' if said else ''}{said}", file=sys.stderr)
        report = gather_object(report)
    if not state.is_main_process:
        return 0
    for problem in problems:
        print(problem, file=sys.stderr)
    counts = Counter(outcome for outcome, *_ in report)
    failed = counts["failed"] + len(problems)
    slices, seconds = sum(n for _, _, n, _ in report), time.perf_counter() - started
    speed = f", {slices} slices in {seconds:.1f} s" if slices else ""
    print(f"{counts['made']} translated{speed}; {counts['skipped']} skipped; {failed} failed.")
    return 1 if failed else 0


def translate_job(job: Job, direction: str, settings: Settings, passes: Passes, translator: Translator, args):
    """Translate and write one volume: (outcome, what there is to say of it, slices)."""
    from tqdm import tqdm

    source, target = modalities(direction)
    base = args.output / job.name
    name = f"{base.name}_synthetic_{args.to}"
    places = {kind: base.with_name(name + end) for kind, end in _ENDS.items()}
    kinds = [*(args.format or FORMATS[:1]), *(["deviation"] if args.uncertainty else [])]
    record = base.with_name(f"{name}.json")
    about = {
        "source": str(job.path.resolve()),
        "state": _state(job.path),
        "series": job.series,
        "direction": direction,
        "checkpoint": args.checkpoint or os.environ.get("MEDIFFUSE_CHECKPOINTS") or "bundled",
        "settings": asdict(settings),
        "planes": passes.planes,
        "mirrored": passes.mirror,
        "note": SYNTHETIC_NOTE,
    }
    about = json.loads(json.dumps(about))  # tuples as they come back
    before = _read_record(record)
    kept = {}
    there = {kind: path for kind, path in places.items() if path.exists()}
    if there and not args.overwrite:
        differs = [k for k in about if k not in ("source", "state") and before.get(k) != about[k]]
        unchanged = before.get("state") == about["state"]
        if before and before["source"] != about["source"] and not unchanged:
            differs.append("source")
        if differs:
            raise ScanError(
                f"{next(iter(there.values()))} was made by something else, or differently ({', '.join(differs)}). "
                "Give another --output, or --overwrite."
            )
        if unchanged:
            kept = {kind: size for kind, path in there.items() if (size := _size(path)) == before["made"].get(kind)}
        if set(kinds) <= set(kept):
            return "skipped", "", 0
    scan = read_scan(job.path, source, series=job.series)
    if scan.kind == "picture":
        raise ScanError(f"{scan.name} is a picture, and this translates volumes.")
    base.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(desc=base.name[:30], unit="slice", leave=False, disable=not sys.stderr.isatty()) as bar:

        def moved(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        made = translate_volume(translator, scan, direction, settings, passes, on_slices=moved)
    # Without what is made now: an interrupted run is known by that.
    _write_record(record, {**about, "made": kept})
    if "nifti" in kinds:
        write_nifti(scan, made.voxels, target, places["nifti"])
    if "deviation" in kinds:
        write_nifti(scan, made.deviation, "deviation", places["deviation"])
    if "dicom" in kinds:
        write_dicom(scan, made.voxels, target, places["dicom"])
    _write_record(record, {**about, "made": {**kept, **{kind: _size(places[kind]) for kind in kinds}}})
    return "made", " ".join(scan.warnings), made.slices


def _state(path: Path) -> list[list]:
    """Name, size and time of the file, or of each in the folder: what changes when an input does."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and "_synthetic_" not in str(p.relative_to(path)))
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(p.stat().st_size for p in (path.iterdir() if path.is_dir() else [path]))


def _write_record(path: Path, record: dict) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _read_record(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("made"), dict) else {}
