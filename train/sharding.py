"""Weights, gradients and the optimiser's state split over the processes, by FSDP2 (`torch.distributed.fsdp`).

Not through accelerate, whose FSDP is for GPUs alone: here two processes on a CPU do what eight GPUs do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.training_utils import EMAModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from train.options import OptionError, Options

UNITS = (ResnetBlock2D, BasicTransformerBlock, CLIPEncoderLayer)
"""Layers that are gathered one at a time, as they are computed; what is in none of them is for a whole step."""


def check(options: Options, processes: int, uneven: bool) -> None:
    """Raises OptionError for what sharded weights do not go with: all processes gather each layer at the same time."""
    for wrong, reason in (
        (processes == 1, "there is one process: launch several, by train/configs/accelerate/ddp.yaml"),
        (options.optimizer != "adamw", f"{options.optimizer} is not for sharded weights: take adamw"),
        (uneven, "processes would compute different things: give --mean-share 0, and train/onestep.py --keep-share 0"),
        (options.compile, "networks that are compiled cannot be sharded: give --compile false"),
    ):
        if wrong:
            raise OptionError(f"shard: {reason}.")


def shard(objective: torch.nn.Module, accelerator: Accelerator) -> torch.nn.Module:
    """Split what is trained in an objective over the processes, in place; what is frozen, each of them has whole."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    objective.to(accelerator.device)
    frozen = {p for p in objective.parameters() if not p.requires_grad}
    for part in objective.modules():
        if isinstance(part, UNITS) and not frozen.issuperset(part.parameters()):
            fully_shard(part, mesh=mesh, ignored_params=frozen)
    return fully_shard(objective, mesh=mesh, ignored_params=frozen)


def own_shards(parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    """This process's parts of sharded parameters, in their memory: what averages them needs no other's."""
    return [p.to_local().detach().requires_grad_() for p in parameters]


def gather(model: torch.nn.Module, whole: torch.nn.Module, accelerator: Accelerator) -> None:
    """Give `whole` the trained weights of a sharded `model`, on the first process, and its device; all call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state = get_model_state_dict(model, options=options)
    if accelerator.is_main_process:
        whole.load_state_dict(state, strict=False)
        whole.to(accelerator.device)


@dataclass
class Shard:
    """What a process needs to go on with a sharded run: its own parts of the weights, and of all that follows them."""

    accelerator: Accelerator
    tensors: list[torch.Tensor]
    optimizer: torch.optim.Optimizer
    average: EMAModel

    def write(self, folder: Path) -> None:
        stateful = {name: part.state_dict() for name, part in self._stateful().items()}
        torch.save({"tensors": [x.detach() for x in self.tensors], **stateful}, self._file(folder))

    def read(self, folder: Path) -> None:
        """Load what `write` wrote. Raises ValueError if that is of other weights."""
        saved = torch.load(self._file(folder))
        if [x.shape for x in saved["tensors"]] != [x.shape for x in self.tensors]:
            raise ValueError(f"{folder} has other weights than are trained.")
        with torch.no_grad():
            for own, value in zip(self.tensors, saved["tensors"], strict=True):
                own.copy_(value)
        for name, part in self._stateful().items():
            part.load_state_dict(saved[name])

    def _file(self, folder: Path) -> Path:
        return folder / f"shard-{self.accelerator.process_index}.bin"

    def _stateful(self) -> dict:
        parts = {"optimizer": self.optimizer, "average": self.average, "scaler": self.accelerator.scaler}
        return {name: part for name, part in parts.items() if part}
