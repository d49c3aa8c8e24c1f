"""A tab that translates slices in one direction: its controls, what they do, and which event does what."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.events import Dependency

from mediffuse.directions import CONTRASTS, DIRECTION_TITLES, modalities
from mediffuse.image.ct_picture import PNG_WINDOWS
from mediffuse.image.display import BRAIN, FULL_RANGE
from mediffuse.scan import Scan, SeveralSeriesError, Slice
from mediffuse.translate import Translation, Translator
from mediffuse.translate.slices import to_slice
from mediffuse.ui import controls, runs, store
from mediffuse.ui.asked import SPEED_CHOICES, AskedContours, AskedSlice, parameters
from mediffuse.ui.contour_controls import ContourControls
from mediffuse.ui.controls import PRIVATE, SLICES, Values, queued, select
from mediffuse.ui.examples import CT_EXAMPLES, MR_EXAMPLES, Example
from mediffuse.ui.slice_result import SlicePanel, SliceResult, slice_picture, synthetic_picture
from mediffuse.ui.uploads import open_scan, several_in, slice_of
from mediffuse.ui.words import MODALITY_TITLES, notice, status


@dataclass(frozen=True)
class SliceTabOptions:
    """What one tab has of its own. api: begins the names of its endpoints."""

    title: str
    direction: str
    api: str
    examples: list[Example]
    default_view: str
    contrasts: tuple[str, ...] = ("T1",)


SLICE_TABS = (
    SliceTabOptions(DIRECTION_TITLES["ct2mr"], "ct2mr", "ct_to_mri", CT_EXAMPLES, BRAIN, CONTRASTS),
    SliceTabOptions("Contours → MRI", "contour2mr", "contours_to_mri", CT_EXAMPLES, BRAIN),
    SliceTabOptions(DIRECTION_TITLES["mr2ct"], "mr2ct", "mri_to_ct", MR_EXAMPLES, FULL_RANGE),
)


class SliceControls:
    """The half of a tab that a visitor sets. components: by API parameter; the panel adds `view`."""

    def __init__(self, options: SliceTabOptions, translator: Translator) -> None:
        self.options = options
        self.components: dict[str, Component] = {}
        self.contours: ContourControls | None = None
        source, target = (MODALITY_TITLES[modality] for modality in modalities(options.direction))
        with gr.Column(scale=2, min_width=300):
            self._scan(source)
            if options.direction == "contour2mr":
                self.contours = ContourControls(options.direction, translator)
                self.components |= self.contours.components
            self._sampling(translator.checkpoints.speeds(options.direction))
            self._truth(target)
            self.go, self.stop = controls.run_buttons(options.direction)

    def _scan(self, source: str) -> None:
        name = self.options.direction
        self.components["scan"] = gr.File(label=f"{source}: PNG, NIfTI or DICOM", height=120, elem_id=f"{name}-scan")
        with gr.Row():
            self.example_buttons = [
                gr.Button(example.title, size="sm", elem_id=f"{name}-example-{place}")
                for place, example in enumerate(self.options.examples)
            ]
        self.components["series"] = controls.series_choice(name)
        self.components["index"] = gr.Slider(
            -1, 4096, -1, step=1, label="Slice, from below", visible=False, elem_id=f"{name}-index"
        )
        self.components["shown"] = gr.Radio(
            [("Guess", "auto"), *((text, key) for key, text in PNG_WINDOWS.items())],
            value="auto",
            label="Which window does this CT picture show?",
            visible=False,
            elem_id=f"{name}-shown",
        )
        self.notice = controls.notice(name)

    def _sampling(self, speeds: tuple[str, ...]) -> None:
        name = self.options.direction
        self.components["contrast"] = controls.contrast_choice(name, self.options.contrasts)
        self.components["speed"] = controls.speed_choice(name, speeds)
        with gr.Group(visible=False) as group:
            hidden = ["image_guidance"] if self.contours else []  # guided by its contours, not by an image
            self.components["start"] = controls.start_choice(name)
            self.components |= controls.option_sliders(name, controls.OPTIONS, hidden)
            with gr.Row():
                self.components["seed"] = controls.seed_box(name)
                self.components["random"] = gr.Checkbox(False, label="Random seed")
        controls.on_speed(self.components["speed"], group)

    def _truth(self, target: str) -> None:
        self.components["truth"] = gr.File(
            label=f"Ground truth: real {target} (optional)",
            height=120,
            elem_id=f"{self.options.direction}-truth",
        )


class SliceTab:
    """One tab: which event does what. It holds no visitor's data: one serves all."""

    def __init__(self, options: SliceTabOptions, translator: Translator) -> None:
        self.options = options
        self.source_modality, self.target_modality = modalities(options.direction)
        self.number = runs.register(translator)
        with gr.Row():
            self.controls = SliceControls(options, translator)
            self.panel = SlicePanel(options.direction, options.default_view)
        self.contours = self.controls.contours
        self.components = {**self.controls.components, "view": self.panel.view}
        self.state = gr.State(None, time_to_live=store.keep_seconds())
        self._on_stop([*self._on_run(), *self._on_slice(), *self._on_scan()])
        self._on_truth()
        self._on_view()
        if self.contours:
            self.contours.on_drag(self.components, self.panel.contours)

    # The events. A list that is returned holds those that start a run, which Stop cancels.

    def _inputs(self, *names: str) -> dict[str, Component]:
        """The controls of some API parameters and, in the contour tab, the thresholds."""
        thresholds = self.contours.components if self.contours else {}
        return select(self.components, (*names, *thresholds, "series"))

    @property
    def asked_type(self) -> type[AskedSlice]:
        return AskedContours if self.contours else AskedSlice

    @property
    def preview_outputs(self) -> list[Component]:
        return [self.panel.input, self.controls.notice, *([self.panel.contours] if self.contours else [])]

    @property
    def run_options(self) -> dict:
        """Of events that translate."""
        panel = self.panel
        return {
            "inputs_kwargs": select(self.components, parameters(self.asked_type)),
            "outputs": [*panel.pictures, panel.files, self.components["seed"], panel.status, self.state],
            **queued(SLICES, panel.status),
        }

    def _on_run(self) -> list[Dependency]:
        controls.on_wait(self.controls.go, self.panel.status)
        return [
            self.controls.go.click(self.run, **self.run_options, api_name=self.options.api),
            self._at_once(self.components["contrast"].input),
        ]

    def _at_once(self, event) -> Dependency:
        """Translate after `event`, if it takes a moment only."""
        # What is chosen while another is translated must be translated too.
        return event(self.run_at_once, **self.run_options, api_visibility="private", trigger_mode="always_last")

    def _on_slice(self) -> list[Dependency]:
        previewing = {
            "fn": self.preview,
            "inputs_kwargs": self._inputs("scan", "index", "shown", "view"),
            "outputs": self.preview_outputs,
            "show_progress": "hidden",
            "trigger_mode": "always_last",
        }
        moved = self.components["index"].input(**previewing, api_name=f"{self.options.api}_preview")
        read_anew = self.components["shown"].input(**previewing, api_visibility="private")
        return [self._at_once(moved.success), self._at_once(read_anew.success)]

    def _on_scan(self) -> list[Dependency]:
        scan, truth, series = (self.components[name] for name in ("scan", "truth", "series"))
        results = self.run_options["outputs"]
        loading = {
            "fn": self.load,
            "inputs_kwargs": self._inputs("scan", "view"),
            "outputs": [*self.preview_outputs, self.components["index"], self.components["shown"], series],
            **PRIVATE,
        }
        forgetting = {"outputs": [*results, truth], **PRIVATE}
        # Only a scan that can be read replaces the last result, and its ground truth.
        uploaded = scan.upload(controls.no_series, outputs=series, **PRIVATE).success(**loading)
        loaded = [uploaded.success(lambda: {**self._forget(), truth: None}, **forgetting)]
        loaded.append(series.input(**loading).success(self._forget, outputs=results, **PRIVATE))
        scan.clear(
            lambda: {**self._forget(), self.panel.input: None, truth: None, series: controls.no_series()},
            **{**forgetting, "outputs": [*results, truth, series]},
        )
        for button, example in zip(self.controls.example_buttons, self.options.examples, strict=True):
            chosen = button.click(
                lambda example=example: {
                    scan: str(example.scan),
                    truth: example.truth and str(example.truth),
                    series: controls.no_series(),
                },
                outputs=[scan, truth, series],
                **PRIVATE,
            )
            loaded.append(chosen.success(**loading).success(self._forget, outputs=results, **PRIVATE))
        return [self._at_once(event.success) for event in loaded]

    def _on_stop(self, running: list[Dependency]) -> None:
        controls.on_stop(self.controls.stop, self.panel.status, running, f"{self.options.api}_stop")

    def _on_truth(self) -> None:
        truth = self.components["truth"]
        gr.on(
            [truth.upload, truth.clear],
            self.compare,
            self.state,
            [*self.panel.pictures, self.state],
            inputs_kwargs=select(self.components, ("truth", "view")),
            **PRIVATE,
        )

    def _on_view(self) -> None:
        self.panel.view.input(
            self.show_again,
            self.state,
            self.panel.pictures,
            inputs_kwargs=select(self.components, ("scan", "index", "shown", "view", "series")),
            **PRIVATE,
        )

    # The handlers. The docstrings of `preview` and `run` are the API's descriptions.

    def _forget(self) -> Values:
        """Empty all but the input picture."""
        return {**self.panel.empty(), self.panel.status: "", self.state: None}

    def _slice(self, asked: AskedSlice) -> Slice:
        return slice_of(self._open(asked), asked.index)

    def _open(self, asked: AskedSlice) -> Scan:
        return open_scan(asked.scan, self.source_modality, asked.shown, asked.series)

    def _undecided(self, asked: AskedSlice) -> SeveralSeriesError | None:
        """The choice that is to be made before there is a scan to show."""
        return several_in(asked.scan, self.source_modality, asked.series) if asked.scan else None

    def load(self, **values) -> Values:
        """Show a new scan: its central slice, with the controls that fit it; where there are several, ask which."""
        asked = self.asked_type(**values)
        if undecided := self._undecided(asked):
            return {
                self.panel.input: None,
                self.components["series"]: controls.series_asked(undecided),
                self.controls.notice: notice(["Choose the series to translate."]),
            }
        scan = self._open(asked)
        count = scan.count(scan.plane)
        return {
            **self.preview(**values),
            self.components["index"]: gr.Slider(
                minimum=0, maximum=max(1, count - 1), value=count // 2, visible=count > 1
            ),
            self.components["shown"]: gr.Radio(value="auto", visible=scan.shown is not None),
        }

    def preview(self, **values) -> Values:
        """Show a slice, or the same picture read in another window; the model does not run."""
        asked = self.asked_type(**values)
        scan, source = self._open(asked), self._slice(asked)
        notes = list(scan.warnings)
        if scan.shown and asked.shown == "auto":
            notes.append(f"Read as: {PNG_WINDOWS[scan.shown]}. Choose another window if that is wrong.")
        changed = {
            self.panel.input: slice_picture(source, asked.view),
            self.controls.notice: notice(notes),
        }
        if self.contours:
            changed[self.panel.contours] = self.contours.picture(source, asked.thresholds())
        return changed

    def run_at_once(self, request: gr.Request, **values) -> Iterator[Values]:
        """Translate after a new scan, slice or contrast, where that takes a moment only."""
        asked = self.asked_type(**values)
        if asked.scan and SPEED_CHOICES[asked.speed].at_once and not self._undecided(asked):
            yield from self.run(request, **values)
        else:
            # The old result is not what is asked for now.
            yield self._forget()

    def run(self, request: gr.Request, **values) -> Iterator[Values]:
        """Translate a slice, streaming intermediate steps; then compare it with the ground truth."""
        asked = self.asked_type(**values)
        source, settings = self._slice(asked), asked.settings()
        asked.check_work()
        line = self.panel.status
        # Steps must not be shown beside the last result's scores; one step is over too soon to flicker.
        emptied = self.panel.empty() if SPEED_CHOICES[settings.speed].sampled else {}
        yield {**emptied, self.components["seed"]: settings.seed, line: status("Translating…", 0, 1)}
        thresholds, visitor = asked.thresholds(), request.session_hash
        try:
            for item in runs.stream(self.number, source, self.options.direction, settings, thresholds, visitor):
                if isinstance(item, Translation):
                    break
                yield self._step(item, source, asked.view)
            else:  # it ended without one
                yield {line: status("Stopped.")}
                return
        except gr.Error:
            yield {line: status("Not translated.")}
            raise
        result = SliceResult(self.options.direction, asked.scan, asked.shown, source, item, series=asked.series)
        yield from self._finish(asked, result)

    def _step(self, done: runs.Step, source: Slice, view: str) -> Values:
        changed: Values = {self.panel.status: status(f"Step {done.step} of {done.steps}", done.step, done.steps)}
        if done.preview is not None:
            changed[self.panel.made] = self._step_picture(done.preview, source, view)
        return changed

    def _step_picture(self, image: np.ndarray, source: Slice, view: str) -> np.ndarray:
        """A model image (S, S, 3) as a picture of the slice."""
        pixels = to_slice(image, self.target_modality, source.letterbox(image.shape[0]))
        return synthetic_picture(pixels, source, self.target_modality, view)

    def _finish(self, asked: AskedSlice, result: SliceResult) -> Iterator[Values]:
        refused = None
        try:
            result = result.with_truth(asked.truth)
        except gr.Error as error:
            refused = error
        settings = result.translation.settings
        text = f"Done in {result.translation.seconds:.2f} s"
        if SPEED_CHOICES[settings.speed].sampled:
            text += f", {settings.steps} steps, seed {settings.seed}"
        with tempfile.TemporaryDirectory() as folder:
            # Once this is taken, the files are copied.
            yield {
                **self.panel.show(result, asked.view),
                self.panel.files: result.write(Path(folder), asked.view),
                self.components["seed"]: settings.seed,
                self.panel.status: status(" ".join([f"{text}.", *result.warnings(asked.truth)])),
                self.state: result,
            }
        if refused:  # after the result is shown: a ground truth that does not fit must not lose it
            raise refused

    def compare(self, result: SliceResult | None, truth: str | None, view: str) -> Values:
        """Compare the last result with a ground truth that came, or went, afterwards."""
        if result is None:
            if truth:
                open_scan(truth, self.target_modality)
            return gr.skip()
        result = result.with_truth(truth)
        return {**self.panel.show(result, view), self.state: result}

    def show_again(self, result: SliceResult | None, **values) -> Values:
        """Show the same images in another CT window."""
        asked = AskedSlice(**values)
        if result is not None:
            return self.panel.show(result, asked.view)
        return {self.panel.input: slice_picture(self._slice(asked), asked.view)} if asked.scan else gr.skip()
