"""Tab Volume: a whole head in, a whole head out, in the same place."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import gradio as gr
import numpy as np
from gradio.components import Component
from gradio.events import Dependency

from mediffuse.directions import CONTRASTS, DIRECTION_TITLES, modalities
from mediffuse.scan import PLANES, Scan, ScanError, SeveralSeriesError
from mediffuse.scan.deface import defaced
from mediffuse.translate import Translator
from mediffuse.translate.volumes import VolumeTranslation
from mediffuse.ui import controls, ready, runs, truths, viewer
from mediffuse.ui.asked import AskedVolume, parameters
from mediffuse.ui.controls import OPTIONS, PRIVATE, VOLUMES, Values, queued, select
from mediffuse.ui.examples import VOLUME_EXAMPLES
from mediffuse.ui.uploads import open_volume, read_volume
from mediffuse.ui.volume_result import (
    Made,
    VolumePanel,
    VolumeShown,
    compare,
    face_of,
    input_layer,
    known_layers,
    made_of,
    shown,
    voxels_of,
    write_results,
)
from mediffuse.ui.words import MODALITY_TITLES, notice, status

ABOUT = (
    "Makes a synthetic MRI (T1 or T2) of a whole head CT, or a CT of an MRI, slice by slice, in its place and on its "
    "grid. Choose an example, or a scan of your own."
)
_RUN_WANTED = """(about) => {
  if (about && JSON.parse(about).wanted) document.querySelector("#volume-go").click();
}"""
"""Has an example translated that was not translated beforehand."""

OLD = "What is shown was made with other settings: press Translate."

VOLUME_OPTIONS = {"steps": OPTIONS["steps"], "samples": replace(OPTIONS["samples"], label="Samples")}


class VolumeControls:
    """What a visitor sets: the scan, and below it `options`. components: by API parameter. first: what is there from
    the start, if anything. thumbnails: of the examples, by direction."""

    def __init__(self, first: AskedVolume | None, thumbnails: dict[str, str | None]) -> None:
        self.first, self.thumbnails = first or AskedVolume(), thumbnails
        self.components: dict[str, Component] = {}
        self._scan()

    def options(self, translator: Translator) -> None:
        """Lay out how to translate, and what to compare with: beside the result, below it on a phone."""
        with gr.Column(scale=2, min_width=280, elem_classes="settings"):
            self._sampling(translator.checkpoints.speeds("ct2mr"))
            self._passes()
            self._truth()
            self._written()

    def _scan(self) -> None:
        with gr.Row(elem_classes="examples"):
            with gr.Column(scale=2, min_width=240):
                self.components["paths"] = gr.File(
                    self.first.paths,
                    label="Scan: NIfTI, NRRD, MetaImage, MGZ or DICOM",
                    file_count="multiple",
                    height=130,
                    elem_id="volume-scan",
                )
            with gr.Column(scale=2, min_width=240):
                self.components["direction"] = gr.Radio(
                    [(DIRECTION_TITLES[direction], direction) for direction in VOLUME_EXAMPLES],
                    value=self.first.direction,
                    label="Direction",
                    elem_id="volume-direction",
                )
            with gr.Column(scale=3, min_width=240), gr.Row(elem_classes="thumbnails"):
                self.example_buttons = {
                    direction: gr.Button(
                        example.title,
                        icon=self.thumbnails[direction],
                        size="sm",
                        min_width=80,
                        elem_classes="thumbnail",
                        elem_id=f"volume-example-{place}",
                    )
                    for place, (direction, example) in enumerate(VOLUME_EXAMPLES.items())
                }
        self.components["series"] = controls.series_choice("volume")
        self.notice = controls.notice("volume")
        self.turn = gr.Button("", visible=False, size="sm", elem_id="volume-turn")

    def _sampling(self, speeds: tuple[str, ...]) -> None:
        contrast = self.components["contrast"] = controls.contrast_choice("volume", CONTRASTS)
        self.components["speed"] = controls.speed_choice("volume", speeds)
        with gr.Group(visible=False) as group:
            self.components["start"] = controls.start_choice("volume")
            self.components |= controls.option_sliders("volume", VOLUME_OPTIONS)
            self.components["seed"] = controls.seed_box("volume")
        controls.on_speed(self.components["speed"], group, self.components["samples"])
        direction = self.components["direction"]
        direction.change(
            lambda chosen: gr.Radio(visible=modalities(chosen)[1] == "MR"), direction, contrast, queue=False, **PRIVATE
        )

    def _passes(self) -> None:
        with gr.Accordion("Averaging and uncertainty", open=False):
            self.components["planes"] = gr.CheckboxGroup(
                list(PLANES), value=["axial"], label="Slices to translate", info="Several planes are averaged."
            )
            self.components["mirror"] = gr.Checkbox(
                False,
                label="Mirrored slices as a pass of their own",
                info="Their spread is an uncertainty. One step averages them in any case.",
            )

    def _truth(self) -> None:
        direction = self.components["direction"]
        self.components["truth"] = gr.File(
            self.first.truth,
            label=_truth_label(self.first.direction),
            file_count="multiple",
            height=130,
            elem_id="volume-truth",
        )
        direction.change(
            lambda chosen: gr.File(label=_truth_label(chosen)),
            direction,
            self.components["truth"],
            queue=False,
            **PRIVATE,
        )
        self.components["truth_contrast"] = truths.contrast_choice(
            "volume", visible=bool(self.first.truth) and modalities(self.first.direction)[1] == "MR"
        )
        self.components["register"] = gr.Checkbox(
            False,
            label="Move the real scan onto the input first (rigid registration)",
            elem_id="volume-register",
        )

    def _written(self) -> None:
        self.components["dicom"] = gr.Checkbox(False, label="Write a DICOM series too (zip)", elem_id="volume-dicom")
        self.components["deface"] = gr.Checkbox(
            False,
            label="Blank the face and ears",
            info="In all that is shown and downloaded. Look at the result: a scan can be unlike those it was tried on.",
            elem_id="volume-deface",
        )


def _truth_label(direction: str) -> str:
    return f"Real {MODALITY_TITLES[modalities(direction)[1]]} to compare with (optional)"


class VolumeTab:
    """The tab: which event does what. It holds no visitor's data: one serves all."""

    def __init__(self, translator: Translator) -> None:
        self.number = runs.register(translator)
        self.ready = {direction: ready.ReadyVolume(direction, translator.checkpoints) for direction in VOLUME_EXAMPLES}
        first = next(iter(self.ready.values()))
        opening = first.shown
        gr.Markdown(ABOUT, elem_classes="about")
        thumbnails = {direction: one.thumbnail for direction, one in self.ready.items()}
        self.controls = VolumeControls(first.asked if opening else None, thumbnails)
        self.bar = controls.Bar("volume", status(ready.MADE_BEFORE) if opening else "")
        with gr.Row(elem_classes="work"):
            self.controls.options(translator)
            self.panel = VolumePanel(opening or VolumeShown())
        self.components = self.controls.components
        self._draw_after(self.panel.viewer.load)
        self._on_run()
        self._on_scan()
        self._on_truth()
        self._on_settings()

    @property
    def outputs(self) -> list[Component]:
        """What a run changes, in the order of the API."""
        return [self.bar.line, *self.panel.outputs]

    @property
    def everything(self) -> dict[str, Component]:
        """The controls of all API parameters."""
        return select(self.components, parameters(AskedVolume))

    # The events.

    def _draw_after(self, event: Callable[..., Dependency]) -> Dependency:
        """Hand the viewer what is there for it to draw after `event`."""
        return event(None, self.panel.drawn, js=viewer.show("volume-viewer"), **PRIVATE)

    def _on_run(self) -> None:
        self.bar.on_wait(VOLUMES)
        running = self.bar.go.click(
            self.translate,
            inputs_kwargs=self.everything,
            outputs=self.outputs,
            **queued(VOLUMES, self.bar.line),
            api_name="volume",
        )
        self._draw_after(running.success)
        # Settings may have been changed meanwhile.
        self._mark_after(running.success)
        self.bar.clear_after(running)
        controls.on_stop(self.bar.stop, self.bar.line, [running], "volume_stop")

    def _on_scan(self) -> None:
        paths, series = self.components["paths"], self.components["series"]
        loading = {
            "inputs_kwargs": self.everything,
            "outputs": [
                *(self.components[name] for name in ("direction", "paths", "series", "truth", "truth_contrast")),
                self.controls.notice,
                self.controls.turn,
                *self.outputs,
            ],
            **PRIVATE,
        }
        uploaded = paths.upload(controls.no_series, outputs=series, **PRIVATE)
        # Only a scan that can be read replaces the last result, and its ground truth.
        self._draw_after(
            uploaded.success(self.load, **loading)
            .success(self._no_truth, outputs=loading["outputs"], **PRIVATE)
            .success
        )
        for choice in (series, self.components["deface"]):
            self._draw_after(choice.input(self.load, **loading).success)
        self._draw_after(paths.clear(self._forget, outputs=loading["outputs"], **PRIVATE).success)
        chosen = [
            self.components["direction"].input(self.change_direction, **loading),
            self.controls.turn.click(self.turn, **loading),
            *(
                button.click(partial(self.choose, direction), **loading)
                for direction, button in self.controls.example_buttons.items()
            ),
        ]
        for event in chosen:
            self._draw_after(event.success)
            event.success(None, self.panel.about, js=_RUN_WANTED, **PRIVATE)

    def _on_truth(self) -> None:
        truth, contrast = self.components["truth"], self.components["truth_contrast"]
        told_anew = truth.upload(lambda: truths.AUTO, outputs=contrast, **PRIVATE)
        for event in (told_anew.success, truth.clear, self.components["register"].input, contrast.input):
            compared = event(
                self.compare_again,
                [self.panel.about, self.panel.layers],
                [*self.outputs, contrast],
                js=viewer.WITHOUT_SCORES,
                inputs_kwargs=self.everything,
                **queued(VOLUMES, self.bar.line),
                api_visibility="private",
            )
            self._draw_after(compared.success)

    def _on_settings(self) -> None:
        """Mark what is shown as old while it is not what is asked for."""
        names = ("contrast", "speed", "start", *VOLUME_OPTIONS, "seed", "planes", "mirror")
        self._mark_after(partial(gr.on, [self.components[name].input for name in names]))

    def _mark_after(self, event: Callable[..., Dependency]) -> None:
        event(
            self.mark,
            [self.panel.about, self.bar.line],
            self.bar.line,
            js=viewer.WITHOUT_SCORES,
            inputs_kwargs=self.everything,
            queue=False,
            trigger_mode="always_last",
            **PRIVATE,
        )

    # The handlers.

    def _forget(self) -> Values:
        return {
            self.components["series"]: controls.no_series(),
            self.controls.notice: notice([]),
            self.controls.turn: gr.Button(visible=False),
            self.bar.line: "",
            **self.panel.empty(),
            **self._no_truth(),
        }

    def _no_truth(self) -> Values:
        return {
            self.components["truth"]: None,
            self.components["truth_contrast"]: gr.Radio(value=truths.AUTO, visible=False),
        }

    def choose(self, which: str, **values) -> Iterator[Values]:
        """Show the example of a direction, with its result if that was made beforehand for what is asked."""
        made_before = self.ready[which]
        of_example = {name: getattr(made_before.asked, name) for name in ("paths", "truth", "truth_contrast", "series")}
        asked = replace(AskedVolume(**values), direction=which, **of_example)
        chosen = {
            **self._forget(),
            self.components["direction"]: which,
            self.components["paths"]: asked.paths,
            self.components["truth"]: asked.truth,
            self.components["truth_contrast"]: gr.Radio(value=truths.AUTO, visible=modalities(which)[1] == "MR"),
        }
        if ready_one := made_before.find(asked):
            yield {**chosen, **self.panel.show(ready_one), self.bar.line: status(ready.MADE_BEFORE)}
            return
        for loaded in self._loaded(asked, wanted=True):
            yield {**chosen, **loaded}

    def change_direction(self, **values) -> Iterator[Values]:
        """Read the scan as of the other modality; or go from one example to the other."""
        asked = AskedVolume(**values)
        if any(asked.paths == one.asked.paths for name, one in self.ready.items() if name != asked.direction):
            yield from self.choose(asked.direction, **values)
            return
        for loaded in self._loaded(asked):
            yield {**loaded, **self._no_truth()}

    def turn(self, **values) -> Iterator[Values]:
        """The other direction, for a scan of the other modality."""
        (direction,) = set(VOLUME_EXAMPLES) - {values["direction"]}
        for loaded in self._loaded(AskedVolume(**{**values, "direction": direction})):
            yield {**loaded, **self._no_truth(), self.components["direction"]: direction}

    def load(self, **values) -> Iterator[Values]:
        """Show a new scan; where there are several series, ask which."""
        yield from self._loaded(AskedVolume(**values))

    def _loaded(self, asked: AskedVolume, *, wanted: bool = False) -> Iterator[Values]:
        """wanted: whether it is to be translated at once."""
        turn = self.controls.turn
        emptied = {**self.panel.empty(), self.bar.line: "", turn: gr.Button(visible=False)}
        if not asked.paths:
            yield {**emptied, self.controls.notice: notice([])}
            return
        source = modalities(asked.direction)[0]
        try:
            scan = read_volume(asked.paths, source, asked.series)
        except SeveralSeriesError as error:
            yield {
                **emptied,
                self.components["series"]: controls.series_asked(error),
                self.controls.notice: notice(["Choose the series to translate."]),
            }
            return
        except ScanError as error:
            raise gr.Error(str(error), duration=None, print_exception=False) from error
        if asked.deface:
            yield {**emptied, self.bar.line: status("Looking for the face…")}
        scan = defaced(scan, face_of(scan, asked))
        line = _size(scan)
        if scan.looks not in (None, source):
            (other,) = (
                title for name, title in DIRECTION_TITLES.items() if name in VOLUME_EXAMPLES and name != asked.direction
            )
            emptied[turn] = gr.Button(f"Translate it {other}", visible=True)
            line = f"This seems to be no {MODALITY_TITLES[source]}. If it is one, press Translate."
        with tempfile.TemporaryDirectory() as folder:
            # While the folder is there: gradio copies the file when it takes this.
            what = shown(scan, [input_layer(scan, Path(folder))], asked.direction, wanted=wanted)
            yield {
                **emptied,
                **self.panel.show(what),
                self.bar.line: status(line),
                self.controls.notice: notice(scan.warnings),
            }

    def mark(self, about: str | None, line: str | None, **values) -> str | Values:
        """Say whether what is shown is what is asked for."""
        made = made_of(about)
        if made is None or "<progress" in (line or ""):
            return gr.skip()
        if made.recipe == AskedVolume(**values).recipe():
            return status(made.said)
        return status(OLD, old=True)

    # The docstring is the API's description.
    def translate(self, request: gr.Request, **values) -> Iterator[Values]:
        """Translate the volume, saying how far it is; then compare it with the ground truth."""
        asked = AskedVolume(**values)
        line = self.bar.line
        scan = open_volume(asked.paths, modalities(asked.direction)[0], asked.series)
        settings, passes = asked.settings(), asked.passes()
        asked.check_work(scan)
        face = face_of(scan, asked)
        # The last result stays, greyed out, until there is another.
        yield {line: status("Loading the model…", 0, 1, old=True)}
        try:
            for item in runs.stream_volume(self.number, scan, asked.direction, settings, passes, request.session_hash):
                if isinstance(item, VolumeTranslation):
                    break
                yield {line: status(f"{item.step} of {item.steps} slices", item.step, item.steps, old=True)}
            else:  # it ended without one
                yield {line: status(controls.STOPPED, old=True)}
                return
        except gr.Error:
            yield {line: status("Not translated.", old=True)}
            raise
        yield from self._finish(asked, defaced(scan, face), item.without(face), face)

    def _finish(
        self, asked: AskedVolume, scan: Scan, translation: VolumeTranslation, face: np.ndarray | None
    ) -> Iterator[Values]:
        done = f"Done: {translation.slices} slices in {translation.seconds:.1f} s."
        made = Made(asked.recipe(), translation.settings.contrast, done, [*scan.warnings])
        with tempfile.TemporaryDirectory() as name:
            layers, files = write_results(scan, translation, asked, Path(name))
            compared = compare(scan, translation.voxels, made.contrast, asked, Path(name), face)
            what = replace(shown(scan, layers, asked.direction, compared, made), files=files)
            yield {**self.panel.show(what), self.bar.line: status(made_of(what.about).said)}
        if compared.refused:
            raise compared.refused

    def compare_again(self, about: str | None, layers: list[str] | None, **values) -> Iterator[Values]:
        """Compare what was made with a ground truth that came, went, or of which the contrast was told.

        about, layers: of `VolumePanel`.
        """
        asked = AskedVolume(**values)
        source, target = modalities(asked.direction)
        asking = {self.components["truth_contrast"]: gr.Radio(visible=bool(asked.truth) and target == "MR")}
        known, made = known_layers(layers, about), made_of(about)
        if made is None or "made" not in known:
            if asked.truth:
                open_volume(asked.truth, target, prefix="Ground truth: ")
            yield asking
            return
        scan = open_volume(asked.paths, source, asked.series)
        try:
            voxels = voxels_of(known["made"].path, scan, target)
        except ScanError as error:
            text = f"The result cannot be compared: translate again. {error}"
            raise gr.Error(text, duration=None, print_exception=False) from error
        face = face_of(scan, asked)
        kept = [layer for role, layer in known.items() if role not in ("truth", "error")]
        made = replace(made, notes=[*scan.warnings])
        with tempfile.TemporaryDirectory() as folder:
            compared = compare(defaced(scan, face), voxels, made.contrast, asked, Path(folder), face)
            what = shown(scan, kept, asked.direction, compared, made)
            yield {**asking, **self.panel.show(what), self.bar.line: self.mark(what.about, None, **values)}
        if compared.refused:
            raise compared.refused


def _size(scan: Scan) -> str:
    voxels = " × ".join(map(str, scan.native_shape))
    mm = " × ".join(f"{value:.3g}" for value in scan.spacing)
    return f"{voxels} voxels of {mm} mm."
