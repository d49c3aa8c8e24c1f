"""Words that several tabs use: of modalities and units, of scores, and the line that says how a run goes."""

from __future__ import annotations

import functools
import html
import json
import math
from collections.abc import Collection, Iterable
from pathlib import Path

import gradio as gr

from mediffuse.image.display import ERROR_SCALE, UNCERTAINTY_SCALE, UNITS
from mediffuse.metrics import Scores

MODALITY_TITLES = {"CT": "CT", "MR": "MRI"}
SCORE_HEADERS = ["Protocol", "PSNR (dB)", "SSIM", "MAE"]
PROTOCOLS = {
    "paper": "paper (as the published project: 8-bit, whole frame)",
    "synthrad": "synthrad (as the SynthRAD2023 challenge: in the head alone)",
}
MAE_UNITS = {
    ("CT", "paper"): "grey levels",
    ("MR", "paper"): "grey levels",
    ("CT", "synthrad"): "HU",
    ("MR", "synthrad"): "of range",
}
PAIRS = {"input-made": ("input", "made"), "made-truth": ("made", "truth"), "input-truth": ("input", "truth")}
"""Two pictures of a result that may lie on each other, left and right."""
RESULTS = Path(__file__).resolve().parents[2] / "assets" / "results" / "results.json"
"""What `python -m mediffuse.evaluate` measured of the bundled checkpoints."""


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


_TISSUES = {
    "mae_bone": "bone {mae_bone:.0f} HU",
    "mae_soft": "soft tissue {mae_soft:.0f} HU",
    "mae_air": "air in sinuses and ears ({share_air:.1%} of the head) {mae_air:.0f} HU",
}

EXPLAINED = """
- **MAE**: mean absolute error, by how much a pixel is off on average; 0 is perfect. For a CT in HU, where air is at
  -1000, water at 0, brain at about 35 and bone above 300.
- **PSNR**: peak signal-to-noise ratio in dB, the squared error against the brightest value. Higher is better: 20 is
  rough, 30 is close. A blurred picture may score well.
- **SSIM**: structural similarity, whether patterns agree, from 0 (not at all) to 1 (the same).
- **Dice**: how much two outlines overlap, from 0 to 100 %.
- **Air** is what lies in the sinuses and ears; nothing around the head is counted. Where a model fills a sinus, it is
  off by 1000 HU there: the figure tells of few pixels.
- *paper*: as the published project measured it, both pictures in 8 bits and the whole frame, air too.
- *synthrad*: as the SynthRAD2023 challenge does, in the head alone; a CT in HU, an MRI in shares of the real one's
  range.

The usual values are the means of the bundled Fast model over patients that it was not trained on: see the Results tab.
"""
"""Markdown that says what the scores are."""


@functools.cache
def usual(direction: str, protocol: str, path: Path = RESULTS) -> dict[str, float]:
    """What the bundled Fast model reached on val patients, by field of `Scores`; empty where nothing was measured."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    except (OSError, ValueError, KeyError):
        return {}
    wanted = {"direction": direction, "protocol": protocol, "speed": "fast", "split": "val"}
    found = [row for row in rows if wanted.items() <= row.items() and row["model"] in ("ip2p", "controlnet")]
    return {name: found[0][name] for name in ("psnr", "ssim", "mae")} if found else {}


def scores_in_words(
    scores: Iterable[Scores], tissues: dict[str, float], direction: str, modality: str, *, bundled: bool
) -> str:
    """How good a synthetic CT or MR is, in a sentence or two. tissues: as in `compare.Comparison`.

    bundled: whether it was made by what `usual` tells of.
    """
    by_protocol = {one.protocol: one for one in scores}
    if not by_protocol:
        return ""
    one = by_protocol.get("synthrad") or by_protocol["paper"]
    in_head = one.protocol == "synthrad"
    expected = usual(direction, one.protocol) if bundled else {}

    def value(name: str, text: str) -> str:
        return text.format(getattr(one, name)) + (f" (usual: {text.format(expected[name])})" if expected else "")

    if modality == "CT":
        off = value("mae", "{:.0f} HU" if in_head else "{:.0f} grey levels of 255")
    else:
        off = value("mae", "{:.0%} of its range" if in_head else "{:.0f} of 255")
    where = "in the head" if in_head else "in the picture"
    text = f"Against the real {MODALITY_TITLES[modality]}, a pixel {where} is off by {off} on average; "
    text += f"PSNR {value('psnr', '{:.1f} dB')}, SSIM {value('ssim', '{:.2f}')}."
    known = [text.format(**tissues) for name, text in _TISSUES.items() if _is_number(tissues, name)]
    if known:
        text += f" By tissue: {', '.join(known)}."
    if _is_number(tissues, "dice_bone"):
        text += f" Bone overlaps by {tissues['dice_bone']:.0%} (Dice)."
    return f"{text} What is this?"


def _is_number(values: dict[str, float], name: str) -> bool:
    return math.isfinite(values.get(name, math.nan))


def paragraphs(texts: Collection[str]) -> str:
    """HTML of texts of any origin: file names and tags in them are no markup."""
    return "".join(f"<p>{html.escape(text)}</p>" for text in texts)


def notice(texts: Collection[str]) -> gr.HTML:
    """A value for `controls.notice`: the texts, or nothing to be seen."""
    return gr.HTML(paragraphs(texts), visible=bool(texts))


def status(text: str, step: int | None = None, steps: int | None = None, *, old: bool = False) -> str:
    """HTML that says how a run goes, with a progress bar if there are `steps`, which only something that runs has.

    old: the pictures shown are not of what is asked for now; the page's style greys them out.
    """
    text = html.escape(text)
    bar = f'<progress value="{step}" max="{steps}" aria-label="Progress"></progress> ' if steps else ""
    return f'<div class="status{" old" if old else ""}" role="status">{bar}{text}</div>'
