"""Run models over datasets, image by image, and remember what is done."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from tqdm import tqdm

from mediffuse import machine
from mediffuse.dataset import DatasetError, Row, read_pair
from mediffuse.directions import modalities
from mediffuse.evaluate.calibration import Calibration, calibration
from mediffuse.evaluate.candidates import Model
from mediffuse.evaluate.registration import Registration, misregistration
from mediffuse.evaluate.rows import Details, ProtocolScores
from mediffuse.evaluate.score import body_of, checked_score, details, grey
from mediffuse.files import complete, remove_leftovers, sha256_of, write_png
from mediffuse.image.intensity import decode


@dataclass(frozen=True)
class Pairs:
    """Pairs to measure on. dataset: a name for tables; split: "val", ..., or "wild" for pairs from
    elsewhere; folder: where the images of `rows` lie."""

    dataset: str
    split: str
    folder: Path
    rows: list[Row]

    def identity(self, row: Row) -> str:
        """Hash of a row and its images."""
        digest = hashlib.sha256(json.dumps(row, sort_keys=True).encode())
        for kind in ("input", "edited", "mask"):
            name = row.get(f"{kind}_image_file_name")
            path = self.folder / name if name else None
            if path and path.is_file():  # a missing one is told of when it is read
                digest.update(path.read_bytes())
        return digest.hexdigest()


Truths = dict[tuple[str, str, str], Pairs]
"""Pairs by dataset, split and direction."""


class Record(TypedDict):
    """What is remembered of a model's prediction of one image.

    seconds: of the prediction alone. peak_memory_mib: of the process, since the model was loaded. scores: by each
    protocol. picture: path of the 8-bit prediction in the output folder, and its SHA-256. calibration: where several
    samples were drawn.
    """

    seconds: float
    peak_memory_mib: float
    scores: list[ProtocolScores]
    details: Details
    picture: str
    picture_sha256: str
    calibration: NotRequired[Calibration]


class Store:
    """Records and registrations by key, kept in the output folder as they come: one file per process.

    So a run that was stopped goes on where it was, and processes on several GPUs fill one folder.
    """

    def __init__(self, output: Path, process: int = 0) -> None:
        self.output, self.file = output, output / f"measured-{process}.jsonl"
        self.pictures = output / "pictures"
        self.pictures.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output)
        self.records: dict[str, Record | Registration] = {}
        if self.file.is_file() and not self.file.read_bytes().endswith(b"\n"):
            with self.file.open("a", encoding="utf-8") as file:
                file.write("\n")  # else the next record would be lost with the one that was cut short
        self.read()

    def read(self) -> None:
        """Read what every process has written."""
        for path in sorted(self.output.glob("measured-*.jsonl")):
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    self.records[record.pop("key")] = record
                except (AttributeError, KeyError, TypeError, ValueError):
                    continue  # cut short when the run was stopped, or damaged since

    def get(self, key: str) -> Record | Registration | None:
        """The record of a key, if it is there with its picture as it was."""
        record = self.records.get(key)
        if record and "picture" in record:
            picture = self.output / record["picture"]
            if not picture.is_file() or sha256_of(picture) != record.get("picture_sha256"):
                return None
        return record

    def add(self, key: str, record: Record | Registration) -> None:
        """Remember a record, and write it to the file at once."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **record}) + "\n")
        self.records[key] = record

    def picture(self, key: str, image: np.ndarray) -> tuple[str, str]:
        """Save an 8-bit grey picture: (its path in the output folder, its SHA-256)."""
        path = self.pictures / f"{key[:24]}.png"
        with complete(path) as part:
            write_png(part, image)
        return path.relative_to(self.output).as_posix(), sha256_of(path)


def key_of(*parts: str) -> str:
    """Hash of what a measurement depends on: `parts`, and the program itself."""
    return hashlib.sha256("\n".join((*parts, _program())).encode()).hexdigest()


_PRESENTATION = {"__main__", "experiment", "figures", "fid", "report", "rows", "summary", "workload"}
"""Modules that only choose what is measured, or show it."""


