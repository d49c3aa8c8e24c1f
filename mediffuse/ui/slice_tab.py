"""A tab that translates slices in one direction: its controls, what they do, and which event does what."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.events import Dependency

from mediffuse.directions import CONTRASTS, DIRECTION_TITLES, modalities
from mediffuse.image.ct_picture import PNG_WINDOWS
from mediffuse.image.display import BRAIN, BRAIN_AND_BONE
from mediffuse.scan import Scan, SeveralSeriesError, Slice
from mediffuse.translate import Settings, Translation, Translator
from mediffuse.translate.checkpoints import Checkpoints
from mediffuse.translate.slices import to_slice
from mediffuse.translate.volumes import of_anatomy
from mediffuse.ui import controls, ready, runs, store, truths
from mediffuse.ui.asked import SPEED_CHOICES, AskedContours, AskedSlice, parameters
from mediffuse.ui.batch import Batch
from mediffuse.ui.contour_controls import ContourControls
from mediffuse.ui.controls import PRIVATE, SLICES, Values, queued, select
from mediffuse.ui.examples import CT_EXAMPLES, MR_EXAMPLES, Example
from mediffuse.ui.slice_result import SlicePanel, SliceResult, slice_picture, synthetic_picture
from mediffuse.ui.uploads import open_scan, several_in, slice_of
from mediffuse.ui.words import MODALITY_TITLES, notice, status

EARLIER = 12
"""How many pictures of a visit are shown again."""

OPENED = "as opened"
"""The state of a tab in which nothing was done yet: it shows the first example's result, if one was made beforehand.
It is also what is left of a state that was forgotten, so it says nothing of what is shown."""


@dataclass(frozen=True)
class SliceTabOptions:
    """What one tab has of its own. api: begins the names of its endpoints. about: what it does, in a sentence."""

    title: str
    direction: str
    api: str
    examples: list[Example]
    default_view: str
    about: str
    contrasts: tuple[str, ...] = ("T1",)

    @property
    def source(self) -> str:
        """The modality that goes in."""
        return modalities(self.direction)[0]

    @property
    def target(self) -> str:
        """The modality that comes out."""
        return modalities(self.direction)[1]

    @property
    def asked_type(self) -> type[AskedSlice]:
        return AskedContours if self.direction == "contour2mr" else AskedSlice

    def defaults(self, checkpoints: Checkpoints) -> AskedSlice:
        """What the tab asks for when it is opened."""
        if self.asked_type is not AskedContours:
            return AskedSlice()
        known = checkpoints.thresholds()
        ends = {
            f"{window}_{end}": value
            for window in ("bone", "tissue", "brain")
            for end, value in zip(("low", "high"), getattr(known, window), strict=True)
        }
        return AskedContours(mode=known.mode, **ends)


SLICE_TABS = (
    SliceTabOptions(
        DIRECTION_TITLES["ct2mr"],
        "ct2mr",
        "ct_to_mri",
        CT_EXAMPLES,
        BRAIN,
        "Makes a synthetic MRI (T1 or T2) of a slice of a head CT. Choose an example, or a CT of your own.",
        CONTRASTS,
    ),
    SliceTabOptions(
        "Contours → MRI",
        "contour2mr",
        "contours_to_mri",
        CT_EXAMPLES,
        BRAIN,
        "Makes a synthetic T1 MRI of nothing but the outlines in a head CT. Choose an example or a CT of your own, and "
        "drag the thresholds to see which outlines matter.",
    ),
    SliceTabOptions(
        DIRECTION_TITLES["mr2ct"],
        "mr2ct",
        "mri_to_ct",
        MR_EXAMPLES,
        BRAIN_AND_BONE,
        "Makes a synthetic CT (in HU) of a slice of a head MRI. Choose an example, or an MRI of your own.",
    ),
)


class SliceControls:
    """What a visitor sets. components: by API parameter; the panel adds `view` and `pair`.

    ready: what was made beforehand, for small pictures of the examples and what the tab opens on.
    """

    def __init__(self, options: SliceTabOptions, ready_results: ready.ReadyResults) -> None:
        self.options, self.ready = options, ready_results
        self.first = options.examples[0] if ready_results.record else None
        self.components: dict[str, Component] = {}

    def scan(self) -> None:
        """The upload and the examples: the top of the tab."""
        name = self.options.direction
        with gr.Row(elem_classes="examples"):
            with gr.Column(scale=2, min_width=240):
                self.components["scan"] = gr.File(
                    self.first and str(self.first.scan),
                    label=f"{MODALITY_TITLES[self.options.source]}: PNG, NIfTI or DICOM",
                    height=120,
                    elem_id=f"{name}-scan",
                )
            with gr.Column(scale=5, min_width=300), gr.Row(elem_classes="thumbnails"):
                self.example_buttons = [
                    gr.Button(
                        example.title,
                        icon=self.ready.thumbnail(place),
                        size="sm",
                        min_width=80,
                        elem_classes="thumbnail",
                        elem_id=f"{name}-example-{place}",
                    )
                    for place, example in enumerate(self.options.examples)
                ]
        self.components["series"] = controls.series_choice(name)
        self.notice = controls.notice(name)
        other = "ct2mr" if self.options.source == "MR" else "mr2ct"
        self.elsewhere = gr.Button(
            f"Open it in {DIRECTION_TITLES[other]}", visible=False, size="sm", elem_id=f"{name}-elsewhere"
        )

    def settings(self, speeds: tuple[str, ...]) -> None:
        """How to translate: beside the pictures, below them on a phone."""
        name = self.options.direction
        with gr.Column(scale=2, min_width=300, elem_classes="settings"):
            self._slice()
            self.components["contrast"] = controls.contrast_choice(name, self.options.contrasts)
            self.components["speed"] = controls.speed_choice(name, speeds)
            with gr.Group(visible=False) as group:
                # The contour model is guided by its contours, not by an image.
                hidden = ["image_guidance"] if self.options.direction == "contour2mr" else []
                self.components["start"] = controls.start_choice(name)
                self.components |= controls.option_sliders(name, controls.OPTIONS, hidden)
                with gr.Row():
                    self.components["seed"] = controls.seed_box(name)
                    self.components["random"] = gr.Checkbox(False, label="Random seed", elem_id=f"{name}-random")
            controls.on_speed(self.components["speed"], group, self.components["samples"])
            self._truth()

    def _slice(self) -> None:
        name, first = self.options.direction, self.first
        count = slice_count(first) if first else 1
        self.components["index"] = controls.slice_slider(
            minimum=0 if first else -1,
            maximum=count - 1 if first else 4096,
            value=first.index if first else -1,
            visible=count > 1,
            elem_id=f"{name}-index",
        )
        self.components["shown"] = gr.Radio(
            [("Guess", "auto"), *((text, key) for key, text in PNG_WINDOWS.items())],
            value="auto",
            label="Which window does this CT picture show?",
            visible=False,
            elem_id=f"{name}-shown",
        )

    def _truth(self) -> None:
        name, first = self.options.direction, self.first
        self.components["truth"] = gr.File(
            first and str(first.truth),
            label=f"Real {MODALITY_TITLES[self.options.target]} to compare with (optional)",
            height=120,
            elem_id=f"{name}-truth",
        )
        self.components["truth_contrast"] = truths.contrast_choice(
            name, visible=self.options.target == "MR" and first is not None
        )


class SliceTab:
    """One tab: which event does what. It holds no visitor's data: one serves all. `connect` ends its making."""

    def __init__(self, options: SliceTabOptions, translator: Translator) -> None:
        self.options, self.checkpoints = options, translator.checkpoints
        self.number = runs.register(translator)
        defaults = options.defaults(translator.checkpoints)
        self.ready = ready.ReadyResults(
            options.direction, options.target, options.examples, defaults, translator.checkpoints
        )
        opening = self.ready.opening()
        gr.Markdown(options.about, elem_classes="about")
        self.controls = SliceControls(options, self.ready)
        self.controls.scan()
        self.bar = controls.Bar(options.direction, status(ready.MADE_BEFORE) if opening else "")
        self.contours: ContourControls | None = None
        with gr.Row(elem_classes="work"):
            self.controls.settings(translator.checkpoints.speeds(options.direction))
            below = None if options.asked_type is not AskedContours else lambda: self._thresholds(translator)
            self.panel = SlicePanel(options.direction, options.default_view, opening, below)
        self.components = {**self.controls.components, "view": self.panel.view, "pair": self.panel.pair}
        if self.contours:
            self.components |= self.contours.components
        self.batch = Batch(options.direction, options.source, self.bar.line)
        self.state = gr.State(OPENED if opening else None, time_to_live=store.keep_seconds())

    def _thresholds(self, translator: Translator) -> None:
        self.contours = ContourControls(self.options.direction, translator)

    def connect(self, tabs: gr.Tabs, others: dict[str, SliceTab]) -> None:
        """Tie the events, once all tabs are there. others: by direction."""
        # What an event starts goes in this order, one after the other: what is said must not come after the run.
        if self.contours:
            self.contours.on_drag(self.components, self.panel.contours)
        self._on_settings()
        running = [*self._on_run(), *self._on_slice(), *self._on_scan()]
        running.append(self.batch.on_run(self.translate_one, self._settings(), self.options.api))
        self.bar.clear_after(running[-1])
        running.append(self._on_elsewhere(tabs, others["ct2mr" if self.options.source == "MR" else "mr2ct"]))
        controls.on_stop(self.bar.stop, self.bar.line, running, f"{self.options.api}_stop")
        self._on_truth()
        self._on_view()
        self._on_made()

    # The events. A list that is returned holds those that start a run, which Stop cancels.

    def _inputs(self, *names: str) -> dict[str, Component]:
        """The controls of some API parameters and, in the contour tab, the thresholds."""
        thresholds = self.contours.components if self.contours else {}
        return select(self.components, (*names, *thresholds, "series"))

    @property
    def asked_type(self) -> type[AskedSlice]:
        return self.options.asked_type

    @property
    def everything(self) -> dict[str, Component]:
        """The controls of all API parameters."""
        return select(self.components, parameters(self.asked_type))

    def _settings(self) -> dict[str, Component]:
        """The controls that say how to translate, whatever it is."""
        of_one = ("scan", "index", "shown", "series", "truth", "truth_contrast", "pair")
        return {name: component for name, component in self.everything.items() if name not in of_one}

    @property
    def preview_outputs(self) -> list[Component]:
        contours = [self.panel.contours] if self.contours else []
        return [self.panel.input, self.controls.notice, *contours, self.controls.elsewhere]

    @property
    def run_options(self) -> dict:
        """Of events that translate."""
        panel = self.panel
        return {
            "inputs_kwargs": self.everything,
            "outputs": [*panel.pictures, panel.files, self.components["seed"], self.bar.line, self.state, panel.words],
            **queued(SLICES, self.bar.line),
        }

    @property
    def load_options(self) -> dict:
        """Of events after which another scan is shown."""
        index, shown, series = (self.components[name] for name in ("index", "shown", "series"))
        return {
            "fn": self.load,
            "inputs_kwargs": self._inputs("scan", "view"),
            "outputs": [*self.preview_outputs, index, shown, series],
            **PRIVATE,
        }

    def _on_run(self) -> list[Dependency]:
        self.bar.on_wait(SLICES)
        running = self.bar.go.click(self.run, **self.run_options, api_name=self.options.api)
        self.bar.clear_after(running)
        # Settings may have been changed meanwhile.
        self._mark_after(running.success)
        at_once = [self.components[name].input for name in ("contrast", "speed")]
        if self.contours:
            at_once += self.contours.released
        return [running, *[self._at_once(event, self.run_on_setting) for event in at_once]]

    def _at_once(self, event, handler: Callable | None = None) -> Dependency:
        """Translate after `event`, if it takes a moment only. handler: by default `run_at_once`."""
        # What is chosen while another is translated must be translated too.
        options = {**self.run_options, "api_visibility": "private", "trigger_mode": "always_last"}
        inputs = self.state if handler == self.run_unless_ready else None
        running = event(handler or self.run_at_once, inputs, **options)
        self.bar.clear_after(running)
        return running

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
        # Only a scan that can be read replaces the last result, and its ground truth.
        uploaded = scan.upload(controls.no_series, outputs=series, **PRIVATE).success(**self.load_options)
        loaded = [self.forget_after(uploaded)]
        loaded.append(series.input(**self.load_options).success(self._forget, outputs=results, **PRIVATE))
        scan.clear(
            lambda: {
                **self._forget(),
                **self._no_truth(),
                **dict.fromkeys([self.panel.input, *([self.panel.contours] if self.contours else [])]),
                series: controls.no_series(),
                self.controls.notice: notice([]),
                self.controls.elsewhere: gr.Button(visible=False),
            },
            outputs=[*results, truth, series, self.components["truth_contrast"], *self.preview_outputs],
            **PRIVATE,
        )
        running = [self._at_once(event.success) for event in loaded]
        for place, button in enumerate(self.controls.example_buttons):
            chosen = button.click(
                lambda place=place, **values: self.choose(place, **values),
                inputs_kwargs=self.everything,
                outputs=[*results, scan, truth, self.components["truth_contrast"], *self.load_options["outputs"]],
                **PRIVATE,
            )
            running.append(self._at_once(chosen.success, self.run_unless_ready))
        return running

    def forget_after(self, loaded: Dependency) -> Dependency:
        """Forget the last result and its ground truth after another scan was loaded."""
        outputs = [*self.run_options["outputs"], self.components["truth"], self.components["truth_contrast"]]
        return loaded.success(lambda: {**self._forget(), **self._no_truth()}, outputs=outputs, **PRIVATE)

    def _on_elsewhere(self, tabs: gr.Tabs, other: SliceTab) -> Dependency:
        """Open a scan of the wrong modality in the other tab."""
        moved = self.controls.elsewhere.click(
            lambda path: {tabs: gr.Tabs(selected=other.options.direction), other.components["scan"]: path},
            self.components["scan"],
            [tabs, other.components["scan"]],
            **PRIVATE,
        )
        return other._at_once(other.forget_after(moved.success(**other.load_options)).success)

    def _on_truth(self) -> None:
        truth, contrast = self.components["truth"], self.components["truth_contrast"]
        told_anew = truth.upload(lambda: "auto", outputs=contrast, **PRIVATE)
        outputs = [*self.panel.outputs, self.state, self.bar.line, contrast]
        for event in (told_anew.success, truth.clear, contrast.input):
            event(self.compare, self.state, outputs, inputs_kwargs=self.everything, **PRIVATE)

    def _on_view(self) -> None:
        gr.on(
            [self.panel.view.input, self.panel.pair.input],
            self.show_again,
            self.state,
            self.panel.outputs,
            inputs_kwargs=self.everything,
            **PRIVATE,
        )

    def _on_settings(self) -> None:
        """Mark what is shown as old while it is not what is asked for."""
        names = ("index", "contrast", "speed", "start", *controls.OPTIONS, "seed", "random")
        changing = [self.components[name] for name in names]
        if self.contours:
            changing += self.contours.components.values()
        self._mark_after(partial(gr.on, [component.input for component in changing]))

    def _mark_after(self, event: Callable[..., Dependency]) -> None:
        event(
            self.mark,
            self.state,
            self.bar.line,
            inputs_kwargs=self.everything,
            queue=False,
            trigger_mode="always_last",
            **PRIVATE,
        )

    def _on_made(self) -> None:
        """Keep what was made, to compare settings by. In the browser alone: it goes with the page."""
        js = f"""(made, line, earlier, speed, contrast) => {{
          const text = line?.replace(/<[^>]*>/g, "") || "";
          earlier = (earlier || []).filter((one) => one.image.url !== made?.url);
          if (!made || !text.startsWith("Done in")) return [earlier];
          const slice = (made.orig_name || "").match(/_([a-z]+)0*(\\d+)_synthetic/);
          const caption = [speed, contrast, slice && `${{slice[1]}} ${{slice[2]}}`, text.match(/seed \\d+/)];
          const value = [{{ image: made, caption: caption.filter(Boolean).join(", ") }}, ...earlier];
          return {{ value: value.slice(0, {EARLIER}), visible: true, __type__: "update" }};
        }}"""
        said = [self.components[name] for name in ("speed", "contrast")]
        inputs = [self.panel.made, self.bar.line, self.panel.earlier, *said]
        self.panel.made.change(None, inputs, self.panel.earlier, js=js, **PRIVATE)

    # The handlers. The docstrings of `preview` and `run` are the API's descriptions.

    def _forget(self) -> Values:
        """Empty all but the input picture."""
        return {**self.panel.empty(), self.bar.line: "", self.state: None}

    def _no_truth(self) -> Values:
        contrast = gr.Radio(value="auto", visible=False)
        return {self.components["truth"]: None, self.components["truth_contrast"]: contrast}

    def _slice(self, asked: AskedSlice) -> Slice:
        return slice_of(self._open(asked), asked.index)

    def _open(self, asked: AskedSlice) -> Scan:
        return open_scan(asked.scan, self.options.source, asked.shown, asked.series)

    def _settings_for(self, asked: AskedSlice) -> Settings:
        """As asked for, and for what the scan shows, of what the model knows."""
        return of_anatomy(asked.settings(), self._open(asked), self.checkpoints.anatomies(self.options.direction))

    def _undecided(self, asked: AskedSlice) -> SeveralSeriesError | None:
        """The choice that is to be made before there is a scan to show."""
        return several_in(asked.scan, self.options.source, asked.series) if asked.scan else None

    def _is_other(self, scan: Scan) -> bool:
        """Whether a scan seems to be of another modality than this tab takes."""
        return scan.looks not in (None, self.options.source)

    def _known(self, state: SliceResult | str | None, asked: AskedSlice) -> SliceResult | None:
        """The result that is shown."""
        if state != OPENED:
            return state
        found = self.ready.find(asked)
        return found and found.with_truth(asked.truth, asked.truth_contrast)

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
        index = count // 2 if asked.index in (None, -1) else int(asked.index)
        return {
            **self.preview(**{**values, "index": index}),
            self.components["index"]: gr.Slider(minimum=0, maximum=max(1, count - 1), value=index, visible=count > 1),
            self.components["shown"]: gr.Radio(value="auto", visible=scan.shown is not None),
        }

    def choose(self, place: int, **values) -> Values:
        """Show an example, with its result if that was made beforehand for what is asked."""
        example = self.options.examples[place]
        truth = example.truth and str(example.truth)
        scan = {"scan": str(example.scan), "index": example.index, "shown": "auto", "series": ""}
        asked = replace(self.asked_type(**values), **scan, truth=truth, truth_contrast="auto")
        loading = {name: values[name] for name in self.load_options["inputs_kwargs"]} | scan
        changed = {
            **self._forget(),
            **self.load(**loading),
            self.components["scan"]: asked.scan,
            self.components["truth"]: asked.truth,
            self.components["series"]: controls.no_series(),
            self.components["truth_contrast"]: gr.Radio(
                value="auto", visible=truth is not None and self.options.target == "MR"
            ),
        }
        if not (result := self.ready.find(asked)):
            return changed
        result = result.with_truth(truth)
        with tempfile.TemporaryDirectory() as folder:
            files = [self._kept(path) for path in result.write(Path(folder), asked.view)]
        return {
            **changed,
            **self.panel.show(result, asked.view, asked.pair),
            self.panel.files: files,
            self.bar.line: status(_said(result, asked)),
            self.state: result,
        }

    def _kept(self, path: str) -> str:
        """A file moved to where Gradio keeps those that it hands out."""
        return self.panel.files.move_resource_to_block_cache(path)

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
            self.controls.elsewhere: gr.Button(visible=self._is_other(scan)),
        }
        if self.contours:
            changed[self.panel.contours] = self.contours.picture(source, asked.thresholds())
        return changed

    def mark(self, state: SliceResult | str | None, **values) -> str | Values:
        """Say whether what is shown is what is asked for."""
        asked = self.asked_type(**values)
        if state is None or not asked.scan:
            return gr.skip()
        if state == OPENED:
            if self.ready.number_of(asked) is not None:
                return status(ready.MADE_BEFORE)
            if asked.scan != str(self.options.examples[0].scan):
                return gr.skip()
        elif state.is_of(asked):
            return status(_said(state, asked))
        if SPEED_CHOICES[asked.speed].at_once:
            return status("What is shown was made with other settings: let go, or press Translate.", old=True)
        return status("What is shown was made with other settings: press Translate.", old=True)

    def run_unless_ready(self, state: SliceResult | str | None, request: gr.Request, **values) -> Iterator[Values]:
        """`run_at_once`, if there is no result yet."""
        if state is None:
            yield from self.run_at_once(request, **values)
        else:
            yield gr.skip()

    def run_at_once(self, request: gr.Request, **values) -> Iterator[Values]:
        """Translate a new scan or slice, where that takes a moment only."""
        asked = self.asked_type(**values)
        if not asked.scan or self._undecided(asked):
            yield self._forget()
            return
        if self._is_other(self._open(asked)):
            title = MODALITY_TITLES[self.options.source]
            wrong = f"Not translated: this seems to be no {title}. If it is one, press Translate."
            yield {**self._forget(), self.bar.line: status(wrong)}
        elif SPEED_CHOICES[asked.speed].at_once:
            yield from self.run(request, **values)
        else:
            # What is shown is of another scan or slice.
            yield self._forget()

    def run_on_setting(self, request: gr.Request, **values) -> Iterator[Values]:
        """`run_at_once` after another setting; what cannot be made at once is marked as old by `mark`."""
        if SPEED_CHOICES[values["speed"]].at_once:
            yield from self.run_at_once(request, **values)
        else:
            yield gr.skip()

    def run(self, request: gr.Request, **values) -> Iterator[Values]:
        """Translate a slice, streaming intermediate steps; then compare it with the ground truth."""
        asked = self.asked_type(**values)
        source, settings = self._slice(asked), self._settings_for(asked)
        asked.check_work()
        line = self.bar.line
        # The last result stays, greyed out, until there is something else to show.
        yield {self.components["seed"]: settings.seed, line: status("Translating…", 0, 1, old=True)}
        thresholds, visitor = asked.thresholds(), request.session_hash
        emptied = False
        try:
            for item in runs.stream(self.number, source, self.options.direction, settings, thresholds, visitor):
                if isinstance(item, Translation):
                    break
                if isinstance(item, runs.Phase):
                    yield {line: status(f"{item.value}…", 0, 1, old=True)}
                    continue
                if item.preview is not None and not emptied:
                    yield {**self.panel.empty(), self.state: None}
                    emptied = True
                yield self._step(item, source, asked.view, old=not emptied)
            else:  # it ended without one
                yield {line: status(controls.STOPPED, old=True)}
                return
        except gr.Error:
            yield {line: status("Not translated.", old=True)}
            raise
        bundled = ready.is_bundled(self.checkpoints, self.options.direction)
        recipe = asked.recipe(settings.seed)
        result = SliceResult(
            self.options.direction, asked.scan, asked.shown, source, item, recipe=recipe, bundled=bundled
        )
        yield from self._finish(asked, replace(result, series=asked.series))

    def _step(self, done: runs.Step, source: Slice, view: str, *, old: bool) -> Values:
        """old: what is shown is the last result."""
        text = f"Step {done.step} of {done.steps}"
        if done.left and done.left >= 1:
            text += f", about {done.left:.0f} s left"
        changed: Values = {self.bar.line: status(text, done.step, done.steps, old=old)}
        if done.preview is not None:
            changed[self.panel.made] = self._step_picture(done.preview, source, view)
        return changed

    def _step_picture(self, image: np.ndarray, source: Slice, view: str) -> np.ndarray:
        """A model image (S, S, 3) as a picture of the slice."""
        pixels = to_slice(image, self.options.target, source.letterbox(image.shape[0]))
        return synthetic_picture(pixels, source, self.options.target, view)

    def _finish(self, asked: AskedSlice, result: SliceResult) -> Iterator[Values]:
        refused = None
        try:
            result = result.with_truth(asked.truth, asked.truth_contrast)
        except gr.Error as error:
            refused = error
        with tempfile.TemporaryDirectory() as folder:
            # Once this is taken, the files are copied.
            yield {
                **self.panel.show(result, asked.view, asked.pair),
                self.panel.files: result.write(Path(folder), asked.view),
                self.components["seed"]: result.translation.settings.seed,
                self.bar.line: status(_said(result, asked)),
                self.state: result,
            }
        if refused:  # after the result is shown: a ground truth that does not fit must not lose it
            raise refused

    def translate_one(self, path: str, count: int, values: dict, request: gr.Request) -> SliceResult:
        """`batch.Translate` by the tab's settings; what seems to be of the other modality is refused."""
        asked = self.asked_type(scan=path, **values)
        asked.check_work(count)
        scan = self._open(asked)
        if self._is_other(scan):
            raise gr.Error(scan.warnings[0], print_exception=False)
        source, settings, thresholds = self._slice(asked), self._settings_for(asked), asked.thresholds()
        items = runs.stream(self.number, source, self.options.direction, settings, thresholds, request.session_hash)
        made = [item for item in items if isinstance(item, Translation)]
        if not made:
            raise gr.Error("Stopped.", print_exception=False)
        return SliceResult(self.options.direction, path, asked.shown, source, made[0], recipe=asked.recipe())

    def compare(self, state: SliceResult | str | None, **values) -> Values:
        """Compare the last result with a ground truth that came, went, or of which the contrast was told."""
        asked = self.asked_type(**values)
        shown = {self.components["truth_contrast"]: gr.Radio(visible=bool(asked.truth) and self.options.target == "MR")}
        result = self._known(state, asked)
        if result is None:
            if asked.truth:
                open_scan(asked.truth, self.options.target)
            return shown
        result = result.with_truth(asked.truth, asked.truth_contrast)
        return {
            **shown,
            **self.panel.show(result, asked.view, asked.pair),
            self.state: result,
            self.bar.line: status(_said(result, asked), old=not result.is_of(asked)),
        }

    def show_again(self, state: SliceResult | str | None, **values) -> Values:
        """Show the same images in another CT window, or two others on each other."""
        asked = self.asked_type(**values)
        if (result := self._known(state, asked)) is not None:
            return self.panel.show(result, asked.view, asked.pair)
        if state == OPENED or not asked.scan:
            return gr.skip()
        return {self.panel.input: slice_picture(self._slice(asked), asked.view)}


def _said(result: SliceResult, asked: AskedSlice) -> str:
    """What there is to say of a result."""
    return " ".join([_done(result), *result.warnings(asked.truth)])


def _done(result: SliceResult) -> str:
    if result.beforehand:
        return ready.MADE_BEFORE
    settings = result.translation.settings
    text = f"Done in {result.translation.seconds:.2f} s"
    if SPEED_CHOICES[settings.speed].sampled:
        text += f", {settings.steps} steps, seed {settings.seed}"
    return f"{text}."


def slice_count(example: Example) -> int:
    """How many axial slices a bundled example has, of which only the header is read."""
    import nibabel as nib

    return 1 if example.scan.suffix == ".png" else nib.load(example.scan).shape[2]
