"""The viewer of the Volume tab: layers side by side in three planes, drawn on canvases in a gr.HTML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import gradio as gr
import nibabel as nib
import numpy as np

from mediffuse.image.display import BONE, BRAIN, CT_VIEWS, SOFT_TISSUE, error_colours, uncertainty_colours
from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.scan import Scan

SCRIPT = Path(__file__).resolve().parents[2] / "assets" / "viewer" / "viewer.js"
PRESETS = {
    "CT": (
        (BRAIN, *CT_VIEWS[BRAIN]),
        ("Subdural (W 200, L 75)", -25.0, 175.0),
        (SOFT_TISSUE, *CT_VIEWS[SOFT_TISSUE]),
        (BONE, *CT_VIEWS[BONE]),
    ),
    "MR": (
        ("All (0 to 255)", *MR_OUTPUT_LIMITS),
        ("Brain (40 to 200)", 40.0, 200.0),
        ("Dark tissue (0 to 110)", 0.0, 110.0),
    ),
}
"""Windows by modality: (text, black, white), of a CT in HU, of an MRI on the scale of synthetic ones."""

WITHOUT_SCORES = """(about, ...rest) => [
  about && JSON.stringify({ ...JSON.parse(about), scores: undefined }), ...rest
]"""
"""JavaScript for an event whose first input is `describe`'s text: what hundreds of slices scored is not sent back."""

_TEMPLATE = """<div class="viewer" hidden>
  <div class="controls">
    <div class="choices" role="group" aria-label="Images to show"></div>
    <label>CT window <select class="CT" name="CT"></select></label>
    <label>MRI window <select class="MR" name="MR"></select></label>
    <div class="drag" role="radiogroup" aria-label="What dragging does">Drag:
      <label><input type="radio" name="viewer-drag" value="crosshair" checked>crosshair</label>
      <label><input type="radio" name="viewer-drag" value="window">window</label>
      <label><input type="radio" name="viewer-drag" value="move">move</label>
    </div>
    <label>Zoom <input class="zoom" type="range" min="1" max="6" step="0.1" value="1"></label>
    <label><input class="cross" type="checkbox" checked>Crosshair</label>
    <button class="whole" type="button">Full screen</button>
  </div>
  <div class="views" data-drag="crosshair"></div>
  <div class="slices">
    <span class="range made"></span>
    <svg class="curve made" viewBox="0 0 100 40" preserveAspectRatio="none" role="img">
      <polyline fill="none" vector-effect="non-scaling-stroke"></polyline>
      <line y1="0" y2="40" vector-effect="non-scaling-stroke"></line>
    </svg>
    <input class="slice" type="range" min="0" step="1" aria-label="Axial slice, from below">
    <span>Slice <span class="here"></span></span>
  </div>
  <p class="readout"></p>
  <p class="help" id="viewer-help">Arrow keys move the crosshair, Page Up and Page Down change the slice, + and − zoom;
  the wheel changes the slice once a picture is clicked. Drag with the right button for the window. MRI values are on a
  scale of 0 to 255. Radiological convention: the patient's right is on the left. Research use
  only, not for diagnosis.</p>
</div>"""


@dataclass(frozen=True)
class Layer:
    """What the viewer shows of one NIfTI. role: input, made, truth, error or spread; window: black and white, as the
    presets; limits: values of an MRI that are 0 and 255 there, None for what is shown in its own units."""

    role: str
    title: str
    modality: str
    unit: str
    window: tuple[float, float]
    limits: tuple[float, float] | None = None
    presets: tuple[tuple[str, float, float], ...] = ()


def build(elem_id: str) -> gr.HTML:
    """The viewer, empty; `show` fills it. Its event "load" says that it is on the page, where it comes with its tab."""
    share = np.linspace(0, 1, 256)
    palettes = {"error": error_colours(2 * share - 1), "spread": uncertainty_colours(share[None])[0]}
    text = json.dumps({role: colours.tolist() for role, colours in palettes.items()})
    return gr.HTML(
        value="",
        html_template=_TEMPLATE,
        js_on_load=f"element.show = ({SCRIPT.read_text(encoding='utf-8')})(element, {text}); trigger('load');",
        elem_id=elem_id,
    )


def show(elem_id: str) -> str:
    """JavaScript for an event with the layers' files and `describe`'s text as inputs: shows them."""
    return f"""(files, text) => {{
      const about = text ? JSON.parse(text) : {{ layers: [] }};
      const layers = (files || []).slice(0, about.layers.length).map((file, i) => ({{
        ...about.layers[i], url: file.url
      }}));
      const holder = [document.querySelector("#{elem_id}"), ...document.querySelectorAll("#{elem_id} *")];
      holder.find((e) => e?.show)?.show({{ ...about, layers }});
    }}"""


def describe(
    layers: Sequence[Layer], scan: Scan, scores: Sequence[tuple[int, float, float]] = (), **more: object
) -> str:
    """Layers on the grid of `scan`, and (axial slice, PSNR, SSIM) of some slices, as JSON for `show`; with it `more`,
    for others."""
    orientation = nib.io_orientation(scan.native_affine)
    axes = [[int(np.flatnonzero(orientation[:, 0] == axis)[0])] for axis in range(3)]
    for axis in axes:
        axis.append(int(orientation[axis[0], 1]))
    about = {
        "layers": [asdict(layer) for layer in layers],
        "axes": axes,
        "affine": scan.affine.tolist(),
        "scores": [[index, *map(float, values)] for index, *values in scores if np.isfinite(values).all()],
        **more,
    }
    return json.dumps(about)


def described(text: str | None) -> list[Layer]:
    """The layers that `describe` wrote."""
    layers = json.loads(text)["layers"] if text else []
    return [Layer(**{**fields, "window": tuple(fields["window"])}) for fields in layers]
