"""Whether a volume's values are what they should be: HU with air in a CT, and in an MRI air that is black.

What is certain is put right and said, the rest is said. Only values are looked at, never what a header claims of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mediffuse.directions import WITH_ARTICLE
from mediffuse.image.ct_picture import (
    BRAIN_HU,
    HEAD_GREY,
    PNG_WINDOWS,
    SATURATED_BONE_HU,
    guess_picture_modality,
    guess_png_window,
    png_ct_to_hu,
)
from mediffuse.image.intensity import AIR_HU, TISSUE_HU, fillers, mr_limits, some
from mediffuse.scan.types import Scan, ScanError, as_shown

AIR, SOFT = (-1100.0, -900.0), (-20.0, 100.0)
"""HU of the commonest air of a scan and of its commonest soft tissue. The brain's is 20 to 50, muscle's 60."""

AIR_TO_SOFT = (950.0, 1110.0)
"""How far apart the two are, whatever was added to both."""

USUAL_SHIFTS = (1024, 1000, -1024, -1000, 2048, 8192, 31744, 32768)
"""What is added to HU so that none is negative, or was subtracted twice."""

DENSEST_HU = 3100.0
"""Scanners end at 3071 HU: one value over this at a scan's border is padding."""

SOFT_SHARE, AIR_SHARE, CUT_SHARE = 0.3, 0.001, 0.03
"""Share of a head's tissue within 60 HU of its commonest at the least; share of air below which a CT has none; share of
one brightest value above which its bone was cut off."""

EVEN_PIXELS = 12
"""Connected pixels of one value in a slice from which on they are not there by chance."""

_SAVE_HU = "Save it in HU, with air at -1000."


@dataclass(frozen=True)
class Checked:
    """voxels (X, Y, Z) as they should be, and what was found, in sentences for the user. wrong: those which say that
    the scan is not what it should be, so that nothing can be learnt from it. guess: "CT", "MR" or None."""

    voxels: np.ndarray
    warnings: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    guess: str | None = None


def with_checked_values(scan: Scan, stated: str | None = None) -> Scan:
    """A volume with its values put right, its MR limits, and what there is to say of them before its own warnings.

    stated: the modality that the file states. Raises ScanError where nothing is to be seen.
    """
    voxels, said = _numbers(scan)
    if (stated or scan.modality) != scan.modality:
        checked = Checked(voxels, guess=stated)
    else:
        checked = (check_ct if scan.modality == "CT" else check_mr)(voxels, stated)
    warnings, wrong = checked.warnings, checked.wrong
    if checked.guess and checked.guess != scan.modality:
        warnings = wrong = (other_modality(checked.guess, scan.modality, sure=bool(stated)),)
    return replace(
        scan,
        voxels=checked.voxels,
        limits=mr_limits(checked.voxels) if scan.modality == "MR" else None,
        warnings=(*warnings, *said, *scan.warnings),
        wrong=wrong,
        looks=stated or checked.guess,
    )


def other_modality(found: str, needed: str, *, sure: bool) -> str:
    """The warning of a scan that is of another modality. sure: the file states it."""
    return (
        f"{'The file says it is' if sure else 'This looks like'} {WITH_ARTICLE[found]}, and this needs "
        f"{WITH_ARTICLE[needed]}: the result will mean nothing if it is."
    )


def _numbers(scan: Scan) -> tuple[np.ndarray, tuple[str, ...]]:
    """A scan's voxels with air for what is no number, and what to say of it."""
    finite = np.isfinite(scan.voxels)
    count = scan.voxels.size - np.count_nonzero(finite)
    if not count:
        return scan.voxels, ()
    known = scan.voxels[finite]
    if not known.size or known.min() == known.max():
        raise ScanError(f"{scan.name} has nothing but voxels that are not numbers (NaN or infinite). Export it again.")
    air = AIR_HU if scan.modality == "CT" else float(known.min())
    said = (
        f"{_share(count, scan.voxels.size)} of the voxels are not numbers (NaN or infinite): they were taken for air."
    )
    return np.where(finite, scan.voxels, np.float32(air)), (said,)


# CT


