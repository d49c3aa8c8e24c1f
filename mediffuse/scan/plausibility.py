"""What about a scan is unlike the parts of the body that a model knows: said, never forbidden."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mediffuse.directions import ANATOMIES
from mediffuse.image.intensity import BONE_HU
from mediffuse.image.letterbox import resize

if TYPE_CHECKING:
    from mediffuse.scan.types import Scan

HEAD_WIDTH_MM = (100.0, 235.0)
"""Left to right. Adult heads with ears are 140 to 200 mm wide; shoulders are over 350."""

WIDTH_MM = {
    "head": HEAD_WIDTH_MM,
    "head-neck": (100.0, 650.0),
    **dict.fromkeys(("thorax", "abdomen", "pelvis"), (200.0, 650.0)),
}
"""Left to right, of what is in the scan, of small adults to large ones with their arms."""

BONE_SHARE = (0.09, 0.45)
"""Share of bone in a head. Measured on four head CTs: 0.14 to 0.18; two legs: 0.07."""

METAL_HU, METAL_ML = 3000.0, 0.1
"""Enamel, the densest tissue, stays below 3000 HU; a head with dental metal has 8 ml above."""

SKULL_SHARE = 0.3
"""Share of the outline of a head in MRI behind which there is the dark of the skull, between scalp and brain. Of 153
axial slices of SynthRAD2023 one is below (0.17; the next 0.43), and none of those slices without their skull is above
(at most 0.26). Colin27's T1 has 0.9, its brain alone 0.1."""

BRAIN_WIDTH_MM = 155.0
"""No brain is wider; most heads are."""

FACE_MM = 20.0
"""How far the front of a face may lie behind the front of the forehead. A whole face lies before it or up to 8 mm
behind, faces that were cut away in SynthRAD2023 up to 40 mm."""

SLAB_MM = 40.0
"""Height of a scan of several slices below which it is a slab: the example scans are 80 mm."""

CUT_SHARE = 0.25
"""Share of a side of the scan's field of view that a head takes up where it is cut off there."""

T2_ECHO_MS = 60.0
"""Spin echoes later than this are T2-weighted (T1: below 30 ms)."""

BODY_PART, AGENT, ECHO = "BodyPartExamined", "ContrastBolusAgent", "EchoTime"
TAGS = (BODY_PART, AGENT, ECHO)
_NECKS = ("NECK", "CSPINE", "LARYNX", "PHARYNX")
_PARTS = {
    "head": ("HEAD", "BRAIN", "SKULL", "CRANI", "FACE", "SINUS", "ORBIT"),
    "head-neck": (*_NECKS, "HEAD", "BRAIN", "SKULL", "FACE"),
    "thorax": ("CHEST", "THORA", "LUNG", "BREAST", "HEART", "TSPINE"),
    "abdomen": ("ABDOM", "LIVER", "KIDNEY", "PANCREA", "LSPINE"),
    "pelvis": ("PELVI", "PROSTATE", "BLADDER", "HIP", "RECTUM", "CERVIX", "UTERUS"),
}
"""Words of DICOM's BodyPartExamined by part of the body (PS3.16, Annex L, and what scanners write)."""


def oddities(scan: Scan, known: Sequence[str] = ("head",)) -> list[str]:
    """Sentences for the user about body part, what is missing of the head, metal, contrast agent and MR contrast.

    known: the parts of the body that the model knows, of `ANATOMIES`. Of pictures, whose mm are not known, nothing.
    Values are checked in `values`.
    """
    if scan.kind == "picture":
        return []
    found = [_body_part(scan, known)]
    if _is_head(scan, known):
        found = [found[0] or _part_of_a_head(scan), _no_skull(scan), _no_face(scan)]
    if scan.modality == "CT":
        millilitres = np.count_nonzero(scan.voxels > METAL_HU) * float(np.prod(scan.spacing)) / 1000
        if millilitres > METAL_ML:
            found.append(
                f"There is metal in it ({millilitres:.1f} ml over {METAL_HU:.0f} HU): what lies around it is a guess."
            )
    agent = scan.tags.get(AGENT, "")
    if agent and agent.upper() not in ("NO", "NONE"):
        found.append(f"A contrast agent was given ({agent}): the models may take it for something else.")
    echo = _number(scan.tags.get(ECHO))
    if scan.modality == "MR" and echo and echo > T2_ECHO_MS:
        found.append(f"This MRI is T2-weighted (echo time {echo:.0f} ms): MRI to CT has learnt mostly from T1.")
    return [text for text in found if text]


