"""Translate and write one volume after another, and remember beside each result how it was made."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

from mediffuse.directions import DIRECTION_TO, WITH_ARTICLE, modalities
from mediffuse.machine import shared_work
from mediffuse.scan import Scan, ScanError
from mediffuse.scan.guard import read_scan
from mediffuse.scan.types import LabelMapError
from mediffuse.scan.write import SYNTHETIC_NOTE, write_dicom, write_nifti
from mediffuse.translate.checkpoints import VARIABLE, CheckpointError, Checkpoints
from mediffuse.translate.jobs import Job
from mediffuse.translate.slices import Settings, Translator
from mediffuse.translate.volumes import Passes, VolumeTranslation, translate_volume

FORMATS = ("nifti", "dicom")
_ENDS = {"nifti": ".nii.gz", "dicom": "_dicom", "deviation": "_std.nii.gz"}


@dataclass(frozen=True)
class Order:
    """What is wanted of every volume alike.

    to: "mri" or "ct". output: folder of the results. checkpoint: as `checkpoints.locate` takes it, None for the
    default. formats: of `FORMATS`. uncertainty: whether the standard deviation is written too. overwrite: whether
    results that are there are made again.
    """

    to: str
    output: Path
    settings: Settings
    passes: Passes
    checkpoint: str | None = None
    formats: tuple[str, ...] = FORMATS[:1]
    uncertainty: bool = False
    overwrite: bool = False

    @property
    def direction(self) -> str:
        """The direction of translation."""
        return DIRECTION_TO[self.to]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of files to write for a volume: keys of `_ENDS`."""
        return (*self.formats, "deviation") if self.uncertainty else self.formats


class Outcome(NamedTuple):
    """What became of a job: "made", "skipped", "left out" or "failed"; what there is to say of it; slices."""

    what: str
    remark: str = ""
    slices: int = 0


class Record(TypedDict):
    """The .json beside a result: what it was made from, and how. made: bytes of each kind of file that is complete."""

    source: str
    state: list[list]
    series: str | None
    direction: str
    checkpoint: str
    settings: dict
    planes: list[str]
    mirrored: bool
    note: str
    made: dict[str, int]


def run(jobs: list[Job], problems: list[str], order: Order) -> int:
    """Translate this process's share of the jobs; the main process prints the summary of all.

    problems: what is already known to be wrong with the inputs, which counts as failed. Returns the exit code.
    """
    import diffusers
    import transformers
    from accelerate.utils import gather_object
    from tqdm import tqdm

    # What loading says would hide what is said of the scans.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    translator = Translator(Checkpoints(order.checkpoint))
    started, outcomes = time.perf_counter(), []
    with shared_work() as state, state.split_between_processes(list(enumerate(jobs))) as share:
        for _, job in tqdm(share, desc="volumes", disable=not state.is_main_process or not sys.stderr.isatty()):
            outcome = _attempt(job, order, translator)
            outcomes.append(outcome)
            if outcome.remark or not sys.stderr.isatty():
                remark = f": {outcome.remark}" if outcome.remark else ""
                tqdm.write(f"{job.path}: {outcome.what}{remark}", file=sys.stderr)
        outcomes = gather_object(outcomes)
    if not state.is_main_process:
        return 0
    for problem in problems:
        print(problem, file=sys.stderr)
    counts = Counter(outcome.what for outcome in outcomes)
    failed = counts["failed"] + len(problems)
    slices, seconds = sum(outcome.slices for outcome in outcomes), time.perf_counter() - started
    speed = f", {slices} slices in {seconds:.1f} s" if slices else ""
    left_out = f"; {counts['left out']} left out" if counts["left out"] else ""
    print(f"{counts['made']} translated{speed}; {counts['skipped']} skipped{left_out}; {failed} failed.")
    return 1 if failed or (left_out and not counts["made"] + counts["skipped"]) else 0


def _attempt(job: Job, order: Order, translator: Translator) -> Outcome:
    """`translate_job`; whatever is wrong with one volume must not stop the rest."""
    try:
        return translate_job(job, order, translator)
    except (ScanError, CheckpointError) as error:
        return Outcome("failed", str(error))
    except Exception as error:  # noqa: BLE001
        return Outcome("failed", f"{type(error).__name__}: {error}")


