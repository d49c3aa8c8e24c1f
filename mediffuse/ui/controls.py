"""Controls that the slice tabs and the Volume tab share, and the events that are the same in both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from mediffuse.scan import SeveralSeriesError
from mediffuse.translate import MAX_SEED, Settings
from mediffuse.ui import runs
from mediffuse.ui.asked import SPEED_CHOICES
from mediffuse.ui.words import SCORE_HEADERS, status

PRIVATE = {"show_progress": "hidden", "api_visibility": "private"}
"""Of events that only the page needs."""

SLICES, VOLUMES = "slices", "volumes"
"""The queues of events that compute for long, each one at a time; a volume lets slices in between its own."""

Values = dict[Component, object]
"""What a handler changes on the page."""


@dataclass(frozen=True)
class Option:
    """A slider of the group that opens for speeds that sample."""

    label: str
    minimum: float
    maximum: float
    value: float
    step: float = 1


OPTIONS = {
    "steps": Option("Steps", 2, 100, Settings.steps),
    "samples": Option("Samples (from 2 on: their mean, and an uncertainty map)", 1, 8, 1),
    "guidance": Option("Guidance scale (1: off)", 1, 10, 1, 0.1),
    "image_guidance": Option("Image guidance scale (with guidance above 1)", 1, 5, 1, 0.1),
}
"""By API parameter, in the page's order."""


def contrast_choice(tab: str, contrasts: tuple[str, ...]) -> gr.Radio:
    """The MRI contrast, if there is a choice. `tab` begins the elem_id, here and below."""
    return gr.Radio(
        list(contrasts),
        value=contrasts[0],
        label="MRI contrast",
        visible=len(contrasts) > 1,
        elem_id=f"{tab}-contrast",
    )


def speed_choice(tab: str, known: tuple[str, ...]) -> gr.Radio:
    """The speeds, of those that the tab's checkpoint knows."""
    choices = [(speed.title, name) for name, speed in SPEED_CHOICES.items() if name in known]
    return gr.Radio(choices, value=choices[0][1], label="Kind of picture", elem_id=f"{tab}-speed")


def option_sliders(tab: str, options: dict[str, Option], hidden: Iterable[str] = ()) -> dict[str, gr.Slider]:
    """A slider for each option; `hidden` ones are parameters of the API only."""
    return {
        name: gr.Slider(**asdict(option), visible=name not in hidden, elem_id=f"{tab}-{name.replace('_', '-')}")
        for name, option in options.items()
    }


def start_choice(tab: str) -> gr.Radio:
    choices = [("the Fast translation", "mean"), ("pure noise, as published", "noise")]
    return gr.Radio(choices, value="mean", label="Start from", elem_id=f"{tab}-start")


def seed_box(tab: str) -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id=f"{tab}-seed")


class Bar:
    """Translate, Stop and how a run goes, in a bar that stays in view; Stop is there while something runs."""

    def __init__(self, tab: str, value: str = "") -> None:
        with gr.Row(elem_classes="bar", elem_id=f"{tab}-bar"):
            self.go = gr.Button("Translate", variant="primary", scale=0, min_width=130, elem_id=f"{tab}-go")
            self.line = gr.HTML(value, label="Status", elem_id=f"{tab}-status")
            self.stop = gr.Button(
                "Stop", variant="stop", scale=0, min_width=90, elem_id=f"{tab}-stop", elem_classes="stop"
            )
        self.clock = gr.Timer(1, active=False)

    def on_wait(self, queue: str) -> None:
        """Say at once that a run waits, and then for how many: unqueued, so that who waits for others sees it.

        To be called before a click on Translate is given the run, in `queue`: a page answers an event in turn.
        """
        outputs = [self.line, self.clock]
        # In the browser: an answer of the server might come after the run's first word.
        waiting = json.dumps([status("Waiting…", 0, 1, old=True), {"active": True, "__type__": "update"}])
        self.go.click(None, outputs=outputs, js=f"() => {waiting}", **PRIVATE)

        def tick(request: gr.Request) -> Values:
            before = runs.before(request.session_hash, queue)
            if before is None:
                return {self.clock: gr.Timer(active=False)}
            return {self.line: status(f"Waiting: {before} before you…", 0, 1, old=True)}

        self.clock.tick(tick, outputs=outputs, queue=False, **PRIVATE)

    def clear_after(self, running: Dependency) -> None:
        """Have the line say so where a run fails, also one that the server did not take."""
        failed = json.dumps(status("Not translated.", old=True))
        # What does not run any more may have come to its end before it failed.
        js = f"(line) => line?.includes('<progress') ? {failed} : line"
        running.failure(None, self.line, self.line, js=js, **PRIVATE)