def contrast_of(scan: Scan) -> str | None:
    """The contrast of an MRI, "T1", "T2" or "other" (FLAIR, ...), where its name or its echo time tells; else None."""
    name = scan.name.lower()
    if re.search(r"flair|dwi|adc|swi|t2(star|\*)", name):
        return "other"
    if found := set(re.findall(r"(?<![a-z0-9])(t[12])(?![0-9])", name)):
        return found.pop().upper() if len(found) == 1 else None
    echo = _number(scan.tags.get(ECHO))
    return "T2" if echo and echo > T2_ECHO_MS else None


def _width(scan: Scan) -> float | None:
    """mm from left to right of what is in the scan; None where there is nothing."""
    return None if scan.head is None else float((scan.head[1] - scan.head[0])[0] * scan.spacing[0])


def likeliest(scan: Scan, known: Sequence[str]) -> str:
    """Which of the `known` parts of the body a scan shows, by what its file says, else by its width; else the first."""
    part, width = scan.tags.get(BODY_PART, "").upper(), _width(scan)
    told = [name for name in known if any(word in part for word in _PARTS[name])]
    wide = [name for name in known if width and WIDTH_MM[name][0] <= width <= WIDTH_MM[name][1]]
    return next(iter((*told, *wide, *known)))


def _is_head(scan: Scan, known: Sequence[str]) -> bool:
    """Whether a scan is looked at as one of a head: the model knows heads, and nothing else that it may be."""
    if "head" not in known:
        return False
    width = _width(scan)
    return len(known) == 1 or width is None or width <= HEAD_WIDTH_MM[1]


def _body_part(scan: Scan, known: Sequence[str]) -> str | None:
    """Whether the scan shows another part of the body than those `known`, by what its file says or its size."""
    part = scan.tags.get(BODY_PART, "").upper()
    only = " and ".join(ANATOMIES[name] for name in known)
    if part and not any(word in part for name in known for word in _PARTS[name]):
        return f"The file says it shows {part}: the models know {only} only."
    width = _width(scan)
    if width is None:
        return None
    if not _is_head(scan, known):
        several = scan.count("axial") > 1 and min(scan.voxels.shape[:2]) > 1
        if several and not any(WIDTH_MM[name][0] <= width <= WIDTH_MM[name][1] for name in known):
            return f"This is {width:.0f} mm wide, so it is something else or a part of it: the models know {only} only."
        return None
    low, high = scan.head
    if width > HEAD_WIDTH_MM[1]:
        return f"This looks like more than a head ({width:.0f} mm wide): the models know heads only."
    if width < HEAD_WIDTH_MM[0] and scan.count("axial") > 1 and min(scan.voxels.shape[:2]) > 1:
        return f"This looks like no head, or a part of one ({width:.0f} mm wide): the models know whole heads only."
    if scan.modality == "CT" and min((high - low) * scan.spacing) > 60:
        inside = scan.voxels[tuple(np.s_[a:b:2] for a, b in zip(low, high, strict=True))]
        solid = inside > scan.tissue
        share = np.count_nonzero(inside > BONE_HU) / max(1, np.count_nonzero(solid))
        if not BONE_SHARE[0] < share < BONE_SHARE[1]:
            return f"This looks like no head ({100 * share:.0f} % bone): the models know heads only."
    return None


