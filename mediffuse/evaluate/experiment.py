"""What the command line asks for, measured."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from mediffuse import checkpoints
from mediffuse.dataset import DatasetError, read_rows, rows_for
from mediffuse.evaluate import perceptual, summary
from mediffuse.evaluate.measure import Pairs, Store, check_pairs, measure, registration_of
from mediffuse.evaluate.models import Model, Sources, baselines
from mediffuse.prepare import LEFT_OUT, Plan, prepare
from mediffuse.translate import Settings


@dataclass
class Results:
    """Everything that tables, figures and the report are made of.

    images: a row per image and protocol. rows, tests: see `summary`. sweeps: a dict per checkpoint,
    direction and setting. uncertainty: a dict per model and direction, curves averaged over images.
    flagged: pairs that look misregistered. losses: stage, step, loss. truths: pairs by (dataset, split,
    direction), to read pictures from. warnings: for the user.
    """

    images: pd.DataFrame
    rows: list[dict]
    tests: list[dict]
    sweeps: list[dict]
    uncertainty: list[dict]
    flagged: list[dict]
    losses: pd.DataFrame
    settings: dict
    truths: dict[tuple, Pairs]
    output: Path
    pictures: bool = True
    warnings: list[str] = field(default_factory=list)


def run(args: argparse.Namespace, state) -> Results | None:
    """Measure; only the main process gets the results.

    Raises CheckpointError, DatasetError, LayoutError or ValueError with a message for the user.
    """
    if not args.data and not args.wild:
        raise DatasetError("Give --data, or --wild for pairs from elsewhere.")
    if args.fid or args.lpips:
        perceptual.check(args.lpips, args.fid)
    settings = Settings(
        "diffusion",
        args.steps,
        args.guidance,
        image_guidance=args.image_guidance,
        seed=args.seed,
        samples=args.samples,
    )
    speeds = args.speed or ["fast"]
    sources = Sources(args.checkpoint, args.zero_shot)
    directions = sources.directions(args.direction)
    with state.main_process_first():
        data, warnings = _prepared(args.data, args) if args.data else (None, [])
        wild = [(given, *_prepared(given, args, wild=True)) for given in args.wild]
    for _, _, more in wild:
        warnings += more
    store = Store(args.output, state.process_index)
    state.wait_for_everyone()  # before any process writes

    work: list[tuple[Pairs, Model]] = []
    sweeps: list[tuple[Pairs, Model]] = []
    truths: dict[tuple, Pairs] = {}
    for split in (args.split or ["val"]) if data else ():
        available = read_rows(data / split)
        chosen = _chosen(available, args)
        for direction in directions:
            rows = list(rows_for(chosen, (direction,)))[: args.limit]
            if not rows:
                _nothing(data / split, args, direction, chosen)
                continue
            pairs = truths[_name(args.data), split, direction] = Pairs(_name(args.data), split, data / split, rows)
            models = [*baselines(direction, data, rows), *sources.models(direction, speeds, settings)]
            work += [(pairs, model) for model in models]
            if args.sweep and "diffusion" in speeds and split != "train":
                few = dataclasses.replace(pairs, rows=rows[: args.sweep])
                some = sources.sweeps(direction, settings, args.sweep_steps, args.sweep_guidance)
                sweeps += [(few, model) for model in some]
    for given, folder, _ in wild:
        available = read_rows(folder / "wild")
        for direction in directions:
            rows = list(rows_for(available, (direction,)))[: args.limit]
            if rows:
                pairs = Pairs(_name(given), "wild", folder / "wild", rows)
                truths[_name(given), "wild", direction] = pairs
                models = [*baselines(direction, data, rows), *sources.models(direction, speeds, settings)]
                work += [(pairs, model) for model in models]
    if not work:
        raise DatasetError(f"There are no pairs for {', '.join(directions)} in what was given.")
    check_pairs(truths.values())

    measured = [(pairs, model, measure(model, pairs, store, state)) for pairs, model in work]
    swept = [(pairs, model, measure(model, pairs, store, state)) for pairs, model in sweeps]
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    store.read()

    shifts = {
        (key, row["input_image_file_name"]): registration_of(pairs, row, store)
        for key, pairs in truths.items()
        for row in pairs.rows
    }
    images = pd.DataFrame([r for m in measured for r in _image_rows(*m, store, shifts)])
    facts = {(p.dataset, p.split, m.direction, m.name, m.speed): (m, keys) for p, m, keys in measured}
    if args.lpips:
        images = perceptual.add_lpips(images, truths, args.output, args.lpips)
    rows = []
    for row in summary.summarise(images):
        model, keys = facts[tuple(row[k] for k in summary.GROUP[:-1])]
        peaks = [store.get(key)["peak_memory_mib"] for key in keys]
        group = images[np.logical_and.reduce([images[k] == row[k] for k in summary.GROUP])]
        row["n_flagged"] = int(group["flagged"].sum())
        row |= {"peak_memory_mib": max(peaks), **model.facts}
        row |= {
            k: v for k, v in dataclasses.asdict(model.settings).items() if k in {"steps", "guidance", "samples", "seed"}
        }
        rows.append(row)
    if args.fid:
        perceptual.add_fid(rows, images, truths, args.output, args.fid)
    flagged = [
        {"dataset": key[0], "split": key[1], "image": image, **found}
        for (key, image), found in shifts.items()
        if found["flagged"]
    ]
    flagged = list({(f["dataset"], f["split"], round(f["shift_pixels"], 6)): f for f in flagged}.values())
    warnings += [
        f"{f['dataset']} {f['split']} {f['image']}: the pair looks misregistered, by {f['shift_pixels']:.1f} pixels"
        for f in flagged
    ]
    return Results(
        images=images,
        rows=rows,
        tests=summary.compare(images),
        sweeps=[_sweep_row(*s, store) for s in swept],
        uncertainty=_uncertainty(measured, store),
        flagged=flagged,
        losses=_losses([m for _, m, _ in measured]),
        settings=_settings(args),
        truths=truths,
        output=args.output,
        pictures=not args.no_pictures,
        warnings=warnings,
    )


def _name(given: Path) -> str:
    return given.resolve().name


def _prepared(given: Path, args: argparse.Namespace, wild: bool = False) -> tuple[Path, list[str]]:
    """A prepared dataset: `given`, or made from it in the output folder; and what was left out of it."""
    if any(given.glob("*/metadata.jsonl")) and not wild:
        return given, []
    if any(given.glob("*/metadata.jsonl")):
        raise DatasetError(f"{given} is a prepared dataset: give it by --data, and --wild the pairs as they came.")
    output = args.output / "prepared" / ("wild" if wild else "data") / _name(given)
    # Prepared anew each time: what was given may have changed, and it takes seconds.
    shutil.rmtree(output, ignore_errors=True)
    plan = Plan((args.plane,), args.around, split="wild" if wild else None)
    prepare([given], output, plan)
    left_out = output / LEFT_OUT
    return output, [f"{line}: left out" for line in left_out.read_text().splitlines()] if left_out.is_file() else []


def _chosen(available: list[dict], args: argparse.Namespace) -> list[dict]:
    """The rows of the plane, source and contrast that were asked for."""
    rows = [r for r in available if r["plane"] == args.plane and args.source in (None, r["source"])]
    wanted = args.contrast or ("T1" if any(r["contrast"] == "T1" for r in rows) else "T2")
    return [r for r in rows if r["contrast"] == wanted]


def _nothing(folder: Path, args: argparse.Namespace, direction: str, chosen: list[dict]) -> None:
    """Raise DatasetError for a direction without pairs, unless others have some and it was not asked for."""
    if not chosen or args.direction:
        words = (args.plane, args.contrast, "pairs", f"of source {args.source}" if args.source else None)
        raise DatasetError(f"{folder} has no {' '.join(filter(None, words))} for {direction}.")


def _image_rows(pairs: Pairs, model: Model, keys: list[str], store: Store, shifts: dict) -> list[dict]:
    made = []
    for key, row in zip(keys, pairs.rows, strict=True):
        record = store.get(key)
        shift = shifts[(pairs.dataset, pairs.split, model.direction), row["input_image_file_name"]]
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
        made += [{**facts, **scores} for scores in record["scores"]]
    return made


def _sweep_row(pairs: Pairs, model: Model, keys: list[str], store: Store) -> dict:
    records = [store.get(key) for key in keys]
    scores = [s for r in records for s in r["scores"] if s["protocol"] == "paper"]
    return {
        "dataset": pairs.dataset,
        "split": pairs.split,
        "direction": model.direction,
        "model": model.name,
        "steps": model.settings.steps,
        "guidance": model.settings.guidance,
        "n_images": len(records),
        "psnr": float(np.mean([s["psnr"] for s in scores])),
        "ssim": float(np.mean([s["ssim"] for s in scores])),
        "seconds_per_image": float(np.mean([r["seconds"] for r in records])),
    }


def _uncertainty(measured: list[tuple], store: Store) -> list[dict]:
    made = []
    for pairs, model, keys in measured:
        found = [store.get(key).get("calibration") for key in keys]
        found = [f for f in found if f]
        if not found:
            continue
        ranks = [f["spearman"] for f in found if f["spearman"] is not None]
        curves = {k: np.mean([f[k] for f in found], axis=0).tolist() for k in found[0] if k != "spearman"}
        facts = {"dataset": pairs.dataset, "split": pairs.split, "direction": model.direction, "model": model.name}
        mean = float(np.mean(ranks)) if ranks else None
        spread = float(np.std(ranks, ddof=1)) if len(ranks) > 1 else None
        made.append({**facts, "n_images": len(found), "spearman": mean, "spearman_std": spread, **curves})
    return made


def _losses(models: list[Model]) -> pd.DataFrame:
    """Training losses of all the checkpoints, each stage once."""
    frames = []
    for source in dict.fromkeys(m.source for m in models if m.source):
        path = checkpoints.find_file(source, checkpoints.LOSSES)
        if path:
            with contextlib.suppress(ValueError):  # another program's training.csv
                frames.append(pd.read_csv(path)[["stage", "step", "loss"]])
    columns = ["stage", "step", "loss"]
    return pd.concat(frames).drop_duplicates() if frames else pd.DataFrame(columns=columns)


def _settings(args: argparse.Namespace) -> dict:
    import diffusers
    import torch

    cuda = torch.cuda.is_available()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    asked = ("steps", "guidance", "image_guidance", "seed", "samples", "plane", "contrast", "source", "command")
    return {
        **{name: getattr(args, name) for name in asked},
        "hardware": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU cores",
        "versions": versions,
    }
