"""What the command line asks for, measured."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from mediffuse.dataset import DatasetError, read_rows, rows_for
from mediffuse.evaluate import perceptual, summary
from mediffuse.evaluate.candidates import Model, Sources, baselines, unique_names
from mediffuse.evaluate.measure import Pairs, Store, check_pairs, measure, registration_of
from mediffuse.prepare import LEFT_OUT, SPLITS, LayoutError, Plan, prepare
from mediffuse.translate import Settings, checkpoints


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
    _check(args)
    settings = Settings(
        "diffusion",
        args.steps,
        args.guidance,
        image_guidance=args.image_guidance,
        seed=args.seed,
        samples=args.samples,
    )
    speeds = list(dict.fromkeys(args.speed or ["fast"]))
    splits = list(dict.fromkeys(args.split or ["val"]))
    sources = Sources(args.checkpoint, args.zero_shot)
    directions = sources.directions(list(dict.fromkeys(args.direction or ())) or None)
    names = unique_names(list(dict.fromkeys(str(p) for p in (args.data, *args.wild) if p)))
    prepared, warnings = _prepare_once(args, splits, names, state)
    data = prepared.get(str(args.data))
    wild = [str(given) for given in dict.fromkeys(args.wild)]
    store = Store(args.output, state.process_index)
    state.wait_for_everyone()  # before any process writes

    work: list[tuple[Pairs, Model]] = []
    sweeps: list[tuple[Pairs, Model]] = []
    truths: dict[tuple, Pairs] = {}
    for split in splits if data else ():
        chosen = _chosen(data / split, args)
        for direction in directions:
            rows = list(rows_for(chosen, (direction,)))[: args.limit]
            if not rows:
                _nothing(data / split, args, direction, chosen)
                continue
            pairs = truths[names[str(args.data)], split, direction] = Pairs(
                names[str(args.data)], split, data / split, rows
            )
            # Of the train split only the plain figures are of interest, and it is the largest.
            asked = dataclasses.replace(settings, samples=1) if split == "train" else settings
            models = [*baselines(direction, data, rows), *sources.models(direction, speeds, asked)]
            work += [(pairs, model) for model in models]
            if args.sweep and "diffusion" in speeds and split != "train":
                few = dataclasses.replace(pairs, rows=rows[: args.sweep])
                some = sources.sweeps(direction, settings, args.sweep_steps, args.sweep_guidance)
                sweeps += [(few, model) for model in some]
    for given in wild:
        folder = prepared[given]
        available = read_rows(folder / "wild")
        for direction in directions:
            rows = list(rows_for(available, (direction,)))[: args.limit]
            if rows:
                pairs = Pairs(names[given], "wild", folder / "wild", rows)
                truths[names[given], "wild", direction] = pairs
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

    checked = [(key, pairs, row) for key, pairs in truths.items() for row in pairs.rows]
    shifts = {
        (key, row["input_image_file_name"]): registration_of(pairs, row, store)
        for key, pairs, row in tqdm(checked, desc="registration of the pairs")
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
        sampled = row["speed"] == "diffusion"
        row |= {k: getattr(model.settings, k) if sampled else None for k in ("steps", "guidance", "samples", "seed")}
        rows.append(row)
    if args.fid:
        perceptual.add_fid(rows, images, truths, args.output, args.fid)
    flagged = {}
    for key, pairs, row in checked:
        found = shifts[key, row["input_image_file_name"]]
        if found["flagged"]:
            # Once for both directions.
            files = frozenset((row["input_image_file_name"], row["edited_image_file_name"]))
            facts = {"dataset": pairs.dataset, "split": pairs.split, "image": row["input_image_file_name"]}
            flagged.setdefault((*key[:2], files), {**facts, **found})
    flagged = list(flagged.values())
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
        settings={**_settings(args), "unseen": _unseen(data, splits, rows) if data else None},
        truths=truths,
        output=args.output,
        pictures=not args.no_pictures,
        warnings=warnings,
    )


def _check(args: argparse.Namespace) -> None:
    """Raise DatasetError for options that contradict each other, before any work."""
    if not args.data and not args.wild:
        raise DatasetError("Give --data, or --wild for pairs from elsewhere.")
    if (args.samples > 1 or args.sweep) and "diffusion" not in (args.speed or ()):
        raise DatasetError("--samples and --sweep are of diffusion: add --speed diffusion.")
    output = args.output.resolve()
    for folder in (p.resolve() for p in (args.data, *args.wild) if p):
        if output == folder or folder in output.parents or output in folder.parents:
            raise DatasetError(f"--output {args.output} and {folder} must not lie in each other.")
    if args.fid or args.lpips:
        perceptual.check(args.lpips, args.fid)
    args.output.mkdir(parents=True, exist_ok=True)


def _prepare_once(args: argparse.Namespace, splits: list[str], names: dict, state) -> tuple[dict[str, Path], list[str]]:
    """Folders of prepared datasets by what was given, and what was left out of them. One process
    prepares; all raise what it raises."""
    from accelerate.utils import broadcast_object_list

    outcome: list = [None]
    if state.is_main_process:
        try:
            found, warnings = {}, []
            for given, name in names.items():
                wild = given != str(args.data)
                found[given], left_out = _prepared(Path(given), name, args, None if wild else splits)
                warnings += left_out
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
    made = prepare([given], output, Plan((args.plane,), args.around, contrast=args.contrast, split=split))
    if not set(made) - {"unpaired"}:
        raise DatasetError(f"{given} holds no pairs of CT and MRI.")
    left_out = output / LEFT_OUT
    lines = left_out.read_text(encoding="utf-8").splitlines() if left_out.is_file() else []
    return output, [f"{line}: left out" for line in lines]


def _unseen(data: Path, splits: list[str], rows: list[dict]) -> bool | None:
    """Whether the checkpoints saw none of the measured patients in training; None if that is not known."""
    train = data / "train" / "metadata.jsonl"
    own = [r for r in rows if r["split"] != "wild" and r["speed"] != "none"]
    if not train.is_file() or not own:
        return None
    digest = hashlib.sha256(train.read_bytes()).hexdigest()
    if any(r.get("training_data_sha256") != digest for r in own):
        return None
    seen = {r.get("patient") for r in read_rows(train.parent)}
    return not any(r.get("patient") in seen for split in splits if split != "train" for r in read_rows(data / split))


def _chosen(folder: Path, args: argparse.Namespace) -> list[dict]:
    """A split's rows of the plane, source and contrast that were asked for."""
    available = read_rows(folder)
    if any("direction" not in r or "plane" not in r for r in available):
        raise DatasetError(f"{folder} holds no pairs that train/prepare.py wrote.")
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
            with contextlib.suppress(KeyError, OSError, ValueError):  # another program's training.csv
                frames.append(pd.read_csv(path)[["stage", "step", "loss"]])
    columns = ["stage", "step", "loss"]
    return pd.concat(frames).drop_duplicates() if frames else pd.DataFrame(columns=columns)


def _settings(args: argparse.Namespace) -> dict:
    import diffusers
    import torch

    cuda = torch.cuda.is_available()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    asked = (
        "steps",
        "guidance",
        "image_guidance",
        "seed",
        "samples",
        "plane",
        "contrast",
        "source",
        "limit",
        "command",
    )
    return {
        **{name: getattr(args, name) for name in asked},
        "hardware": torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU cores",
        "versions": versions,
    }
