"""The Results tab: the report of the bundled checkpoints, as `python -m mediffuse.evaluate` wrote it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import gradio as gr

from mediffuse.translate.checkpoints import VARIABLE

REPORT = Path(__file__).resolve().parents[2] / "assets" / "results" / "report.html"


def build(tab: gr.Tab) -> None:
    """Lay out the tab; the report, a large page, is sent when the tab is first opened."""
    if os.environ.get(VARIABLE):
        gr.Markdown("These figures are of the **bundled** checkpoints; this app runs others.")
    shown = gr.HTML(elem_id="results-report")
    tab.select(show, outputs=shown, show_progress="hidden", api_visibility="private")


def show(path: Path = REPORT) -> str:
    """The report as markup: its style, which is of its article alone, and that article."""
    if not path.is_file():
        return "<p>No report is bundled. Make one with <code>python -m mediffuse.evaluate</code>.</p>"
    text = path.read_text(encoding="utf-8")
    parts = (re.search(rf"<{tag}\b.*</{tag}>", text, re.DOTALL) for tag in ("style", "article"))
    return "".join(part[0] for part in parts)
