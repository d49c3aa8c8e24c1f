"""How a step is computed: its optimiser, its learning rate, its memory and its speed."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable

import torch
from diffusers import ModelMixin
from diffusers.optimization import get_scheduler
from transformers import PreTrainedModel

from train.options import OptionError, Options


def refuse_others_sharding() -> None:
    """Raises OptionError where accelerate is to split the weights: train/sharding.py does."""
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in {"1", "true"}:
            raise OptionError(
                f"accelerate's {name} is not for these trainers, which split the weights over the processes "
                "themselves: launch with train/configs/accelerate/ddp.yaml, and give --shard true."
            )


def precision(options: Options) -> str:
    """The mixed precision that was asked for, or "no", which is said, where this processor gains nothing by it."""
    asked = options.mixed_precision
    # Emulated bf16: 43 s a step of the autoencoder on two AVX2 cores, and 1.3 s in full precision.
    fast = asked == "bf16" and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    if asked == "no" or fast or torch.cuda.is_available():
        return asked
    print(f"{asked} is not for this processor: training goes on in full precision.", file=sys.stderr)
    return "no"


def set_up(objective: torch.nn.Module, options: Options) -> None:
    """Gradient checkpointing, attention and compilation of the networks in an objective, as the options say.

    Raises OptionError where xformers is asked for, and there is no GPU or it is not installed.
    """
    if options.attention == "xformers":
        if not torch.cuda.is_available():
            raise OptionError("attention: xformers is for GPUs, and there is none: give --attention sdpa.")
        _needed("xformers", "attention: xformers")
    for part in objective.modules():
        if isinstance(part, ModelMixin):
            if options.gradient_checkpointing:
                part.enable_gradient_checkpointing()
            if options.attention == "xformers":
                part.enable_xformers_memory_efficient_attention()
            if options.compile:
                part.compile()
        elif isinstance(part, PreTrainedModel) and options.gradient_checkpointing:
            part.gradient_checkpointing_enable({"use_reentrant": False})


def optimizer(parameters: list[torch.nn.Parameter], options: Options) -> torch.optim.Optimizer:
    """AdamW, fused (a third of the time on one thread), or with its state in 8 bits (Dettmers et al., 2110.02861)."""
    given = {
        "lr": options.learning_rate,
        "weight_decay": options.weight_decay,
        "betas": (options.adam_beta1, options.adam_beta2),
        "eps": options.adam_epsilon,
    }
    if options.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **given)
    _needed("bitsandbytes", "optimizer: adamw8bit")
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **given)


def schedule(options: Options) -> Callable[[int, float], float]:
    """Learning rate of (step, share of the time limit that has passed), by a schedule of diffusers.

    The schedule follows the share of the steps or of the time limit that has passed, whichever is more.
    """
    o = options
    dummy = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    factor = get_scheduler(o.lr_schedule, dummy, num_warmup_steps=o.warmup, num_training_steps=o.steps).lr_lambdas[0]

    def rate(step: int, time_share: float) -> float:
        if step < o.warmup:
            return o.learning_rate * factor(step + 1)  # so that the first step learns, too
        rest = max(1, o.steps - o.warmup)
        share = max((step - o.warmup) / rest, min(1.0, time_share))
        return o.learning_rate * factor(o.warmup + share * rest)

    return rate


def trackers(options: Options) -> list[str]:
    """Names of the trackers. Raises OptionError if one is not installed."""
    for name in options.trackers:
        _needed(name, f"trackers: [{name}]")
    return list(options.trackers)


def _needed(package: str, option: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise OptionError(f"{option} needs the package {package}: pip install {package}")
