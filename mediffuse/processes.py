"""The processes that `accelerate launch` or `torchrun` started, and their shares of the work."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
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
