"""Translate and write one volume after another, and remember beside each result how it was made."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from mediffuse.directions import modalities
from mediffuse.machine import shared_work
from mediffuse.scan import ScanError, read_scan
from mediffuse.scan.write import SYNTHETIC_NOTE, write_dicom, write_nifti
from mediffuse.translate.checkpoints import CheckpointError, Checkpoints
from mediffuse.translate.jobs import Job
from mediffuse.translate.slices import Settings, Translator
from mediffuse.translate.volumes import Passes, translate_volume

FORMATS = ("nifti", "dicom")
_ENDS = {"nifti": ".nii.gz", "dicom": "_dicom", "deviation": "_std.nii.gz"}


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
