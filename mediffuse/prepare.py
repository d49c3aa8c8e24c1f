"""Turn paired CT/MR scans into datasets of model images; train/prepare.py tells the layouts."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import json
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TypedDict

import cv2
import numpy as np
from tqdm import tqdm

from mediffuse.alignment import APART, DOUBTFUL, alignment
from mediffuse.dataset import Row
from mediffuse.directions import ANATOMIES, prompt_for
from mediffuse.files import complete, remove_leftovers, sha256_of, write_png, write_text
from mediffuse.image.ct_picture import guess_picture_modality, guess_png_window, png_ct_to_hu
from mediffuse.image.intensity import AIR_HU, CT_WINDOWS, TISSUE_HU, encode_ct, encode_mr, to_uint8, window
from mediffuse.image.letterbox import Letterbox, resize
from mediffuse.manifest import Manifest, Record, hashes
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


def prepare(
    inputs: Sequence[Path], output: Path, plan: Plan | None = None, ct_only: Sequence[Path] = ()
) -> dict[str, list[Row | UnpairedRow]]:
    """Write the dataset that mediffuse.dataset reads; its rows by split. ct_only: folders of CT pictures without MRI.

    What the manifest in `output` tells to be made already, from the same files in the same way, is not made again; the
    pictures of items that are gone are removed. Raises LayoutError for an input that holds no scans of a known layout
    (see train/prepare.py), for an output that was made otherwise, and, where the plan is strict, for the first scan
    that there is something to say of.
    """
    plan = plan or Plan()
    todo, splits = {}, {}
    for given in inputs:
        todo[given] = items_of(given, plan, splits)
    for given in ct_only:
        todo[given] = _alone(_existing(given))
    items = [item for group in todo.values() for item in group]
    _refuse_one_name(items)
    writer = Writer(output, plan)
    writer.begin({"inputs": [path.resolve().name for path in inputs], "ct_only": [p.resolve().name for p in ct_only]})
    with _processes(plan.jobs, len(items)) as run:
        for given, group in todo.items():
            made = writer.write(group, run)
            if not made:
                if given in ct_only:
                    raise LayoutError(f"{given} holds no PNG that can be used.")
                first = writer.report[-1]["message"] if writer.report else "There is nothing of the planes asked for."
                raise LayoutError(f"No pair of {given} can be used. {first}")
    return writer.close([item.name for item in items])


def _refuse_one_name(items: Sequence[Item]) -> None:
    """Raise LayoutError if the pictures of two items would have one name."""
    seen = set()
    for item in (item for item in items if item.mr or item.kind == "alone"):
        if item.name in seen:
            raise LayoutError(
                f"Two pictures would be called {item.stem}: give them, or their folders, different names."
            )
        seen.add(item.name)


@contextlib.contextmanager
def _processes(jobs: int, count: int) -> Iterator[Callable]:
    """A function as `map`, whose calls up to `jobs` processes share. Raises LayoutError where one of them is ended."""
    if min(jobs, count) < 2 or count <= 2:
        yield map
        return
    # Not forked: the guard that reads scans has threads' locks, and so have OpenCV and ITK.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, count), context, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise LayoutError(
            "A process that prepared scans was ended by the system, which may want memory: give fewer --jobs. Started "
            "again, the command goes on where it was."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


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


@dataclass(frozen=True)
class Pair:
    """A registered pair of slices on one grid.

    hu, mr: (H, W), the MR in units of which `limits` are black and white. mask: bool (H, W), the body, if known.
    box: how they fit a model image. index: number of the slice along the plane's axis. directions: those that it
    may teach.
    """

    hu: np.ndarray
    mr: np.ndarray
    limits: tuple[float, float]
    mask: np.ndarray | None
    box: Letterbox
    plane: str
    index: int
    directions: tuple[str, ...] = ("ct2mr", "mr2ct")


class Canvas:
    """Writes an item's model images into `folder`, and keeps its record."""

    def __init__(self, item: Item, folder: Path, size: int) -> None:
        self.item, self.folder, self.size = item, folder, size
        self.pictures: dict[str, str] = {}
        self.rows: list[dict] = []
        self.said: list[list[str]] = []

    def warn(self, message: str) -> None:
        """Tell that there is something to say of what is used."""
        self.said.append(["warning", message])

    def image(self, name: str, image: np.ndarray) -> str:
        """Write a picture, 8-bit grey (S, S) or RGB (S, S, 3); the name of its file."""
        path = self.folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_png(path, image[..., ::-1] if image.ndim == 3 else image)
        self.pictures[path.name] = sha256_of(path)
        return path.name

    def pair(self, name: str, pair: Pair) -> None:
        """Write a pair's pictures, called after `name`, and a row for each of its directions."""
        item = self.item
        ct = self.image(f"{name}_ct", to_uint8(encode_ct(pair.box.fit(pair.hu, AIR_HU))))
        grey = to_uint8(encode_mr(pair.box.fit(pair.mr, pair.limits[0]), pair.limits))[..., 0]
        mr = self.image(f"{name}_mr", grey)
        mask = None
        if pair.mask is not None:
            fitted = (pair.box.fit(pair.mask.astype(np.float32), 0) > 0.5).astype(np.uint8) * 255
            mask = self.image(f"{name}_mask", fitted)
        for direction in pair.directions:
            source, target = (ct, mr) if direction == "ct2mr" else (mr, ct)
            row = Row(
                input_image_file_name=source,
                edited_image_file_name=target,
                edit_prompt=prompt_for(direction, item.contrast, item.anatomy),
                direction=direction,
                patient=item.patient,
                plane=pair.plane,
                slice=pair.index,
                contrast=item.contrast,
                source=item.source,
            )
            if mask:
                row["mask_image_file_name"] = mask
            if item.anatomy != "head":
                row["anatomy"] = item.anatomy
            self.rows.append(row)


