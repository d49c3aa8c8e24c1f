"""Read the dataset layout that train/prepare.py writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

import cv2
import numpy as np

from mediffuse.directions import prompt_for


class DatasetError(ValueError):
    """A dataset that cannot be used; the message is for the user."""


class Row(TypedDict):
    """A line of a split's metadata.jsonl: one pair in one direction.

    The names of files are below the split's folder, and in the words of Hugging Face's image folders. patient: by
    which splits are made. slice: its number along the plane's axis. source: name of the input folder. anatomy: of
    `ANATOMIES`, where it is not the head.
    """

    input_image_file_name: str
    edited_image_file_name: str
    edit_prompt: str
    direction: str
    patient: str
    plane: str
    slice: int
    contrast: str
    source: str
    mask_image_file_name: NotRequired[str]
    anatomy: NotRequired[str]


def read_rows(folder: Path) -> list[Row]:
    """The rows of a split's metadata.jsonl. Raises DatasetError if there is none."""
    path = Path(folder) / "metadata.jsonl"
    if not path.is_file():
        raise DatasetError(f"There is no {path}. Run train/prepare.py first, or give --data.")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}, is damaged. Run train/prepare.py again.") from error
    return rows


def anatomy_of(row: Row) -> str:
    """The part of the body that a pair shows."""
    return row.get("anatomy", "head")


def rows_for(rows: list[Row], directions: tuple[str, ...]) -> Iterator[Row]:
    """The rows of `directions`; a contour row is made of each CT->MR row, with its own prompt."""
    for row in rows:
        if row["direction"] in directions:
            yield row
        if row["direction"] == "ct2mr" and "contour2mr" in directions:
            prompt = prompt_for("contour2mr", row["contrast"], anatomy_of(row))
            yield {**row, "direction": "contour2mr", "edit_prompt": prompt}


def central_rows(rows: list[Row]) -> list[Row]:
    """One row a patient: the middle one of its axial T1 slices, or of any where none has those.

    Slices with a body mask are preferred; they are the central ones of the shared pictures.
    """
    for wanted in (
        [r for r in rows if r["plane"] == "axial" and r["contrast"] == "T1" and "mask_image_file_name" in r],
        [r for r in rows if r["plane"] == "axial" and r["contrast"] == "T1"],
        rows,
    ):
        if wanted:
            break
    of_patient: dict[str, list[Row]] = {}
    for row in wanted:
        of_patient.setdefault(row["patient"], []).append(row)
    return [sorted(group, key=lambda r: r["slice"])[len(group) // 2] for group in of_patient.values()]


def shared_patients(data: Path, split: str) -> list[str]:
    """The patients of a split that are in the train split as well, so that figures on it flatter; sorted."""
    if split == "train" or not (Path(data) / "train" / "metadata.jsonl").is_file():
        return []
    of_split = [{row.get("patient") for row in read_rows(Path(data) / name)} for name in ("train", split)]
    return sorted(patient for patient in of_split[0] & of_split[1] if patient)


def read_image(path: Path) -> np.ndarray:
    """A prepared picture as a model image: float32 (S, S, 3) in [0, 1]. Raises DatasetError if it is damaged."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise DatasetError(f"{path} is missing or damaged. Run train/prepare.py again.")
    return image[..., ::-1].astype(np.float32) / 255


def read_pair(folder: Path, row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(input, target, body mask) of a row: model images, and bool (S, S) or None."""
    source, target = (read_image(folder / row[f"{kind}_image_file_name"]) for kind in ("input", "edited"))
    name = row.get("mask_image_file_name")
    return source, target, read_image(folder / name)[..., 0] > 0.5 if name else None
