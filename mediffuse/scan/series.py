"""Which images of DICOM files make one volume, and which of the volumes of a series is meant.

A SeriesInstanceUID may cover magnitude and phase, several echoes, Dixon parts, acquisitions or points in time: they are
told apart as dcm2niix does, by what their headers say and by where they lie.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mediffuse.scan.archive import MAX_FILES
from mediffuse.scan.frames import Frame, frames_of
from mediffuse.scan.headers import pixel_bytes
from mediffuse.scan.types import ScanError

SAME_PLACE_MM = 1e-2
_MAPS = {"MIP", "MINIP", "PROJECTION IMAGE"}
NEVER_SCANS = {"SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SR", "PR", "KO", "REG", "DOC"}
"""Modalities of what is drawn or said of a scan."""


@dataclass(frozen=True)
class Volume:
    """Frames that make one volume. key: tells it from others: the SeriesInstanceUID, with a number where its series
    has several volumes that may be meant. title: for people. left_out: what to say of the rest of the series."""

    key: str
    frames: tuple[Frame, ...]
    title: str
    left_out: tuple[str, ...] = ()

    @property
    def modality(self) -> str:
        return self.frames[0].modality

    @property
    def files(self) -> list[Path]:
        """The files that the frames are in."""
        return list(dict.fromkeys(frame.path for frame in self.frames))


@dataclass(frozen=True)
class Series:
    """A DICOM series. volumes: the one that is meant, or those that may be. usable: whether it is a CT or MR, grey,
    no localiser."""

    uid: str
    modality: str
    title: str
    volumes: tuple[Volume, ...]
    usable: bool

    @property
    def frames(self) -> list[Frame]:
        return [frame for volume in self.volumes for frame in volume.frames]


def find_series(folder: Path) -> list[Series]:
    """The DICOM image series in a folder and those below: usable ones first, the largest first.

    Raises ScanError where there are more than `MAX_FILES` files.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    if len(files) > MAX_FILES:
        raise ScanError(f"{folder.name} holds {len(files)} files; give the folder of one scan.")
    return group_series(file for file in files if not file.name.startswith("."))


def group_series(files: Iterable[Path]) -> list[Series]:
    """The DICOM image series among files: usable ones first, the largest first."""
    groups: dict[str, list[Frame]] = defaultdict(list)
    for file in files:
        for frame in frames_of(file):
            groups[frame.series].append(frame)
    found = [_series(uid, frames) for uid, frames in groups.items()]
    return sorted(found, key=lambda s: (not s.usable, -len(s.frames)))


def _series(uid: str, frames: list[Frame]) -> Series:
    slices = [frame for frame in frames if not frame.unfit]
    said = Counter()
    if slices and len(slices) < len(frames):
        said.update(frame.unfit for frame in frames if frame.unfit)
    parts, copies = _volumes_in(slices or frames)
    parts, dropped = _wanted(parts)
    said.update(dropped)
    remarks = []
    if said:
        reasons = "; ".join(f"{count} {why}" if len(said) > 1 else why for why, count in said.items())
        remarks.append(f"{said.total()} images of this series were left out: {reasons}.")
    if copies:
        remarks.append(f"{copies} slices lie where another one does, and are the same; the first was taken.")
    first = parts[0][0]
    head = f"{first.description or 'Series'}: {first.modality or '?'}"
    labels = _labels(parts)
    volumes = tuple(
        Volume(
            uid if len(parts) == 1 else f"{uid}:{number}",
            tuple(part),
            ", ".join([head, *label, f"{len(part)} slice{'s' * (len(part) != 1)}"]),
            tuple(remarks) if len(parts) == 1 else (),
        )
        for number, (part, label) in enumerate(zip(parts, labels, strict=True), 1)
    )
    title = volumes[0].title if len(volumes) == 1 else f"{head}, {len(parts)} volumes"
    return Series(uid, first.modality, title, volumes, bool(slices))


