"""Turn paired CT/MR scans into datasets of model images; train/prepare.py tells the layouts."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
from tqdm import tqdm

from mediffuse.alignment import APART, DOUBTFUL, alignment
from mediffuse.dataset import Row
from mediffuse.directions import prompt_for
from mediffuse.files import complete, remove_leftovers, write_png, write_text
from mediffuse.image.ct_picture import guess_picture_modality, guess_png_window, png_ct_to_hu
from mediffuse.image.intensity import AIR_HU, CT_WINDOWS, encode_ct, encode_mr, to_uint8, window
from mediffuse.image.letterbox import Letterbox, resize
from mediffuse.scan import PLANES, Scan, ScanError
from mediffuse.scan.guard import read_scan
from mediffuse.scan.picture import read_grey

SPLITS = ("train", "val", "test")
REPORT = "report.csv"
REPORT_COLUMNS = ("patient", "source", "outcome", "message")
"""Of the report beside a dataset. outcome: "left out" or "warning"."""

VOLUME_ENDINGS = ("nii.gz", "nii", "mha", "nrrd")
UNPAIRED_FOLDERS = ("trainA", "trainB", "testA", "testB")
"""CycleGAN's folders: their pictures are no pairs."""

MIN_PLANE_MM = 64.0
"""Shorter side of a plane of a volume that can tell whether a pair lies on each other."""


class LayoutError(ValueError):
    """A folder that holds nothing to prepare; the message is for the user."""


@dataclass(frozen=True)
class Plan:
    """How to prepare: planes, slices on either side of the central one, side of the model image in
    pixels, MR contrast (None: by the folder's name), share of patients per split where folders do
    not say, a split that all patients go to, if any, whether to stop at the first scan that is odd, and whether
    to keep pairs that do not lie on each other, which are told of in any case."""

    planes: tuple[str, ...] = ("axial",)
    around: int = 0
    size: int = 256
    contrast: str | None = None
    fractions: dict[str, float] = field(default_factory=lambda: {"val": 0.1, "test": 0.1})
    split: str | None = None
    strict: bool = False
    keep_apart: bool = False


def prepare(
    inputs: Sequence[Path], output: Path, plan: Plan | None = None, ct_only: Sequence[Path] = ()
) -> dict[str, list[Row | UnpairedRow]]:
    """Write the dataset that mediffuse.dataset reads; its rows by split. ct_only: folders of CT pictures without MRI.

    Raises LayoutError for an input that holds no scans of a known layout (see train/prepare.py), and, where the plan
    is strict, for the first scan that there is something to say of.
    """
    plan = plan or Plan()
    writer = Writer(output, plan)
    remove_leftovers(output)
    for given in inputs:
        folder = _existing(given)
        patients = volume_pairs(folder)
        if patients:
            made = from_volumes(patients, folder.name, writer)
        elif any(folder.rglob("*_ct.png")):
            made = from_pngs(folder, writer)
        else:
            raise LayoutError(f"{given} {_no_pairs(folder)}")
        if not made:
            first = writer.report[-1]["message"] if writer.report else "There is nothing of the planes asked for."
            raise LayoutError(f"No pair of {given} can be used. {first}")
    for given in ct_only:
        if not from_ct_pngs(_existing(given), writer):
            raise LayoutError(f"{given} holds no PNG that can be used.")
    writer.close()
    return writer.rows


def _existing(given: Path) -> Path:
    folder = given.resolve()
    if not folder.is_dir():
        raise LayoutError(f"{given} is not a folder.")
    return folder


def _no_pairs(folder: Path) -> str:
    """What is wrong with a folder without pairs."""
    if any((folder / name).is_dir() for name in UNPAIRED_FOLDERS):
        return (
            "holds trainA and trainB, as for CycleGAN: those are not pairs, and pairs are needed. If pictures of one "
            "name lie on each other, rename them to <name>_ct.png and <name>_mr.png in one folder."
        )
    if any(folder.rglob("*.png")):
        return (
            "holds pictures, but no pairs <patient>_<rest>_ct.png and _mr.png. If they are CT slices without MRI, for "
            "the autoencoder, give the folder by --ct-only."
        )
    return (
        "holds no pairs, neither <patient>/ct.nii.gz nor pictures <patient>_<rest>_ct.png: "
        "see train/prepare.py --help for the layouts."
    )


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
        self.report: list[dict[str, str]] = []
        self.written: set[Path] = set()

    def leave_out(self, patient: str, source: str, message: str) -> None:
        """Tell of an input that cannot be used."""
        self._tell(patient, source, "left out", message)

    def warn(self, patient: str, source: str, message: str) -> None:
        """Tell of an input that is used, and that there is something to say of."""
        self._tell(patient, source, "warning", message)

    def _tell(self, patient: str, source: str, outcome: str, message: str) -> None:
        """Print what there is to say, and remember it for the report. Raises LayoutError where the plan is strict."""
        row = dict(zip(REPORT_COLUMNS, (patient, source, outcome, message), strict=True))
        if row in self.report:
            return
        self.report.append(row)
        if self.plan.strict:
            raise LayoutError(f"{patient}: {message} (--strict stops here)")
        tqdm.write(f"{patient}: {outcome}: {message}", file=sys.stderr)

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
        write_png(path, image)
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
        """Write each split's metadata.jsonl, and the report where there is something to say: last, so that a killed run
        has none to offer."""
        for split, rows in self.rows.items():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            write_text(self.output / split / "metadata.jsonl", text)
        if self.report:
            with complete(self.output / REPORT) as part, part.open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, REPORT_COLUMNS)
                table.writeheader()
                table.writerows(self.report)


