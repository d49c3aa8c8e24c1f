"""Canny's thresholds of the tab Contours -> MRI, and the edges that they give, drawn as they are dragged."""

from __future__ import annotations

import gradio as gr
import numpy as np
from gradio.components import Component

from mediffuse.image.contours import Thresholds
from mediffuse.image.display import enlarge
from mediffuse.scan import Slice
from mediffuse.translate import Translator
from mediffuse.ui.asked import AskedContours
from mediffuse.ui.controls import select
from mediffuse.ui.uploads import open_scan, slice_of

_WINDOWS = {"bone": "Bone", "tissue": "Soft", "brain": "Brain"}


class ContourControls:
    """The thresholds, which start where the checkpoint was trained. `components`: by API parameter."""

    def __init__(self, tab: str, translator: Translator) -> None:
        self.translator = translator
        self.components: dict[str, Component] = {}
        defaults = translator.checkpoints.thresholds()
        with gr.Accordion("Canny thresholds: bone red, soft tissue green, brain blue", open=True):
            self.components["mode"] = gr.Radio(
                [("Three windows", "windows"), ("One window (-1000 to 1000 HU), as published", "single")],
                value=defaults.mode,
                label="Contours of",
                info=f"This model was trained on {'three windows' if defaults.mode == 'windows' else 'one window'}.",
                elem_id=f"{tab}-mode",
            )
            for window, title in _WINDOWS.items():
                with gr.Row():
                    for end, value in zip(("low", "high"), getattr(defaults, window), strict=True):
                        self.components[f"{window}_{end}"] = gr.Slider(
                            0,
                            500,
                            value,
                            step=5,
                            label=f"{title} {end}",
                            min_width=130,
                            elem_id=f"{tab}-{window}-{end}",
                        )

    def picture(self, source: Slice, thresholds: Thresholds) -> np.ndarray:
        """The edges that the model would get, as a picture (H, W, 3)."""
        return enlarge(self.translator.hint(source, thresholds))

    def on_drag(self, controls: dict[str, Component], picture: gr.Image) -> None:
        """Redraw `picture` while a threshold is dragged."""
        gr.on(
            [component.input for component in self.components.values()],
            self.preview,
            inputs_kwargs=select(controls, ("scan", "index", "shown", *self.components, "series")),
            outputs=picture,
            trigger_mode="always_last",
            show_progress="hidden",
            api_name="contours_preview",
        )

    # The docstring is the API's description.
    def preview(self, **values):
        """The edges at the thresholds being dragged; the model does not run."""
        asked = AskedContours(**values)
        if not asked.scan:
            return gr.skip()
        source = slice_of(open_scan(asked.scan, "CT", asked.shown, asked.series), asked.index)
        return self.picture(source, asked.thresholds())
