"""The app as ZeroGPU runs it, by the package `spaces` itself; the processor stands in for the GPU.

`test_deployment.py` runs this, and answers for the service that lends GPUs.
"""

import runpy

import torch

if not torch.version.cuda:  # what `spaces` looks for, and torch has where it is built with CUDA
    torch.version.cuda = "13.0"
    torch._C._cuda_init = torch._C._cuda_getCurrentRawStream = None
    torch.cuda._is_in_bad_fork = bool

from spaces.zero import torch as emulation
from spaces.zero.torch import patching


def to_processor(callback=None) -> None:
    """Give the worker the weights themselves, where it would copy them to its GPU."""
    for stand_in, weights in patching.cuda_aliases.items():
        stand_in.data = weights


emulation.init = lambda gpu: None
emulation.pack = patching.size  # the weights stay in memory, and are not written to a disk for the GPU
emulation.move = to_processor

runpy.run_path("app.py", run_name="__main__")
