"""Validation during training, by the functions that the evaluation and the app run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from mediffuse.dataset import central_rows, read_rows, rows_for
from mediffuse.evaluate.predict import Predict, predictor
from mediffuse.evaluate.score import score_rows
from mediffuse.evaluate.summary import summarise
from mediffuse.image.contours import Thresholds
from mediffuse.image.intensity import CT_WINDOWS, encode_ct
from mediffuse.translate import Settings, checkpoints
from train.options import Options
from train.pairs import single_window


@torch.no_grad()
def validate(predict_for: Callable[[str], Predict], options: Options, directions: list[str]) -> dict:
    """PSNR and SSIM by protocol "paper", LPIPS and sharpness on central axial T1 pairs of the val split, where it
    has some."""
    figures, folder = {}, options.data / "val"
    for direction in directions:
        rows = list(rows_for(read_rows(folder), (direction,))) if (folder / "metadata.jsonl").is_file() else []
        if not rows or not options.validate_images:
            continue
        pictures: list[np.ndarray] = []
        predict = watched(predict_for(direction), pictures, options.validate_pictures)
        results = score_rows(folder, central_rows(rows)[: options.validate_images], predict)
        means = next(s for s in summarise(results) if s["protocol"] == "paper")
        figures |= {f"{direction}_{name}": means[name] for name in ("psnr", "ssim", "lpips", "sharpness")}
        if pictures:
            figures[f"{direction}_pictures"] = np.stack(pictures)
    return figures


def watched(predict: Predict, pictures: list[np.ndarray], count: int) -> Predict:
    """`predict`, which keeps its first `count` inputs beside its outputs, (S, 2S, 3) in [0, 1], in `pictures`."""

    def run(source: np.ndarray, row: dict) -> np.ndarray:
        made = predict(source, row)
        if len(pictures) < count:
            pictures.append(np.concatenate([source, made.mean(0)], 1).clip(0, 1))
        return made

    return run


def validate_pipeline(
    pipeline,
    options: Options,
    directions: list[str],
    thresholds: Thresholds | None = None,
    sharp: torch.nn.Module | None = None,
) -> dict[str, float]:
    """`validate` of a pipeline, by the very function that the app runs, but without mirror images.

    `sharp`: what the sharp variant has of its own, which is judged then.
    """
    checkpoint = checkpoints.describe(pipeline, sharp=sharp)
    settings = Settings(speed="sharp" if sharp else options.validate_speed, mirror=False)
    parts = [part for part in (*pipeline.components.values(), sharp) if isinstance(part, torch.nn.Module)]
    training = [part.training for part in parts]
    for part in parts:
        part.eval()

    def predict_for(direction: str) -> Predict:
        predict = predictor(checkpoint, direction, settings, thresholds)
        return predict if options.ct_windows == 3 else of_single_window(predict)

    figures = validate(predict_for, options, directions)
    for part, was in zip(parts, training, strict=True):
        part.train(was)
    return figures


def of_single_window(predict: Predict) -> Predict:
    """A model of single-window CT images as one of the three-window ones that are scored."""

    def run(source: np.ndarray, row: dict) -> np.ndarray:
        if row["direction"] != "mr2ct":
            return predict(single_window(source), row)
        low, high = CT_WINDOWS["full"]
        return np.stack([encode_ct(low + (high - low) * image.mean(-1)) for image in predict(source, row)])

    return run
