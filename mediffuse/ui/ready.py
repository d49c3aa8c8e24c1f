"""Results of the bundled examples, made beforehand by `tools/ready.py`, so that a tab opens on one and shows others at
once. They are shown only while they are of the weights in use: a hash in the record tells."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from mediffuse import files
from mediffuse.metrics import Scores
from mediffuse.translate import Settings, Translation
from mediffuse.translate.checkpoints import BUNDLED, Checkpoints
from mediffuse.ui.asked import AskedSlice, AskedVolume
from mediffuse.ui.examples import VOLUME_EXAMPLES, Example
from mediffuse.ui.slice_result import Shown, SliceResult
from mediffuse.ui.uploads import open_scan, slice_of
from mediffuse.ui.volume_result import Made, VolumeShown, scored
from mediffuse.ui.words import score_row, scores_in_words

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "ready"
RECORD = "ready.json"
LEVELS = {"CT": (1.0, -1024.0), "MR": (0.1, 0.0)}
"""Made pixels lie in 16-bit PNGs: HU or MR units are level * first + second."""


@dataclass(frozen=True)
class ReadyResults:
    """What was made of the examples of a tab.

    defaults: as the tab asks when it is opened; by these they were made.
    """

    direction: str
    target: str
    examples: list[Example]
    defaults: AskedSlice
    checkpoints: Checkpoints
    folder: Path = FOLDER

    @property
    def place(self) -> Path:
        return self.folder / self.direction

    @cached_property
    def inputs(self) -> str:
        """A hash of the examples."""
        about = [(one.title, one.index, files.sha256_of(one.scan)) for one in self.examples]
        return hashlib.sha256(repr(about).encode()).hexdigest()

    @cached_property
    def record(self) -> dict:
        """What is known of them; empty where they are of other weights than those in use, or missing."""
        return _record(self.folder, self.direction, self.checkpoints.weights(self.direction), self.inputs)

    def number_of(self, asked: AskedSlice) -> int | None:
        """The number of the example whose result is asked for; None where there is none."""
        if asked.shown != "auto" or asked.series or asked.recipe() != self.defaults.recipe() or not self.record:
            return None
        for number, example in enumerate(self.examples):
            central = asked.index in (None, -1) and number == 0
            if asked.scan == str(example.scan) and (central or asked.index == example.index):
                return number
        return None

    def find(self, asked: AskedSlice) -> SliceResult | None:
        """The result for what is asked, without its ground truth; None where there is none."""
        number = self.number_of(asked)
        return None if number is None else self.result(number)

    def result(self, number: int) -> SliceResult:
        """The result of an example."""
        example, recipe = self.examples[number], self.defaults.recipe()
        modality = "CT" if self.target == "MR" else "MR"
        source = slice_of(open_scan(str(example.scan), modality), example.index)
        pixels = read_pixels(self.place / f"{number}.png", self.target)
        translation = Translation(pixels, (pixels,), None, self.target, 0.0, Settings())
        result = SliceResult(self.direction, str(example.scan), "auto", source, translation, recipe=recipe)
        return replace(result, bundled=True, beforehand=True)

    def opening(self) -> Shown | None:
        """What the tab shows from the start: the first example's result."""
        if not self.record:
            return None
        first = self.record["opening"]
        scores = [Scores(**one) for one in first["scores"]]
        return Shown(
            titles=first["titles"],
            pictures={role: str(self.place / name) for role, name in first["pictures"].items()},
            rows=[score_row(one, self.target) for one in scores],
            words=scores_in_words(scores, first["tissues"], self.direction, self.target, bundled=True),
            files=[str(self.place / name) for name in first["files"]],
        )

    def thumbnail(self, number: int) -> str | None:
        """The path of a small picture of an example; None where it was not made."""
        path = self.place / f"{number}_small.webp"
        return str(path) if path.is_file() else None


@dataclass(frozen=True)
class ReadyVolume:
    """What was made of the example of a direction in the Volume tab, which is of CT or MR, by the tab's defaults."""

    direction: str
    checkpoints: Checkpoints
    folder: Path = FOLDER

    @property
    def example(self) -> Example:
        return VOLUME_EXAMPLES[self.direction]

    @property
    def place(self) -> Path:
        return self.folder / f"volume_{self.direction}"

    @property
    def asked(self) -> AskedVolume:
        """What it was made by."""
        return AskedVolume([str(self.example.scan)], self.direction, truth=[str(self.example.truth)])

    @property
    def thumbnail(self) -> str | None:
        """As `ReadyResults.thumbnail`: of the same scan."""
        path = self.folder / self.direction / "0_small.webp"
        return str(path) if path.is_file() else None

    @cached_property
    def inputs(self) -> str:
        """A hash of the example."""
        about = [files.sha256_of(path) for path in (self.example.scan, self.example.truth)]
        return hashlib.sha256(repr(about).encode()).hexdigest()

    @cached_property
    def record(self) -> dict:
        """As `ReadyResults.record`."""
        return _record(self.folder, self.place.name, self.checkpoints.weights(self.direction), self.inputs)

    def find(self, asked: AskedVolume) -> VolumeShown | None:
        """The result for what is asked, with its ground truth; None where there is none."""
        extra = asked.register or asked.dicom or asked.truth_contrast != "auto"
        same = asked.truth == self.asked.truth and asked.recipe() == self.asked.recipe()
        return self.shown if same and not extra else None

    @cached_property
    def shown(self) -> VolumeShown | None:
        """What was made; None where there is nothing."""
        if not self.record:
            return None
        made = Made(self.asked.recipe(), self.asked.contrast, MADE_BEFORE)
        return VolumeShown(
            layers=[str(self.folder.parent / name) for name in self.record["layers"]],
            about=json.dumps({**self.record["about"], "made": asdict(made)}),
            files=[str(self.folder.parent / name) for name in self.record["files"]],
            **scored([Scores(**one) for one in self.record["scores"]], self.record["tissues"], self.direction),
        )


MADE_BEFORE = "An example, made beforehand by Fast. Translate makes it anew."


def _record(folder: Path, name: str, weights: str | None, inputs: str) -> dict:
    """What `tools/ready.py` wrote under a name, if it is of these weights and inputs; else nothing."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))[name]
    except (OSError, ValueError, KeyError):
        return {}
    return found if weights and weights == found["weights"] and found["inputs"] == inputs else {}


def is_bundled(checkpoints: Checkpoints, direction: str) -> bool:
    """Whether a direction's weights are those in this repository."""
    return checkpoints.weights(direction) == Checkpoints(str(BUNDLED)).weights(direction)


def read_pixels(path: Path, modality: str) -> np.ndarray:
    """Made pixels (rows, columns) in HU or MR units, as `write_pixels` left them."""
    factor, offset = LEVELS[modality]
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float32) * factor + offset


def write_pixels(path: Path, pixels: np.ndarray, modality: str) -> None:
    """Write made pixels (rows, columns) in HU or MR units, to a level."""
    factor, offset = LEVELS[modality]
    levels = np.round((pixels - offset) / factor).astype(np.uint16)
    cv2.imwrite(str(path), levels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
