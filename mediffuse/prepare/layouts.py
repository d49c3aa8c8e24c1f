"""What a folder of scans holds to prepare: the layouts that train/prepare.py tells."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mediffuse.directions import ANATOMIES
from mediffuse.prepare.plan import SPLITS, Item, LayoutError, Plan
from mediffuse.scan import PLANES

VOLUME_ENDINGS = ("nii.gz", "nii", "mha", "nrrd")
UNPAIRED_FOLDERS = ("trainA", "trainB", "testA", "testB")
"""CycleGAN's folders: their pictures are no pairs."""


def items_of(given: Path, plan: Plan, splits: dict[str, str]) -> list[Item]:
    """What an input folder holds to prepare, volumes or else pictures. splits: of patients, those so far, added to.

    Raises LayoutError where it is none of the known layouts.
    """
    folder = existing(given)
    patients = volume_pairs(folder)
    if patients:
        return [_item_of(patient, folder, plan, splits) for patient in patients]
    if any(folder.rglob("*_ct.png")):
        return _pictures(folder, plan, splits)
    raise LayoutError(f"{given} {_no_pairs(folder)}")


def existing(given: Path) -> Path:
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


def split_of(patient: str, fractions: dict[str, float]) -> str:
    """The split of a patient: a fixed hash of the name, so more data never moves a patient."""
    point = int(hashlib.sha256(patient.encode()).hexdigest()[:8], 16) / 2**32
    for split, fraction in fractions.items():
        point -= fraction
        if point < 0:
            return split
    return "train"


def _split(patient: str, plan: Plan, splits: dict[str, str], stated: str | None = None) -> str:
    """The split of a patient: that of an earlier input, else the `stated` one, else by its name."""
    wanted = plan.split or stated or split_of(patient, plan.fractions)
    return "train" if plan.published else splits.setdefault(patient, wanted)


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


def items_alone(folder: Path) -> list[Item]:
    """A folder's CT pictures without partners."""
    return [
        Item("alone", folder, path.stem, f"{folder.name}_{path.stem}", "unpaired", path)
        for path in sorted(folder.rglob("*.png"))
    ]
