"""Turn paired CT/MR scans into datasets of model images; train/prepare.py tells the layouts."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
from tqdm import tqdm

from mediffuse.dataset import Row
from mediffuse.directions import prompt_for
from mediffuse.files import remove_leftovers, write_text
from mediffuse.image.ct_picture import guess_png_window, png_ct_to_hu
from mediffuse.image.intensity import AIR_HU, encode_ct, encode_mr, to_uint8
from mediffuse.image.letterbox import Letterbox
from mediffuse.scan import PLANES, ScanError, read_scan

SPLITS = ("train", "val", "test")
LEFT_OUT = "left_out.txt"


class LayoutError(ValueError):
    """A folder that holds nothing to prepare; the message is for the user."""


@dataclass(frozen=True)
class Plan:
    """How to prepare: planes, slices on either side of the central one, side of the model image in
    pixels, MR contrast (None: by the folder's name), share of patients per split where folders do
    not say, and a split that all patients go to, if any."""

    planes: tuple[str, ...] = ("axial",)
    around: int = 0
    size: int = 256
    contrast: str | None = None
    fractions: dict[str, float] = field(default_factory=lambda: {"val": 0.1, "test": 0.1})
    split: str | None = None


def prepare(inputs: list[Path], output: Path, plan: Plan | None = None) -> dict[str, list[Row | UnpairedRow]]:
    """Write the dataset that mediffuse.dataset reads; its rows by split.

    Raises LayoutError for an input that holds no scans of a known layout (see train/prepare.py).
    """
    plan = plan or Plan()
    writer = Writer(output, plan)
    remove_leftovers(output)
    for given in inputs:
        folder = given.resolve()
        if not folder.is_dir():
            raise LayoutError(f"{given} is not a folder.")
        if volume_pairs(folder):
            made = from_volumes(folder, writer)
        elif any(folder.rglob("*_ct.png")):
            made = from_pngs(folder, writer)
        else:
            made = from_ct_pngs(folder, writer)
        if not made and writer.left_out:
            raise LayoutError(f"No pair of {given} can be used. {writer.left_out[0]}.")
        if not made:
            raise LayoutError(
                f"{given} holds no pairs, neither <patient>/ct.nii.gz nor pictures <patient>_<rest>_ct.png: "
                "see train/prepare.py --help for the layouts."
            )
    writer.close()
    return writer.rows


class UnpairedRow(TypedDict):
    """A line of the metadata.jsonl of pictures without a partner."""

    file_name: str
    modality: str
    source: str


@dataclass(frozen=True)
class Pair:
    """A registered pair of slices on one grid.

    hu, mr: (H, W), the MR in units of which `limits` are black and white. mask: bool (H, W), the body, if known.
    box: how they fit a model image. index: number of the slice along the plane's axis. directions: those that it
    may teach. The rest as in `dataset.Row`.
    """

    hu: np.ndarray
    mr: np.ndarray
    limits: tuple[float, float]
    mask: np.ndarray | None
    box: Letterbox
    patient: str
    plane: str
    index: int
    contrast: str
    source: str
    directions: tuple[str, ...] = ("ct2mr", "mr2ct")


class Writer:
    """Writes model images and metadata rows into the output layout."""

    def __init__(self, output: Path, plan: Plan) -> None:
        self.output, self.plan, self.size = output, plan, plan.size
        self.rows: dict[str, list[Row | UnpairedRow]] = {}
        self.splits: dict[str, str] = {}
        self.left_out: list[str] = []
        self.written: set[Path] = set()

    def leave_out(self, message: str) -> None:
        """Tell of an input that cannot be used, and remember it for left_out.txt."""
        print(f"{message}, left out", file=sys.stderr)
        self.left_out.append(message)

    def split(self, patient: str, stated: str | None = None) -> str:
        """The split of a patient: that of an earlier input, else the `stated` one, else by its name."""
        wanted = self.plan.split or stated or split_of(patient, self.plan.fractions)
        return self.splits.setdefault(patient, wanted)

    def image(self, split: str, name: str, image: np.ndarray) -> str:
        """Write a picture, 8-bit grey (S, S) or RGB (S, S, 3); the name of its file.

        Raises LayoutError where there is one of that name already.
        """
        path = self.output / split / f"{name}.png"
        if path in self.written:
            raise LayoutError(f"Two pictures would be called {name}: give them, or their folders, different names.")
        self.written.add(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if image.ndim == 3:
            image = image[..., ::-1]
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())  # imwrite is silent where the disk is full
        return path.name

    def pair(self, split: str, name: str, pair: Pair) -> None:
        """Write a pair's pictures, called after `name`, and a row for each of its directions."""
        ct = self.image(split, f"{name}_ct", to_uint8(encode_ct(pair.box.fit(pair.hu, AIR_HU))))
        grey = to_uint8(encode_mr(pair.box.fit(pair.mr, pair.limits[0]), pair.limits))[..., 0]
        mr = self.image(split, f"{name}_mr", grey)
        mask = None
        if pair.mask is not None:
            fitted = (pair.box.fit(pair.mask.astype(np.float32), 0) > 0.5).astype(np.uint8) * 255
            mask = self.image(split, f"{name}_mask", fitted)
        for direction in pair.directions:
            source, target = (ct, mr) if direction == "ct2mr" else (mr, ct)
            row = Row(
                input_image_file_name=source,
                edited_image_file_name=target,
                edit_prompt=prompt_for(direction, pair.contrast),
                direction=direction,
                patient=pair.patient,
                plane=pair.plane,
                slice=pair.index,
                contrast=pair.contrast,
                source=pair.source,
            )
            if mask:
                row["mask_image_file_name"] = mask
            self.add(split, row)

    def add(self, split: str, row: Row | UnpairedRow) -> None:
        """Remember a row, which `close` writes."""
        self.rows.setdefault(split, []).append(row)

    def close(self) -> None:
        """Write each split's metadata.jsonl, and what was left out: last, so that a killed run has none to offer."""
        for split, rows in self.rows.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_text(self.output / split / "metadata.jsonl", text)
        if self.left_out:
            write_text(self.output / LEFT_OUT, "\n".join(self.left_out) + "\n")


def read_grey(path: Path) -> np.ndarray | None:
    """8-bit grey picture (H, W), or None if it is missing or damaged."""
    data = np.fromfile(path, np.uint8) if path.is_file() else np.empty(0, np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None


def split_of(patient: str, fractions: dict[str, float]) -> str:
    """The split of a patient: a fixed hash of the name, so more data never moves a patient."""
    point = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 2**32
    for split, fraction in fractions.items():
        point -= fraction
        if point < 0:
            return split
    return "train"


def around(count: int, reach: int) -> list[int]:
    """Indices of the central slice of `count` and `reach` on either side."""
    centre = count // 2
    return [i for i in range(centre - reach, centre + reach + 1) if 0 <= i < count]


@dataclass(frozen=True)
class Patient:
    """The files of a patient's volumes; None for one that there is not."""

    name: str
    ct: Path
    mr: Path | None
    mask: Path | None


def volume_pairs(folder: Path) -> list[Patient]:
    """The patients of a folder in either layout of volumes: <name>/ct.nii.gz, or <name>_ct.nii.gz."""
    found = [
        Patient(ct.parent.name, ct, _first(ct.parent, "mr.nii*"), _first(ct.parent, "mask.nii*"))
        for ct in sorted(folder.glob("*/ct.nii*"))
    ]
    for ct in sorted(folder.glob("*_ct.nii*")):
        name = ct.name[: ct.name.index("_ct.nii")]
        mr = next(filter(None, (_first(folder, f"{name}_{kind}.nii*") for kind in ("mr", "t1", "t2"))), None)
        found.append(Patient(name, ct, mr, _first(folder, f"{name}_mask.nii*")))
    return found


def _first(folder: Path, pattern: str) -> Path | None:
    return next(iter(sorted(folder.glob(pattern))), None)


def from_volumes(folder: Path, writer: Writer) -> int:
    """Write the slices of a folder's volumes; how many pairs there were."""
    made = 0
    for patient in tqdm(volume_pairs(folder), desc=f"{folder.name} volumes"):
        if patient.mr is None:
            writer.leave_out(f"{patient.ct}: no MRI beside it")
            continue
        try:
            ct, mr = read_scan(patient.ct, "CT"), read_scan(patient.mr, "MR")
            mask = read_scan(patient.mask, "MR", allow_constant=True) if patient.mask else None
            for other in filter(None, (mr, mask)):
                ct.check_same_grid(other)
        except ScanError as error:
            writer.leave_out(f"{patient.ct.parent / patient.name}: {str(error).rstrip('.')}")
            continue
        contrast = writer.plan.contrast or ("T2" if patient.mr.name.startswith(f"{patient.name}_t2") else "T1")
        split = writer.split(patient.name)
        for plane in writer.plan.planes:
            for index in around(ct.count(plane), writer.plan.around):
                ct_slice = ct.slice(plane, index)
                pair = Pair(
                    hu=ct_slice.pixels,
                    mr=mr.slice(plane, index).pixels,
                    limits=mr.limits,
                    mask=mask.slice(plane, index).pixels > 0 if mask else None,
                    box=ct_slice.letterbox(writer.size),
                    patient=patient.name,
                    plane=plane,
                    index=index,
                    contrast=contrast,
                    source=folder.name,
                )
                writer.pair(split, f"{folder.name}_{patient.name}_{plane}_{index:03d}", pair)
                made += 1
    return made


def _hu_scales(folder: Path) -> dict[tuple[str, str], tuple[float, float]]:
    """HU slope and intercept by (patient, plane or z<level>), from a manifest.csv where there is one."""
    path = folder / "manifest.csv"
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {
                (row["patient"], row.get("plane") or f"z{row['z']}"): (
                    float(row["hu_slope"]),
                    float(row["hu_intercept"]),
                )
                for row in csv.DictReader(file)
            }
    except (KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            f"{path} cannot be used: every line needs patient, plane or z, hu_slope, hu_intercept."
        ) from error


def from_pngs(folder: Path, writer: Writer) -> int:
    """Write a folder's pairs of pictures; how many there were."""
    scales = _hu_scales(folder)
    named_t2 = re.search(r"(?<![a-z0-9])t2(?![a-z0-9])", folder.name.lower())
    contrast = writer.plan.contrast or ("T2" if named_t2 else "T1")
    made = 0
    for path in tqdm(sorted(folder.rglob("*_ct.png")), desc=f"{folder.name} pictures"):
        name = path.name.removesuffix("_ct.png")
        patient, _, rest = name.rpartition("_") if "_" in name else (name, "", "")
        plane = rest if rest in PLANES else "axial"
        mr_path = path.with_name(f"{name}_mr.png")
        grey, mr = read_grey(path), read_grey(mr_path)
        if grey is None or mr is None:
            writer.leave_out(f"{path if grey is None else mr_path}: missing or damaged")
            continue
        if grey.shape != mr.shape:
            sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in (grey, mr)]
            writer.leave_out(f"{path}: {sizes[0]} pixels, and its MR picture {sizes[1]}")
            continue
        if plane not in writer.plan.planes:
            continue
        split = writer.split(patient, path.parent.name if path.parent.name in SPLITS else None)
        if (patient, rest) in scales:
            slope, intercept = scales[patient, rest]
            hu, window = grey.astype(np.float32) * slope + intercept, "full"
        else:
            window = guess_png_window(grey / 255)
            hu = png_ct_to_hu(grey / 255, window)
        mask_path = path.with_name(f"{name}_mask.png")
        mask = read_grey(mask_path)
        if mask_path.is_file() and (mask is None or mask.shape != grey.shape):
            writer.leave_out(f"{mask_path}: damaged, or not of the size of its CT picture")
            continue
        pair = Pair(
            hu=hu,
            mr=mr.astype(np.float32),
            limits=(0.0, 255.0),
            mask=None if mask is None else mask > 127,
            box=Letterbox(hu.shape, size=writer.size),
            patient=patient,
            plane=plane,
            index=int(re.sub(r"\D", "", rest) or 0),
            contrast=contrast,
            source=folder.name,
            directions=("ct2mr",) if window == "brain" else ("ct2mr", "mr2ct"),
        )
        writer.pair(split, f"{folder.name}_{name}", pair)
        made += 1
    return made


def from_ct_pngs(folder: Path, writer: Writer) -> int:
    """Write a folder's CT pictures without partners; how many there were."""
    made = 0
    for path in tqdm(sorted(folder.rglob("*.png")), desc=f"{folder.name} CT only"):
        grey = read_grey(path)
        if grey is None:
            writer.leave_out(f"{path}: cannot be read as a picture")
            continue
        grey = grey / np.float32(255)
        hu = png_ct_to_hu(grey, guess_png_window(grey))
        image = to_uint8(encode_ct(Letterbox(hu.shape, size=writer.size).fit(hu, AIR_HU)))
        name = writer.image("unpaired", f"{folder.name}_{path.stem}", image)
        writer.add("unpaired", UnpairedRow(file_name=name, modality="CT", source=folder.name))
        made += 1
    return made
