"""What stands below the tabs: privacy, how to read it, links, model cards, how to cite."""

from __future__ import annotations

import os
import re

import gradio as gr

from mediffuse.translate.checkpoints import BUNDLED
from mediffuse.ui.controls import PRIVATE

CARDS = {"CT → MRI and MRI → CT": "ip2p", "CT contours → MRI": "controlnet"}
"""Folders of the bundled checkpoints, by what they are for."""

_PRIVACY = """## What happens to what you upload
What you upload and what is made of it stays on this server, is shown to you alone, and is deleted about {minutes:g}
minutes after its last use, or when the server stops. Names in its header are not needed: remove them first. **A head
can be recognised by its face**, also without a name: upload only what you may.
"""

_LINKS = """## Paper, code, how to cite
- [The published project](https://github.com/sauravdosi/mediffuse) whose settings are called "as published" here;
  its measures are called *paper*.
- Methods: [InstructPix2Pix](https://arxiv.org/abs/2211.09800) (CT → MRI, MRI → CT),
  [ControlNet](https://arxiv.org/abs/2302.05543) (contours → MRI),
  [posterior-mean rectified flow](https://arxiv.org/abs/2410.00418) (Diffusion starts from Fast).
- Data: [SynthRAD2023](https://synthrad2023.grand-challenge.org/), whose measures are called *synthrad*, and the
  [Whole Brain Atlas](https://www.med.harvard.edu/aanlib/). Examples: patient training_001 of
  [RIRE](https://rire.insight-journal.org/).
- {code}
"""

_CITE = """@misc{mediffuse,
  title  = {Mediffuse: Transforming Medical Scans with Diffusion-powered AI},
  author = {Dosi, Saurav and Maheshwari, Animesh and Aigal, Pratiksha and Abhyankar, Varad},
  url    = {https://github.com/sauravdosi/mediffuse},
  note   = {%s}
}"""


def build(minutes: float) -> None:
    """Lay it out. minutes: how long files are kept."""
    space = os.environ.get("SPACE_ID", "")
    address = f"https://huggingface.co/spaces/{space}" if re.fullmatch(r"[\w.-]+/[\w.-]+", space) else ""
    code = (
        f"Code and weights: [files of this Space]({address}/tree/main)."
        if address
        else ("Code and weights: in the folder that this page is run from; `README.md` says how it works.")
    )
    with gr.Column(elem_id="about"):
        gr.Markdown(_PRIVACY.format(minutes=minutes))
        gr.Markdown(_LINKS.format(code=code))
        note = f"Checkpoints and page: {address}" if address else "With checkpoints trained anew"
        gr.Code(_CITE % note, label="BibTeX", interactive=False)
        for title, folder in CARDS.items():
            with gr.Accordion(f"Model card: {title}", open=False, elem_id=f"card-{folder}") as place:
                card = gr.Markdown()
            place.expand(lambda folder=folder: _card(folder), outputs=card, **PRIVATE)


def _card(folder: str) -> str:
    """The card of a bundled checkpoint without its metadata and pictures."""
    path = BUNDLED / folder / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else "There is no card."
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    return re.sub(r"^!\[.*$", "", text, flags=re.MULTILINE)
