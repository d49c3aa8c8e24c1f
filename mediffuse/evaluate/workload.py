"""What the command line asks for: which models are measured on which pairs."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from mediffuse.dataset import DatasetError, Row, read_rows, rows_for, shared_patients
from mediffuse.evaluate import fid
from mediffuse.evaluate.candidates import Model, Sources, baselines, unique_names
from mediffuse.evaluate.measure import Pairs, Truths
from mediffuse.prepare import SPLITS, LayoutError, Plan, left_out, prepare
from mediffuse.translate import Settings


@dataclass
class Workload:
    """What is to be measured. sweeps: with other settings, on a few of the pairs.

    data: --data as it is prepared, if it was given. splits: of it. warnings: of what was left out, for the user.
    """

    data: Path | None
    splits: list[str]
    models: list[tuple[Pairs, Model]] = field(default_factory=list)
    sweeps: list[tuple[Pairs, Model]] = field(default_factory=list)
    truths: Truths = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Choice:
    """Which models: the checkpoints, in which directions, at which speeds and starts, and how diffusion samples."""

    sources: Sources
    directions: list[str]
    speeds: list[str]
    starts: list[str]
    settings: Settings

    @classmethod
    def of(cls, args: argparse.Namespace) -> _Choice:
        """What the options say, with each repeated one once."""
        settings = Settings(
            "diffusion",
            args.steps,
            args.guidance,
            image_guidance=args.image_guidance,
            seed=args.seed,
            samples=args.samples,
        )
        sources = Sources(args.checkpoint, args.zero_shot)
        directions = sources.directions(_once(args.direction) or None)
        return cls(sources, directions, _once(args.speed or ["fast"]), _once(args.start or ["mean"]), settings)

    def models(self, direction: str, data: Path | None, rows: list[Row], *, sampled: bool = True) -> list[Model]:
        """The baselines for `rows` and the checkpoints; `sampled`: also the mean of several samples."""
        settings = self.settings if sampled else dataclasses.replace(self.settings, samples=1)
        return [*baselines(direction, data, rows), *self.sources.models(direction, self.speeds, settings, self.starts)]


def check(args: argparse.Namespace) -> None:
    """Raise DatasetError for options that contradict each other, before any work."""
    if not args.data and not args.wild:
        raise DatasetError("Give --data, or --wild for pairs from elsewhere.")
    if (args.samples > 1 or args.sweep) and "diffusion" not in (args.speed or ()):
        raise DatasetError("--samples and --sweep are of diffusion: add --speed diffusion.")
    output = args.output.resolve()
    for folder in (p.resolve() for p in (args.data, *args.wild) if p):
        if output == folder or folder in output.parents or output in folder.parents:
            raise DatasetError(f"--output {args.output} and {folder} must not lie in each other.")
    if args.fid:
        fid.check(args.fid)
    args.output.mkdir(parents=True, exist_ok=True)


def workload_of(args: argparse.Namespace, state) -> Workload:
    """What the options ask for; `state` is accelerate's PartialState. Prepares the pairs that are not prepared.

    Raises CheckpointError, DatasetError, LayoutError or ValueError with a message for the user.
    """
    choice = _Choice.of(args)
    splits = _once(args.split or ["val"])
    names = unique_names(_once(str(p) for p in (args.data, *args.wild) if p))
    prepared, warnings = _prepare_once(args, splits, names, state)
    work = Workload(prepared.get(str(args.data)), splits, warnings=warnings)
    for split in splits if work.data else ():
        _add_split(work, choice, args, names[str(args.data)], split)
    for given in _once(map(str, args.wild)):
        _add_wild(work, choice, args, names[given], prepared[given] / "wild")
    if not work.models:
        raise DatasetError(f"There are no pairs for {', '.join(choice.directions)} in what was given.")
    return work


def _add_split(work: Workload, choice: _Choice, args: argparse.Namespace, name: str, split: str) -> None:
    """Add what is to be measured on a split of --data, whose `name` is for tables."""
    folder = work.data / split
    chosen = _chosen(folder, args)
    shared = shared_patients(work.data, split)
    if shared:
        work.warnings.append(
            f"{name} {split}: {len(shared)} of its patients are in the train split, too ({', '.join(shared[:3])}"
            f"{', …' if len(shared) > 3 else ''}): a model that was trained on that looks better here than it is."
        )
    for direction in choice.directions:
        rows = list(rows_for(chosen, (direction,)))[: args.limit]
        if not rows:
            _refuse_nothing(folder, args, direction, chosen)
            continue
        pairs = work.truths[name, split, direction] = Pairs(name, split, folder, rows)
        # Of the train split only the plain figures are of interest, and it is the largest.
        models = choice.models(direction, work.data, rows, sampled=split != "train")
        work.models += [(pairs, model) for model in models]
        if args.sweep and "diffusion" in choice.speeds and split != "train":
            few = dataclasses.replace(pairs, rows=rows[: args.sweep])
            changed = choice.sources.sweeps(direction, choice.settings, args.sweep_steps, args.sweep_guidance)
            if direction == "contour2mr":
                changed += choice.sources.threshold_sweeps(choice.speeds, args.sweep_thresholds)
            work.sweeps += [(few, model) for model in changed]


def _add_wild(work: Workload, choice: _Choice, args: argparse.Namespace, name: str, folder: Path) -> None:
    """Add what is to be measured on the pairs from elsewhere that lie prepared in `folder`."""
    available = read_rows(folder)
    for direction in choice.directions:
        rows = list(rows_for(available, (direction,)))[: args.limit]
        if rows:
            pairs = work.truths[name, "wild", direction] = Pairs(name, "wild", folder, rows)
            work.models += [(pairs, model) for model in choice.models(direction, work.data, rows)]


def _once(items) -> list:
    """The items in order, each once."""
    return list(dict.fromkeys(items or ()))


def _prepare_once(
    args: argparse.Namespace, splits: list[str], names: dict[str, str], state
) -> tuple[dict[str, Path], list[str]]:
    """(folders of prepared datasets by what was given, what was left out of them). names: by what was given.

    One process prepares; all raise what it raises.
    """
    from accelerate.utils import broadcast_object_list

    outcome: list = [None]
    if state.is_main_process:
        try:
            found, warnings = {}, []
            for given, name in names.items():
                wild = given != str(args.data)
                found[given], missing = _prepared(Path(given), name, args, None if wild else splits)
                warnings += missing
            outcome = [(found, warnings)]
        except (DatasetError, LayoutError, OSError) as error:
            outcome = [DatasetError(str(error))]
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    if isinstance(outcome[0], DatasetError):
        raise outcome[0]
    return outcome[0]


def _prepared(given: Path, name: str, args: argparse.Namespace, splits: list[str] | None) -> tuple[Path, list[str]]:
    """A prepared dataset: `given`, or made from it in the output folder; and what was left out of it.

    `splits` are those asked for, None for pairs from elsewhere.
    """
    wild = splits is None
    if any(given.glob("*/metadata.jsonl")):
        if wild:
            raise DatasetError(f"{given} is a prepared dataset: give it by --data, and --wild the pairs as they came.")
        return given, []
    output = args.output / "prepared" / ("wild" if wild else "data") / name
    # Prepared anew each time: what was given may have changed, and it takes seconds.
    shutil.rmtree(output, ignore_errors=True)
    # Where the folder does not split its patients, all are measured.
    split = "wild" if wild else None if any((given / s).is_dir() for s in SPLITS) else splits[0]
    # What does not lie on each other is measured, too, and flagged.
    plan = Plan((args.plane,), args.around, contrast=args.contrast, split=split, keep_apart=True)
    made = prepare([given], output, plan)
    if not set(made) - {"unpaired"}:
        raise DatasetError(f"{given} holds no pairs of CT and MRI.")
    return output, [f"{line} (left out)" for line in left_out(output)]


def _chosen(folder: Path, args: argparse.Namespace) -> list[Row]:
    """A split's rows of the plane, source and contrast that were asked for."""
    available = read_rows(folder)
    if any("direction" not in r or "plane" not in r for r in available):
        raise DatasetError(f"{folder} holds no pairs that train/prepare.py wrote.")
    rows = [r for r in available if r["plane"] == args.plane and args.source in (None, r["source"])]
    wanted = args.contrast or ("T1" if any(r["contrast"] == "T1" for r in rows) else "T2")
    return [r for r in rows if r["contrast"] == wanted]


def _refuse_nothing(folder: Path, args: argparse.Namespace, direction: str, chosen: list[Row]) -> None:
    """Raise DatasetError for a direction without pairs, unless others have some and it was not asked for."""
    if not chosen or args.direction:
        words = (args.plane, args.contrast, "pairs", f"of source {args.source}" if args.source else None)
        raise DatasetError(f"{folder} has no {' '.join(filter(None, words))} for {direction}.")
