"""FID by torchmetrics, with weights that the user gives: nothing is downloaded.

Needs torchmetrics, torchvision and torch-fidelity beside requirements.txt.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mediffuse.dataset import DatasetError
from mediffuse.evaluate.measure import Truths, picture_pair
from mediffuse.evaluate.rows import ResultRow


def check(weights: Path) -> None:
    """Raise DatasetError, before anything is measured, if FID's weights or packages are missing."""
    if not weights.is_file():
        raise DatasetError(f"--fid: there is no file {weights}.")
    try:
        import torchvision  # noqa: F401
        from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: F401
    except ImportError as error:
        raise DatasetError(
            f"FID needs further packages ({error}): pip install torchmetrics torchvision torch-fidelity."
        ) from error


def add_fid(rows: list[ResultRow], images: pd.DataFrame, truths: Truths, output: Path, weights: Path) -> None:
    """A field `fid` (Heusel et al., arXiv 1706.08500) in the rows of protocol "paper". Of few images it
    is biased upwards: compare it at equal `n_images` only."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    keys = ["dataset", "split", "direction", "model", "speed"]
    scored = images[images["protocol"] == "paper"]
    for row in rows:
        group = scored[np.logical_and.reduce([scored[k] == row[k] for k in keys])]
        if row["protocol"] != "paper" or len(group) < 2:
            continue
        metric = FrechetInceptionDistance(feature_extractor_weights_path=str(weights))
        for image, truth in _with_truths(group, truths):
            made = cv2.imread(str(output / image.picture), cv2.IMREAD_GRAYSCALE)
            metric.update(_rgb(truth)[None], real=True)
            metric.update(_rgb(made)[None], real=False)
        row["fid"] = float(metric.compute())


def _with_truths(images: pd.DataFrame, truths: Truths) -> Iterator[tuple]:
    """(row of `images` as a named tuple, its truth as 8-bit grey (S, S))"""
    pairs = {
        (*key, row["input_image_file_name"]): picture_pair(part, row)
        for key, part in truths.items()
        for row in part.rows
    }
    for row in images.itertuples():
        yield row, pairs[row.dataset, row.split, row.direction, row.image][1]


def _rgb(grey: np.ndarray):
    """Grey (S, S) as a tensor (3, S, S)."""
    import torch

    return torch.from_numpy(np.repeat(grey[None], 3, axis=0))
