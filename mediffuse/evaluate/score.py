"""Score predicted model images against the truth, image by image."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mediffuse.dataset import DatasetError, Row, read_pair
from mediffuse.directions import modalities
from mediffuse.evaluate.predict import Predict
from mediffuse.evaluate.rows import Details, ScoredImage
from mediffuse.image.intensity import MR_OUTPUT_LIMITS, decode
from mediffuse.metrics import Scores, body_mask, by_both_protocols, lpips, sharpness, tissues, to_grey


def body_of(source: np.ndarray, target: np.ndarray, mask: np.ndarray | None, direction: str) -> np.ndarray:
    """The pair's body mask, bool (S, S): `mask`, or where there is none, taken from the CT."""
    if mask is not None:
        return mask
    return body_mask(decode(target if modalities(direction)[1] == "CT" else source, "CT"))


def score(made: np.ndarray, target: np.ndarray, body: np.ndarray, direction: str) -> tuple[Scores, ...]:
    """Scores of a predicted model image (S, S, 3) by each protocol, in the `body` mask where that has one."""
    output = modalities(direction)[1]
    return by_both_protocols(decode(target, output), decode(made, output), body, output, MR_OUTPUT_LIMITS)


def details(made: np.ndarray, target: np.ndarray, body: np.ndarray, direction: str) -> Details:
    """What PSNR cannot tell of a predicted model image (S, S, 3): LPIPS, sharpness, and of a CT its tissues."""
    output = modalities(direction)[1]
    pictures = grey(target, output), grey(made, output)
    found = Details(lpips=lpips(*pictures), sharpness=sharpness(*pictures))
    if output == "CT" and body.any():
        found |= tissues(decode(target, output), decode(made, output), body)
    return found


def grey(image: np.ndarray, modality: str) -> np.ndarray:
    """A model image (S, S, 3) as the 8-bit grey (S, S) that protocol "paper" compares."""
    return to_grey(decode(image, modality), modality, MR_OUTPUT_LIMITS)


def score_rows(folder: Path, rows: Iterable[Row], predict: Predict) -> list[ScoredImage]:
    """What `predict` makes of the pairs in `folder`: a row per image and protocol."""
    results = []
    for row in rows:
        source, target, mask = read_pair(folder, row)
        started = time.perf_counter()
        made = predict(source, row).mean(axis=0)
        seconds = time.perf_counter() - started
        facts = {"patient": row["patient"], "image": row["input_image_file_name"], "seconds": seconds}
        body = body_of(source, target, mask, row["direction"])
        scores = checked_score(folder, row, made, target, body)
        facts |= details(made, target, body, row["direction"])
        results += [ScoredImage(**facts, **s.as_dict()) for s in scores]
    return results


def checked_score(folder: Path, row: Row, made: np.ndarray, target: np.ndarray, body: np.ndarray) -> tuple[Scores, ...]:
    """`score` of a row's prediction. Raises DatasetError that names the file if it is undefined."""
    try:
        return score(made, target, body, row["direction"])
    except ValueError as error:
        raise DatasetError(f"{folder / row['edited_image_file_name']}: {error}") from error