def _part_of_a_head(scan: Scan) -> str | None:
    """Whether the scan shows a slab only, or a head that its sides cut off."""
    if scan.head is None or min(scan.voxels.shape) == 1:
        return None
    sizes = np.array(scan.voxels.shape) * scan.spacing
    if sizes.min() < SLAB_MM:
        return (
            f"This is a slab of {sizes.min():.0f} mm, and no whole head: every slice is translated by itself, but its "
            "edges and, in an MRI, its brightness are less certain."
        )
    solid = scan.voxels[tuple(np.s_[:: max(1, round(2 / s))] for s in scan.spacing)] > scan.tissue
    for axis, names in enumerate((("left", "right"), ("back", "front"))):
        for end, name in zip((0, -1), names, strict=True):
            side = np.moveaxis(solid, axis, 0)[end]
            inner = np.moveaxis(solid, axis, 0)[solid.shape[axis] // 2]
            if np.count_nonzero(side) > CUT_SHARE * max(1, np.count_nonzero(inner)):
                return f"The head is cut off at the {name} of the scan: the result is less certain towards that side."
    return None


def _no_skull(scan: Scan) -> str | None:
    """Whether an MRI shows a brain alone: no scalp and skull around it."""
    if scan.modality != "MR" or scan.plane != "axial" or scan.head is None:
        return None
    if float((scan.head[1] - scan.head[0])[0] * scan.spacing[0]) > BRAIN_WIDTH_MM:
        return None
    shares = [_skull_share(*_outline(scan, index)) for index in _upper_levels(scan)]
    shares = [s for s in shares if s is not None]
    if not shares or np.median(shares) >= SKULL_SHARE:
        return None
    return "There is no scalp and skull around this brain: MRI to CT needs them, and will make no true skull."


def _upper_levels(scan: Scan) -> list[int]:
    """Axial slices through the skull's widest part: 45 to 85 mm below the top, or the middle ones."""
    count, mm = scan.count("axial"), scan.spacing[2]
    if count == 1:
        return [0]
    top = scan.head[1][2] if scan.head else count
    levels = [round(top - depth / mm) for depth in (45, 55, 65, 75, 85)]
    inside = [index for index in levels if 0 <= index < count]
    return sorted(set(inside)) or [count // 2]


def _outline(scan: Scan, index: int) -> tuple[np.ndarray, np.ndarray]:
    """(an axial slice at 1 mm a pixel, where its head is, bool (H, W))."""
    from scipy import ndimage

    place = scan.slice("axial", index)
    shape = [max(2, round(n * mm)) for n, mm in zip(place.pixels.shape, place.spacing, strict=True)]
    pixels = resize(place.pixels, tuple(shape))
    labels, count = ndimage.label(pixels > scan.tissue)
    if not count:
        return pixels, np.zeros(pixels.shape, bool)
    head = ndimage.binary_fill_holes(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
    labels, count = ndimage.label(ndimage.binary_opening(head, iterations=2))
    return pixels, labels == np.bincount(labels.ravel())[1:].argmax() + 1 if count else head


def _skull_share(pixels: np.ndarray, head: np.ndarray) -> float | None:
    """Share of the outline of `head`, bool (H, W), 1 mm a pixel, behind which there is, 2 to 14 mm deep, a dark of less
    than half of what is brighter on either side. None where the head is too small to tell."""
    from scipy import ndimage

    if np.count_nonzero(head) < 50 * 50:
        return None
    pixels = cv2.GaussianBlur(pixels, (0, 0), 0.7)
    depth = cv2.GaussianBlur(ndimage.distance_transform_edt(np.pad(head, 1))[1:-1, 1:-1].astype(np.float32), (0, 0), 2)
    inward = np.stack(np.gradient(depth))
    rows, columns = np.nonzero(head & ~ndimage.binary_erosion(head))
    steps = inward[:, rows, columns] / np.maximum(np.hypot(*inward[:, rows, columns]), 1e-6)
    along = np.arange(0, 26, 0.5)
    rays = ndimage.map_coordinates(
        pixels - pixels.min(),
        [rows[:, None] + steps[0][:, None] * along, columns[:, None] + steps[1][:, None] * along],
        order=1,
    )
    darkest = 4 + np.argmin(rays[:, 4:29], axis=1)
    before = np.maximum.accumulate(rays, axis=1)[np.arange(len(rays)), darkest]
    after = np.maximum.accumulate(rays[:, ::-1], axis=1)[:, ::-1][np.arange(len(rays)), darkest]
    return float(np.mean(rays[np.arange(len(rays)), darkest] < 0.5 * np.minimum(before, after)))


def _no_face(scan: Scan) -> str | None:
    """Whether the face was cut away, for privacy, below the forehead."""
    if scan.head is None or min(scan.voxels.shape) == 1:
        return None
    low, high = scan.head
    middle = slice(*(int(c) for c in np.round((low + high)[0] / 2 + np.array([-8, 9]) / scan.spacing[0])))
    solid = (scan.voxels[middle] > scan.tissue).mean(axis=0) > 0.3
    fronts = []
    for above, below in ((50, 80), (110, 150)):
        levels = slice(max(0, round(high[2] - below / scan.spacing[2])), round(high[2] - above / scan.spacing[2]))
        reached = np.flatnonzero(solid[:, levels].any(axis=1))
        if (high[2] - low[2]) * scan.spacing[2] < below or not reached.size:
            return None
        fronts.append(reached[-1] * scan.spacing[1])
    if fronts[0] - fronts[1] < FACE_MM:
        return None
    return "The face seems to be cut away (made anonymous): it will be missing in the result, too."


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
