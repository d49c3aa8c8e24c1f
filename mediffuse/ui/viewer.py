"""The three-plane viewer of the Volume tab: NiiVue, bundled, in a gr.HTML."""

from __future__ import annotations

import html
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import gradio as gr
import numpy as np

from mediffuse.image.display import BONE, BRAIN, CT_VIEWS, SOFT_TISSUE

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "viewer"
CT_PRESETS = (
    (BRAIN, *CT_VIEWS[BRAIN]),
    ("Subdural (W 200, L 75)", -25.0, 175.0),
    (SOFT_TISSUE, *CT_VIEWS[SOFT_TISSUE]),
    (BONE, *CT_VIEWS[BONE]),
)
MR_PRESETS = ((0.5, 99.5), (2, 98), (5, 95), (25, 99.9))
"""Window presets: (text, black, white) in HU; (black, white) in percentiles of an MRI's voxels above its minimum."""

_TEMPLATE = """<div class="viewer" hidden>
  <div class="controls">
    <label>Image <select class="base" aria-label="Image"></select></label>
    <label>Window <select class="preset" aria-label="Window"></select></label>
    <label>Overlay <select class="over" aria-label="Overlay"></select></label>
    <label>Opacity <input class="opacity" type="range" min="0" max="1" step="0.05" value="0.6"></label>
  </div>
  <div class="planes"><canvas aria-label="Three planes of the volume"></canvas></div>
  <p class="readout" role="status"></p>
  <p class="convention">Radiological convention: the patient's right is on the left. Research use only, not for
  diagnosis.</p>
</div>"""


@dataclass(frozen=True)
class Layer:
    """What the viewer shows of one NIfTI. role: input, made, truth, error or spread; window: black and white;
    presets: (text, black, white) of other windows."""

    role: str
    title: str
    modality: str
    unit: str
    window: tuple[float, float]
    presets: tuple[tuple[str, float, float], ...] = ()


def build(elem_id: str) -> gr.HTML:
    """The viewer, empty; `show` fills it."""
    gr.set_static_paths([FOLDER])
    return gr.HTML(
        value="",
        html_template=_TEMPLATE,
        js_on_load=f"element.show = ({(FOLDER / 'viewer.js').read_text(encoding='utf-8')})(element);",
        head=f'<script src="/gradio_api/file={html.escape(str(FOLDER / "niivue.umd.js"))}"></script>',
        elem_id=elem_id,
    )


def show(elem_id: str) -> str:
    """JavaScript for an event with the layers' files and `describe`'s text as inputs: shows them."""
    return f"""(files, text) => {{
      const about = JSON.parse(text || "[]");
      const layers = (files || []).slice(0, about.length).map((file, i) => ({{
        ...about[i], url: file.url, name: file.orig_name || "volume.nii.gz"
      }}));
      const holder = [document.querySelector("#{elem_id}"), ...document.querySelectorAll("#{elem_id} *")];
      holder.find((e) => e.show)?.show(layers);
    }}"""


def describe(layers: list[Layer]) -> str:
    """The layers as JSON, for `show`."""
    return json.dumps([asdict(layer) for layer in layers])


def window_of(voxels: np.ndarray) -> tuple[float, float]:
    """Black and white of an MRI (X, Y, Z): its minimum, and the 99.5th percentile of what is above that."""
    low = float(voxels.min())
    some = voxels[voxels > low]
    return (low, float(np.percentile(some, 99.5))) if some.size else (low, low + 1)


def presets_of(voxels: np.ndarray, modality: str) -> tuple[tuple[str, float, float], ...]:
    """The `Layer.presets` of a CT or MRI (X, Y, Z)."""
    if modality == "CT":
        return CT_PRESETS
    some = voxels[voxels > voxels.min()]
    if not some.size:
        return ()
    return tuple((f"{low:g} to {high:g} %", *map(float, np.percentile(some, (low, high)))) for low, high in MR_PRESETS)
