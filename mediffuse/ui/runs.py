"""Runs of the models for a visitor: in a thread, step by step, until they end or are stopped."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import NamedTuple

import gradio as gr
import numpy as np
from gradio.context import LocalContext

from mediffuse.image.contours import Thresholds
from mediffuse.scan import Scan, ScanError, Slice
from mediffuse.translate import Settings, Translation, Translator
from mediffuse.translate.checkpoints import CheckpointError
from mediffuse.translate.volumes import Passes, VolumeTranslation, translate_volume
from mediffuse.ui import faults
from mediffuse.ui.asked import SPEED_CHOICES
from mediffuse.ui.zero_gpu import on_gpu


class Step(NamedTuple):
    """A step that is done, of how many. preview: a model image (S, S, 3), of some of them. left: seconds, estimated."""

    step: int
    steps: int
    preview: np.ndarray | None = None
    left: float | None = None


class Phase(Enum):
    """What a run does before its first step. A model is loaded by this run or by another."""

    LOADING = "Loading the model"
    TRANSLATING = "Translating"


class Clock:
    """Tells how long steps will take by those that were done since the first, which takes longer."""

    def __init__(self) -> None:
        self.first: tuple[int, float] | None = None

    def left(self, step: int, steps: int) -> float | None:
        """Seconds until the last step is done; None at the first."""
        now = time.monotonic()
        if self.first is None:
            self.first = step, now
        done = step - self.first[0]
        return (now - self.first[1]) / done * (steps - step) if done else None


REPEAT_SECONDS = 0.5
"""How often a volume says how far it is, at least."""


class Stopped(Exception):
    """Raised inside a run to end it when its visitor pressed Stop or left."""


_stops: set[tuple[str, threading.Event]] = set()
"""Of the runs that go on: whose they are, and what ends them."""


def stop(request: gr.Request) -> None:
    """End the runs of this visitor after their current step."""
    for visitor, event in list(_stops):
        if visitor == request.session_hash:
            event.set()


def before(visitor: str | None, queue: str) -> int | None:
    """How many others go before the first run of a visitor that waits in a queue; None if none waits, or one runs."""
    queues = LocalContext.blocks.get()._queue
    running = [event for job in queues.active_jobs for event in job or () if event.concurrency_id == queue]
    waiting = queues.event_queue_per_concurrency_id.get(queue)
    sessions = [event.session_hash for event in (*running, *(waiting.queue if waiting else ()))]
    if visitor not in sessions or visitor in sessions[: len(running)]:
        return None
    return len(set(sessions[: sessions.index(visitor)]))


_translators: list[Translator] = []


def register(translator: Translator) -> int:
    """Make a translator known by a number. A ZeroGPU worker is a fork: it has what was registered
    before, and its arguments must be plain data."""
    _translators.append(translator)
    return len(_translators) - 1


@on_gpu(seconds=60)
def stream(
    translator: int,
    source: Slice,
    direction: str,
    settings: Settings,
    thresholds: Thresholds | None,
    visitor: str | None,
) -> Iterator[Phase | Step | Translation]:
    """Run a registered translator: its steps, where the speed has some to show, then the Translation.

    visitor: the request's session_hash. Closing the iterator, or `stop`, ends the run. Errors become gr.Error.
    """

    def work(emit: Emit) -> Translation:
        if not _translators[translator].checkpoints.loaded(direction):
            emit(Phase.LOADING)
            _translators[translator].checkpoints.get(direction)
            emit(Phase.TRANSLATING)
        clock = Clock()

        def on_step(step: int, steps: int, preview) -> None:
            # A decode costs about as much as a step: show every step only of short runs.
            previewed = step < steps and (steps <= 12 or step % (steps // 10) == 0)
            emit(Step(step, steps, preview() if previewed else None, clock.left(step, steps)))

        report = on_step if SPEED_CHOICES[settings.speed].sampled else None
        return _translators[translator].translate(source, direction, settings, thresholds, report)

    yield from _run(visitor, work)


@on_gpu(seconds=120)
def stream_volume(
    translator: int, scan: Scan, direction: str, settings: Settings, passes: Passes, visitor: str | None
) -> Iterator[Step | VolumeTranslation]:
    """Translate a volume: a step per batch of slices, then the VolumeTranslation. Otherwise as `stream`."""

    def work(emit: Emit) -> VolumeTranslation:
        last, said = Step(0, 1), time.monotonic()

        def on_slices(done: int, slices: int) -> None:
            nonlocal last
            last = Step(done, slices)
            emit(last)

        def on_step() -> None:
            nonlocal said
            emit.check()
            # Only by what is sent to a visitor does one who left come to notice.
            if time.monotonic() - said > REPEAT_SECONDS:
                said = time.monotonic()
                emit(last)

        return translate_volume(
            _translators[translator], scan, direction, settings, passes, on_slices=on_slices, on_step=on_step
        )

    yield from _run(visitor, work)


class Emit:
    """Hands an item to whoever iterates; raises Stopped where nobody does any more."""

    def __init__(self, items: queue.Queue, stopped: threading.Event) -> None:
        self.items, self.stopped = items, stopped

    def check(self) -> None:
        if self.stopped.is_set():
            raise Stopped

    def __call__(self, item: object) -> None:
        self.check()
        self.items.put(item)


def _run(visitor: str | None, work: Callable[[Emit], object]) -> Iterator:
    """Run `work(emit)` in a thread, and yield what it emits and then what it returns."""
    items: queue.Queue = queue.Queue(maxsize=2)
    stopped = threading.Event()
    key = (visitor or "", stopped)
    _stops.add(key)
    finished = object()

    def target() -> None:
        try:
            items.put((finished, work(Emit(items, stopped))))
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
            if isinstance(made, BaseException):  # here, for of one in a ZeroGPU worker its text would be logged
                raise faults.said(made) from None
            yield made
            return
    finally:
        stopped.set()
        _drain(items)
        _stops.discard(key)


def _drain(items: queue.Queue) -> None:
    """Unblock a worker that waits to put into a full queue."""
    while True:
        try:
            items.get_nowait()
        except queue.Empty:
            return