@functools.cache
def _program() -> str:
    """What else a measurement depends on: the code that measures, the libraries, and the device."""
    import diffusers
    import torch

    digest = hashlib.sha256()
    library = Path(__file__).parents[1]
    for path in sorted(library.rglob("*.py")):
        if path.stem not in _PRESENTATION and path.parent.name != "ui":
            digest.update(path.read_bytes())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return f"{digest.hexdigest()} {torch.__version__} {diffusers.__version__} {device}"


def measure(model: Model, pairs: Pairs, store: Store, state) -> list[str]:
    """Measure a model on pairs, each process of `state` (accelerate's PartialState) a part of them.

    Skips what the store holds. Returns the keys of all records, in the order of the pairs.
    """
    keys = [key_of(model.identity, model.direction, pairs.identity(row)) for row in pairs.rows]
    if state.num_processes > 1:  # all must see the same is left to do
        state.wait_for_everyone()
        store.read()
        state.wait_for_everyone()
    todo = [(key, row) for key, row in zip(keys, pairs.rows, strict=True) if store.get(key) is None]
    with state.split_between_processes(todo) as mine:
        if mine:
            predict = model.load()
            machine.reset_peak()
            predict(read_pair(pairs.folder, mine[0][1])[0], mine[0][1])  # times exclude warming up
        title = f"{pairs.dataset} {pairs.split} {model.direction} {model.title}"
        for key, row in tqdm(mine, desc=title, disable=not mine or not state.is_local_main_process):
            store.add(key, _measure_one(model, predict, pairs.folder, row, key, store))
    return keys


def _measure_one(model: Model, predict, folder: Path, row: Row, key: str, store: Store) -> Record:
    source, target, mask = read_pair(folder, row)
    started = time.perf_counter()
    made = predict(source, row)
    seconds = time.perf_counter() - started
    mean = made.mean(axis=0)
    body = body_of(source, target, mask, model.direction)
    scores = checked_score(folder, row, mean, target, body)
    output = modalities(model.direction)[1]
    picture, picture_sha256 = store.picture(key, grey(mean, output))
    record = Record(
        seconds=seconds,
        peak_memory_mib=machine.peak_mib(),
        scores=[s.as_dict() for s in scores],
        details=details(mean, target, body, model.direction),
        picture=picture,
        picture_sha256=picture_sha256,
    )
    if len(made) > 1:
        units = np.stack([decode(image, output) for image in made])
        if body.any():
            record["calibration"] = calibration(units, decode(target, output), body)
    return record


def registration_of(pairs: Pairs, row: Row, store: Store) -> Registration:
    """`misregistration` of a row's pair, CT fixed; remembered, and the same for each direction."""
    source, target, mask = read_pair(pairs.folder, row)
    body = body_of(source, target, mask, row["direction"])
    images = {m: grey(x, m) for m, x in zip(modalities(row["direction"]), (source, target), strict=True)}
    key = key_of("registration", *(hashlib.sha256(x.tobytes()).hexdigest() for x in (images["CT"], images["MR"], body)))
    found = store.get(key)
    if found is None:
        found = misregistration(images["CT"], images["MR"], body)
        store.add(key, found)
    return found


def picture_pair(pairs: Pairs, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """(input, truth) of a row as 8-bit grey (S, S)."""
    source, target, _ = read_pair(pairs.folder, row)
    names = modalities(row["direction"])
    return grey(source, names[0]), grey(target, names[1])


def check_pairs(pairs: Iterable[Pairs]) -> None:
    """Raise DatasetError, naming the file, for a pair that cannot be read or compared."""
    for part in pairs:
        for row in part.rows:
            source, target, mask = read_pair(part.folder, row)
            shapes = {x.shape[:2] for x in (source, target, mask) if x is not None}
            name = part.folder / row["input_image_file_name"]
            if len(shapes) > 1:
                sizes = " and ".join(f"{w} x {h}" for h, w in sorted(shapes))
                raise DatasetError(
                    f"{name} and its pair have different sizes ({sizes} pixels). "
                    "They must be registered and of one size: run train/prepare.py."
                )
            if source.shape[0] != source.shape[1]:
                raise DatasetError(f"{name} is not square: run train/prepare.py, which fits pictures into squares.")
            truth = grey(target, modalities(row["direction"])[1])
            if truth.min() == truth.max():
                raise DatasetError(f"{part.folder / row['edited_image_file_name']}: the picture is one constant value.")
