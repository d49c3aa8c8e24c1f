"""Validation during training, by the functions that the evaluation and the app run."""

from __future__ import annotations

import dataclasses
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
def validate(predict_for: Callable[[str], Predict], options: Options, directions: list[str]) -> dict[str, float]:
    """PSNR and SSIM by protocol "paper", LPIPS and sharpness on central axial T1 pairs of the val split, where it
    has some."""
    figures, folder = {}, options.data / "val"
    for direction in directions:
        rows = list(rows_for(read_rows(folder), (direction,))) if (folder / "metadata.jsonl").is_file() else []
        if not rows or not options.validate_images:
            continue
        results = score_rows(folder, central_rows(rows)[: options.validate_images], predict_for(direction))
        means = next(s for s in summarise(results) if s["protocol"] == "paper")
        figures |= {f"{direction}_{name}": means[name] for name in ("psnr", "ssim", "lpips", "sharpness")}
    return figures


def validate_pipeline(
    pipeline, options: Options, directions: list[str], thresholds: Thresholds | None = None, sharp: bool = False
) -> dict[str, float]:
    """`validate` of a pipeline, by the very function that the app runs, but without mirror images.

    `sharp`: of the sharp variant too, as `<direction>_sharp_<figure>`.
    """
    checkpoint = dataclasses.replace(checkpoints.describe(pipeline), sharp=sharp)
    training = {name: part.training for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    for name in training:
        getattr(pipeline, name).eval()

    def judge(speed: str) -> dict[str, float]:
        settings = Settings(speed=speed, mirror=False)

        def predict_for(direction: str) -> Predict:
            predict = predictor(checkpoint, direction, settings, thresholds)
            return predict if options.ct_windows == 3 else of_single_window(predict)

        return validate(predict_for, options, directions)

    figures = judge(options.validate_speed)
    if sharp:
        figures |= {name.replace("_", "_sharp_", 1): value for name, value in judge("sharp").items()}
    for name, was in training.items():
        getattr(pipeline, name).train(was)
    return figures


def of_single_window(predict: Predict) -> Predict:
    """A model of single-window CT images as one of the three-window ones that are scored."""

    def run(source: np.ndarray, row: dict) -> np.ndarray:
        if row["direction"] != "mr2ct":
            return predict(single_window(source), row)
        low, high = CT_WINDOWS["full"]
        return np.stack([encode_ct(low + (high - low) * image.mean(-1)) for image in predict(source, row)])

    return run
