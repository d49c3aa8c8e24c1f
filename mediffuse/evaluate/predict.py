"""From the input of a pair to predicted model images: diffusion models, the direct U-Net, trivial baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mediffuse.dataset import Row, anatomy_of, read_pair, read_rows, rows_for
from mediffuse.directions import modalities, prompt_for
from mediffuse.image.contours import Thresholds, contour_hint
from mediffuse.image.intensity import MR_OUTPUT_LIMITS, clear_air, decode, decode_ct, encode
from mediffuse.image.letterbox import resize
from mediffuse.metrics import PAPER_CT_RANGE, to_grey
from mediffuse.translate import Settings, direct, generate
from mediffuse.translate.checkpoints import Checkpoint
from mediffuse.translate.slices import with_mirror

Predict = Callable[[np.ndarray, Row], np.ndarray]
"""(input model image (S, S, 3), row) -> predicted model images (N, S, S, 3), N samples."""


def predictor(
    checkpoint: Checkpoint, direction: str, settings: Settings, thresholds: Thresholds | None = None
) -> Predict:
    """A checkpoint as a `Predict`, by the function that the app runs; images of another size are
    resized to the checkpoint's and back."""

    def predict(source: np.ndarray, row: Row) -> np.ndarray:
        asked = dataclasses.replace(settings, contrast=row["contrast"], anatomy=anatomy_of(row))
        made = generate(
            checkpoint, direction, resize(source, (checkpoint.size, checkpoint.size))[None], asked, thresholds
        )
        return np.stack([resize(image, (len(source), len(source))) for image in made])

    return predict


def direct_predictor(model, direction: str, mirror: bool = True) -> Predict:
    """A direct U-Net (mediffuse.translate.direct) as a `Predict`; `mirror` as in `Settings`."""

    def predict(source: np.ndarray, row: Row) -> np.ndarray:
        size = model.config.sample_size * direct.patch(model)
        image = resize(source, (size, size))
        if direction == "contour2mr":
            image = contour_hint(decode_ct(image)).astype(np.float32) / 255

        def run(images: np.ndarray) -> np.ndarray:
            return direct.predict(model, images, prompt_for(direction, row["contrast"]))

        made = with_mirror(run, image[None]) if mirror else run(image[None])
        made = clear_air(made) if direction == "mr2ct" else made
        return resize(made[0], (len(source), len(source)))[None]

    return predict


def black(direction: str) -> Predict:
    """An all-air (black) image, whatever the input."""
    return lambda source, row: np.zeros_like(source)[None]


def copied(direction: str) -> Predict:
    """The input's grey picture (protocol "paper"; of contours, the edges) taken as the output."""
    source_modality, target_modality = modalities(direction)

    def predict(source: np.ndarray, row: Row) -> np.ndarray:
        if direction == "contour2mr":
            grey = contour_hint(decode_ct(source)).max(axis=-1)
        else:
            grey = to_grey(decode(source, source_modality), source_modality, MR_OUTPUT_LIMITS)
        low, high = PAPER_CT_RANGE if target_modality == "CT" else MR_OUTPUT_LIMITS
        return encode(low + (high - low) * (grey / np.float32(255)), target_modality, MR_OUTPUT_LIMITS)[None]

    return predict


def mean_image(direction: str, train: Path, like: list[Row]) -> Predict:
    """The mean of the training images of `like`."""
    output = modalities(direction)[1]
    # In units, then encoded: the mean of three clipped windows is not a CT.
    total, size = 0.0, None
    for row in like:
        target = read_pair(train, row)[1]
        size = size or len(target)
        total = total + decode(resize(target, (size, size)), output)
    image = encode(total / len(like), output, MR_OUTPUT_LIMITS)
    return lambda source, row: resize(image, (len(source), len(source)))[None]


def training_rows_like(direction: str, train: Path, rows: list[Row]) -> list[Row]:
    """Training rows of the planes, contrasts and, where there are any, sources of `rows`."""
    kinds = {(row["plane"], row["contrast"]) for row in rows}
    like = [r for r in rows_for(read_rows(train), (direction,)) if (r["plane"], r["contrast"]) in kinds]
    sources = {row["source"] for row in rows}
    return [row for row in like if row["source"] in sources] or like
