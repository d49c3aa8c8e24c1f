"""Canny's thresholds of the tab Contours -> MRI, and the edges that they give, drawn as they are dragged."""

from __future__ import annotations

import gradio as gr
import numpy as np
from gradio.components import Component

from mediffuse.image.contours import Thresholds
from mediffuse.image.display import enlarge, with_sides
from mediffuse.image.letterbox import Letterbox
from mediffuse.scan import Slice
from mediffuse.translate import Translator
from mediffuse.ui.asked import AskedContours
from mediffuse.ui.controls import PRIVATE, Values, select
from mediffuse.ui.uploads import open_scan, slice_of

_WINDOWS = {"bone": "Bone", "tissue": "Soft tissue", "brain": "Brain"}
_COLOURS = "bone red, soft tissue green, brain blue"


class ContourControls:
    """The thresholds, which start where the checkpoint was trained. `components`: by API parameter."""

    def __init__(self, tab: str, translator: Translator) -> None:
        self.translator = translator
        self.components: dict[str, Component] = {}
        defaults = translator.checkpoints.thresholds()
        with gr.Group(elem_classes="thresholds"):
            self.components["mode"] = gr.Radio(
                [("Three windows", "windows"), ("One window (-1000 to 1000 HU), as published", "single")],
                value=defaults.mode,
                label=f"Contours of ({_COLOURS})",
                info=f"This model was trained on {'three windows' if defaults.mode == 'windows' else 'one window'}.",
                elem_id=f"{tab}-mode",
            )
            with gr.Row():
                for window, title in _WINDOWS.items():
                    with gr.Column(min_width=210):
                        self._ends(tab, window, title, getattr(defaults, window))

    def _ends(self, tab: str, window: str, title: str, values: tuple[float, float]) -> None:
        for end, value in zip(("low", "high"), values, strict=True):
            self.components[f"{window}_{end}"] = gr.Slider(
                0, 500, value, step=5, label=f"{title} {end}", min_width=200, elem_id=f"{tab}-{window}-{end}"
            )

    def picture(self, source: Slice, thresholds: Thresholds) -> np.ndarray:
        """`contour_picture` of the tab's model."""
        return contour_picture(self.translator, source, thresholds)

    def on_drag(self, controls: dict[str, Component], picture: gr.Image) -> None:
        """Redraw `picture` while a threshold is dragged; afterwards the low one is the lower one."""
        gr.on(
            [component.input for component in self.components.values()],
            self.preview,
            inputs_kwargs=select(controls, ("scan", "index", "shown", *self.components, "series")),
            outputs=picture,
            trigger_mode="always_last",
            show_progress="hidden",
            api_name="contours_preview",
        )
        for window in _WINDOWS:
            ends = [self.components[f"{window}_{end}"] for end in ("low", "high")]
            gr.on([end.release for end in ends], _in_order, ends, ends, queue=False, **PRIVATE)

    @property
    def released(self) -> list:
        """What is triggered when a threshold is let go of, or the windows are chosen."""
        sliders = [c for c in self.components.values() if isinstance(c, gr.Slider)]
        return [*[slider.release for slider in sliders], self.components["mode"].input]

    # The docstring is the API's description.
    def preview(self, **values) -> np.ndarray | Values:
        """The edges at the thresholds being dragged; the model does not run."""
        asked = AskedContours(**values)
        if not asked.scan:
            return gr.skip()
        source = slice_of(open_scan(asked.scan, "CT", asked.shown, asked.series), asked.index)
        return self.picture(source, asked.thresholds())


def contour_picture(translator: Translator, source: Slice, thresholds: Thresholds) -> np.ndarray:
    """The edges that the model would get, as a picture (H, W, 3) of the size of the slice's."""
    hint = translator.hint(source, thresholds)
    shown = enlarge(np.zeros(source.pixels.shape, np.uint8), source.spacing).shape
    scale = np.divide(shown, source.pixels.shape)
    crop = source.crop and tuple(round(n * s) for n, s in zip(source.crop, (*scale, *scale), strict=True))
    edges = Letterbox(shown, size=len(hint), crop=crop).restore(hint)
    return with_sides(edges.round().astype(np.uint8), source.sides)


def _in_order(low: float, high: float) -> list[float]:
    return sorted((low, high))
