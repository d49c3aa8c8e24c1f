"""What is asked of `prepare`, and the items that it is done in."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

SPLITS = ("train", "val", "test")


class LayoutError(ValueError):
    """A folder that holds nothing to prepare; the message is for the user."""


VERSION = 1
"""Raised when the same scans and options make other pictures than before."""

PUBLISHED_TEST = 126 / 2524
"""Share of the slices, of all patients together, that the published project tested on: 126, and 2398 to train on."""


@dataclass(frozen=True)
class Plan:
    """How to prepare.

    planes, around, every: which slices: of each plane the central one and `around` on either side; with `every`, in
    mm, as far apart, and of the whole body, unless `around` says how many. size: side of the model image in pixels.
    contrast, anatomy: of the MRI, and of all; None: by the names of folders. fractions: share of patients by split,
    where folders do not say. split: where all patients go, if anywhere. strict: stop at the first scan that is odd.
    keep_apart: keep pairs that do not lie on each other, which are told of in any case. published: split slices as
    the published project did, over the patients. jobs: processes that share the work.
    """

    planes: tuple[str, ...] = ("axial",)
    around: int = 0
    size: int = 256
    contrast: str | None = None
    fractions: dict[str, float] = field(default_factory=lambda: {"val": 0.1, "test": 0.1})
    split: str | None = None
    strict: bool = False
    keep_apart: bool = False
    every: float = 0.0
    anatomy: str | None = None
    published: bool = False
    jobs: int = 1


HARMLESS = ("strict", "jobs")
"""Of a plan, what the dataset does not depend on."""


@dataclass(frozen=True)
class Item:
    """What is prepared in one go, by any process: a patient's volumes, a pair of pictures, or a CT picture alone.

    kind: "volumes", "pictures" or "alone". root: the input folder. patient: by whom splits are made. stem: begins the
    names of its pictures. ct, mr, mask: files, None for one that there is not; of pictures, where they would be.
    plane, index: of pictures. hu: slope and intercept of pictures, where they are known.
    """

    kind: str
    root: Path
    patient: str
    stem: str
    split: str
    ct: Path
    mr: Path | None = None
    mask: Path | None = None
    contrast: str = "T1"
    anatomy: str = "head"
    plane: str = "axial"
    index: int = 0
    hu: tuple[float, float] | None = None

    @property
    def source(self) -> str:
        """The name of the input folder."""
        return self.root.name

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        return f"unpaired/{self.stem}" if self.kind == "alone" else self.stem

    def files(self) -> dict[str, Path]:
        """What it is made from, by name below the input folder."""
        return {p.relative_to(self.root).as_posix(): p for p in (self.ct, self.mr, self.mask) if p}

    def key(self) -> str:
        """Hash of all that it is, but for the contents of its files and where the input folder lies."""
        values = {name: value for name, value in asdict(self).items() if name not in ("root", "ct", "mr", "mask")}
        text = json.dumps([VERSION, self.source, values, list(self.files())])
        return hashlib.sha256(text.encode()).hexdigest()


class UnpairedRow(TypedDict):
    """A line of the metadata.jsonl of pictures without a partner."""

    file_name: str
    modality: str
    source: str