def check_ct(voxels: np.ndarray, stated: str | None = None) -> Checked:
    """A volume that should be a CT, in HU. stated: the modality that its file states."""
    ground, sample = fillers(voxels), some(voxels)
    rest = _without(sample, ground)
    shift = hu_shift(rest, ground)
    if shift is None or (shift and not stated):
        look = _look_of(voxels, ground, rest)
        if shift is None and _in_hu_without_air(rest) and (look != "MR" or stated):
            shift = 0
        elif shift is None and look == "MR" and 0 in ground and _brain_alone(rest):
            text = f"This is a brain in HU without skull and air, or an MRI, which will mean nothing. {_SAVE_HU}"
            return Checked(_filled_with_air(voxels, ground)[0], (text,), (text,), "CT")
        elif look == "MR" or (look is None and shift is None):
            return _no_hu(voxels, rest, stated, look)
        elif shift is None:
            return _scaled(voxels, ground, rest)
    said = []
    if shift:
        voxels = voxels - np.float32(shift)
        said.append(f"The values are HU {'+' if shift > 0 else '-'} {abs(shift)}, not HU: this was put right.")
    voxels, filled = _filled_with_air(voxels, ground - shift)
    cut = _bone_cut_off(rest - shift)
    if cut is not None:
        voxels = np.where(voxels >= cut, np.float32(max(cut, SATURATED_BONE_HU)), voxels)
        wrong = f"The values end at {cut:g} HU, as in a window: what is brighter was taken for bone. {_SAVE_HU}"
        return Checked(voxels, (*said, wrong, *filled), (wrong,), "CT")
    if np.count_nonzero(some(voxels) < TISSUE_HU) < AIR_SHARE * sample.size:
        filled.append(
            "There is no air near -1000 HU in this CT: the result is right only if there is none in the scan."
        )
    return Checked(voxels, (*said, *filled), (), "CT")


def hu_shift(rest: np.ndarray, ground: np.ndarray) -> int | None:
    """What was added to the HU of a CT, 0 where they are HU; None where air and soft tissue do not lie as in any CT.

    rest: its values without `ground`, the `fillers` of its border.
    """
    modes = _modes(rest)
    air = [*modes, *ground, *np.percentile(rest, [0.5])]
    if any(SOFT[0] <= m <= SOFT[1] for m in modes) and any(AIR[0] <= a <= AIR[1] for a in air):
        return 0
    for soft in modes:
        tissue = rest[rest > soft - 500]
        if np.count_nonzero(np.abs(tissue - soft) < 60) < SOFT_SHARE * tissue.size:
            continue
        if any(AIR_TO_SOFT[0] <= soft - a <= AIR_TO_SOFT[1] for a in air):
            near = min(USUAL_SHIFTS, key=lambda usual: abs(soft - BRAIN_HU - usual))
            return near if abs(soft - BRAIN_HU - near) < 30 else round(soft - BRAIN_HU)
    return None


def _modes(values: np.ndarray, most: int = 4) -> list[float]:
    """The commonest values, to 10, of which none is within 200 of a commoner one."""
    low, high = np.percentile(values, (0.5, 99.5))
    counts, edges = np.histogram(values, np.arange(low - 20, min(high, low + 1e5) + 30, 10))
    counts = np.convolve(counts, (1, 1, 1), "same")
    found: list[float] = []
    for place in np.argsort(-counts, kind="stable"):
        centre = float(edges[place] + 5)
        if counts[place] == 0 or len(found) == most:
            break
        if all(abs(centre - other) > 200 for other in found):
            found.append(centre)
    return found


def _in_hu_without_air(rest: np.ndarray) -> bool:
    """Whether these may be HU of a head without air: of a brain alone, of a part of it, or cut to a window."""
    low, high = np.percentile(rest, (1, 99.5))
    commonest = 15 <= _modes(rest)[0] <= 70
    return bool(commonest and AIR[0] <= low and high <= DENSEST_HU and (low < -20 or high <= 120 or high > 260))


def _brain_alone(rest: np.ndarray) -> bool:
    """Whether these may be HU of a brain without its skull."""
    return _in_hu_without_air(rest) and bool(np.percentile(rest, 95) <= 120)


def _bone_cut_off(hu: np.ndarray) -> float | None:
    """The brightest of HU where so many have this value that it is a window's end."""
    high = float(hu.max())
    return high if high < 1000 and np.count_nonzero(hu == high) > CUT_SHARE * hu.size else None


