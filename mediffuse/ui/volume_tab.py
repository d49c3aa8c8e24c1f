"""Tab Volume: a whole head in, a whole head out, in the same place."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
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
from mediffuse.ui import controls, runs, viewer
from mediffuse.ui.asked import AskedVolume, parameters
from mediffuse.ui.controls import OPTIONS, PRIVATE, VOLUMES, Values, queued, select
from mediffuse.ui.examples import CT, T1, Example
from mediffuse.ui.uploads import open_volume, read_volume
from mediffuse.ui.volume_result import (
    VolumePanel,
    compare,
    face_of,
    input_layer,
    known_layers,
    voxels_of,
    write_results,
)
from mediffuse.ui.words import notice, status

EXAMPLES = {
    "ct2mr": Example("Example: head CT, with its real T1", CT, T1),
    "mr2ct": Example("Example: head T1, with its real CT", T1, CT),
}
"""By the directions of the tab."""

ABOUT = (
    "Makes a synthetic MRI (T1 or T2) of a whole head CT, or a CT of an MRI, slice by slice, in its place and on its "
    "grid. Choose an example, or a scan of your own."
)
COMPARED = ("paths", "direction", "series", "contrast", "truth", "register", "deface")
"""The API parameters that a comparison needs."""

VOLUME_OPTIONS = {"steps": OPTIONS["steps"], "samples": replace(OPTIONS["samples"], label="Samples")}


class VolumeControls:
    """What a visitor sets: the scan, and below it `options`. components: by API parameter."""

    def __init__(self) -> None:
        self.components: dict[str, Component] = {}
        self._scan()

    def options(self, translator: Translator) -> None:
        """Lay out how to translate, and what to compare with: beside the result, below it on a phone."""
        with gr.Column(scale=2, min_width=280, elem_classes="settings"):
            self._sampling(translator.checkpoints.speeds("ct2mr"))
            self._passes()
            self._truth()

    def _scan(self) -> None:
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                self.components["paths"] = gr.File(
                    label="Scan: NIfTI, NRRD, MetaImage, MGZ, or a DICOM series (its files, or a zip)",
                    file_count="multiple",
                    height=130,
                    elem_id="volume-scan",
                )
            with gr.Column(scale=5, min_width=280):
                self.components["direction"] = gr.Radio(
                    [(DIRECTION_TITLES[direction], direction) for direction in EXAMPLES],
                    value="ct2mr",
                    label="Direction",
                    elem_id="volume-direction",
                )
                with gr.Row():
                    self.example_buttons = [
                        gr.Button(example.title, size="sm", elem_id=f"volume-example-{place}")
                        for place, example in enumerate(EXAMPLES.values())
                    ]
        self.components["series"] = controls.series_choice("volume")
        self.notice = controls.notice("volume")

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
            lambda chosen: gr.Radio(visible=chosen == "ct2mr"), direction, contrast, queue=False, **PRIVATE
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
        self.components["truth"] = gr.File(
            label="Real scan of the other modality, to compare with (optional)",
            file_count="multiple",
            height=130,
            elem_id="volume-truth",
        )
        self.components["register"] = gr.Checkbox(
            False, label="Register the ground truth rigidly first", elem_id="volume-register"
        )
        self.components["dicom"] = gr.Checkbox(False, label="Also a DICOM series (zip)", elem_id="volume-dicom")
        self.components["deface"] = gr.Checkbox(
            False,
            label="Blank the face and ears",
            info="In all that is shown and downloaded. Look at the result: a scan can be unlike those it was tried on.",
            elem_id="volume-deface",
        )


class VolumeTab:
    """The tab: which event does what. It holds no visitor's data: one serves all."""

    def __init__(self, translator: Translator) -> None:
        self.number = runs.register(translator)
        gr.Markdown(ABOUT, elem_classes="about")
        self.controls = VolumeControls()
        self.bar = controls.Bar("volume")
        with gr.Row(elem_classes="work"):
            self.controls.options(translator)
            self.panel = VolumePanel()
        self.components = self.controls.components
        self._on_run(self._on_scan())
        self._on_truth()

    @property
    def outputs(self) -> list[Component]:
        """What a run changes, in the order of the API."""
        return [self.bar.line, *self.panel.outputs]

    # The events.

    def _draw_after(self, event: Dependency) -> None:
        """Hand the viewer what `event` left for it to draw."""
        event.success(None, self.panel.drawn, js=viewer.show("volume-viewer"), **PRIVATE)

    def _on_scan(self) -> list[Dependency]:
        """Returns the events after which an example is there, to be translated."""
        paths, direction, series, truth = (self.components[n] for n in ("paths", "direction", "series", "truth"))
        loading = {
            "fn": self.load,
            "inputs_kwargs": select(self.components, ("paths", "direction", "series", "deface")),
            "outputs": [series, self.controls.notice, *self.outputs],
            **PRIVATE,
        }
        self._draw_after(paths.upload(controls.no_series, outputs=series, **PRIVATE).success(**loading))
        for choice in (series, direction, self.components["deface"]):
            self._draw_after(choice.input(**loading))
        self._draw_after(paths.clear(self._forget, outputs=loading["outputs"], **PRIVATE))
        loaded = []
        for button, (name, example) in zip(self.controls.example_buttons, EXAMPLES.items(), strict=True):
            chosen = button.click(
                lambda name=name, example=example: self._choose(name, example),
                outputs=[direction, paths, truth, series],
                **PRIVATE,
            )
            loaded.append(chosen.success(**loading))
            self._draw_after(loaded[-1])
        return loaded

    def _on_run(self, loaded: list[Dependency]) -> None:
        self.bar.on_wait(VOLUMES)
        translating = {
            "fn": self.translate,
            "inputs_kwargs": select(self.components, parameters(AskedVolume)),
            "outputs": self.outputs,
            **queued(VOLUMES, self.bar.line),
        }
        running = [
            self.bar.go.click(**translating, api_name="volume"),
            *(event.success(**translating, api_visibility="private") for event in loaded),
        ]
        for event in running:
            self._draw_after(event)
            self.bar.clear_after(event)
        controls.on_stop(self.bar.stop, self.bar.line, running, "volume_stop")
        names = ("contrast", "speed", "start", *VOLUME_OPTIONS, "seed", "planes", "mirror")
        old = json.dumps(status("What is shown was made with other settings: press Translate.", old=True))
        gr.on(
            [self.components[name].input for name in names],
            None,
            self.bar.line,
            self.bar.line,
            js=f"(line) => line?.includes('Done') ? {old} : line",
            **PRIVATE,
        )

    def _on_truth(self) -> None:
        truth = self.components["truth"]
        for event in (truth.upload, truth.clear, self.components["register"].input):
            compared = event(
                self.compare_again,
                self.panel.drawn,
                self.outputs,
                inputs_kwargs=select(self.components, COMPARED),
                **queued(VOLUMES, self.bar.line),
                api_visibility="private",
            )
            self._draw_after(compared)

    # The handlers.

    def _forget(self) -> Values:
        return {
            self.components["series"]: controls.no_series(),
            self.controls.notice: notice([]),
            self.bar.line: "",
            **self.panel.empty(),
        }

    def _choose(self, direction: str, example: Example) -> Values:
        return {
            self.components["direction"]: direction,
            self.components["paths"]: [str(example.scan)],
            self.components["truth"]: [str(example.truth)],
            self.components["series"]: controls.no_series(),
        }

    def load(self, **values) -> Iterator[Values]:
        """Show a new scan; where there are several series, ask which."""
        asked = AskedVolume(**values)
        emptied = {**self.panel.empty(), self.bar.line: ""}
        if not asked.paths:
            yield {**emptied, self.controls.notice: notice([])}
            return
        try:
            scan = read_volume(asked.paths, modalities(asked.direction)[0], asked.series)
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
        with tempfile.TemporaryDirectory() as folder:
            # While the folder is there: gradio copies the file when it takes this.
            yield {
                **emptied,
                **self.panel.draw(scan, [input_layer(scan, Path(folder))]),
                self.bar.line: status(_size(scan)),
                self.controls.notice: notice(scan.warnings),
            }

    # The docstring is the API's description.
    def translate(self, request: gr.Request, **values) -> Iterator[Values]:
        """Translate the volume, saying how far it is; then compare it with the ground truth."""
        asked = AskedVolume(**values)
        line = self.bar.line
        scan = open_volume(asked.paths, modalities(asked.direction)[0], asked.series)
        settings, passes = asked.settings(), asked.passes()
        asked.check_work(scan)
        face = face_of(scan, asked)
        # The last result stays until there is another.
        yield {line: status("Loading the model…", 0, 1)}
        try:
            for item in runs.stream_volume(self.number, scan, asked.direction, settings, passes, request.session_hash):
                if isinstance(item, VolumeTranslation):
                    break
                yield {line: status(f"{item.step} of {item.steps} slices", item.step, item.steps)}
            else:  # it ended without one
                yield {line: status(controls.STOPPED, old=True)}
                return
        except gr.Error:
            yield {line: status("Not translated.", old=True)}
            raise
        yield from self._finish(asked, defaced(scan, face), item.without(face), face)

    def _finish(
        self, asked: AskedVolume, scan: Scan, made: VolumeTranslation, face: np.ndarray | None
    ) -> Iterator[Values]:
        with tempfile.TemporaryDirectory() as name:
            layers, files = write_results(scan, made, asked, Path(name))
            compared = compare(scan, made.voxels, asked, Path(name), face)
            text = f"Done: {made.slices} slices in {made.seconds:.1f} s."
            yield {
                self.bar.line: status(" ".join([text, *scan.warnings, *compared.notes])),
                **self.panel.draw(scan, layers, compared),
                self.panel.files: gr.File(files, visible=True),
            }
        if compared.refused:
            raise compared.refused

    def compare_again(self, layers: list[str] | None, about: str | None, **values) -> Iterator[Values]:
        """Compare what was made with a ground truth that came, or went, afterwards.

        layers, about: `VolumePanel.drawn`.
        """
        asked = AskedVolume(**values)
        source, target = modalities(asked.direction)
        known = known_layers(layers, about)
        if "made" not in known:
            if asked.truth:
                open_volume(asked.truth, target, prefix="Ground truth: ")
            yield gr.skip()
            return
        scan = open_volume(asked.paths, source, asked.series)
        try:
            made = voxels_of(known["made"].path, scan, target)
        except ScanError as error:
            text = f"The result cannot be compared: translate again. {error}"
            raise gr.Error(text, duration=None, print_exception=False) from error
        face = face_of(scan, asked)
        kept = [layer for role, layer in known.items() if role not in ("truth", "error")]
        with tempfile.TemporaryDirectory() as folder:
            compared = compare(defaced(scan, face), made, asked, Path(folder), face)
            yield {
                **({self.bar.line: status(" ".join(compared.notes))} if compared.notes else {}),
                **self.panel.draw(scan, kept, compared),
            }
        if compared.refused:
            raise compared.refused


def _size(scan: Scan) -> str:
    voxels = " × ".join(map(str, scan.native_shape))
    mm = " × ".join(f"{value:.3g}" for value in scan.spacing)
    return f"{voxels} voxels of {mm} mm."
