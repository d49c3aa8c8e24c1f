"""One translation tab: what the three tabs share. Each tab's own file adds what is its own."""

from __future__ import annotations

import html
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr
import numpy as np

from mediffuse.directions import modalities
from mediffuse.image.contours import Thresholds
from mediffuse.image.ct_picture import PNG_WINDOWS
from mediffuse.image.display import CT_VIEWS, ERROR_SCALE, UNCERTAINTY_SCALE, error_map, picture, uncertainty_map
from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.scan import Scan, ScanError, Slice
from mediffuse.translate import MAX_SEED, Settings, Translation, Translator
from mediffuse.translate.slices import to_slice
from mediffuse.ui import session
from mediffuse.ui.session import Result

WORDS = {"CT": "CT", "MR": "MRI"}
UNITS = {"CT": "HU", "MR": "of 255"}
SCORE_HEADERS = ["Protocol", "PSNR (dB)", "SSIM", "MAE"]
MAE_UNITS = {
    ("CT", "paper"): "grey levels",
    ("MR", "paper"): "grey levels",
    ("CT", "synthrad"): "HU",
    ("MR", "synthrad"): "of range",
}
PROTOCOLS = {"paper": "paper (8-bit, whole frame)", "synthrad": "synthrad (in body mask)"}


@dataclass(frozen=True)
class Example:
    """A bundled example: button text, input file, and the real image of the other modality."""

    title: str
    scan: Path
    truth: Path | None = None