def make(item: Item, before: Record | None, plan: Plan, output: Path) -> Record:
    """Prepare an item, unless by its record of `before` it is made already."""
    key, sources = item.key(), hashes(item.files())
    folder = output / item.split
    same = bool(before) and (before["key"], before["sources"]) == (key, sources)
    if same and hashes({name: folder / name for name in before["pictures"]}) == before["pictures"]:
        return before
    canvas = Canvas(item, folder, plan.size)
    maker = {"volumes": _make_volumes, "pictures": _make_pictures, "alone": _make_alone}[item.kind]
    try:
        maker(item, plan, canvas)
    except ScanError as error:
        canvas.said.append(["left out", str(error)])
    return Record(
        item=item.name,
        key=key,
        split=item.split,
        sources=sources,
        pictures=canvas.pictures,
        rows=canvas.rows,
        said=canvas.said,
    )


class Writer:
    """Writes a dataset: the items by whichever processes, what is of all of them here."""

    def __init__(self, output: Path, plan: Plan) -> None:
        self.output, self.plan = output, plan
        self.manifest = Manifest(output)
        self.report: list[dict[str, str]] = []
        self.done: dict[str, Record] = {}

    def begin(self, inputs: dict[str, list[str]]) -> None:
        """Go on with what is in the output, or start. Raises LayoutError if that was made otherwise."""
        options = {name: value for name, value in asdict(self.plan).items() if name not in HARMLESS}
        made_by = json.loads(json.dumps({"version": VERSION, "options": options, **inputs}))
        before = self.manifest.made_by
        metadata = list(self.output.glob("*/metadata.jsonl"))
        if metadata and not before:
            raise LayoutError(f"{self.output} already holds a dataset: remove it, or choose another --output.")
        if before and (different := _differences(before, made_by)):
            raise LayoutError(
                f"{self.output} already holds a dataset that was made otherwise: {'; '.join(different)}. Give these "
                "values to go on with it, or choose another --output."
            )
        remove_leftovers(self.output)
        for path in metadata:  # a killed run has none to offer
            path.unlink()
        if self.plan.published:
            _move(self.output, (self.output / "test").glob("*.png"), "train")
        self.manifest.begin(made_by)

    def write(self, items: Sequence[Item], run: Callable) -> int:
        """Prepare items by `run`, which is as `map`; how many can be used."""
        made = 0
        known = self.manifest.records
        task = functools.partial(make, plan=self.plan, output=self.output)
        results = run(task, items, [known.get(item.name) for item in items])
        title = f"{items[0].source} {items[0].kind.replace('alone', 'CT only')}" if items else ""
        for item, record in zip(tqdm(items, desc=title), results, strict=True):
            self._remove(known.get(item.name), record)
            self.manifest.add(record)
            self.done[item.name] = record
            made += bool(record["rows"])
            for outcome, message in record["said"]:
                self._tell(item.patient, item.source, outcome, message)
        return made

    def _remove(self, before: Record | None, now: Record | None = None) -> None:
        """Remove the pictures that an item had, and has no more."""
        kept = {(now["split"], name) for name in now["pictures"]} if now else set()
        for name in before["pictures"] if before else ():
            if (before["split"], name) not in kept:
                (self.output / before["split"] / name).unlink(missing_ok=True)

    def _tell(self, patient: str, source: str, outcome: str, message: str) -> None:
        """Print what there is to say, and remember it for the report. Raises LayoutError where the plan is strict."""
        row = dict(zip(REPORT_COLUMNS, (patient, source, outcome, message), strict=True))
        if row in self.report:
            return
        self.report.append(row)
        if self.plan.strict:
            raise LayoutError(f"{patient}: {message} (--strict stops here)")
        tqdm.write(f"{patient}: {outcome}: {message}", file=sys.stderr)

    def close(self, items: Sequence[str]) -> dict[str, list[Row | UnpairedRow]]:
        """Write the manifest, the report where there is something to say, and last, so that a killed run has none to
        offer, each split's metadata.jsonl; the rows by split."""
        for name in self.manifest.records.keys() - set(items):
            self._remove(self.manifest.records[name])
        self.manifest.finish(list(items))
        if self.report:
            with complete(self.output / REPORT) as part, part.open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, REPORT_COLUMNS)
                table.writeheader()
                table.writerows(self.report)
        else:
            (self.output / REPORT).unlink(missing_ok=True)
        tested = self._published_test() if self.plan.published else set()
        rows: dict[str, list] = {}
        for name in items:
            record = self.manifest.records[name]
            for row in record["rows"]:
                rows.setdefault("test" if _ct_of(row) in tested else record["split"], []).append(row)
        for split, own in rows.items():
            text = "".join(json.dumps(row) + "\n" for row in own)
            write_text(self.output / split / "metadata.jsonl", text)
        return rows

    def _published_test(self) -> set[str]:
        """Move the pictures of a fixed share of the slices of all patients to the test split; their CT's names."""
        rows = [row for record in self.done.values() if record["split"] == "train" for row in record["rows"]]
        names = sorted({_ct_of(row) for row in rows}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        tested = set(names[: max(1, round(PUBLISHED_TEST * len(names)))])
        columns = ("input_image_file_name", "edited_image_file_name", "mask_image_file_name")
        moved = {row[c] for row in rows if _ct_of(row) in tested for c in columns if c in row}
        _move(self.output, [self.output / "train" / name for name in moved], "test")
        return tested


def _ct_of(row: dict) -> str | None:
    """The CT picture of a pair's row, by which its slice is known; None of an unpaired one."""
    return row.get("edited_image_file_name" if row.get("direction") == "mr2ct" else "input_image_file_name")


def _move(output: Path, paths: Iterable[Path], split: str) -> None:
    (output / split).mkdir(parents=True, exist_ok=True)
    for path in list(paths):
        path.replace(output / split / path.name)


def _differences(before: dict, now: dict) -> list[str]:
    """What a dataset was made with otherwise, in words; inputs may be added."""
    pairs = {name: (before["options"].get(name), value) for name, value in now["options"].items()}
    pairs["version"] = before["version"], now["version"]
    pairs |= {
        name: (before[name], now[name]) for name in ("inputs", "ct_only") if not set(before[name]) <= set(now[name])
    }
    return [f"{name} was {a} and is {b}" for name, (a, b) in pairs.items() if a != b]


def left_out(output: Path) -> list[str]:
    """What the report beside a dataset says was left out, a sentence each."""
    return [f"{row['patient']}: {row['message']}" for row in _report(output) if row["outcome"] == "left out"]


def said(output: Path, outcome: str) -> list[str]:
    """The patients, each once, of whom the report beside a dataset tells an outcome."""
    return list(dict.fromkeys(row["patient"] for row in _report(output) if row["outcome"] == outcome))


def _report(output: Path) -> list[dict[str, str]]:
    path = output / REPORT
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


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


def chosen(ct: Scan, plane: str, plan: Plan) -> list[int]:
    """Indices of the slices of a plane that a plan asks for."""
    count, axis = ct.count(plane), _AXES[plane]
    if not plan.every:
        return around(count, plan.around)
    first, last = (0, count) if ct.head is None else (ct.head[0][axis], ct.head[1][axis])
    step, centre = plan.every / ct.spacing[axis], count // 2
    reach = plan.around or int(count / step) + 1
    indices = dict.fromkeys(round(centre + k * step) for k in range(-reach, reach + 1))
    return [i for i in indices if max(0, first) <= i < min(count, last)]


_AXES = {"axial": 2, "coronal": 1, "sagittal": 0}


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


SYNTHRAD = re.compile(r"[12](B|P|HN|AB|TH)([A-E])\d{3}")
"""Patients of SynthRAD2023 and 2025: task, region, centre, number."""

_REGIONS = {"B": "head", "P": "pelvis", "HN": "head-neck", "AB": "abdomen", "TH": "thorax"}
_FOLDERS = {"brain": "head", "HN": "head-neck", "AB": "abdomen", "TH": "thorax", **{name: name for name in ANATOMIES}}


def anatomy_by_name(patient: str, folders: Sequence[str]) -> str:
    """The part of the body that the names of a patient and of its folders tell; else the head."""
    if found := SYNTHRAD.fullmatch(patient):
        return _REGIONS[found[1]]
    return next((_FOLDERS[name] for name in reversed(folders) if name in _FOLDERS), "head")


def contrast_by_name(patient: str, mr: Path | None) -> str:
    """T2 where the names say so: <patient>_t2, or SynthRAD2023's pelves of centre C (arXiv 2303.16320); else T1."""
    found = SYNTHRAD.fullmatch(patient)
    of_centre_c = bool(found) and found[1] == "P" and found[2] == "C"
    return "T2" if of_centre_c or (mr and mr.name.startswith(f"{patient}_t2")) else "T1"


def items_of(given: Path, plan: Plan, splits: dict[str, str]) -> list[Item]:
    """What an input folder holds to prepare, volumes or else pictures. splits: of patients, those so far, added to.

    Raises LayoutError where it is none of the known layouts.
    """
    folder = _existing(given)
    patients = volume_pairs(folder)
    if patients:
        return [_item_of(patient, folder, plan, splits) for patient in patients]
    if any(folder.rglob("*_ct.png")):
        return _pictures(folder, plan, splits)
    raise LayoutError(f"{given} {_no_pairs(folder)}")


def _split(patient: str, plan: Plan, splits: dict[str, str], stated: str | None = None) -> str:
    """The split of a patient: that of an earlier input, else the `stated` one, else by its name."""
    wanted = plan.split or stated or split_of(patient, plan.fractions)
    return "train" if plan.published else splits.setdefault(patient, wanted)


def _item_of(patient: Patient, folder: Path, plan: Plan, splits: dict[str, str]) -> Item:
    folders = [folder.name, *patient.ct.parent.relative_to(folder).parts]
    return Item(
        kind="volumes",
        root=folder,
        patient=patient.name,
        stem=f"{folder.name}_{patient.name}",
        split=_split(patient.name, plan, splits),
        ct=patient.ct,
        mr=patient.mr,
        mask=patient.mask,
        contrast=plan.contrast or contrast_by_name(patient.name, patient.mr),
        anatomy=plan.anatomy or anatomy_by_name(patient.name, folders),
    )


def _read_pair(item: Item) -> tuple[Scan, Scan, Scan | None]:
    """A patient's CT, MRI and mask. Raises ScanError for what cannot be learnt from."""
    ct, mr = (
        read_scan(path, modality, anatomies=[item.anatomy]) for path, modality in ((item.ct, "CT"), (item.mr, "MR"))
    )
    mask = read_scan(item.mask, "MR", allow_constant=True) if item.mask else None
    if ct.wrong and mr.wrong and "MRI" in ct.wrong[0] and "CT" in mr.wrong[0]:
        raise ScanError(f"CT and MRI are swapped: {item.ct.name} looks like an MRI, and {item.mr.name} like a CT.")
    if item.anatomy != "head" and mr.looks == "CT" and mr.voxels.min() > TISSUE_HU:
        # What looks like a CT was set on heads, and muscle is as even as the brain of one. No CT in HU is this bright.
        mr = replace(mr, warnings=tuple(text for text in mr.warnings if text not in mr.wrong), wrong=())
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
    for plane, axis in _AXES.items():
        across, up = (a for a in range(3) if a != axis)
        shape = tuple(round(ct.voxels.shape[a] * ct.spacing[a]) for a in (up, across))
        if min(shape) >= MIN_PLANE_MM and min(ct.voxels.shape[a] for a in (up, across)) > 1:
            hu, grey = (scan.slice(plane).pixels for scan in (ct, mr))
            found.append((resize(window(hu, CT_WINDOWS["full"]), shape), resize(window(grey, mr.limits), shape)))
    return found


def _make_volumes(item: Item, plan: Plan, canvas: Canvas) -> None:
    """Write the slices of a patient's volumes that the plan asks for. Raises ScanError."""
    if item.mr is None:
        beam = any(item.ct.parent.glob("cbct.*"))
        raise ScanError(f"no MRI beside {item.ct.name}{', but a cone-beam CT, which is none' if beam else ''}")
    ct, mr, mask = _read_pair(item)
    doubt = check_alignment(_central_slices(ct, mr), keep_apart=plan.keep_apart)
    said = [*(f"CT: {text}" for text in ct.warnings), *(f"MRI: {text}" for text in mr.warnings), doubt]
    if mask and not (mask.voxels > 0).any():
        said.append(f"{item.mask.name} is empty, so the pair has no mask.")
        mask = None
    for text in filter(None, said):
        canvas.warn(text)
    for plane in plan.planes:
        for index in chosen(ct, plane, plan):
            ct_slice = ct.slice(plane, index)
            pair = Pair(
                hu=ct_slice.pixels,
                mr=mr.slice(plane, index).pixels,
                limits=mr.limits,
                mask=mask.slice(plane, index).pixels > 0 if mask else None,
                box=ct_slice.letterbox(canvas.size),
                plane=plane,
                index=index,
            )
            canvas.pair(f"{item.stem}_{plane}_{index:03d}", pair)


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


def _pictures(folder: Path, plan: Plan, splits: dict[str, str]) -> list[Item]:
    """A folder's pairs of pictures."""
    scales = _hu_scales(folder)
    named_t2 = re.search(r"(?<![a-z0-9])t2(?![a-z0-9])", folder.name.lower())
    found = []
    for path in sorted(folder.rglob("*_ct.png")):
        name = path.name.removesuffix("_ct.png")
        patient, _, rest = name.rpartition("_") if "_" in name else (name, "", "")
        plane = rest if rest in PLANES else "axial"
        if plane not in plan.planes:
            continue
        item = Item(
            kind="pictures",
            root=folder,
            patient=patient,
            stem=f"{folder.name}_{name}",
            split=_split(patient, plan, splits, path.parent.name if path.parent.name in SPLITS else None),
            ct=path,
            mr=path.with_name(f"{name}_mr.png"),
            mask=path.with_name(f"{name}_mask.png"),
            contrast=plan.contrast or ("T2" if named_t2 else "T1"),
            anatomy=plan.anatomy or anatomy_by_name(patient, [folder.name]),
            plane=plane,
            index=int(re.sub(r"\D", "", rest) or 0),
            hu=scales.get((patient, rest)),
        )
        found.append(item)
    return found


def _make_pictures(item: Item, plan: Plan, canvas: Canvas) -> None:
    """Write a pair of pictures. Raises ScanError."""
    name = item.ct.name.removesuffix("_ct.png")
    try:
        found = _read_pictures(item, keep_apart=plan.keep_apart)
    except ScanError as error:
        raise ScanError(f"{item.ct.name}: {error}") from error
    for text in found.said:
        canvas.warn(f"{name}: {text}")
    if item.hu:
        slope, intercept = item.hu
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
        box=Letterbox(hu.shape, size=canvas.size),
        plane=item.plane,
        index=item.index,
        directions=("ct2mr",) if shown == "brain" else ("ct2mr", "mr2ct"),
    )
    canvas.pair(item.stem, pair)


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


def _read_pictures(item: Item, *, keep_apart: bool) -> Pictures:
    """A pair of pictures. Raises ScanError for what cannot be learnt from."""
    path, mr_path, mask_path = item.ct, item.mr, item.mask
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


def _alone(folder: Path) -> list[Item]:
    """A folder's CT pictures without partners."""
    return [
        Item("alone", folder, path.stem, f"{folder.name}_{path.stem}", "unpaired", path)
        for path in sorted(folder.rglob("*.png"))
    ]


def _make_alone(item: Item, plan: Plan, canvas: Canvas) -> None:
    """Write a CT picture without a partner. Raises ScanError."""
    grey, said = read_grey(item.ct, "CT")
    for text in said:
        canvas.warn(text)
    hu = png_ct_to_hu(grey, guess_png_window(grey))
    name = canvas.image(item.stem, to_uint8(encode_ct(Letterbox(hu.shape, size=canvas.size).fit(hu, AIR_HU))))
    canvas.rows.append(UnpairedRow(file_name=name, modality="CT", source=item.source))
