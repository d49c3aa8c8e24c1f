"""LPIPS and FID by torchmetrics, with weights that the user gives: nothing is downloaded.

Needs torchmetrics, torchvision and, for FID, torch-fidelity beside requirements.txt.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from mediffuse.dataset import DatasetError
from mediffuse.evaluate.measure import Pairs, picture_pair

_ALEXNET = "alexnet-owt-7be5be79.pth"
"""The name under which torchvision looks for AlexNet's weights in torch's hub folder."""


def check(lpips: Path | None, fid: Path | None) -> None:
    """Raise DatasetError, before anything is measured, if weights or packages are missing."""
    for name, path in (("--lpips", lpips), ("--fid", fid)):
        if path and not path.is_file():
            raise DatasetError(f"{name}: there is no file {path}.")
    try:
        import torchvision  # noqa: F401
        from torchmetrics.image.fid import FrechetInceptionDistance  # noqa: F401
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity  # noqa: F401
    except ImportError as error:
        raise DatasetError(
            f"LPIPS and FID need further packages ({error}): pip install torchmetrics torchvision torch-fidelity."
        ) from error


def load_lpips(weights: Path):
    """LPIPS (Zhang et al., arXiv 1801.03924; AlexNet) as a module of two batches (B, 3, H, W) in [-1, 1].

    Raises DatasetError if the weights or packages are missing.
    """
    import tempfile

    import torch

    check(weights, None)
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    with tempfile.TemporaryDirectory() as hub:
        (Path(hub) / "checkpoints").mkdir()
        (Path(hub) / "checkpoints" / _ALEXNET).symlink_to(weights.resolve())
        before = torch.hub.get_dir()
        torch.hub.set_dir(hub)
        try:
            return LearnedPerceptualImagePatchSimilarity(net_type="alex").net
        finally:
            torch.hub.set_dir(before)


def add_lpips(images: pd.DataFrame, truths: dict[tuple, Pairs], output: Path, weights: Path) -> pd.DataFrame:
    """A column `lpips` of 8-bit grey pictures, whole frame,
    on the rows of protocol "paper"."""
    import torch

    metric = load_lpips(weights)
    values = []
    for row, truth in _with_truths(images, truths):
        if row.protocol != "paper":
            values.append(np.nan)
            continue
        made = _rgb(cv2.imread(str(output / row.picture), cv2.IMREAD_GRAYSCALE))
        with torch.no_grad():
            values.append(float(metric(made[None] / 127.5 - 1, _rgb(truth)[None] / 127.5 - 1)))
    return images.assign(lpips=values)


def add_fid(rows: list[dict], images: pd.DataFrame, truths: dict[tuple, Pairs], output: Path, weights: Path) -> None:
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


def _with_truths(images: pd.DataFrame, truths: dict[tuple, Pairs]):
    pairs = {
        (*key, row["input_image_file_name"]): picture_pair(part, row)
        for key, part in truths.items()
        for row in part.rows
    }
    for row in images.itertuples():
        yield row, pairs[row.dataset, row.split, row.direction, row.image][1]


def _rgb(grey: np.ndarray):
    import torch

    return torch.from_numpy(np.repeat(grey[None], 3, axis=0))