def left_out(output: Path) -> list[str]:
    """What the report beside a dataset says was left out, a sentence each."""
    path = output / REPORT
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [f"{r['patient']}: {r['message']}" for r in csv.DictReader(file) if r["outcome"] == "left out"]


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
    """The patients of a folder, or below it: <name>/ct.nii.gz (.mha, .nrrd), or <name>_ct.nii.gz in the folder."""
    found = []
    for ct in _volumes(folder, "ct", below=True):
        mr, mask = (next(iter(_volumes(ct.parent, kind)), None) for kind in ("mr", "mask"))
        found.append(Patient(ct.parent.name, ct, mr, mask))
    for ct in _volumes(folder, "*_ct"):
        name = ct.name[: ct.name.rindex("_ct.")]
        mr = next((path for kind in ("mr", "t1", "t2") for path in _volumes(folder, f"{name}_{kind}")), None)
        found.append(Patient(name, ct, mr, next(iter(_volumes(folder, f"{name}_mask")), None)))
    return found


def _volumes(folder: Path, stem: str, *, below: bool = False) -> list[Path]:
    """The volumes of a folder with a name of this stem, one of each name; `below`: in its subfolders."""
    found = {}
    for ending in VOLUME_ENDINGS:
        pattern = f"{stem}.{ending}"
        for path in folder.rglob(pattern) if below else folder.glob(pattern):
            if not below or path.parent != folder:
                found.setdefault(path.with_name(path.name.removesuffix(f".{ending}")), path)
    return sorted(found.values())


def _read_pair(patient: Patient) -> tuple[Scan, Scan, Scan | None]:
    """A patient's CT, MRI and mask. Raises ScanError for what cannot be learnt from."""
    ct, mr = read_scan(patient.ct, "CT"), read_scan(patient.mr, "MR")
    mask = read_scan(patient.mask, "MR", allow_constant=True) if patient.mask else None
    if ct.wrong and mr.wrong and "MRI" in ct.wrong[0] and "CT" in mr.wrong[0]:
        raise ScanError(
            f"CT and MRI are swapped: {patient.ct.name} looks like an MRI, and {patient.mr.name} like a CT."
        )
    for scan in (ct, mr):
        if scan.wrong:
            raise ScanError(f"{scan.name}: {scan.wrong[0]}")
    for other in filter(None, (mr, mask)):
        ct.check_same_grid(other)
    return ct, mr, mask


def check_alignment(pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, keep_apart: bool) -> str | None:
    """What to say of a pair of which it is in doubt that it lies on each other: see `alignment`.

    Raises ScanError where it surely does not, unless `keep_apart`.
    """
    several = len(pairs) > 1
    found = alignment(pairs)
    if found < APART[several] and not keep_apart:
        raise ScanError(
            f"CT and MRI do not lie on each other (mutual information {found:.2f} of that when shifted, and it should "
            f"be over {DOUBTFUL[several]:g}): register them first."
        )
    if found < DOUBTFUL[several]:
        return f"CT and MRI may not lie on each other (mutual information {found:.2f} of that when shifted)."
    return None


def _central_slices(ct: Scan, mr: Scan) -> list[tuple[np.ndarray, np.ndarray]]:
    """The central slices of a pair at 1 mm a pixel, (CT, MRI), each grey (H, W), in planes that are large enough."""
    found = []
    for plane, axis in zip(PLANES, (2, 1, 0), strict=True):
        across, up = (a for a in range(3) if a != axis)
        shape = tuple(round(ct.voxels.shape[a] * ct.spacing[a]) for a in (up, across))
        if min(shape) >= MIN_PLANE_MM and min(ct.voxels.shape[a] for a in (up, across)) > 1:
            hu, grey = (scan.slice(plane).pixels for scan in (ct, mr))
            found.append((resize(window(hu, CT_WINDOWS["full"]), shape), resize(window(grey, mr.limits), shape)))
    return found


def from_volumes(patients: Sequence[Patient], source: str, writer: Writer) -> int:
    """Write the slices of patients' volumes; how many pairs there were."""
    made = 0
    for patient in tqdm(patients, desc=f"{source} volumes"):
        if patient.mr is None:
            writer.leave_out(patient.name, source, f"no MRI beside {patient.ct.name}")
            continue
        try:
            ct, mr, mask = _read_pair(patient)
            doubt = check_alignment(_central_slices(ct, mr), keep_apart=writer.plan.keep_apart)
        except ScanError as error:
            writer.leave_out(patient.name, source, str(error))
            continue
        said = [*(f"CT: {text}" for text in ct.warnings), *(f"MRI: {text}" for text in mr.warnings), doubt]
        for text in filter(None, said):
            writer.warn(patient.name, source, text)
        made += _write_slices(patient, source, (ct, mr, mask), writer)
    return made


