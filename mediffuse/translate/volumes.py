"""Translate a whole volume: every slice, put back in its place, on the scan's own grid.

Intensities and the head's frame are those of the volume, never of a slice, and one seed gives every
slice the same noise, so that neighbours agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from mediffuse.directions import modalities
from mediffuse.image.contours import Thresholds
from mediffuse.image.intensity import background
from mediffuse.scan import PLANES, Scan, ScanError, Slice
from mediffuse.scan.deface import blanked
from mediffuse.scan.plausibility import likeliest
from mediffuse.scan.resample import resampled, straightened
from mediffuse.translate.slices import Settings, Translator, to_model_image, to_slice

MARGIN_MM = 8.0
"""What is made further than this from the input's head is taken for air."""


@dataclass(frozen=True)
class Passes:
    """Which slices are translated. More than one pass is averaged, and their spread is an uncertainty.

    planes: of "axial", "coronal", "sagittal". mirror: each slice mirrored left to right is a pass of its own.
    batch: slices that go through the model together; by default 8 on a GPU, and on a processor one, which is
    faster there (docs/benchmark.md).
    """

    planes: tuple[str, ...] = ("axial",)
    mirror: bool = False
    batch: int | None = None

    def __post_init__(self) -> None:
        if not self.planes or set(self.planes) - set(PLANES):
            raise ValueError(f"Planes are {', '.join(PLANES)}, not {self.planes}.")
        if self.batch is not None and self.batch < 1:
            raise ValueError("A batch has at least one slice.")


@dataclass(frozen=True)
class VolumeTranslation:
    """What was made, on the scan's canonical grid (X, Y, Z): see `Scan.to_nifti`.

    voxels: float32, HU or MR in `intensity.MR_OUTPUT_LIMITS`. deviation: standard deviation of
    samples and passes, None where there was one. slices: how many went through the model.
    """

    voxels: np.ndarray
    deviation: np.ndarray | None
    modality: str
    slices: int
    seconds: float
    settings: Settings

    def without(self, face: np.ndarray | None) -> VolumeTranslation:
        """This with the `face` (X, Y, Z; None: nothing) blanked."""
        deviation = None if self.deviation is None else blanked(self.deviation, face, 0.0)
        return replace(self, voxels=blanked(self.voxels, face, background(self.modality)), deviation=deviation)


def of_anatomy(settings: Settings, scan: Scan, known: tuple[str, ...]) -> Settings:
    """`settings` for the part of the body that a scan shows, of those that a model knows, unless they name one."""
    if settings.anatomy is None and len(known) > 1:
        return replace(settings, anatomy=likeliest(scan, known))
    return settings


