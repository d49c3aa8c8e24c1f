"""Tab CT contours -> MRI: Canny edges of CT windows through a ControlNet, with a live preview."""

from __future__ import annotations

import gradio as gr

from mediffuse.image.contours import Thresholds
from mediffuse.image.display import enlarge
from mediffuse.translate import Translator
from mediffuse.ui import session
from mediffuse.ui.examples import CT_EXAMPLES
from mediffuse.ui.tab import Tab, slice_of, thresholds_of

_WINDOWS = {"bone": "Bone", "tissue": "Soft", "brain": "Brain"}


def build(translator: Translator) -> Tab:
    tab = Tab(
        direction="contour2mr",
        api="contours_to_mri",
        translator=translator,
        examples=CT_EXAMPLES,
        default_view="Brain (W 80, L 40)",
        extra_label="Contours",
        on_scan=lambda one, thresholds: enlarge(translator.hint(one, thresholds)),
    )
    tab.build(lambda tab: _controls(tab, translator.checkpoints.thresholds()))

    def edges(scan, index, shown, mode, bone_low, bone_high, tissue_low, tissue_high, brain_low, brain_high):
        """The edges at the thresholds being dragged; the model does not run."""
        if not scan:
            return gr.skip()
        limits = (bone_low, bone_high, tissue_low, tissue_high, brain_low, brain_high)
        one = slice_of(session.open_scan(scan, "CT", shown), index)
        return tab.on_scan(one, thresholds_of(mode, *limits))

    gr.on(
        [component.input for component in tab.thresholds],
        edges,
        [tab.scan, tab.index, tab.shown, *tab.thresholds],
        tab.extra_preview,
        trigger_mode="always_last",
        show_progress="hidden",
        api_name="contours_preview",
    )
    return tab


def _controls(tab: Tab, defaults: Thresholds) -> None:
    """Threshold controls that start where the checkpoint was trained."""
    with gr.Accordion("Canny thresholds: bone red, soft tissue green, brain blue", open=True):
        mode = gr.Radio(
            [("Three windows", "windows"), ("One window (-1000 to 1000 HU), as published", "single")],
            value=defaults.mode,
            label="Contours of",
            info=f"This model was trained on {'three windows' if defaults.mode == 'windows' else 'one window'}.",
            elem_id=f"{tab.direction}-mode",
        )
        tab.thresholds.append(mode)
        for name, title in _WINDOWS.items():
            with gr.Row():
                for end, value in zip(("low", "high"), getattr(defaults, name), strict=True):
                    slider = gr.Slider(
                        0,
                        500,
                        value,
                        step=5,
                        label=f"{title} {end}",
                        min_width=130,
                        elem_id=f"{tab.direction}-{name}-{end}",
                    )
                    tab.thresholds.append(slider)