@dataclass
class Tab:
    """A translation tab and its components. `thresholds` is filled by the contour tab only."""

    direction: str
    api: str
    translator: Translator
    examples: list[Example]
    default_view: str
    contrasts: tuple[str, ...] = ("T1",)
    thresholds: list[gr.components.Component] = field(default_factory=list)
    on_scan: Callable[[Slice, Thresholds], np.ndarray] | None = None  # extra preview of a slice
    extra_label: str | None = None  # of the picture that `on_scan` makes
    extra_preview: gr.Image | None = None

    def build(self, build_extra: Callable[[Tab], None] | None = None) -> None:
        """Lay out the tab and wire its events. `build_extra` adds inputs below the scan."""
        source, target = (WORDS[m] for m in modalities(self.direction))
        self.source, self.target = modalities(self.direction)
        self.number = session.register(self.translator)
        name = self.direction
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                self.scan = gr.File(
                    label=f"{source}: PNG, NIfTI or DICOM",
                    height=120,
                    elem_id=f"{name}-scan",
                )
                with gr.Row():
                    buttons = [
                        gr.Button(e.title, size="sm", elem_id=f"{name}-example-{i}")
                        for i, e in enumerate(self.examples)
                    ]
                self.index = gr.Slider(
                    -1,
                    4096,
                    -1,
                    step=1,
                    label="Slice, from below",
                    visible=False,
                    elem_id=f"{name}-index",
                )
                self.shown = gr.Radio(
                    [("Guess", "auto"), *((text, key) for key, text in PNG_WINDOWS.items())],
                    value="auto",
                    label="Which window does this CT picture show?",
                    visible=False,
                    elem_id=f"{name}-shown",
                )
                self.notice = gr.Markdown(visible=False, elem_classes="notice", elem_id=f"{name}-notice")
                if build_extra:
                    build_extra(self)
                self.contrast = gr.Radio(
                    list(self.contrasts),
                    value=self.contrasts[0],
                    label="MRI contrast",
                    visible=len(self.contrasts) > 1,
                    elem_id=f"{name}-contrast",
                )
                self.speed = gr.Radio(
                    [("Fast (one step)", "fast"), ("Diffusion (sampling)", "diffusion")],
                    value="fast",
                    label="Speed",
                    elem_id=f"{name}-speed",
                )
                with gr.Group(visible=False) as diffusion:
                    self.steps = gr.Slider(2, 100, 20, step=1, label="Steps", elem_id=f"{name}-steps")
                    self.samples = gr.Slider(1, 8, 1, step=1, label="Samples (mean and uncertainty from 2 on)")
                    self.guidance = gr.Slider(1, 10, 1, step=0.1, label="Guidance scale (1: off)")
                    self.image_guidance = gr.Slider(
                        1,
                        5,
                        1,
                        step=0.1,
                        label="Image guidance scale (with guidance above 1)",
                        visible=self.direction != "contour2mr",
                    )
                    with gr.Row():
                        self.seed = gr.Number(
                            0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id=f"{name}-seed"
                        )
                        self.random = gr.Checkbox(False, label="Random seed")
                self.truth = gr.File(
                    label=f"Ground truth: real {target} (optional)",
                    height=120,
                    elem_id=f"{name}-truth",
                )
                with gr.Row():
                    go = gr.Button("Translate", variant="primary", elem_id=f"{name}-go")
                    halt = gr.Button("Stop", variant="stop", elem_id=f"{name}-stop")
            with gr.Column(scale=5, min_width=320):
                self.status = gr.HTML(elem_id=f"{name}-status")
                with gr.Row():
                    self.input_picture = self._image(f"Input {source}", "input")
                    if self.extra_label:
                        self.extra_preview = self._image(self.extra_label, "extra")
                    self.made_picture = self._image(f"Synthetic {target}", "made")
                    self.truth_picture = self._image(f"Real {target}", "truth-picture", visible=False)
                self.scores = gr.Dataframe(
                    headers=SCORE_HEADERS,
                    label="Synthetic against ground truth",
                    interactive=False,
                    visible=False,
                    elem_id=f"{name}-scores",
                )
                with gr.Row():
                    self.slider = gr.ImageSlider(
                        label=f"{source} | synthetic {target}",
                        format="png",
                        interactive=False,
                        visible=False,
                        elem_id=f"{name}-slider",
                    )
                    self.error_picture = self._image(error_label(self.target), "error", visible=False)
                    self.spread_picture = self._image(spread_label(self.target), "spread", visible=False)
                self.gallery = gr.Gallery(
                    label="Samples", format="png", columns=4, height="auto", visible=False, elem_id=f"{name}-gallery"
                )
                with gr.Row():
                    self.view = gr.Dropdown(
                        list(CT_VIEWS), value=self.default_view, label="CT is shown in window", elem_id=f"{name}-view"
                    )
                    self.files = gr.File(
                        label="Download (PNG; NIfTI in the input's space)",
                        file_count="multiple",
                        interactive=False,
                        height=150,
                        elem_id=f"{name}-files",
                    )
        self.state = gr.State(None)
        self._wire(go, halt, buttons, diffusion)

    def _image(self, label: str, name: str, visible: bool = True) -> gr.Image:
        return gr.Image(
            label=label,
            format="png",
            interactive=False,
            visible=visible,
            buttons=["download", "fullscreen"],
            min_width=200,
            elem_id=f"{self.direction}-{name}",
        )

    def _wire(self, go: gr.Button, halt: gr.Button, buttons: list[gr.Button], diffusion: gr.Group) -> None:
        preview_outputs = [self.input_picture, self.notice]
        if self.extra_preview is not None:
            preview_outputs.append(self.extra_preview)
        loading = {
            "fn": self.load,
            "inputs": [self.scan, self.view, *self.thresholds],
            "outputs": [*preview_outputs, self.index, self.shown],
            "show_progress": "hidden",
            "api_visibility": "private",
        }
        previewing = {
            "fn": self.preview,
            "inputs": [self.scan, self.index, self.shown, self.view, *self.thresholds],
            "outputs": preview_outputs,
            "show_progress": "hidden",
            "trigger_mode": "always_last",
        }
        inputs = [
            self.scan,
            self.index,
            self.shown,
            self.view,
            self.speed,
            self.steps,
            self.samples,
            self.guidance,
            self.image_guidance,
            self.seed,
            self.random,
            self.truth,
            self.contrast,
            *self.thresholds,
        ]
        self.shows = [
            self.input_picture,
            self.made_picture,
            self.truth_picture,
            self.slider,
            self.error_picture,
            self.spread_picture,
            self.gallery,
            self.scores,
        ]
        running = {
            "inputs": inputs,
            "outputs": [*self.shows, self.files, self.seed, self.status, self.state],
            "show_progress": "hidden",
            "concurrency_limit": 1,
            "concurrency_id": "translate",
        }
        private = {"show_progress": "hidden", "api_visibility": "private"}
        # Unqueued, so that who waits for another visitor's run sees it.
        go.click(lambda: status("Waiting…", 0, 1), outputs=self.status, queue=False, **private)
        runs = [go.click(self.run, **running, api_name=self.api)]
        moved = self.index.input(**previewing, api_name=f"{self.api}_preview")
        asked = self.shown.input(**previewing, api_visibility="private")
        forgotten = running["outputs"]
        # Only a scan that can be read replaces the last result, and its ground truth.
        loaded = self.scan.upload(**loading)
        loads = [loaded.success(lambda: [*self._forget(), None], outputs=[*forgotten, self.truth], **private)]
        self.scan.clear(lambda: [None, *self._forget()[1:], None], outputs=[*forgotten, self.truth], **private)
        for button, example in zip(buttons, self.examples, strict=True):
            chosen = button.click(
                lambda e=example: [str(e.scan), str(e.truth) if e.truth else None],
                outputs=[self.scan, self.truth],
                **private,
            )
            loads.append(chosen.success(**loading).success(self._forget, outputs=forgotten, **private))
        # A slice chosen while another is translated must be translated too.
        again = {**running, "trigger_mode": "always_last", "api_visibility": "private"}
        runs += [event.success(self.run_if_fast, **again) for event in (*loads, moved, asked)]
        runs.append(self.contrast.input(self.run_if_fast, **again))
        halt.click(session.stop, cancels=runs, queue=False, api_name=f"{self.api}_stop").then(
            lambda: status("Stopped."),
            outputs=self.status,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )
        self.speed.change(
            lambda speed: gr.Group(visible=speed == "diffusion"),
            self.speed,
            diffusion,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        gr.on(
            [self.truth.upload, self.truth.clear],
            self.compare,
            [self.state, self.truth, self.view],
            [*self.shows, self.state],
            show_progress="hidden",
            api_visibility="private",
        )
        self.view.input(
            self.show_again,
            [self.state, self.view, self.scan, self.index, self.shown],
            self.shows,
            show_progress="hidden",
            api_visibility="private",
        )

    # What happens. `self` holds no visitor's data: one Tab serves all.

    def _forget(self) -> list:
        """Values that empty the results but the input picture, for `running["outputs"]`."""
        hidden = [
            gr.Image(None, visible=False),
            gr.ImageSlider(None, visible=False),
            gr.Image(None, visible=False),
            gr.Image(None, visible=False),
            gr.Gallery(None, visible=False),
            gr.Dataframe([], visible=False),
        ]
        return [gr.skip(), None, *hidden, None, gr.skip(), "", None]

    def load(self, scan, view, mode=None, *limits):
        """Show a new scan: its central slice, with the controls that fit it."""
        volume = session.open_scan(scan, self.source)
        count = volume.count(volume.plane)
        return [
            *self.preview(scan, -1, "auto", view, mode, *limits),
            gr.Slider(minimum=0, maximum=max(1, count - 1), value=count // 2, visible=count > 1),
            gr.Radio(value="auto", visible=volume.shown is not None),
        ]

    def preview(
        self,
        scan,
        index,
        shown,
        view,
        mode="windows",
        bone_low=None,
        bone_high=None,
        tissue_low=None,
        tissue_high=None,
        brain_low=None,
        brain_high=None,
    ):
        """Show a slice, or the same picture read in another window; the model does not run."""
        volume = session.open_scan(scan, self.source, shown)
        one = slice_of(volume, index)
        notes = list(volume.warnings)
        if volume.shown and shown == "auto":
            notes.append(f"Read as: {PNG_WINDOWS[volume.shown]}. Choose another window if that is wrong.")
        outputs = [
            self._picture(one, view),
            gr.Markdown("\n\n".join(notes), visible=bool(notes)),
        ]
        if self.extra_preview is not None:
            limits = (bone_low, bone_high, tissue_low, tissue_high, brain_low, brain_high)
            outputs.append(self.on_scan(one, thresholds_of(mode, *limits)))
        return outputs

    def run_if_fast(self, request: gr.Request, *values):
        """Translate at once after a new scan, slice or contrast, where that takes a moment only."""
        scan, speed = values[0], values[4]
        if speed != "fast" or not scan:
            # The old result is not what is asked for now.
            yield self._forget()
            return
        yield from self.run(request, *values)

    def run(
        self,
        request: gr.Request,
        scan,
        index,
        shown,
        view,
        speed,
        steps,
        samples,
        guidance,
        image_guidance,
        seed,
        random,
        truth,
        contrast,
        mode=None,
        bone_low=None,
        bone_high=None,
        tissue_low=None,
        tissue_high=None,
        brain_low=None,
        brain_high=None,
    ) -> Iterator[list]:
        """Translate a slice, streaming intermediate steps; then compare it with the ground truth."""
        one = slice_of(session.open_scan(scan, self.source, shown), index)
        limits = (bone_low, bone_high, tissue_low, tissue_high, brain_low, brain_high)
        thresholds = thresholds_of(mode, *limits) if mode else None
        if random and speed == "diffusion":
            seed = secrets.randbelow(MAX_SEED)
        try:
            settings = Settings(
                speed, int(steps), float(guidance), float(image_guidance), int(seed or 0), int(samples), contrast
            )
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        skipped = [gr.skip()] * len(self.shows)
        # Steps must not be shown beside the last result's scores; one step is over too soon to flicker.
        first = self._forget() if speed == "diffusion" else [*skipped, *[gr.skip()] * 4]
        yield [*first[:-3], seed, status("Translating…", 0, 1), gr.skip()]
        made = None
        try:
            for item in session.stream(self.number, one, self.direction, settings, thresholds, request.session_hash):
                if isinstance(item, Translation):
                    made = item
                    break
                step, of, preview = item
                shows = list(skipped)
                if preview is not None:
                    shows[1] = self._preview_picture(preview, one, view)
                yield [*shows, gr.skip(), gr.skip(), status(f"Step {step} of {of}", step, of), gr.skip()]
        except gr.Error:
            yield [*skipped, gr.skip(), gr.skip(), status("Not translated."), gr.skip()]
            raise
        if made is None:
            yield [*skipped, gr.skip(), gr.skip(), status("Stopped."), gr.skip()]
        else:
            yield from self._finish(made, scan, shown, one, truth, view)

    def _finish(self, translation, path, shown, one, truth, view) -> Iterator[list]:
        result, refused = Result(self.direction, path, shown, one, translation), None
        if truth:
            try:
                result = session.attach_truth(result, truth)
            except gr.Error as error:
                refused = error
        settings = translation.settings
        said = f"Done in {translation.seconds:.2f} s"
        if settings.speed == "diffusion":
            said += f", {settings.steps} steps, seed {settings.seed}"
        with tempfile.TemporaryDirectory() as folder:
            files = session.write_downloads(result, Path(folder), self._limits(self.target, view))
            # Once this is taken, the files are copied; a ground truth that does not fit must not lose it.
            warnings = session.warnings_of(result, truth)
            said = " ".join([f"{said}.", *warnings])
            yield [*self._shows(result, view), files, settings.seed, status(said), result]
        if refused:
            raise refused

    def compare(self, result: Result | None, truth, view):
        """Compare the last result with a ground truth that came, or went, afterwards."""
        if result is None:
            if truth:
                session.open_scan(truth, self.target)
            return [gr.skip()] * (len(self.shows) + 1)
        result = session.attach_truth(result, truth)
        return [*self._shows(result, view), result]

    def show_again(self, result: Result | None, view, scan, index, shown):
        """Show the same images in another CT window."""
        if result is not None:
            return self._shows(result, view)
        if not scan:
            return [gr.skip()] * len(self.shows)
        one = slice_of(session.open_scan(scan, self.source, shown), index)
        return [self._picture(one, view), *[gr.skip()] * (len(self.shows) - 1)]

    def _limits(self, modality: str, view: str, limits=MR_OUTPUT_LIMITS) -> tuple[float, float]:
        return CT_VIEWS[view] if modality == "CT" else limits

    def _picture(self, one: Slice, view: str) -> np.ndarray:
        return picture(one.pixels, self._limits(one.modality, view, one.limits), one.spacing)

    def _made(self, pixels: np.ndarray, one: Slice, view: str) -> np.ndarray:
        return picture(pixels, self._limits(self.target, view), one.spacing, synthetic=True)

    def _preview_picture(self, image: np.ndarray, one: Slice, view: str) -> np.ndarray:
        return self._made(to_slice(image, self.target, one.letterbox(image.shape[0])), one, view)

    def _shows(self, result: Result, view: str) -> list:
        one, made = result.one, result.translation
        source, synthetic = self._picture(one, view), self._made(made.pixels, one, view)
        truth, comparison = result.truth, result.comparison
        several = len(made.samples) > 1
        shows = [source, synthetic]
        shows.append(gr.Image(self._picture(truth, view) if truth else None, visible=truth is not None))
        shows.append(gr.ImageSlider((source, synthetic), visible=True))
        error = error_map(comparison.error, self.target, one.spacing) if comparison else None
        shows.append(gr.Image(error, visible=comparison is not None))
        spread = uncertainty_map(made.deviation, self.target, one.spacing) if several else None
        shows.append(gr.Image(spread, visible=several))
        pictures = [(self._made(s, one, view), f"seed {made.settings.seed + i}") for i, s in enumerate(made.samples)]
        shows.append(gr.Gallery(pictures if several else None, visible=several))
        shows.append(gr.Dataframe(self._rows(comparison), visible=comparison is not None))
        return shows

    def _rows(self, comparison) -> list[list[str]]:
        if comparison is None:
            return []
        return [
            [
                PROTOCOLS[s.protocol],
                f"{s.psnr:.2f}",
                f"{s.ssim:.3f}",
                f"{s.mae:.3g} {MAE_UNITS[self.target, s.protocol]}",
            ]
            for s in comparison.scores
        ]


def thresholds_of(mode, *limits) -> Thresholds:
    """The threshold controls' values: mode, then low and high of bone, soft tissue and brain."""
    limits = [float(limit) for limit in limits]
    return Thresholds(*zip(limits[::2], limits[1::2], strict=True), mode=mode)


def slice_of(scan: Scan, index: float | None) -> Slice:
    """The slice a slider asks for; the central one for -1, which an untouched slider says."""
    try:
        return scan.slice(scan.plane, None if index in (None, -1) else int(index))
    except ScanError as error:
        raise gr.Error(str(error), print_exception=False) from error


def error_label(modality: str) -> str:
    """Title of a map of errors of synthetic CT or MR."""
    return f"Error ±{ERROR_SCALE[modality]:.0f} {UNITS[modality]} (red: too high)"


def spread_label(modality: str) -> str:
    """Title of a map of the standard deviation of estimates of CT or MR."""
    return f"Uncertainty 0–{UNCERTAINTY_SCALE[modality]:.0f} {UNITS[modality]} (SD)"


def status(text: str, step: int | None = None, steps: int | None = None) -> str:
    text = html.escape(text)
    bar = f'<progress value="{step}" max="{steps}"></progress> ' if steps else ""
    return f'<div class="status" role="status">{bar}{text}</div>'