def _volumes_in(frames: Sequence[Frame]) -> tuple[list[list[Frame]], int]:
    """(the frames of each volume of a series, how many others were copies of one)."""
    single = _single(frames)
    copies = len(frames) - len(single)
    alike: list[list[Frame]] = []
    for frame in single:
        group = next((g for g in alike if _alike(g[0], frame)), None)
        if group is None:
            alike.append([frame])
        else:
            group.append(frame)
    volumes = []
    for group in alike:
        for part in _apart(group, _REPEATS):
            different, same = _without_copies(part)
            copies += same
            volumes += _by_turn(different)
    return volumes, copies


def _single(frames: Sequence[Frame]) -> list[Frame]:
    """Frames without those of files that are there twice: of one SOPInstanceUID and, for many frames, one content."""
    files: dict[str, set[Path]] = defaultdict(set)
    for frame in frames:
        files[frame.sop].add(frame.path)
    first: dict[tuple[str, bytes | None], Path] = {}
    kept = []
    many = {frame.path for frame in frames if frame.of > 1 and len(files[frame.sop]) > 1}
    content = {path: pixel_bytes(path) for path in many}
    for frame in frames:
        original = first.setdefault((frame.sop, content.get(frame.path)), frame.path)
        if not frame.sop or original == frame.path:
            kept.append(frame)
    return kept


def _alike(first: Frame, second: Frame) -> bool:
    """Whether two images may be slices of one volume, by their headers."""
    turn = (first.orientation is None) == (second.orientation is None)
    return first.traits == second.traits and turn and np.allclose(first.axes, second.axes, atol=1e-2)


_REPEATS: tuple[tuple[str, Callable[[Frame], str]], ...] = (
    ("file", lambda frame: frame.path.name if frame.of > 1 else ""),
    ("time", lambda frame: frame.time),
    ("stack", lambda frame: frame.stack),
    ("acquisition", lambda frame: frame.acquisition),
    ("taken at", lambda frame: frame.clock),
)
"""What volumes at the same positions may differ in. Slices of one volume may, too: each of its own acquisition."""


def _apart(frames: list[Frame], by: Sequence[tuple[str, Callable[[Frame], str]]]) -> list[list[Frame]]:
    """`frames` split by the first of `by` that tells volumes apart, and on by the next."""
    if not by:
        return [frames]
    (_, value), *rest = by
    parts: dict[str, list[Frame]] = defaultdict(list)
    for frame in frames:
        parts[value(frame)].append(frame)
    if len(parts) > 1 and np.median([len(p) for p in parts.values()]) > 1 and not _complete(list(parts.values())):
        return [volume for part in parts.values() for volume in _apart(part, rest)]
    return _apart(frames, rest)


def _complete(parts: list[list[Frame]]) -> bool:
    """Whether parts are one volume together: they lie one behind the other, or interleave evenly."""
    places = [np.sort([frame.place for frame in part]) for part in parts]
    merged = np.sort(np.concatenate(places))
    steps = np.diff(merged)
    if steps.min() <= SAME_PLACE_MM:
        return False
    ends = sorted((p[0], p[-1]) for p in places)
    if all(high < low for (_, high), (low, _) in itertools.pairwise(ends)):
        return True
    thickness = parts[0][0].thickness
    step = np.median(steps)
    return bool(np.ptp(steps) < 0.2 * step and (thickness is None or thickness < 1.5 * step))


def _turns(frames: list[Frame]) -> list[tuple[Frame, int]]:
    """Each frame, in the order of its place, with how many before it in the series lie where it does."""
    turns, last = [], None
    for frame in sorted(frames, key=lambda f: (round(f.place / SAME_PLACE_MM), f.instance, f.number)):
        again = last is not None and abs(frame.place - last) <= SAME_PLACE_MM
        turns.append((frame, turns[-1][1] + 1 if again else 0))
        last = frame.place
    return turns


