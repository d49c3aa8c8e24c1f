"""ZeroGPU of Hugging Face Spaces, where the `spaces` package is installed; elsewhere nothing of it is needed."""

from __future__ import annotations

from collections.abc import Callable

try:
    import spaces
except ImportError:
    spaces = None

ACTIVE = spaces is not None and spaces.config.Config.zero_gpu
"""Whether this runs on ZeroGPU: functions marked with `on_gpu` run in a process that has the GPU."""


def on_gpu(seconds: int) -> Callable[[Callable], Callable]:
    """Mark a function that needs the GPU for up to `seconds`; by itself where there is no ZeroGPU."""
    return spaces.GPU(duration=seconds) if spaces is not None else lambda function: function