def slice_slider(**options) -> gr.Slider:
    """A slider with the range of the scan that is shown; a script's scan may have another, which reading it tells."""
    slider = gr.Slider(step=1, label="Slice, from below", **options)
    in_range = slider.preprocess
    # On the one object, for Gradio takes a class of one's own for a component of one's own.
    slider.preprocess = lambda value: value if isinstance(value, int | float) else in_range(value)
    slider.api_info = lambda: {"type": "number"}
    return slider


def series_choice(tab: str) -> gr.Dropdown:
    """Which volume of an upload is meant, shown where there are several; a script may say it at once."""
    return gr.Dropdown([], value="", label="Series", visible=False, allow_custom_value=True, elem_id=f"{tab}-series")


def no_series() -> gr.Dropdown:
    return gr.Dropdown([], value="", visible=False)


def series_asked(error: SeveralSeriesError) -> gr.Dropdown:
    """The choice between what was found."""
    choices = [(title or key, key) for key, title in error.choices.items()]
    return gr.Dropdown(choices, value="", visible=True)


def notice(tab: str) -> gr.HTML:
    """What is odd about a scan; `words.notice` fills it."""
    return gr.HTML(label="Notes on the scan", visible=False, elem_classes="notice", elem_id=f"{tab}-notice")


def score_table(tab: str, label: str, rows: Sequence[list[str]] = ()) -> gr.Dataframe:
    """Rows of `words.score_row`; unseen while there are none."""
    return gr.Dataframe(
        [*rows],
        headers=SCORE_HEADERS,
        label=label,
        interactive=False,
        wrap=True,
        column_widths=["37%", "20%", "19%", "24%"],
        visible=bool(rows),
        elem_id=f"{tab}-scores",
    )


def queued(queue: str, line: gr.HTML) -> dict:
    """Options of events in `SLICES` or `VOLUMES`; `line` shows the place in the queue."""
    return {
        "concurrency_id": queue,
        "concurrency_limit": 1,
        "show_progress": "minimal",
        "show_progress_on": line,
    }


def select(controls: dict[str, Component], names: Iterable[str]) -> dict[str, Component]:
    """The controls of some API parameters, for `inputs_kwargs`."""
    return {name: controls[name] for name in names}


STOPPED = "Stopped. What is shown is unfinished, or of what was asked for before."


def on_stop(stop: gr.Button, line: gr.HTML, running: list[Dependency], api_name: str) -> None:
    """End the visitor's run, queued or begun, and say so."""
    stop.click(runs.stop, cancels=running, queue=False, api_name=api_name).then(
        lambda: status(STOPPED, old=True), outputs=line, queue=False, **PRIVATE
    )


SAMPLES = 4
"""Drawn where they are asked for to see how uncertain they are."""


def on_speed(speed: gr.Radio, options: gr.Group, samples: gr.Slider) -> None:
    """Show the options of the speeds that have them: in the browser, before Translate can be pressed."""
    sampled = [name for name, choice in SPEED_CHOICES.items() if choice.sampled]
    js = f"""(name) => {{
      const visible = {json.dumps(sampled)}.includes(name);
      const update = {{ __type__: "update" }};
      return [{{ ...update, visible }}, visible ? {{ ...update, value: {SAMPLES} }} : update];
    }}"""
    speed.change(None, speed, [options, samples], js=js, **PRIVATE)