def _without_copies(frames: list[Frame]) -> tuple[list[Frame], int]:
    """(frames without those that have the pixels of another one in their place, how many those are)."""
    kept: list[Frame] = []
    first: bytes | None = None
    turns = _turns(frames)
    for place, (frame, turn) in enumerate(turns):
        repeated = place + 1 < len(turns) and turns[place + 1][1] > 0
        if turn == 0:
            first = pixel_bytes(frame.path) if repeated and frame.of == 1 else None
        elif first is not None and frame.of == 1 and pixel_bytes(frame.path) == first:
            continue
        kept.append(frame)
    return kept, len(frames) - len(kept)


def _by_turn(frames: list[Frame]) -> list[list[Frame]]:
    """Frames that lie in one place apart: the first of each place, the second of each, and so on."""
    parts: dict[int, list[Frame]] = defaultdict(list)
    for frame, turn in _turns(frames):
        parts[turn].append(frame)
    return list(parts.values())


def _wanted(parts: list[list[Frame]]) -> tuple[list[list[Frame]], Counter[str]]:
    """(the volumes that may be meant, how many images were left out by reason)."""
    dropped: Counter[str] = Counter()

    def keep(wanted: list[list[Frame]], why: Callable[[list[Frame]], str]) -> None:
        nonlocal parts
        if wanted:
            for part in parts:
                if not any(part is other for other in wanted):
                    dropped[why(part)] += len(part)
            parts = wanted

    keep(
        [p for p in parts if p[0].traits.component in ("", "magnitude")],
        lambda p: p[0].traits.component,
    )
    keep([p for p in parts if not _MAPS & set(p[0].traits.words)], lambda _: "projections (MIP)")
    largest = max(parts, key=len)
    keep(
        [p for p in parts if 4 * len(p) > len(largest)],
        lambda _: "unlike the others in size, orientation or echo: a localiser or screenshot, perhaps",
    )
    originals = [p for p in parts if "DERIVED" not in p[0].traits.words]
    if originals:
        most = max(map(len, originals))
        # Dixon's water and fat are called derived, too, and are no less meant than what they are made of.
        keep(
            [p for p in parts if "DERIVED" not in p[0].traits.words or p[0].traits.dixon or len(p) > most],
            lambda _: "derived from the others",
        )
    keep(
        [p for p in parts if not any(_is_part_of(p, other) for other in parts if other is not p)],
        lambda _: "an incomplete acquisition, beside a complete one",
    )
    return parts, dropped


def _is_part_of(part: list[Frame], whole: list[Frame]) -> bool:
    """Whether one volume is an aborted or partial repetition of another one."""
    if not _alike(part[0], whole[0]) or len(part) >= len(whole):
        return False
    here, there = (np.sort([f.place for f in p]) for p in (part, whole))
    step = np.median(np.diff(there)) if len(there) > 1 else 1.0
    nearest = np.abs(here[:, None] - there).min(axis=1)
    return bool((nearest < 0.1 * step).all() or np.ptp(here) < 0.6 * np.ptp(there))


def _labels(parts: list[list[Frame]]) -> list[list[str]]:
    """What tells volumes from each other, in words, for each."""
    said = [_described(part) for part in parts]
    return [[text for k, text in enumerate(one) if text and len({other[k] for other in said}) > 1] for one in said]


def _described(part: list[Frame]) -> list[str]:
    first = part[0]
    traits = first.traits
    normal = np.abs(first.axes[2])
    echo = traits.echo or (0, 0.0)
    return [
        traits.component or ("magnitude" if first.modality == "MR" else ""),
        traits.dixon,
        " ".join(traits.words).lower(),
        f"echo {echo[0] or ''} of {echo[1]:g} ms".replace("  ", " ") if traits.echo else "",
        f"inversion time {traits.inversion:g} ms" if traits.inversion else "",
        f"b = {traits.b_value:g}" if traits.b_value is not None else "",
        f"kernel {traits.kernel}" if traits.kernel else "",
        ("sagittal", "coronal", "axial")[int(normal.argmax())],
        f"{traits.size[1]} x {traits.size[0]}",
        f"{traits.spacing[0]:g} mm" if traits.spacing else "",
        *(f"{name} {value(first)}" if value(first) else "" for name, value in _REPEATS),
        f"from {part[0].place:.4g} mm",
    ]
