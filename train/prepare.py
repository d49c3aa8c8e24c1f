"""Turn paired CT/MR scans into the dataset that the trainers read.

    python train/prepare.py --input Task1/brain --output data/synthrad --around 5
    python train/prepare.py --input central --input levels --input t2 --output data/mini --plane axial coronal sagittal

Inputs, told apart by what they hold:
  SynthRAD2023   <patient>/{ct,mr,mask}.nii.gz  (mask optional): the central slice of each plane,
                 and with --around N also N slices on either side
  PNG folders    [train|val|test/]<patient>_<rest>_{ct,mr[,mask]}.png, with HU from a manifest.csv
                 (patient, plane or z, hu_slope, hu_intercept) where there is one; a pair whose CT
                 is a brain window gives CT->MR only, for it holds no HU to learn
  CT only        PNG folders without any *_ct.png: for the autoencoder

Output: {train,val,test}/metadata.jsonl and images, as `datasets.load_dataset("imagefolder", ...)`
reads them (input_image, edited_image, edit_prompt, and mask_image where known), and
unpaired/metadata.jsonl. Images are model images (CT as three HU windows in RGB, MR grey),
letterboxed to --size. Patients, never slices, are split; folders named train, val, test are kept. A patient in several
inputs goes where the first of them puts it.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.intensity import (
    AIR_HU,
    Letterbox,
    encode_ct,
    encode_mr,
    guess_png_window,
    mr_limits,
    png_ct_to_hu,
    to_uint8,
)
from mediffuse.prompts import prompt_for
from mediffuse.scan import PLANES, ScanError, read_scan

SPLITS = ("train", "val", "test")


class Writer:
    """Writes model images and metadata rows into the output layout."""

    def __init__(self, output: Path, size: int) -> None:
        self.output, self.size, self.rows = output, size, {}
        self.splits: dict[str, str] = {}

    def split(self, patient: str, wanted: str) -> str:
        """`wanted`, or the split that an earlier input put this patient in."""
        return self.splits.setdefault(patient, wanted)

    def image(self, split: str, name: str, image: np.ndarray) -> str:
        path = self.output / split / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if image.ndim == 3:
            image = image[..., ::-1]
        cv2.imwrite(str(path), image)
        return path.name

    def pair(self, split, name, box, hu, mr, limits, mask=None, directions=("ct2mr", "mr2ct"), **info) -> None:
        """One registered pair, HU (H, W) and MR (H, W), fitted by `box`; a row per direction."""
        ct = self.image(split, f"{name}_ct", to_uint8(encode_ct(box.fit(hu, AIR_HU))))
        grey = to_uint8(encode_mr(box.fit(mr, limits[0]), limits))[..., 0]
        mr = self.image(split, f"{name}_mr", grey)
        extra = {}
        if mask is not None:
            fitted = (box.fit(mask.astype(np.float32), 0) > 0.5).astype(np.uint8) * 255
            extra["mask_image_file_name"] = self.image(split, f"{name}_mask", fitted)
        for direction in directions:
            source, target = (ct, mr) if direction == "ct2mr" else (mr, ct)
            self.row(
                split,
                input_image_file_name=source,
                edited_image_file_name=target,
                edit_prompt=prompt_for(direction, info["contrast"]),
                direction=direction,
                **info,
                **extra,
            )

    def row(self, split: str, **row) -> None:
        self.rows.setdefault(split, []).append(row)

    def close(self) -> None:
        for split, rows in self.rows.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (self.output / split / "metadata.jsonl").write_text(text)


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


def from_volumes(folder: Path, writer: Writer, args) -> int:
    patients = sorted(path.parent for path in folder.glob("*/ct.nii*"))
    made = 0
    for patient in tqdm(patients, desc=f"{folder.name} volumes"):
        mr_path = next(iter(sorted(patient.glob("mr.nii*"))), None)
        if mr_path is None:
            print(f"{patient}: no mr.nii.gz beside ct.nii.gz, left out", file=sys.stderr)
            continue
        try:
            ct = read_scan(next(iter(sorted(patient.glob("ct.nii*")))), "CT")
            mr = read_scan(mr_path, "MR")
            mask_path = next(iter(sorted(patient.glob("mask.nii*"))), None)
            mask = read_scan(mask_path, "MR", allow_constant=True) if mask_path else None
            for other in filter(None, (mr, mask)):
                ct.check_same_grid(other)
        except ScanError as error:
            print(f"{patient}: {error} Left out.", file=sys.stderr)
            continue
        split = writer.split(patient.name, split_of(patient.name, args.fractions))
        limits = mr_limits(mr.voxels)
        for plane in args.plane:
            for index in around(ct.count(plane), args.around):
                one = ct.slice(plane, index)
                writer.pair(
                    split,
                    f"{folder.name}_{patient.name}_{plane}_{index:03d}",
                    one.letterbox(writer.size),
                    one.pixels,
                    mr.slice(plane, index).pixels,
                    limits,
                    mask.slice(plane, index).pixels > 0 if mask else None,
                    patient=patient.name,
                    plane=plane,
                    slice=index,
                    contrast=args.contrast or "T1",
                    source=folder.name,
                )
                made += 1
    return made


def from_pngs(folder: Path, writer: Writer, args) -> int:
    scales = {}
    for manifest in folder.glob("manifest.csv"):
        for row in csv.DictReader(manifest.open()):
            key = (row["patient"], row.get("plane") or f"z{row['z']}")
            scales[key] = float(row["hu_slope"]), float(row["hu_intercept"])
    contrast = args.contrast or ("T2" if "t2" in folder.name.lower() else "T1")
    made = 0
    for path in tqdm(sorted(folder.rglob("*_ct.png")), desc=f"{folder.name} pictures"):
        name = path.name.removesuffix("_ct.png")
        patient, _, rest = name.partition("_")
        plane = rest if rest in PLANES else "axial"
        mr_path = path.with_name(f"{name}_mr.png")
        grey, mr = read_grey(path), read_grey(mr_path)
        if grey is None or mr is None or grey.shape != mr.shape:
            print(f"{path}: no MR picture of the same size beside it, left out", file=sys.stderr)
            continue
        if plane not in args.plane:
            continue
        said = path.parent.name if path.parent.name in SPLITS else split_of(patient, args.fractions)
        split = writer.split(patient, said)
        if (patient, rest) in scales:
            slope, intercept = scales[patient, rest]
            hu, shown = grey.astype(np.float32) * slope + intercept, "full"
        else:
            shown = guess_png_window(grey / 255)
            hu = png_ct_to_hu(grey / 255, shown)
        mask = read_grey(path.with_name(f"{name}_mask.png"))
        writer.pair(
            split,
            f"{folder.name}_{name}",
            Letterbox(hu.shape, size=writer.size),
            hu,
            mr.astype(np.float32),
            (0.0, 255.0),
            None if mask is None else mask > 127,
            directions=("ct2mr",) if shown == "brain" else ("ct2mr", "mr2ct"),
            patient=patient,
            plane=plane,
            slice=int(re.sub(r"\D", "", rest) or 0),
            contrast=contrast,
            source=folder.name,
        )
        made += 1
    return made


def from_ct_pngs(folder: Path, writer: Writer, args) -> int:
    made = 0
    for path in tqdm(sorted(folder.rglob("*.png")), desc=f"{folder.name} CT only"):
        grey = read_grey(path)
        if grey is None:
            print(f"{path}: cannot be read as a picture, left out", file=sys.stderr)
            continue
        grey = grey / np.float32(255)
        hu = png_ct_to_hu(grey, guess_png_window(grey))
        image = to_uint8(encode_ct(Letterbox(hu.shape, size=writer.size).fit(hu, AIR_HU)))
        name = writer.image("unpaired", f"{folder.name}_{path.stem}", image)
        writer.row("unpaired", file_name=name, modality="CT", source=folder.name)
        made += 1
    return made


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", action="append", required=True, type=Path, help="may be given several times")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--around", type=int, default=0, help="slices on either side of the central one")
    parser.add_argument("--plane", nargs="+", choices=PLANES, default=["axial"])
    parser.add_argument("--size", type=int, default=256, help="side of the model image in pixels")
    parser.add_argument("--contrast", choices=["T1", "T2"], help="default: T2 where the folder's name says so, else T1")
    parser.add_argument("--val", type=float, default=0.1, help="share of patients, where folders do not say")
    parser.add_argument("--test", type=float, default=0.1)
    args = parser.parse_args(argv)
    args.fractions = {"val": args.val, "test": args.test}
    if any(args.output.glob("*/metadata.jsonl")):
        parser.error(f"{args.output} already holds a dataset: remove it, or choose another --output")
    writer = Writer(args.output, args.size)
    for given in args.input:
        folder = given.resolve()
        if not folder.is_dir():
            parser.error(f"{given} is not a folder")
        if any(folder.glob("*/ct.nii*")):
            made = from_volumes(folder, writer, args)
        elif any(folder.rglob("*_ct.png")):
            made = from_pngs(folder, writer, args)
        else:
            made = from_ct_pngs(folder, writer, args)
        if not made:
            parser.error(f"{folder} holds neither <patient>/ct.nii.gz nor pictures: see --help for the layouts")
    writer.close()
    for split, rows in writer.rows.items():
        patients = len({row.get("patient") for row in rows if row.get("patient")})
        print(f"{split}: {len(rows)} rows, {patients} patients")


if __name__ == "__main__":
    main()
