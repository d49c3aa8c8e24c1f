"""Translate whole volumes, as many as there are: what `python -m mediffuse.translate` runs."""

from __future__ import annotations

import argparse
import glob
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mediffuse.checkpoints import CheckpointError, Checkpoints, locate
from mediffuse.processes import shared_work
from mediffuse.prompts import CONTRASTS, modalities
from mediffuse.scan import MODALITIES, PLANES, VOLUMES, ScanError, read_scan
from mediffuse.translate import SPEEDS, Settings, Translator
from mediffuse.volume import Passes, translate_volume
from mediffuse.write import write_dicom, write_nifti

DIRECTIONS = {"mri": "ct2mr", "ct": "mr2ct"}
FORMATS = ("nifti", "dicom")

_DOC = """Translate head volumes: CT to MRI, or MRI to CT.

    python -m mediffuse.translate scan.nii.gz --to mri --output out
    python -m mediffuse.translate patients/ 'more/**/*.nrrd' --to ct --output out --format nifti --format dicom
    accelerate launch -m mediffuse.translate ...                      # many GPUs or machines

An input is a NIfTI, NRRD, MHA or zip file, a DICOM file, a folder (all scans in it and below, each DICOM
series one), or a quoted pattern. What is in the output already is not made again. An input that cannot
be translated is reported and does not stop the rest; the exit code is then 1."""


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
    parser.add_argument("--batch-size", type=int, default=8, help="slices that go through the model together")
    parser.add_argument("--series", help="SeriesInstanceUID, for a zip or folder with several")
    parser.add_argument("--overwrite", action="store_true", help="make again what is there already")
    args = parser.parse_args(argv)
    direction = DIRECTIONS[args.to]
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
        jobs, problems = find_jobs(args.input, args.output, modalities(direction)[0], args.series)
        args.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, CheckpointError, OSError) as error:
        parser.error(str(error))
    several = len(passes.planes) > 1 or passes.mirror or (settings.speed == "diffusion" and settings.samples > 1)
    if args.uncertainty and not several:
        parser.error("--uncertainty needs several estimates: --mirror, several --plane, or diffusion with --samples.")
    return run(jobs, problems, direction, settings, passes, args)


def find_jobs(
    inputs: Sequence[str], output: Path, source: str, series: str | None = None
) -> tuple[list[Job], list[str]]:
    """(the volumes of modality `source` that the inputs name, what is wrong with some inputs).

    Results keep the folders below an input folder. Raises ValueError if two would have one name.
    """
    from mediffuse.series import find_series

    jobs, problems = [], []
    for given in inputs:
        paths = [Path(given)]
        if not paths[0].exists():
            paths = sorted(Path(p) for p in glob.glob(given, recursive=True))  # noqa: PTH207 - may be absolute
            if not paths:
                problems.append(f"{given}: there is no such file or folder")
        for path in paths:
            if path.is_file():
                jobs.append(Job(path, Path(_stem(path)), series))
                continue
            if output.resolve() == path.resolve():
                problems.append(f"{path}: is the output folder")
                continue
            found = []
            folders = [path, *sorted(p for p in path.rglob("*") if p.is_dir() and not p.name.startswith("."))]
            for folder in folders:
                if output.resolve() in (folder.resolve(), *folder.resolve().parents):
                    continue
                below = folder.relative_to(path)
                files = [f for f in sorted(folder.iterdir()) if f.is_file()]
                scans = [f for f in files if f.name.lower().endswith((*VOLUMES, ".zip"))]
                found += [Job(file, below / _stem(file), series) for file in scans]
                for one in find_series(folder, below=False):
                    if series not in (None, one.uid):
                        continue
                    if one.modality in MODALITIES and one.modality != source:
                        print(f"{folder}: left out, for it is {one.modality}: {one.title}", file=sys.stderr)
                        continue
                    found.append(Job(folder, below / f"{folder.resolve().name}_{one.uid[-12:]}", one.uid))
            if not found:
                problems.append(f"{path}: holds no scan")
            jobs += found
    unique = list(dict.fromkeys(jobs))
    for name, count in Counter(job.name for job in unique).items():
        if count > 1:
            both = ", ".join(str(job.path) for job in unique if job.name == name)
            raise ValueError(f"{both} would get one name, {name}: give their common folder instead.")
    return unique, problems


def _stem(path: Path) -> str:
    name = path.name
    suffix = next((s for s in (".nii.gz", *VOLUMES, ".zip", ".dcm", ".ima") if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)] if suffix else name


def run(jobs: list[Job], problems: list[str], direction: str, settings: Settings, passes: Passes, args) -> int:
    """Translate this process's share of the jobs; the main process prints the summary of all."""
    from accelerate.utils import gather_object
    from tqdm import tqdm

    translator = Translator(Checkpoints(args.checkpoint))
    started, report = time.perf_counter(), []
    with shared_work() as state, state.split_between_processes(list(enumerate(jobs))) as share:
        for _, job in tqdm(share, desc="volumes", disable=not state.is_main_process or not sys.stderr.isatty()):
            try:
                report.append((*translate_job(job, direction, settings, passes, translator, args), str(job.path)))
            except (ScanError, CheckpointError, OSError, MemoryError) as error:
                report.append(("failed", str(error) or type(error).__name__, 0, str(job.path)))
            outcome, said, _, path = report[-1]
            if said:
                tqdm.write(f"{path}: {outcome}: {said}", file=sys.stderr)
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
    source, target = modalities(direction)
    base = args.output / job.name
    name = f"{base.name}_synthetic_{args.to}"
    wanted = {
        kind: base.with_name(name + {"nifti": ".nii.gz", "dicom": "_dicom"}[kind])
        for kind in args.format or FORMATS[:1]
    }
    spread = base.with_name(f"{name}_std.nii.gz")
    if not args.overwrite and all(p.exists() for p in (*wanted.values(), *([spread] if args.uncertainty else []))):
        return "skipped", "", 0
    scan = read_scan(job.path, source, series=job.series)
    if scan.kind == "picture":
        raise ScanError(f"{scan.name} is a picture, and this translates volumes.")
    base.parent.mkdir(parents=True, exist_ok=True)
    made = translate_volume(translator, scan, direction, settings, passes)
    if "nifti" in wanted:
        write_nifti(scan, made.voxels, target, wanted["nifti"])
    if args.uncertainty:
        write_nifti(scan, made.deviation, "deviation", spread)
    if "dicom" in wanted:
        write_dicom(scan, made.voxels, target, wanted["dicom"])
    return "made", " ".join(scan.warnings), made.slices
