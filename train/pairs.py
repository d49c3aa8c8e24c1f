"""Training samples of registered CT/MR pairs."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from torch.utils.data import Dataset

from mediffuse.dataset import DatasetError, read_pair, read_rows, rows_for
from mediffuse.image.contours import Thresholds, contour_hint
from mediffuse.image.intensity import decode_ct
from train import augment
from train.options import OptionError, Options

ENDLESS = 1 << 40
"""The length of datasets that draw their items."""


class Sample(TypedDict):
    """What a trainer of pairs learns from: float32 (3, S, S) and its instruction.

    input, target: model images in [-1, 1]. hint: the contours in [0, 1], of contour2mr alone.
    """

    input: np.ndarray
    target: np.ndarray
    prompt: str
    hint: NotRequired[np.ndarray]


class PairDataset(Dataset):
    """Training samples without end: item n is drawn and augmented from (seed, n) alone.

    So a resumed run sees what an unbroken one would have seen.
    """

    def __init__(
        self,
        data: Path,
        split: str,
        directions: tuple[str, ...],
        *,
        seed: int = 0,
        augmented: bool = True,
        weights: dict | None = None,
        thresholds: Thresholds | None = None,
        ct_windows: int = 3,
    ) -> None:
        self.folder, self.seed, self.augmented = Path(data) / split, seed, augmented
        self.thresholds, self.ct_windows = thresholds or Thresholds(), ct_windows
        self.rows = list(rows_for(read_rows(self.folder), directions))
        if not self.rows:
            raise DatasetError(f"{self.folder} has no pairs for {', '.join(directions)}. Run train/prepare.py first.")
        self.side = read_pair(self.folder, self.rows[0])[0].shape[0]  # pixels
        weight = np.array([_weight(row, weights or {}) for row in self.rows], float)
        if not weight.sum() > 0:
            raise DatasetError("weights leaves no pairs to train on: it gives 0 to all of them.")
        self.shares = weight / weight.sum()

    def take(self, count: int) -> None:
        """Draw from `count` of the pairs alone."""
        chosen = np.random.default_rng(self.seed).choice(
            len(self.rows), min(count, np.count_nonzero(self.shares)), replace=False, p=self.shares
        )
        self.rows, shares = [self.rows[i] for i in chosen], self.shares[chosen]
        self.shares = shares / shares.sum()

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, item: int) -> Sample:
        rng = np.random.default_rng([self.seed, item])
        row = self.rows[rng.choice(len(self.rows), p=self.shares)]
        source, target, _ = read_pair(self.folder, row)
        is_ct = row["direction"] != "mr2ct"
        thresholds = self.thresholds
        if self.augmented:
            field = augment.warp_field(source.shape[0], rng)
            source, target = augment.warp(source, field), augment.warp(target, field)
            if rng.random() < 0.1:
                augment.cut_off([source, target], rng)
            source = (augment.jitter_ct if is_ct else augment.jitter_mr)(source, rng)
            thresholds = _jitter(thresholds, rng)
        if self.ct_windows == 1:
            source, target = (single_window(source), target) if is_ct else (source, single_window(target))
        sample: Sample = {"input": to_tensor(source), "target": to_tensor(target), "prompt": row["edit_prompt"]}
        if row["direction"] == "contour2mr":
            sample["hint"] = np.ascontiguousarray(
                contour_hint(decode_ct(source), thresholds).transpose(2, 0, 1)
            ) / np.float32(255)
        return sample


def training_pairs(options: Options, directions: list[str], thresholds: Thresholds | None = None) -> PairDataset:
    """The samples that the options ask a trainer to learn from.

    Raises DatasetError if there are none, or none to validate on, and OptionError if `best` is of another direction.
    """
    check_val(options, directions)
    if options.best and not options.best.startswith(tuple(directions)):
        raise OptionError(f"best is {options.best}, and what is trained is {', '.join(directions)}.")
    dataset = PairDataset(
        options.data,
        "train",
        tuple(directions),
        seed=options.seed,
        augmented=options.augment,
        weights=options.weights,
        thresholds=thresholds,
        ct_windows=options.ct_windows,
    )
    if options.samples:
        dataset.take(options.samples)
    return dataset


def check_val(options: Options, directions: list[str]) -> None:
    """Raises DatasetError if the val split is wanted, but missing or without pairs for one of `directions`."""
    if not options.validate_images:
        return
    read_rows(options.data / "train")  # where there is no dataset at all, that is what to say
    folder = options.data / "val"
    rows = read_rows(folder) if (folder / "metadata.jsonl").is_file() else []
    for direction in directions:
        if next(rows_for(rows, (direction,)), None) is None:
            raise DatasetError(
                f"{folder} has no pairs for {direction} to validate on. Run train/prepare.py with --val above 0, or "
                "give --validate-images 0."
            )


def data_sha256(data: Path) -> str | None:
    """Hash of the train split's metadata, which names every picture; None where there is none."""
    path = data / "train" / "metadata.jsonl"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def single_window(image: np.ndarray) -> np.ndarray:
    """A CT model image (S, S, 3) with its full window in every channel."""
    return np.repeat(image[..., :1], 3, axis=-1)


def to_tensor(image: np.ndarray) -> np.ndarray:
    """Model image (S, S, 3) in [0, 1] to a network's input (3, S, S) in [-1, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)) * np.float32(2) - np.float32(1)


def _jitter(thresholds: Thresholds, rng: np.random.Generator) -> Thresholds:
    """Users drag the thresholds, together and apart: train on a wide neighbourhood of the defaults."""
    return dataclasses.replace(
        thresholds,
        **{
            name: tuple(np.sort(getattr(thresholds, name) * np.exp(rng.normal(0, 0.35) + rng.normal(0, 0.2, 2))))
            for name in ("bone", "tissue", "brain")
        },
    )


def _weight(row: dict, weights: dict) -> float:
    for key in (f"{row['source']}/{row['plane']}", row["source"], row["plane"]):
        if key in weights:
            return float(weights[key])
    return 1.0
