"""What a visitor or a script asks for: per tab a dataclass whose fields are the API's parameters, in order.

Their defaults stand in where an event passes only some of them.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, fields

import gradio as gr

from mediffuse.directions import modalities
from mediffuse.image.contours import Thresholds
from mediffuse.image.display import BRAIN
from mediffuse.scan import Scan
from mediffuse.translate import MAX_SEED, Settings
from mediffuse.translate.volumes import Passes


@dataclass(frozen=True)
class Speed:
    """A speed of `Settings` on the page, where it is called by what it is good for.

    at_once: quick enough to translate a new scan, slice or contrast without being asked.
    sampled: draws from noise, so it has a seed, samples and steps, which are shown as they come.
    """

    title: str
    at_once: bool
    sampled: bool


SPEED_CHOICES = {
    "fast": Speed("Fast: closest to a real scan, but smooth (recommended)", at_once=True, sampled=False),
    "sharp": Speed("Sharp: as sharp as a real scan; may invent detail", at_once=True, sampled=False),
    "diffusion": Speed("Diffusion: several possible pictures, and how uncertain they are", at_once=False, sampled=True),
}


MOST_STEPS = 400
"""Of the model in one slice, guidance counted: 20 s on two processor cores."""
MOST_STEPS_OF_SLICE = 100
"""In one slice of a volume: so long do others wait until it gives way."""
MOST_STEPS_OF_VOLUME = 8000
"""In all of a volume: six minutes on two processor cores."""


def _steps(settings: Settings) -> int:
    """How often the model runs for a slice."""
    if settings.speed != "diffusion":
        return 2 if settings.mirror else 1
    return settings.steps * settings.samples * (3 if settings.guidance > 1 else 1)


def _refuse(work: str, steps: int, most: int, lower: str) -> None:
    """Raise gr.Error if there are too many steps."""
    if steps > most:
        raise gr.Error(
            f"{work} would be {steps:,} steps of the model; this page does at most {most:,}. Lower the {lower}.",
            print_exception=False,
        )


@dataclass(frozen=True)
class AskedSlice:
    """Of the tabs CT -> MRI and MRI -> CT. scan, truth: paths of uploads. index: -1 for the central slice.

    shown: which window a picture of a CT shows. view: the window in which CT is displayed. series: as in `read_scan`.
    truth_contrast: "T1", "T2", "other", or "auto" for what the file tells. pair: which two pictures lie on each other,
    a key of `words.PAIRS`.
    """

    scan: str | None = None
    index: float | None = -1
    shown: str = "auto"
    view: str = BRAIN
    speed: str = "fast"
    steps: float = Settings.steps
    samples: float = 1
    guidance: float = 1
    image_guidance: float = 1
    seed: float | None = 0
    random: bool = False
    truth: str | None = None
    contrast: str = "T1"
    start: str = "mean"
    series: str = ""
    truth_contrast: str = "auto"
    pair: str = "input-made"

    def recipe(self, seed: int | None = None) -> tuple:
        """What decides the picture beside the scan: equal where the same is asked for. seed: the one drawn, if any."""
        made_by = self.speed, self.contrast, self.thresholds()
        if not SPEED_CHOICES[self.speed].sampled:
            return made_by
        guidance = float(self.guidance), float(self.image_guidance) if self.guidance > 1 else 1.0
        seed = seed if self.random and seed is not None else int(self.seed or 0)
        return *made_by, int(self.steps), int(self.samples), guidance, seed, self.start

    def settings(self) -> Settings:
        """How to translate, with a seed drawn if a random one is wanted. Raises gr.Error."""
        random = self.random and SPEED_CHOICES[self.speed].sampled
        try:
            return Settings(
                self.speed,
                int(self.steps),
                float(self.guidance),
                float(self.image_guidance),
                secrets.randbelow(MAX_SEED) if random else int(self.seed or 0),
                int(self.samples),
                self.contrast,
                start=self.start,
            )
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def check_work(self, times: int = 1) -> None:
        """Raise gr.Error if this, done so many times, takes too long for a page that others use too."""
        lower = "steps or the samples, or set the guidance to 1"
        _refuse("This", times * _steps(self.settings()), MOST_STEPS, lower)

    def thresholds(self) -> Thresholds | None:
        """Of contours, for the tab that has them."""
        return None


@dataclass(frozen=True)
class AskedContours(AskedSlice):
    """Of the tab Contours -> MRI: the same, and Canny's thresholds."""

    mode: str = Thresholds.mode
    bone_low: float = Thresholds.bone[0]
    bone_high: float = Thresholds.bone[1]
    tissue_low: float = Thresholds.tissue[0]
    tissue_high: float = Thresholds.tissue[1]
    brain_low: float = Thresholds.brain[0]
    brain_high: float = Thresholds.brain[1]

    def thresholds(self) -> Thresholds:
        return Thresholds(
            bone=(float(self.bone_low), float(self.bone_high)),
            tissue=(float(self.tissue_low), float(self.tissue_high)),
            brain=(float(self.brain_low), float(self.brain_high)),
            mode=self.mode,
        )


@dataclass(frozen=True)
class AskedVolume:
    """Of the Volume tab. paths, truth: uploads; series: as in `read_scan`.

    register: move the ground truth onto the scan first. dicom: write a DICOM series too. deface: blank the face in
    all that is shown and written. truth_contrast: as in `AskedSlice`.
    """

    paths: list[str] | None = None
    direction: str = "ct2mr"
    series: str = ""
    contrast: str = "T1"
    speed: str = "fast"
    steps: float = Settings.steps
    samples: float = 1
    seed: float | None = 0
    planes: tuple[str, ...] = ("axial",)
    mirror: bool = False
    truth: list[str] | None = None
    register: bool = False
    dicom: bool = False
    start: str = "mean"
    deface: bool = False
    truth_contrast: str = "auto"

    def recipe(self) -> str:
        """A hash of what decides the volume that is made: equal where the same is asked for."""
        paths = sorted(str(path) for path in self.paths or ())
        made_by = [paths, self.direction, self.series or "", bool(self.deface)]
        made_by += [self.speed, sorted(self.planes), bool(self.mirror)]
        if modalities(self.direction)[1] == "MR":
            made_by.append(self.contrast)
        if SPEED_CHOICES[self.speed].sampled:
            made_by += [int(self.steps), int(self.samples), int(self.seed or 0), self.start]
        return hashlib.sha256(repr(made_by).encode()).hexdigest()[:16]

    def settings(self) -> Settings:
        """How to translate a slice. Raises gr.Error."""
        try:
            return Settings(
                self.speed,
                int(self.steps),
                seed=int(self.seed or 0),
                samples=int(self.samples),
                contrast=self.contrast,
                start=self.start,
            )
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def passes(self) -> Passes:
        """Which slices to translate. Raises gr.Error."""
        if not self.planes:
            raise gr.Error("Choose at least one plane.", print_exception=False)
        return Passes(tuple(self.planes), bool(self.mirror))

    def check_work(self, scan: Scan) -> None:
        """Raise gr.Error if this takes too long for a page that others use too."""
        steps, passes = _steps(self.settings()), self.passes()
        slices = sum(scan.count(plane) for plane in passes.planes) * (2 if passes.mirror else 1)
        _refuse("Each slice", steps, MOST_STEPS_OF_SLICE, "steps or the samples")
        lower = "steps, the samples or the planes, or translate it by the command line"
        _refuse(f"These {slices:,} slices", slices * steps, MOST_STEPS_OF_VOLUME, lower)


def parameters(asked: type) -> list[str]:
    """The API's parameters of one of these classes, in order."""
    return [field.name for field in fields(asked)]
