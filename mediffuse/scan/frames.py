"""What the images of DICOM files say of themselves: a file holds one, or (multi-frame, enhanced) many.

PS3.3 C.7.6.2 (plane), C.7.6.16 (functional groups), C.8.13 and C.8.15 (enhanced MR and CT).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mediffuse.scan.headers import read_header
from mediffuse.scan.types import MODALITIES, ScanError

if TYPE_CHECKING:
    from pydicom import Dataset

MAX_FRAMES = 20_000
"""Images of a file, at most."""

_GROUPS = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "SpacingBetweenSlices": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "InversionTimes": "MRModifierSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "ConvolutionKernel": "CTReconstructionSequence",
    "StackID": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameAcquisitionNumber": "FrameContentSequence",
    "FrameAcquisitionDateTime": "FrameContentSequence",
}
"""The functional group that holds an attribute; in files without groups it stands by itself."""

_GE_COMPONENT = 0x0043102F
_KEYWORDS = (
    *_GROUPS,
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "Modality",
    "SeriesDescription",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "ImageType",
    "ComplexImageComponent",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "SliceLocation",
    "InstanceNumber",
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "TemporalPositionIdentifier",
    "AcquisitionNumber",
    "AcquisitionTime",
    _GE_COMPONENT,
)

_COMPONENTS = {"M": "magnitude", "P": "phase", "R": "real part", "I": "imaginary part"}
_COMPONENT_WORDS = {
    **_COMPONENTS,
    "MAGNITUDE": "magnitude",
    "PHASE": "phase",
    "PHASE MAP": "phase",
    "REAL": "real part",
    "IMAGINARY": "imaginary part",
}
_DIXON = {
    **dict.fromkeys(("W", "WATER"), "water"),
    **dict.fromkeys(("F", "FAT"), "fat"),
    **dict.fromkeys(("IP", "IN_PHASE", "IN PHASE", "INPHASE"), "in phase"),
    **dict.fromkeys(("OP", "OPP_PHASE", "OUT_PHASE", "OUT OF PHASE", "OUTPHASE"), "opposed phase"),
    **dict.fromkeys(("FF", "FAT_FRACTION"), "fat fraction"),
}
_SAYS_NOTHING = {"", "PRIMARY", "SECONDARY", "ND", "NORM", "DIS2D", "DIS3D", "FM", "FIL", "MFSPLIT", "NONE", "OTHER"}
_NO_SLICE = {"LOCALIZER", "SCOUT", "TOPOGRAM", "SCREEN SAVE", "SCREENSHOT", "DOSE_INFO"}
MOSAIC = "MOSAIC"


class Traits(NamedTuple):
    """What slices of one volume have in common.

    size: rows, columns. spacing: mm between them. component: "magnitude", "phase"... dixon: "water"... words: the
    rest of the image type. echo: its number and ms. inversion: ms. b_value: s/mm². kernel: of reconstruction.
    """

    size: tuple[int, int]
    spacing: tuple[float, float] | None
    component: str
    dixon: str
    words: tuple[str, ...]
    echo: tuple[int, float] | None
    inversion: float | None
    b_value: float | None
    kernel: str


@dataclass(frozen=True)
class Frame:
    """An image in a DICOM file, in LPS mm.

    number: in its file, from 0. of: how many its file has. instance: the file's number in the series. position: (3,),
    of the first pixel. orientation: (6,), along a row and along a column. spacing: between rows, between columns.
    apart: to the next slice, as the header says. location: along some axis. unfit: why it is no slice of a CT
    or MR, in words, or "". slope, intercept: to HU or the MR's units.
    time, stack, acquisition, clock: what repeats of a volume differ in. in_a_row: the file gives one position for all
    its images. None for what the file does not say.
    """

    path: Path
    number: int
    of: int
    series: str
    sop: str
    modality: str
    description: str
    instance: int
    unfit: str
    inverted: bool
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    apart: float | None
    thickness: float | None
    location: float | None
    slope: float
    intercept: float
    traits: Traits
    time: str
    stack: str
    acquisition: str
    clock: str
    in_a_row: bool = False

    @property
    def axes(self) -> np.ndarray:
        """(3, 3): unit vectors along a row, along a column, and along the normal; axial where it is not said."""
        along = np.reshape(self.orientation or (1, 0, 0, 0, 1, 0), (2, 3)).astype(float)
        along /= np.linalg.norm(along, axis=1, keepdims=True)
        return np.vstack([along, np.cross(*along)])

    @property
    def place(self) -> float:
        """mm along the normal; by location or number where no position is said."""
        if self.position is not None:
            return float(np.dot(self.position, self.axes[2]))
        if self.location is not None:
            return self.location
        return (self.instance + self.number) * (self.apart or 1.0)


def frames_of(path: Path) -> list[Frame]:
    """The images of a DICOM file; none for what is no DICOM, or holds no image. Raises ScanError for too many."""
    header = read_header(path, _KEYWORDS)
    try:
        if header is None or not header.get("Rows"):
            return []
        count = int(header.get("NumberOfFrames") or 1)
        if count > MAX_FRAMES:
            raise ScanError(f"{path.name} says it has {count} images: too many to read here. Export one scan.")
        shared = (header.get("SharedFunctionalGroupsSequence") or [None])[0]
        groups = list(header.get("PerFrameFunctionalGroupsSequence") or [])
        own = [groups[k] if k < len(groups) else None for k in range(count)]
        frames = [_frame(path, number, count, _Said(header, shared, own[number])) for number in range(count)]
    except ScanError:
        raise
    except Exception:  # noqa: BLE001 - whatever a damaged header raises
        return []
    return frames


class _Said:
    """What a header says of one frame: in the frame's own functional groups, in the shared ones, or by itself."""

    def __init__(self, header: Dataset, shared: Dataset | None, own: Dataset | None) -> None:
        self.header, self.groups = header, [g for g in (own, shared) if g is not None]
        self.is_placed = bool(own is not None and own.get("PlanePositionSequence"))

    def value(self, keyword: str | int) -> object:
        for group in self.groups:
            items = group.get(_GROUPS.get(keyword, "")) if keyword in _GROUPS else None
            if items and items[0].get(keyword) not in (None, ""):
                return items[0].get(keyword)
        found = self.header.get(keyword)
        return found.value if found is not None and isinstance(keyword, int) else found

    def text(self, keyword: str) -> str:
        value = self.value(keyword)
        return "" if value is None else str(value).strip(" \0")

    def numbers(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """`count` finite numbers, or None."""
        try:
            value = self.value(keyword)
            numbers = tuple(float(v) for v in (value if hasattr(value, "__iter__") else [value]))
        except (TypeError, ValueError, OverflowError):
            return None
        return numbers if len(numbers) == count and np.isfinite(numbers).all() else None

    def number(self, keyword: str | int) -> float | None:
        """The first of one or several finite numbers, or None."""
        try:
            value = self.value(keyword)
            number = float(value[0] if hasattr(value, "__getitem__") and not isinstance(value, str) else value)
        except (TypeError, ValueError, OverflowError, IndexError):
            return None
        return number if np.isfinite(number) else None

    def image_type(self) -> list[str]:
        """The words of the image type, and of the frame's own."""
        words = _words(self.header.get("ImageType"))
        for group in self.groups:
            for name in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence"):
                items = group.get(name)
                if items and items[0].get("FrameType"):
                    component = str(items[0].get("ComplexImageComponent") or "")
                    return [*_words(items[0].FrameType), component.upper()]
        return [*words, str(self.header.get("ComplexImageComponent") or "").upper()]


def _words(value: object) -> list[str]:
    values = value if hasattr(value, "__iter__") and not isinstance(value, str) else str(value or "").split("\\")
    return [str(v).strip(" \0").upper() for v in values]


def _frame(path: Path, number: int, of: int, said: _Said) -> Frame:
    words = said.image_type()
    modality = said.text("Modality").upper()
    apart, thickness = said.number("SpacingBetweenSlices"), said.number("SliceThickness")
    orientation, position = said.numbers("ImageOrientationPatient", 6), said.numbers("ImagePositionPatient", 3)
    if orientation and min(np.linalg.norm(np.reshape(orientation, (2, 3)), axis=1)) < 0.1:
        orientation = None
    spacing = said.numbers("PixelSpacing", 2)
    slope, intercept = said.number("RescaleSlope"), said.number("RescaleIntercept")
    frame = Frame(
        path=path,
        number=number,
        of=of,
        series=said.text("SeriesInstanceUID") or "unnamed",
        sop=said.text("SOPInstanceUID"),
        modality=modality,
        description=said.text("SeriesDescription"),
        instance=int(said.number("InstanceNumber") or 0),
        unfit=_unfit(said, words, modality),
        inverted=said.text("PhotometricInterpretation") == "MONOCHROME1",
        position=position,
        orientation=orientation,
        spacing=spacing if spacing and min(spacing) > 0 else None,
        apart=next((abs(v) for v in (apart, thickness) if v), None),
        thickness=thickness or None,
        location=said.number("SliceLocation"),
        slope=slope or 1.0,
        intercept=intercept or 0.0,
        traits=_traits(said, words, modality, spacing),
        time=said.text("TemporalPositionIdentifier") + said.text("TemporalPositionIndex"),
        stack=said.text("StackID"),
        acquisition=said.text("FrameAcquisitionNumber") or said.text("AcquisitionNumber"),
        clock=said.text("FrameAcquisitionDateTime") or said.text("AcquisitionTime"),
    )
    return frame if of == 1 or said.is_placed else _in_a_row(frame)


def _unfit(said: _Said, words: list[str], modality: str) -> str:
    """Why an image is no slice of a CT or MR, in words, or ""."""
    grey = said.text("PhotometricInterpretation") in ("", "MONOCHROME1", "MONOCHROME2")
    if said.number("SamplesPerPixel") not in (None, 1.0) or not grey:
        return "a colour DICOM (a screenshot or report)"
    if modality not in ("", *MODALITIES):
        return f"no CT or MR, but {modality}"
    return "a localiser or screenshot" if _NO_SLICE & set(words) else ""


def _in_a_row(frame: Frame) -> Frame:
    """A frame of a file that says one position for all: they lie one after the other from there."""
    if frame.position is None:
        return replace(frame, location=None, in_a_row=True)
    away = frame.axes[2] * frame.number * (frame.apart or 1.0)
    return replace(frame, position=tuple(np.add(frame.position, away)), location=None, in_a_row=True)


def _traits(said: _Said, words: list[str], modality: str, spacing: tuple[float, ...] | None) -> Traits:
    component = dixon = ""
    if modality != "CT":
        component = _component(said, words[2:])
        dixon = next((_DIXON[w] for w in words[2:] if w in _DIXON), "")
    known = {*_SAYS_NOTHING, *(_COMPONENT_WORDS if component else ()), *(_DIXON if dixon else ())}
    rest = {w for w in words if w not in known and not (component and w[:2] in ("M_", "P_", "R_", "I_"))}
    echo_time = said.number("EffectiveEchoTime")
    echo_time = said.number("EchoTime") if echo_time is None else echo_time
    return Traits(
        size=(int(said.number("Rows") or 0), int(said.number("Columns") or 0)),
        spacing=tuple(round(v, 3) for v in spacing) if spacing else None,
        component=component,
        dixon=dixon,
        words=tuple(sorted(rest)),
        echo=(int(said.number("EchoNumbers") or 0), round(echo_time, 1)) if echo_time is not None else None,
        inversion=said.number("InversionTimes") or said.number("InversionTime"),
        b_value=said.number("DiffusionBValue"),
        kernel=said.text("ConvolutionKernel"),
    )


def _component(said: _Said, words: list[str]) -> str:
    """Which part of the complex MR signal an image shows, or ""."""
    for word in words:
        if word in _COMPONENT_WORDS:
            return _COMPONENT_WORDS[word]
        if word[:2] in ("M_", "P_", "R_", "I_"):
            return _COMPONENTS[word[0]]
    number = said.number(_GE_COMPONENT)
    return list(_COMPONENTS.values())[int(number)] if number in (0, 1, 2, 3) else ""
