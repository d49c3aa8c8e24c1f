"""Measure checkpoints on paired data, beside trivial baselines.

    python -m mediffuse.evaluate --data data/mini --split val --output runs/results

For every direction, speed and protocol of mediffuse.metrics: means over patients. Writes
results.json, images.csv (one row per image and protocol) and results.md into --output.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mediffuse.checkpoints import Checkpoint, CheckpointError, Checkpoints
from mediffuse.contours import Thresholds
from mediffuse.dataset import DatasetError, read_pair, read_rows, rows_for
from mediffuse.intensity import MR_OUTPUT_LIMITS, decode, encode
from mediffuse.metrics import Scores, body_mask, both
from mediffuse.prompts import CONTRASTS, DIRECTIONS, modalities
from mediffuse.scan import PLANES
from mediffuse.translate import SPEEDS, Settings, generate

BASELINES = ("black", "mean image")

Predict = Callable[[np.ndarray, dict], np.ndarray]
"""(input model image, row) -> predicted model image."""


def score(
    made: np.ndarray, target: np.ndarray, source: np.ndarray, mask: np.ndarray | None, direction: str
) -> tuple[Scores, ...]:
    """Scores of one predicted model image (S, S, 3) by each protocol. `mask`: body, bool (S, S),
    or None to take it from the pair's CT."""
    output = modalities(direction)[1]
    real, fake = decode(target, output), decode(made, output)
    if mask is None:
        mask = body_mask(decode(target if output == "CT" else source, "CT"))
    return both(real, fake, mask, output, MR_OUTPUT_LIMITS)


def score_rows(folder: Path, rows: Iterable[dict], predict: Predict) -> list[dict]:
    """One dict per image and protocol: the row's patient, plane and file, the scores, the seconds."""
    results = []
    for row in rows:
        source, target, mask = read_pair(folder, row)
        started = time.perf_counter()
        made = predict(source, row)
        seconds = time.perf_counter() - started
        try:
            of_image = score(made, target, source, mask, row["direction"])
        except ValueError as error:
            raise DatasetError(f"{folder / row['edited_image_file_name']}: {error}") from error
        for scores in of_image:
            facts = {"patient": row["patient"], "image": row["input_image_file_name"], "seconds": seconds}
            results.append({**facts, **scores.as_dict()})
    return results


def predictor(checkpoint: Checkpoint, direction: str, settings: Settings, thresholds: Thresholds | None = None):
    """The checkpoint as a `Predict`, by the function that the app runs."""

    def predict(source: np.ndarray, row: dict) -> np.ndarray:
        asked = Settings(**{**vars(settings), "contrast": row["contrast"]})
        return generate(checkpoint, direction, source[None], asked, thresholds).mean(axis=0)

    return predict


def baseline(name: str, data: Path, direction: str, rows: list[dict]) -> Predict:
    """A predictor that ignores its input: an all-air (black) image, or the mean of the training
    images of the same planes and contrasts."""
    output = modalities(direction)[1]
    if name == "black":
        return lambda source, row: np.zeros_like(source)
    kinds = {(row["plane"], row["contrast"]) for row in rows}
    train = [r for r in rows_for(read_rows(data / "train"), (direction,)) if (r["plane"], r["contrast"]) in kinds]
    sources = {row["source"] for row in rows}
    train = [row for row in train if row["source"] in sources] or train
    if not train:
        raise DatasetError(f"{data / 'train'} has no pairs like these to average.")
    # In units, then encoded: the mean of three clipped windows is not a CT.
    mean = np.mean([decode(read_pair(data / "train", row)[1], output) for row in train], axis=0)
    image = encode(mean, output, MR_OUTPUT_LIMITS)
    return lambda source, row: image


