"""The machine: peak memory of this process, and the processes that share the work."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

PRECISION = "MEDIFFUSE_PRECISION"
PRECISIONS = ("auto", "float32", "bfloat16")


def reset_peak() -> None:
    """Start anew. On a CPU this needs Linux; elsewhere the peak stays that of the whole process."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """Peak since `reset_peak`, in MiB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    import resource

    unit = 2**20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; elsewhere it is emulated, and slower than float32."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def half_precision(device):
    """A context in which networks on `device` (torch.device) compute in bfloat16, where a processor gains by it.

    Two AVX512_BF16 cores take half the time for a slice, whose PSNR changes by less than 0.005 dB. GPUs
    compute in the precision of their weights. The environment variable MEDIFFUSE_PRECISION, "float32" or
    "bfloat16", decides instead. Raises ValueError where it is something else.
    """
    import torch

    asked = os.environ.get(PRECISION, "auto")
    if asked not in PRECISIONS:
        raise ValueError(f"{PRECISION} is {', '.join(PRECISIONS)}, not {asked!r}.")
    half = asked == "bfloat16" or (asked == "auto" and fast_bfloat16())
    return torch.autocast("cpu", torch.bfloat16, enabled=half and device.type == "cpu")


@contextlib.contextmanager
def shared_work() -> Iterator:
    """accelerate's PartialState, alone or of many processes, for the time of the block."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        yield state
    finally:
        # gloo's threads that outlive the interpreter abort the process now and then (PyTorch pull request 179291).
        state.destroy_process_group()
