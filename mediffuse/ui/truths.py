"""The real scan that a synthetic one is compared with: of an MRI the contrast, which its file tells or a visitor."""

from __future__ import annotations

import gradio as gr

from mediffuse.directions import CONTRASTS
from mediffuse.scan import Scan
from mediffuse.scan.plausibility import contrast_of

AUTO, OTHER = "auto", "other"


def contrast_choice(tab: str, *, visible: bool) -> gr.Radio:
    """What a visitor says of a real MRI. `tab` begins the elem_id."""
    return gr.Radio(
        [("what its file tells", AUTO), *((text, text) for text in CONTRASTS), ("another", OTHER)],
        value=AUTO,
        label="Contrast of the real MRI",
        visible=visible,
        elem_id=f"{tab}-truth-contrast",
    )


def contrast(real: Scan, told: str) -> str | None:
    """The contrast of a real scan: "T1", "T2" or "other"; None for a CT, or where it is not known.

    told: a value of `contrast_choice`.
    """
    if real.modality == "CT":
        return None
    return contrast_of(real) if told == AUTO else told


def not_scored(real: str | None, made: str) -> str:
    """Why a real MRI is not compared with a synthetic one of contrast `made`."""
    if real is None:
        return f"Is the real MRI a T1 or a T2? Its file does not tell. Say it, and it is compared with this {made}."
    real = "of another contrast" if real == OTHER else f"a {real}"
    return f"The real MRI is {real}, and this a synthetic {made}: they are not scored against each other."


def titled(title: str, modality: str, contrast: str | None) -> str:
    """`title` with the contrast, if it is of an MRI."""
    told = {None: "contrast not known", OTHER: "another contrast"}.get(contrast, contrast)
    return title if modality == "CT" else f"{title} ({told})"
