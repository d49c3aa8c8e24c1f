"""What the command line asks for, measured, and as the rows of a report."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import platform
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from mediffuse.dataset import shared_patients
from mediffuse.evaluate import fid, summary
from mediffuse.evaluate.calibration import CURVES
from mediffuse.evaluate.candidates import Model
from mediffuse.evaluate.measure import Pairs, Record, Store, Truths, check_pairs, measure, registration_of
from mediffuse.evaluate.registration import Registration
from mediffuse.evaluate.rows import (
    FlaggedPair,
    ImageRow,
    ResultRow,
    RunSettings,
    SignedRankTest,
    SweepRow,
    UncertaintyRow,
)
from mediffuse.evaluate.workload import Workload, check, workload_of
from mediffuse.translate import checkpoints


@dataclass
class Results:
    """Everything that tables, figures and the report are made of.

    images: an `ImageRow` per image and protocol. losses: columns stage, step and loss, of training. truths: to read
    pictures from. pictures: whether those of --data may be shown. warnings: for the user.
    """

    images: pd.DataFrame
    rows: list[ResultRow]
    tests: list[SignedRankTest]
    sweeps: list[SweepRow]
    uncertainty: list[UncertaintyRow]
    flagged: list[FlaggedPair]
    losses: pd.DataFrame
    settings: RunSettings
    truths: Truths
    output: Path
    pictures: bool = True
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Measured:
    """A model's records of pairs, in their order. keys: of the records in the store."""

    pairs: Pairs
    model: Model
    keys: list[str]
    store: Store

    @property
    def records(self) -> list[Record]:
        return [self.store.get(key) for key in self.keys]


_Shifts = dict[tuple[str, str, str, str], Registration]
"""By dataset, split, direction and the input's file."""


def run(args: argparse.Namespace, state) -> Results | None:
    """Measure; only the main process of `state` (accelerate's PartialState) gets the results.

    Raises CheckpointError, DatasetError, LayoutError or ValueError with a message for the user.
    """
    check(args)
    work = workload_of(args, state)
    store = Store(args.output, state.process_index)
    state.wait_for_everyone()  # before any process writes
    check_pairs(work.truths.values())
    measured = [_Measured(pairs, model, measure(model, pairs, store, state), store) for pairs, model in work.models]
    swept = [_Measured(pairs, model, measure(model, pairs, store, state), store) for pairs, model in work.sweeps]
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    store.read()
    return _results(args, work, measured, swept, store)


def _results(
    args: argparse.Namespace, work: Workload, measured: list[_Measured], swept: list[_Measured], store: Store
) -> Results:
    """What was measured, as rows."""
    shifts = _shifts(work.truths, store)
    images = pd.DataFrame([row for each in measured for row in _image_rows(each, shifts)])
    rows = _result_rows(images, measured)
    if args.fid:
        fid.add_fid(rows, images, work.truths, args.output, args.fid)
    flagged = _flagged(work.truths, shifts)
    misregistered = [
        f"{f['dataset']} {f['split']} {f['image']}: the pair looks misregistered, by {f['shift_pixels']:.1f} pixels"
        for f in flagged
    ]
    return Results(
        images=images,
        rows=rows,
        tests=summary.compare(images),
        sweeps=[_sweep_row(each) for each in swept],
        uncertainty=_uncertainty_rows(measured),
        flagged=flagged,
        losses=_losses([each.model for each in measured]),
        settings=_settings(args, _unseen(work.data, work.splits, rows) if work.data else None),
        truths=work.truths,
        output=args.output,
        pictures=not args.no_pictures,
        warnings=[*work.warnings, *misregistered],
    )


def _shifts(truths: Truths, store: Store) -> _Shifts:
    """Whether the two images of each pair show the same place."""
    todo = [(key, pairs, row) for key, pairs in truths.items() for row in pairs.rows]
    return {
        (*key, row["input_image_file_name"]): registration_of(pairs, row, store)
        for key, pairs, row in tqdm(todo, desc="registration of the pairs")
    }


def _image_rows(measured: _Measured, shifts: _Shifts) -> list[ImageRow]:
    """A row per image and protocol."""
    pairs, model = measured.pairs, measured.model
    made = []
    for record, row in zip(measured.records, pairs.rows, strict=True):
        shift = shifts[pairs.dataset, pairs.split, model.direction, row["input_image_file_name"]]
        facts = {
            "dataset": pairs.dataset,
            "split": pairs.split,
            "direction": model.direction,
            "model": model.name,
            "speed": model.speed,
            "patient": row["patient"],
            "image": row["input_image_file_name"],
            "source": row["source"],
            "plane": row["plane"],
            "contrast": row["contrast"],
            "seconds": record["seconds"],
            "shift_pixels": shift["shift_pixels"],
            "flagged": shift["flagged"],
            "picture": record["picture"],
        }
        made += [ImageRow(**facts, **record["details"], **scores) for scores in record["scores"]]
    return made