def translate_job(job: Job, order: Order, translator: Translator) -> Outcome:
    """Translate and write one volume, unless all that is wanted of it is there from before.

    Raises ScanError for a scan that cannot be used, and where something else has the result's name;
    CheckpointError for a checkpoint that cannot be used.
    """
    source, target = modalities(order.direction)
    base = order.output / job.name
    name = f"{base.name}_synthetic_{order.to}"
    paths = {kind: base.with_name(name + end) for kind, end in _ENDS.items()}
    record_path = base.with_name(f"{name}.json")
    record = _record_of(job, order)
    kept = {} if order.overwrite else _complete(paths, record, _read_record(record_path))
    if set(order.kinds) <= set(kept):
        return Outcome("skipped")
    try:
        scan = read_scan(job.path, source, series=job.series)
    except LabelMapError as error:
        if job.named:
            raise
        return Outcome("left out", str(error))
    if not job.named and scan.looks not in (source, None):
        return Outcome("left out", f"it looks like {WITH_ARTICLE[scan.looks]}. Name the file itself if it is none.")
    if scan.kind == "picture":
        raise ScanError(f"{scan.name} is a picture, and this translates volumes.")
    base.parent.mkdir(parents=True, exist_ok=True)
    made = _translate(scan, order, translator, title=base.name[:30])
    # Without what is made now: an interrupted run is known by that.
    _write_record(record_path, {**record, "made": kept})
    if "nifti" in order.kinds:
        write_nifti(scan, made.voxels, target, paths["nifti"])
    if "deviation" in order.kinds:
        write_nifti(scan, made.deviation, "deviation", paths["deviation"])
    if "dicom" in order.kinds:
        write_dicom(scan, made.voxels, target, paths["dicom"])
    _write_record(record_path, {**record, "made": {**kept, **{kind: _size(paths[kind]) for kind in order.kinds}}})
    return Outcome("made", " ".join(scan.warnings), made.slices)


def _translate(scan: Scan, order: Order, translator: Translator, title: str) -> VolumeTranslation:
    """The scan's translation, with a bar of slices on a terminal."""
    from tqdm import tqdm

    with tqdm(desc=title, unit="slice", leave=False, disable=not sys.stderr.isatty()) as bar:

        def on_slices(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        return translate_volume(translator, scan, order.direction, order.settings, order.passes, on_slices=on_slices)


def _record_of(job: Job, order: Order) -> Record:
    """What is to be remembered of a job, with nothing made yet."""
    record = Record(
        source=str(job.path.resolve()),
        state=_state(job.path),
        series=job.series,
        direction=order.direction,
        checkpoint=order.checkpoint or os.environ.get(VARIABLE) or "bundled",
        settings=asdict(order.settings),
        planes=list(order.passes.planes),
        mirrored=order.passes.mirror,
        note=SYNTHETIC_NOTE,
        made={},
    )
    return json.loads(json.dumps(record))  # tuples as they come back


def _complete(paths: dict[str, Path], record: Record, before: Record | None) -> dict[str, int]:
    """Bytes by kind of the results at `paths` that were made in full from the same input in the same way.

    Raises ScanError where what is there was made otherwise: by the record `before`, or without one.
    """
    present = {kind: path for kind, path in paths.items() if path.exists()}
    if not present:
        return {}
    before = before or {}
    differs = [key for key in record if key not in ("source", "state", "made") and before.get(key) != record[key]]
    unchanged = before.get("state") == record["state"]
    if before and before["source"] != record["source"] and not unchanged:
        differs.append("source")
    if differs:
        raise ScanError(
            f"{next(iter(present.values()))} was made by something else, or differently ({', '.join(differs)}). "
            "Give another --output, or --overwrite."
        )
    if not unchanged:
        return {}
    return {kind: size for kind, path in present.items() if (size := _size(path)) == before["made"].get(kind)}


def _state(path: Path) -> list[list]:
    """Name, size and time of the file, or of each in the folder: what changes when an input does."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and "_synthetic_" not in str(p.relative_to(path)))
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    return sum(p.stat().st_size for p in (path.iterdir() if path.is_dir() else [path]))


def _write_record(path: Path, record: Record) -> None:
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _read_record(path: Path) -> Record | None:
    """The record in a file; None where there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("made"), dict) else None