def _write_slices(patient: Patient, source: str, scans: tuple[Scan, Scan, Scan | None], writer: Writer) -> int:
    """Write the slices of a patient that the plan asks for; how many there were."""
    ct, mr, mask = scans
    contrast = writer.plan.contrast or ("T2" if patient.mr.name.startswith(f"{patient.name}_t2") else "T1")
    split = writer.split(patient.name)
    made = 0
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
                source=source,
            )
            writer.pair(split, f"{source}_{patient.name}_{plane}_{index:03d}", pair)
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
        if plane not in writer.plan.planes:
            continue
        try:
            found = _read_pictures(path, name, keep_apart=writer.plan.keep_apart)
        except ScanError as error:
            writer.leave_out(patient, folder.name, f"{path.name}: {error}")
            continue
        for text in found.said:
            writer.warn(patient, folder.name, f"{name}: {text}")
        split = writer.split(patient, path.parent.name if path.parent.name in SPLITS else None)
        if (patient, rest) in scales:
            slope, intercept = scales[patient, rest]
            hu, shown = _levels(found.ct) * slope + intercept, "full"
        else:
            grey = _levels(found.ct).astype(np.float64) / 255
            shown = guess_png_window(grey)
            hu = png_ct_to_hu(grey, shown)
        pair = Pair(
            hu=hu,
            mr=_levels(found.mr),
            limits=(0.0, 255.0),
            mask=found.mask,
            box=Letterbox(hu.shape, size=writer.size),
            patient=patient,
            plane=plane,
            index=int(re.sub(r"\D", "", rest) or 0),
            contrast=contrast,
            source=folder.name,
            directions=("ct2mr",) if shown == "brain" else ("ct2mr", "mr2ct"),
        )
        writer.pair(split, f"{folder.name}_{name}", pair)
        made += 1
    return made


@dataclass(frozen=True)
class Pictures:
    """A pair of pictures, grey (H, W) in [0, 1], with its mask, bool (H, W), and what there is to say of it."""

    ct: np.ndarray
    mr: np.ndarray
    mask: np.ndarray | None
    said: list[str]


def _levels(grey: np.ndarray) -> np.ndarray:
    """Grey in [0, 1] as 0 to 255: the whole numbers that an 8-bit picture holds, exactly."""
    return np.round(grey * np.float32(255), 3)


def _read_pictures(path: Path, name: str, *, keep_apart: bool) -> Pictures:
    """The pair of pictures `name`, of which the CT is at `path`. Raises ScanError for what cannot be learnt from."""
    mr_path, mask_path = (path.with_name(f"{name}_{kind}.png") for kind in ("mr", "mask"))
    for part in (path, mr_path):
        if not part.is_file() or not part.stat().st_size:
            raise ScanError(f"{part.name} is missing or empty.")
    (ct, ct_said), (mr, mr_said) = read_grey(path, "CT"), read_grey(mr_path, "MR")
    if ct.shape != mr.shape:
        sizes = [f"{x.shape[1]} x {x.shape[0]}" for x in (ct, mr)]
        raise ScanError(f"{sizes[0]} pixels, and its MR picture {sizes[1]}.")
    mask = None
    if mask_path.is_file():
        mask = (
            cv2.imdecode(np.fromfile(mask_path, np.uint8), cv2.IMREAD_GRAYSCALE) if mask_path.stat().st_size else None
        )
        if mask is None or mask.shape != ct.shape:
            raise ScanError(f"{mask_path.name} is damaged, or not of the size of its CT picture.")
    looks = guess_picture_modality(ct), guess_picture_modality(mr)
    if looks == ("MR", "CT"):
        raise ScanError("The pictures of CT and MRI are swapped, by what they look like.")
    odd = [
        f"{part.name} looks like the other modality."
        for part, look, right in ((path, looks[0], "CT"), (mr_path, looks[1], "MR"))
        if look not in (None, right)
    ]
    doubt = check_alignment([(ct, mr)], keep_apart=keep_apart)
    return Pictures(ct, mr, None if mask is None else mask > 127, [*ct_said, *mr_said, *odd, *filter(None, [doubt])])


def from_ct_pngs(folder: Path, writer: Writer) -> int:
    """Write a folder's CT pictures without partners; how many there were."""
    made = 0
    for path in tqdm(sorted(folder.rglob("*.png")), desc=f"{folder.name} CT only"):
        try:
            grey, said = read_grey(path, "CT")
        except ScanError as error:
            writer.leave_out(path.stem, folder.name, str(error))
            continue
        for text in said:
            writer.warn(path.stem, folder.name, text)
        hu = png_ct_to_hu(grey, guess_png_window(grey))
        image = to_uint8(encode_ct(Letterbox(hu.shape, size=writer.size).fit(hu, AIR_HU)))
        name = writer.image("unpaired", f"{folder.name}_{path.stem}", image)
        writer.add("unpaired", UnpairedRow(file_name=name, modality="CT", source=folder.name))
        made += 1
    return made
