"""ZeroGPU of Hugging Face Spaces, where the `spaces` package is installed; elsewhere nothing of it is needed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import gradio as gr

try:
    Path.home()
except RuntimeError:  # a user that the system does not know: `spaces` asks for a home when it is imported
    os.environ["HOME"] = "/nonexistent"

try:
    import spaces
except ImportError:
    spaces = None

ACTIVE = spaces is not None and spaces.config.Config.zero_gpu
"""Whether this runs on ZeroGPU: functions marked with `on_gpu` run in a process that has the GPU."""


def on_gpu(seconds: int) -> Callable[[Callable], Callable]:
    """Mark a function that needs the GPU for up to `seconds`; by itself where there is no ZeroGPU."""
    return spaces.GPU(duration=seconds) if spaces is not None else lambda function: function


ENDED = "The GPU was taken away before this was done. Ask for fewer steps, samples or planes, or try again."


def plain(error: gr.Error) -> str:
    """The text of an error, also of those that `spaces` raises: some are HTML, whose text, in Markdown, is beside it,
    and some name a class of Python's."""
    if error.title == "ZeroGPU worker error":
        return ENDED
    if type(error.message) is str:
        return error.message
    return re.sub(r"\[([^\]]*)\]\(([^)]*)\)", r"\1 (\2)", str(error.message))