def _result_rows(images: pd.DataFrame, measured: list[_Measured]) -> list[ResultRow]:
    """A row per model, speed, direction, split and protocol: `summary.summarise`'s, and what is known of the model."""
    by_model = {(m.pairs.dataset, m.pairs.split, m.model.direction, m.model.name, m.model.speed): m for m in measured}
    rows = []
    for row in summary.summarise(images):
        found = by_model[tuple(row[k] for k in summary.GROUP[:-1])]
        settings = found.model.settings
        sampled = row["speed"] == "diffusion"
        group = images[np.logical_and.reduce([images[k] == row[k] for k in summary.GROUP])]
        rows.append(
            {
                **row,
                "n_flagged": int(group["flagged"].sum()),
                "peak_memory_mib": max(record["peak_memory_mib"] for record in found.records),
                **found.model.facts,
                "steps": settings.steps if sampled else None,
                "start": settings.start if sampled else None,
                "guidance": settings.guidance if sampled else None,
                "samples": settings.samples if sampled else None,
                "seed": settings.seed if sampled else None,
            }
        )
    return rows


def _flagged(truths: Truths, shifts: _Shifts) -> list[FlaggedPair]:
    """The pairs that look misregistered, each once for all directions."""
    flagged: dict[tuple, FlaggedPair] = {}
    for (dataset, split, direction), pairs in truths.items():
        for row in pairs.rows:
            image = row["input_image_file_name"]
            found = shifts[dataset, split, direction, image]
            if found["flagged"]:
                files = frozenset((image, row["edited_image_file_name"]))
                pair = FlaggedPair(dataset=dataset, split=split, image=image, **found)
                flagged.setdefault((dataset, split, files), pair)
    return list(flagged.values())


def _sweep_row(swept: _Measured) -> SweepRow:
    records, sampled = swept.records, swept.model.speed == "diffusion"
    scores = [s for r in records for s in r["scores"] if s["protocol"] == "paper"]
    return SweepRow(
        dataset=swept.pairs.dataset,
        split=swept.pairs.split,
        direction=swept.model.direction,
        model=swept.model.name,
        speed=swept.model.speed,
        steps=swept.model.settings.steps if sampled else None,
        guidance=swept.model.settings.guidance if sampled else None,
        thresholds=swept.model.thresholds,
        n_images=len(records),
        psnr=float(np.mean([s["psnr"] for s in scores])),
        ssim=float(np.mean([s["ssim"] for s in scores])),
        seconds_per_image=float(np.mean([r["seconds"] for r in records])),
    )


def _uncertainty_rows(measured: list[_Measured]) -> list[UncertaintyRow]:
    """A row per model that drew several samples."""
    made = []
    for each in measured:
        found = [record["calibration"] for record in each.records if record.get("calibration")]
        if not found:
            continue
        ranks = [f["spearman"] for f in found if f["spearman"] is not None]
        made.append(
            UncertaintyRow(
                dataset=each.pairs.dataset,
                split=each.pairs.split,
                direction=each.model.direction,
                model=each.model.name,
                n_images=len(found),
                spearman=float(np.mean(ranks)) if ranks else None,
                spearman_std=float(np.std(ranks, ddof=1)) if len(ranks) > 1 else None,
                **{curve: np.mean([f[curve] for f in found], axis=0).tolist() for curve in CURVES},
            )
        )
    return made


def _unseen(data: Path, splits: list[str], rows: list[ResultRow]) -> bool | None:
    """Whether the checkpoints saw none of the measured patients in training; None if that is not known."""
    train = data / "train" / "metadata.jsonl"
    own = [r for r in rows if r["split"] != "wild" and r["speed"] != "none"]
    if not train.is_file() or not own:
        return None
    digest = hashlib.sha256(train.read_bytes()).hexdigest()
    if any(r.get("training_data_sha256") != digest for r in own):
        return None
    return not any(shared_patients(data, split) for split in splits)


_LOSS_COLUMNS = ["stage", "step", "loss"]


def _losses(models: list[Model]) -> pd.DataFrame:
    """Training losses of all the checkpoints, each stage once."""
    frames = []
    for source in dict.fromkeys(m.source for m in models if m.source):
        path = checkpoints.find_file(source, checkpoints.LOSSES)
        if path:
            with contextlib.suppress(KeyError, OSError, ValueError):  # another program's training.csv
                frames.append(pd.read_csv(path)[_LOSS_COLUMNS])
    return pd.concat(frames).drop_duplicates() if frames else pd.DataFrame(columns=_LOSS_COLUMNS)


def _settings(args: argparse.Namespace, unseen: bool | None) -> RunSettings:
    import diffusers
    import torch

    cuda = torch.cuda.is_available()
    return RunSettings(
        steps=args.steps,
        guidance=args.guidance,
        image_guidance=args.image_guidance,
        seed=args.seed,
        samples=args.samples,
        plane=args.plane,
        contrast=args.contrast,
        source=args.source,
        limit=args.limit,
        command=args.command,
        hardware=torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU cores",
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
        unseen=unseen,
    )
