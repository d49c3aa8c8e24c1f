"""From the scans of one item to its model images, if they can be learnt from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from mediffuse.alignment import APART, DOUBTFUL, alignment
from mediffuse.dataset import Row
from mediffuse.directions import prompt_for
from mediffuse.files import sha256_of, write_png
from mediffuse.image.ct_picture import guess_picture_modality, guess_png_window, png_ct_to_hu
from mediffuse.image.intensity import AIR_HU, CT_WINDOWS, TISSUE_HU, encode_ct, encode_mr, to_uint8, window
from mediffuse.image.letterbox import Letterbox, resize
from mediffuse.prepare.manifest import Record, hashes
from mediffuse.prepare.plan import Item, Plan, UnpairedRow
from mediffuse.scan import Scan, ScanError
from mediffuse.scan.guard import read_scan
from mediffuse.scan.picture import read_grey

MIN_PLANE_MM = 64.0
"""Shorter side of a plane of a volume that can tell whether a pair lies on each other."""


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


def _make_alone(item: Item, plan: Plan, canvas: Canvas) -> None:
    """Write a CT picture without a partner. Raises ScanError."""
    grey, said = read_grey(item.ct, "CT")
    for text in said:
        canvas.warn(text)
    hu = png_ct_to_hu(grey, guess_png_window(grey))
    name = canvas.image(item.stem, to_uint8(encode_ct(Letterbox(hu.shape, size=canvas.size).fit(hu, AIR_HU))))
    canvas.rows.append(UnpairedRow(file_name=name, modality="CT", source=item.source))
