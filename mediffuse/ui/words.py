"""Words that several tabs use: of modalities and units, of scores, and the line that says how a run goes."""

from __future__ import annotations

import html
from collections.abc import Collection

import gradio as gr

from mediffuse.image.display import ERROR_SCALE, UNCERTAINTY_SCALE
from mediffuse.metrics import Scores

MODALITY_TITLES = {"CT": "CT", "MR": "MRI"}
UNITS = {"CT": "HU", "MR": "of 255"}
SCORE_HEADERS = ["Protocol", "PSNR (dB)", "SSIM", "MAE"]
PROTOCOLS = {"paper": "paper (8-bit, whole frame)", "synthrad": "synthrad (in body mask)"}
MAE_UNITS = {
    ("CT", "paper"): "grey levels",
    ("MR", "paper"): "grey levels",
    ("CT", "synthrad"): "HU",
    ("MR", "synthrad"): "of range",
}


def score_row(scores: Scores, modality: str) -> list[str]:
    """A row under `SCORE_HEADERS` for synthetic CT or MR."""
    mae = f"{scores.mae:.3g} {MAE_UNITS[modality, scores.protocol]}"
    return [PROTOCOLS[scores.protocol], f"{scores.psnr:.2f}", f"{scores.ssim:.3f}", mae]


def error_label(modality: str) -> str:
    """Title of a map of errors of synthetic CT or MR."""
    return f"Error ±{ERROR_SCALE[modality]:.0f} {UNITS[modality]} (red: too high)"


def spread_label(modality: str) -> str:
    """Title of a map of the standard deviation of estimates of CT or MR."""
    return f"Uncertainty 0–{UNCERTAINTY_SCALE[modality]:.0f} {UNITS[modality]} (SD)"


def paragraphs(texts: Collection[str]) -> str:
    """HTML of texts of any origin: file names and tags in them are no markup."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)


def notice(texts: Collection[str]) -> gr.HTML:
    """A value for `controls.notice`: the texts, or nothing to be seen."""
    return gr.HTML(paragraphs(texts), visible=bool(texts))


def status(text: str, step: int | None = None, steps: int | None = None) -> str:
    """HTML that says how a run goes, with a progress bar if there are `steps`."""
    text = html.escape(text)
    bar = f'<progress value="{step}" max="{steps}"></progress> ' if steps else ""
    return f'<div class="status" role="status">{bar}{text}</div>'
