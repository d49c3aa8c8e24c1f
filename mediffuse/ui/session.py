"""What the tabs do, apart from how they look: reading, streaming, comparing, writing downloads."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr
import nibabel as nib
import numpy as np
import spaces
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mediffuse.compare import Comparison, compare, matching_slice
from mediffuse.directions import modalities
from mediffuse.image.contours import Thresholds
from mediffuse.image.display import picture
from mediffuse.scan import Scan, ScanError, Slice, read_scan
from mediffuse.scan.write import mark_synthetic
from mediffuse.translate import Settings, Translation, Translator
from mediffuse.translate.checkpoints import CheckpointError
from mediffuse.translate.volumes import Passes, VolumeTranslation, translate_volume

SYNTHETIC_NOTE = "SYNTHETIC image made by Mediffuse. Research use only, not for diagnosis."


@dataclass(frozen=True)
class Result:
    """A finished translation with what is needed to show and compare it again."""

    direction: str
    path: str
    shown: str
    one: Slice
    translation: Translation
    truth: Slice | None = None
    comparison: Comparison | None = None


class Stopped(Exception):
    """Raised inside a run to end it when its visitor pressed Stop or left."""


@functools.lru_cache(maxsize=2)
def _read(path: str, changed: int, modality: str, shown: str) -> Scan:
    return read_scan(path, modality, shown)


def open_scan(path: str | None, modality: str, shown: str = "auto") -> Scan:
    """Read an upload, or what was just read. Raises gr.Error in the visitor's words."""
    if not path:
        raise gr.Error(f"First choose a {modality} scan, or click an example.", duration=10, print_exception=False)
    try:
        return _read(path, Path(path).stat().st_mtime_ns, modality, shown)
    except ScanError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def attach_truth(result: Result, path: str | None) -> Result:
    """`result` with the real image of its slice and the comparison, or without if `path` is empty."""
    if not path:
        return replace(result, truth=None, comparison=None)
    source, target = modalities(result.direction)
    truth_scan = open_scan(path, target)
    scan = open_scan(result.path, source, result.shown)
    try:
        truth = matching_slice(scan, result.one, truth_scan)
        ct = result.one if source == "CT" else truth
        return replace(result, truth=truth, comparison=compare(result.translation.pixels, truth, ct))
    except ScanError as error:
        raise gr.Error(f"Ground truth: {error}", duration=None, print_exception=False) from error


def warnings_of(result: Result, truth: str | None) -> list[str]:
    """What is odd about a result's scan and its ground truth, in sentences."""
    source, target = modalities(result.direction)
    warnings = [f"Scan: {w}" for w in open_scan(result.path, source, result.shown).warnings]
    if truth and result.truth is not None:
        warnings += [f"Ground truth: {w}" for w in open_scan(truth, target).warnings]
    return warnings


_stops: dict[str, threading.Event] = {}


def stop(request: gr.Request) -> None:
    """End the run of this visitor after its current step."""
    event = _stops.get(request.session_hash)
    if event:
        event.set()


_translators: list[Translator] = []


def register(translator: Translator) -> int:
    """Make a translator known by a number. A ZeroGPU worker is a fork: it has what was registered
    before, and its arguments must be plain data."""
    _translators.append(translator)
    return len(_translators) - 1


@spaces.GPU(duration=60)
def stream(
    translator: int,
    one: Slice,
    direction: str,
    settings: Settings,
    thresholds: Thresholds | None,
    session: str | None,
) -> Iterator[tuple[int, int, np.ndarray | None] | Translation]:
    """Run a registered translator: (step, steps, preview model image or None)..., then the Translation.

    Closing the iterator, or `stop`, ends the run. Errors become gr.Error.
    """

    def work(emit: Emit) -> Translation:
        def on_step(step: int, steps: int, preview) -> None:
            # A decode costs about as much as a step: show every step only of short runs.
            shows = step < steps and (steps <= 12 or step % (steps // 10) == 0)
            emit((step, steps, preview() if shows else None))

        on = on_step if settings.speed == "diffusion" else None
        return _translators[translator].translate(one, direction, settings, thresholds, on)

    yield from _run(session, work)


@spaces.GPU(duration=120)
def stream_volume(
    translator: int, scan: Scan, direction: str, settings: Settings, passes: Passes, session: str | None
) -> Iterator[tuple[int, int] | VolumeTranslation]:
    """Translate a volume: (slices done, slices)..., then the VolumeTranslation. Otherwise as `stream`."""

    def work(emit: Emit) -> VolumeTranslation:
        return translate_volume(
            _translators[translator],
            scan,
            direction,
            settings,
            passes,
            on_slices=lambda done, of: emit((done, of)),
        )

    yield from _run(session, work)


Emit = Callable[[object], None]
"""Hands an item to whoever iterates; raises Stopped where nobody does any more."""


def _run(session: str | None, work: Callable[[Emit], object]) -> Iterator:
    """Run `work(emit)` in a thread, and yield what it emits and then what it returns."""
    items: queue.Queue = queue.Queue(maxsize=2)
    stopped = threading.Event()
    key = session or ""
    _stops[key] = stopped
    finished = object()

    def emit(item: object) -> None:
        if stopped.is_set():
            raise Stopped
        items.put(item)

    def target() -> None:
        try:
            items.put((finished, work(emit)))
        except BaseException as error:  # noqa: BLE001 - handed to the waiting generator
            items.put((finished, error))

    threading.Thread(target=target, daemon=True).start()
    try:
        while True:
            item = items.get()
            if not (isinstance(item, tuple) and item[0] is finished):
                yield item
                continue
            made = item[1]
            if isinstance(made, Stopped):
                return
            if isinstance(made, (CheckpointError, ScanError)):
                raise gr.Error(str(made), duration=None, print_exception=False) from made
            if isinstance(made, BaseException):
                raise made
            yield made
            return
    finally:
        stopped.set()
        _drain(items)
        if _stops.get(key) is stopped:
            del _stops[key]


def _drain(items: queue.Queue) -> None:
    """Unblock a worker that waits to put into a full queue."""
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return


def write_downloads(result: Result, folder: Path, limits: tuple[float, float]) -> list[str]:
    """Write the synthetic slice as PNG and, where the input has a place in space, as NIfTI.

    `limits`: black and white of the PNG in the units of the translation. Returns the paths.
    """
    translation, one = result.translation, result.one
    scan = open_scan(result.path, one.modality, result.shown)
    stem = Path(scan.name.removesuffix(".gz")).stem
    name = f"{stem}_{one.plane}{one.index:03d}_synthetic_{translation.modality}"
    info = PngInfo()
    info.add_text("Description", SYNTHETIC_NOTE)
    png = folder / f"{name}.png"
    image = picture(translation.pixels, limits, one.spacing, synthetic=True)
    Image.fromarray(image).save(png, pnginfo=info)
    paths = [str(png)]
    if scan.kind != "picture":
        volume = mark_synthetic(scan.slice_to_nifti(one, translation.pixels), translation.modality)
        nifti = folder / f"{name}.nii.gz"
        nib.save(volume, nifti)
        paths.append(str(nifti))
    return paths
