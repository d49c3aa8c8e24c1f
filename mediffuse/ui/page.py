"""The page: its tabs, and what stands above and below them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import gradio as gr

from mediffuse.directions import DIRECTIONS
from mediffuse.translate import Translator
from mediffuse.translate.checkpoints import CheckpointError, Checkpoints
from mediffuse.ui import results, zero_gpu
from mediffuse.ui.slice_tab import SLICE_TABS, SliceTab
from mediffuse.ui.volume_tab import VolumeTab

MAX_UPLOAD = "300mb"
STYLE = Path(__file__).resolve().parents[2] / "assets" / "style.css"
THEME = gr.themes.Soft(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

_INTRO = """# Mediffuse
Head CT ↔ MRI with diffusion models.
**Research use only, not for diagnosis.** Every picture made here is synthetic: it shows what a model
finds plausible, and may invent or hide disease. Uploads stay on this server and are deleted about an
hour after their last use.
"""


def build() -> gr.Blocks:
    """The demo, ready for `launch(**launch_options())`. Checkpoints load when first used, except on
    ZeroGPU, where they must be placed on CUDA at start."""
    translator = Translator(Checkpoints())
    if zero_gpu.ACTIVE:
        for direction in DIRECTIONS:
            with contextlib.suppress(CheckpointError):  # its tab will say so; the others work
                translator.checkpoints.get(direction)
    with gr.Blocks(title="Mediffuse", analytics_enabled=False, delete_cache=(600, 3600)) as demo:
        gr.Markdown(_INTRO)
        with gr.Tabs():
            for options in SLICE_TABS:
                with gr.Tab(options.title, id=options.direction, elem_id=f"tab-{options.direction}"):
                    SliceTab(options, translator)
            with gr.Tab("Volume", id="volume", elem_id="tab-volume"):
                VolumeTab(translator)
            with gr.Tab("Results", id="results", elem_id="tab-results") as tab:
                results.build(tab)
    return demo.queue(max_size=32, default_concurrency_limit=4)


def launch_options() -> dict:
    """Options for `Blocks.launch`: private, bounded, and without anything from another server."""
    return {
        "theme": THEME,
        "css_paths": [STYLE],
        "show_error": False,
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": MAX_UPLOAD,
        "footer_links": ["api"],
    }
