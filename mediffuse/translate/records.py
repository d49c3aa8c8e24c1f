"""Translate and write one volume after another, and remember beside each result how it was made."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

from mediffuse import files
from mediffuse.directions import DIRECTION_TO, WITH_ARTICLE, modalities
from mediffuse.machine import shared_work
from mediffuse.scan import Scan, ScanError
from mediffuse.scan.deface import face_mask
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
    results that are there are made again. deface: whether the face is blanked.
    """

    to: str
    output: Path
    settings: Settings
    passes: Passes
    checkpoint: str | None = None
    formats: tuple[str, ...] = FORMATS[:1]
    uncertainty: bool = False
    overwrite: bool = False
    deface: bool = False

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
    """The .json beside a result: what it was made from, and how.

    made: SHA-256 of each kind of file (or folder) that is complete. sha256: of the record without it.
    """

    source: str
    state: list[list]
    series: str | None
    direction: str
    checkpoint: str
    settings: dict
    planes: list[str]
    mirrored: bool
    note: str
    defaced: bool
    made: dict[str, str]
    sha256: NotRequired[str]


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
    files.remove_leftovers(order.output)
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
    except OSError as error:
        return Outcome("failed", files.trouble(error) or str(error))
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
    kept, remark = ({}, "") if order.overwrite else _complete(paths, record, record_path)
    if set(order.kinds) <= set(kept):
        return Outcome("skipped")
    try:
        known = translator.checkpoints.anatomies(order.direction)
        scan = read_scan(job.path, source, series=job.series, anatomies=known)
    except LabelMapError as error:
        if job.named:
            raise
        return Outcome("left out", str(error))
    if not job.named and scan.looks not in (source, None):
        return Outcome("left out", f"it looks like {WITH_ARTICLE[scan.looks]}. Name the file itself if it is none.")
    if scan.kind == "picture":
        raise ScanError(f"{scan.name} is a picture, and this translates volumes.")
    face = face_mask(scan) if order.deface else None
    base.parent.mkdir(parents=True, exist_ok=True)
    made = _translate(scan, order, translator, title=base.name[:30]).without(face)
    # Without what is made now: an interrupted run is known by that.
    _write_record(record_path, record, kept)
    if "nifti" in order.kinds:
        write_nifti(scan, made.voxels, target, paths["nifti"], defaced=order.deface)
    if "deviation" in order.kinds:
        write_nifti(scan, made.deviation, "deviation", paths["deviation"], defaced=order.deface)
    if "dicom" in order.kinds:
        write_dicom(scan, made.voxels, target, paths["dicom"], defaced=order.deface)
    hashes = {kind: files.sha256_of(paths[kind]) for kind in order.kinds}
    _write_record(record_path, record, {**kept, **hashes})
    return Outcome("made", " ".join(filter(None, (remark, *scan.warnings))), made.slices)


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
        settings={name: value for name, value in asdict(order.settings).items() if value is not None},
        planes=list(order.passes.planes),
        mirrored=order.passes.mirror,
        note=SYNTHETIC_NOTE,
        defaced=order.deface,
        made={},
    )
    return json.loads(json.dumps(record))  # tuples as they come back


def _complete(paths: dict[str, Path], record: Record, record_path: Path) -> tuple[dict[str, str], str]:
    """(hashes by kind of the results at `paths` that are whole, and made from the same input in the same way; what
    there is to say of those that are not).

    Raises ScanError where what is there was made otherwise: by the record at `record_path`, or without one.
    """
    present = {kind: path for kind, path in paths.items() if path.exists()}
    if not present:
        return {}, ""
    try:
        before = _read_record(record_path)
    except ValueError:
        return {}, "its .json was damaged, so it was made again."
    differs = [key for key in record if key not in ("source", "state", "made") and before.get(key) != record[key]]
    unchanged = before.get("state") == record["state"]
    if before and before.get("source") != record["source"] and not unchanged:
        differs.append("source")
    if differs:
        raise ScanError(
            f"{next(iter(present.values()))} was made by something else, or differently ({', '.join(differs)}). "
            "Give another --output, or --overwrite."
        )
    if not unchanged:
        return {}, ""
    known = before["made"]
    found = {kind: files.sha256_of(path) for kind, path in present.items() if kind in known}
    damaged = [present[kind].name for kind, hashed in found.items() if hashed != known[kind]]
    remark = f"{', '.join(damaged)} had changed since it was made, so it was made again." if damaged else ""
    return {kind: hashed for kind, hashed in found.items() if hashed == known[kind]}, remark


def _state(path: Path) -> list[list]:
    """Name, size and time of the file, or of each in the folder: what changes when an input does."""
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and "_synthetic_" not in str(p.relative_to(path)))
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _write_record(path: Path, record: Record, made: dict[str, str]) -> None:
    record = {**record, "made": made}
    files.write_text(path, json.dumps({**record, "sha256": _hash_of(record)}, indent=2) + "\n")


def _read_record(path: Path) -> Record:
    """The record in a file; empty where there is no file. Raises ValueError if it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or found.pop("sha256", None) != _hash_of(found):
        raise ValueError(f"{path} is damaged")
    return found


def _hash_of(record: Record) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