def summarise(results: list[dict]) -> list[dict]:
    """Means over patients (of means over each patient's images), one dict per protocol."""
    rows = []
    for protocol in sorted({r["protocol"] for r in results}):
        of_patient = defaultdict(list)
        for r in results:
            if r["protocol"] == protocol:
                of_patient[r["patient"]].append([r["psnr"], r["ssim"], r["mae"], r["seconds"]])
        means = np.array([np.mean(values, axis=0) for values in of_patient.values()])
        psnr, ssim, mae, seconds = means.mean(axis=0)
        rows.append(
            {
                "protocol": protocol,
                "n_images": sum(map(len, of_patient.values())),
                "n_patients": len(of_patient),
                "psnr": float(psnr),
                "psnr_std": float(means[:, 0].std()),
                "ssim": float(ssim),
                "ssim_std": float(means[:, 1].std()),
                "mae": float(mae),
                "seconds_per_image": float(seconds),
            }
        )
    return rows


def markdown(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| Direction | Model | Speed | Protocol | PSNR (dB) | SSIM | MAE | s/image | Patients |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        unit = "HU" if (r["direction"], r["protocol"]) == ("mr2ct", "synthrad") else ""
        cells = (
            r["direction"],
            r["model"],
            r["speed"],
            r["protocol"],
            f"{r['psnr']:.2f} ± {r['psnr_std']:.2f}",
            f"{r['ssim']:.3f} ± {r['ssim_std']:.3f}",
            f"{r['mae']:.3g} {unit}".strip(),
            f"{r['seconds_per_image']:.2f}",
            str(r["n_patients"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="folder, hub id or list (see mediffuse.checkpoints); default: bundled")
    parser.add_argument("--data", required=True, type=Path, help="what train/prepare.py wrote")
    parser.add_argument("--split", default="val")
    parser.add_argument("--direction", action="append", choices=DIRECTIONS, help="default: all")
    parser.add_argument("--speed", action="append", choices=SPEEDS, help="default: fast")
    parser.add_argument("--plane", default="axial", choices=PLANES)
    parser.add_argument("--contrast", default="T1", choices=CONTRASTS)
    parser.add_argument("--source", help="only pairs of this input folder of train/prepare.py")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args(argv)
    try:
        rows, images = run(args)
    except (CheckpointError, DatasetError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    (args.output / "results.md").write_text(markdown(rows))
    with (args.output / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, images[0].keys())
        writer.writeheader()
        writer.writerows(images)
    print(markdown(rows))
    return 0


def run(args: argparse.Namespace) -> tuple[list[dict], list[dict]]:
    """(summary rows, image rows) of everything that the options ask for."""
    checkpoints = Checkpoints(args.checkpoint)
    folder = args.data / args.split
    available = read_rows(folder)
    summaries, images = [], []
    for direction in args.direction or DIRECTIONS:
        rows = [
            row
            for row in rows_for(available, (direction,))
            if row["plane"] == args.plane and row["contrast"] == args.contrast and args.source in (None, row["source"])
        ][: args.limit]
        if not rows:
            raise DatasetError(f"{folder} has no {args.plane} {args.contrast} pairs for {direction}.")
        # Without a train split there is no mean image.
        names = BASELINES if (args.data / "train").is_dir() else BASELINES[:1]
        models = [(name, "none", baseline(name, args.data, direction, rows)) for name in names]
        for speed in args.speed or ["fast"]:
            settings = Settings(speed, args.steps, args.guidance, seed=args.seed)
            checkpoint = checkpoints.get(direction)
            predict = predictor(checkpoint, direction, settings)
            predict(read_pair(folder, rows[0])[0], rows[0])  # times exclude warming up
            models.append((Path(checkpoint.source).name, speed, predict))
        for model, speed, predict in models:
            results = score_rows(folder, tqdm(rows, desc=f"{direction} {model} {speed}"), predict)
            facts = {"model": model, "direction": direction, "speed": speed, "split": args.split}
            images += [{**facts, **result} for result in results]
            summaries += [{**facts, **summary} for summary in summarise(results)]
    return summaries, images


if __name__ == "__main__":
    sys.exit(main())