def translate_volume(
    translator: Translator,
    scan: Scan,
    direction: str,
    settings: Settings | None = None,
    passes: Passes | None = None,
    thresholds: Thresholds | None = None,
    on_slices: Callable[[int, int], None] | None = None,
    on_step: Callable[[], None] | None = None,
) -> VolumeTranslation:
    """Translate every slice of `scan` in which there is a head; elsewhere the result is air.

    `on_slices(done, of)` is called after each batch, `on_step()` after each step of the model; what they raise ends
    the run. Other runs of `translator` get their turn after each batch. Beside the result
    (three volumes with passes or samples) memory does not grow with the number of slices.
    Raises CheckpointError if the checkpoint cannot be used, ScanError for a scan without a head.
    """
    settings, passes = settings or Settings(), passes or Passes()
    started = time.perf_counter()
    if passes.mirror:
        settings = replace(settings, mirror=False)
    source, target = modalities(direction)
    if scan.modality != source:
        raise ValueError(f"{direction} translates {source}, not {scan.modality}")
    checkpoint = translator.checkpoints.get(direction)
    size = checkpoint.size
    settings = of_anatomy(settings, scan, checkpoint.anatomies)
    batch_size = passes.batch or (1 if checkpoint.pipeline.device.type == "cpu" else 8)
    upright = straightened(scan)
    head = upright.head_mask()
    if not head.any():
        raise ScanError(f"{scan.name} shows no head: there is nothing to translate in it.")
    planes = passes.planes if min(upright.voxels.shape) > 1 else (upright.plane,)
    todo = [(plane, index) for plane in planes for index in _with_head(head, upright, plane)]
    count = len(todo) * (2 if passes.mirror else 1)
    sampled = settings.speed == "diffusion" and settings.samples > 1
    estimates = _Estimates.of(upright.voxels.shape, spread=sampled or passes.mirror or len(planes) > 1)
    done = 0
    each_step = (lambda *_: on_step()) if on_step else None
    for mirrored in (False, True) if passes.mirror else (False,):
        for batch in _batches(todo, batch_size):
            slices = [upright.slice(plane, index) for plane, index in batch]
            boxes = [part.letterbox(size) for part in slices]
            images = np.stack([to_model_image(part, box) for part, box in zip(slices, boxes, strict=True)])
            made = translator.generate(direction, _flip(images, mirrored), settings, thresholds, each_step)
            made = _flip(made, mirrored).reshape(len(slices), -1, *made.shape[1:])
            for part, box, samples in zip(slices, boxes, made, strict=True):
                for image in samples:
                    estimates.add(part, to_slice(image, target, box))
            done += len(slices)
            if on_slices:
                on_slices(done, count)
    fill = background(target)
    voxels, deviation = estimates.mean, estimates.deviation()
    air = ~_widened(head, upright.spacing) | (estimates.counts == 0)
    voxels[air] = fill
    if deviation is not None:
        deviation[air] = 0
    if upright is not scan:
        voxels = resampled(replace(upright, voxels=voxels), scan, fill)
        deviation = None if deviation is None else resampled(replace(upright, voxels=deviation), scan, 0.0)
    return VolumeTranslation(voxels, deviation, target, count, time.perf_counter() - started, settings)


@dataclass(frozen=True)
class _Estimates:
    """What is known of each voxel (X, Y, Z) so far: how many estimates there were, their mean, and, where their
    spread is wanted, the sum of their squared deviations from it (Welford 1962)."""

    counts: np.ndarray
    mean: np.ndarray
    squares: np.ndarray | None

    @classmethod
    def of(cls, shape: tuple[int, ...], *, spread: bool) -> _Estimates:
        """No estimates yet."""
        return cls(
            np.zeros(shape, np.uint16), np.zeros(shape, np.float32), np.zeros(shape, np.float32) if spread else None
        )

    def add(self, place: Slice, pixels: np.ndarray) -> None:
        """Take in one more estimate, `pixels` (rows, columns), of what the slice `place` shows."""
        counts, mean = Scan.shown_in(self.counts, place), Scan.shown_in(self.mean, place)
        counts += 1
        deviation = pixels - mean
        mean += deviation / counts
        if self.squares is not None:
            squares = Scan.shown_in(self.squares, place)
            squares += deviation * (pixels - mean)

    def deviation(self) -> np.ndarray | None:
        """The standard deviation of each voxel's estimates, if their spread was wanted."""
        return None if self.squares is None else np.sqrt(self.squares / np.maximum(self.counts, 1))


def _widened(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """`mask` (X, Y, Z) and what is within `MARGIN_MM` of it along each axis."""
    from scipy import ndimage

    for axis, width in enumerate(np.round(MARGIN_MM / spacing).astype(int)):
        mask = ndimage.maximum_filter1d(mask, 2 * int(width) + 1, axis=axis)
    return mask


def _with_head(head: np.ndarray, scan: Scan, plane: str) -> list[int]:
    """The slices of a plane that show some of the head."""
    axis = PLANES[::-1].index(plane)
    return [i for i in range(scan.count(plane)) if np.take(head, i, axis).any()]


def _batches(items: list, size: int) -> Iterator[list]:
    """The items in runs of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _flip(images: np.ndarray, mirrored: bool) -> np.ndarray:
    """Model images (B, S, S, 3), turned left to right if `mirrored`."""
    return np.ascontiguousarray(images[:, :, ::-1]) if mirrored else images