def _filled_with_air(voxels: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """HU with air where one of `ground`, the `fillers` of the border, stands for what was not measured."""
    said = []
    for value in ground:
        if AIR[0] <= value <= -850:
            continue
        if AIR[0] <= value <= DENSEST_HU:
            where, what = _even(voxels == value), "What surrounds the head"
        else:
            where, what = voxels == value, "The padding of the scan"
        voxels = np.where(where, np.float32(AIR_HU), voxels)
        said.append(f"{what} is {value:g} HU ({_share(np.count_nonzero(where), where.size)}): it was taken for air.")
    return voxels, said


def _even(mask: np.ndarray) -> np.ndarray:
    """The part of `mask` (X, Y, Z) that reaches the border or is larger than noise would let one value be, slice by
    slice along the shortest axis."""
    from scipy import ndimage

    axis = int(np.argmin(mask.shape))
    reached = np.zeros_like(mask)
    for index in range(mask.shape[axis]):
        plane = tuple(index if a == axis else np.s_[:] for a in range(3))
        labels, _ = ndimage.label(mask[plane])
        at_border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
        large = np.flatnonzero(np.bincount(labels.ravel()) >= EVEN_PIXELS)
        found = np.union1d(at_border, large)
        reached[plane] = np.isin(labels, found[found > 0])
    return reached


def _scaled(voxels: np.ndarray, ground: np.ndarray, rest: np.ndarray) -> Checked:
    """A CT whose values were scaled, as those of a picture are, in about the HU that a picture would be read in."""
    low, high = _range(ground, rest)
    grey = np.clip((voxels - low) / (high - low), 0, 1)
    for value in ground[(ground < low) | (ground > high)]:
        grey[voxels == value] = 0
    shown = guess_png_window(grey)
    text = (
        f"The values are no HU ({low:.4g} to {high:.4g}): they were read as a picture of the window "
        f"{PNG_WINDOWS[shown]}, which is a guess. {_SAVE_HU}"
    )
    return Checked(png_ct_to_hu(grey, shown), (text,), (text,), "CT")


def _no_hu(voxels: np.ndarray, rest: np.ndarray, stated: str | None, look: str | None) -> Checked:
    """What to say of values that are those of no CT, as far as can be told."""
    if not stated and (look == "MR" or rest.min() > -200):
        return Checked(voxels, guess="MR")
    text = f"The values are no HU ({rest.min():.4g} to {rest.max():.4g}), so the result will mean little. {_SAVE_HU}"
    return Checked(voxels, (text,), (text,))


# MRI


def check_mr(voxels: np.ndarray, stated: str | None = None) -> Checked:
    """A volume that should be an MRI. stated: the modality that its file states."""
    ground = fillers(voxels)
    if not stated and looks_like(voxels, ground) == "CT":
        return Checked(voxels, guess="CT")
    rest = _without(some(voxels), ground)
    low, high = np.percentile(rest, (1, 99.5))
    dark = mr_limits(rest)[0]
    said = []
    for value in ground:
        above = value > low + 0.1 * (high - low)
        if not above and value > low - 0.5 * (high - low) and not (value < 0 <= low):
            continue  # masked air
        where = _even(voxels == value) if above else voxels == value
        voxels = np.where(where, np.float32(dark), voxels)
        what = "brighter than the darkest tissue" if above else "far below all else"
        said.append(f"What surrounds the head is {value:g}, {what}, as by normalising or padding: it was made black.")
    black, white = mr_limits(voxels)
    dark, bright = np.count_nonzero(voxels < black), np.count_nonzero(voxels > black + 3 * (white - black))
    if dark:
        said.append(f"{dark} of its voxels are darker than air (down to {voxels.min():g}): they were taken for black.")
    if bright:
        said.append(f"{bright} of its voxels are far brighter than all others: they were taken for white.")
    return Checked(voxels, tuple(said), (), stated or "MR")


def looks_like(voxels: np.ndarray, ground: np.ndarray | None = None) -> str | None:
    """Guess whether a volume (X, Y, Z) is "CT" or "MR", or None. ground: its `fillers`, if they are known."""
    ground = fillers(voxels) if ground is None else ground
    rest = _without(some(voxels), ground)
    if np.percentile(rest, 1) < TISSUE_HU or _look_of(voxels, ground, rest) == "CT":
        return "CT"
    return "MR" if rest.min() > -200 else None


def _look_of(voxels: np.ndarray, ground: np.ndarray, rest: np.ndarray) -> str | None:
    """What most slices of a volume look like as pictures, whatever their units: "CT", "MR" or None."""
    low, high = _range(ground, rest)
    votes = Counter()
    for plane in _some_slices(voxels):
        grey = np.clip((np.where(np.isin(plane, ground), low, plane) - low) / (high - low), 0, 1)
        border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
        # A picture that shows no air has no dark to tell the tissues by.
        votes[guess_picture_modality(grey) if np.median(border) < HEAD_GREY else None] += 1
    found, count = votes.most_common(1)[0]
    return found if count >= 0.6 * votes.total() else None


def _range(ground: np.ndarray, rest: np.ndarray) -> tuple[float, float]:
    """What is black and white in a volume without HU. rest: its values without `ground`."""
    low, high = mr_limits(rest)
    near = ground[(ground < low) & (ground >= low - 0.5 * (high - low))]
    return float(near.min()) if near.size else low, high


def _some_slices(voxels: np.ndarray, most: int = 9) -> Iterator[np.ndarray]:
    """Slices of the middle of a volume, along its shortest axis."""
    axis = int(np.argmin(voxels.shape))
    count = voxels.shape[axis]
    for index in np.unique(np.linspace(0.25 * (count - 1), 0.75 * (count - 1), most).astype(int)):
        yield as_shown(np.moveaxis(voxels, axis, 0)[index])


def _without(sample: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """The values of `sample` that are none of `ground`, unless hardly any is left."""
    rest = sample[~np.isin(sample, ground)]
    return rest if rest.size > 0.01 * sample.size else sample


def _share(count: int, size: int) -> str:
    """A share in per cent, in words."""
    share = 100 * count / size
    return f"{share:.0f} %" if share >= 1 else "less than 1 %"
