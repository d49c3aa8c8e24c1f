"""How much GPU memory, disk and time training by a config takes, without a GPU or weights.

    python tools/memory.py --config train/configs/sd15_24gb.yaml

The networks are those of Stable Diffusion 1.5 on PyTorch's meta device, so nothing is computed: parameters, gradients,
optimiser and averaged weights are counted, and what the forward pass keeps for the backward one is added up from
the shapes, in half precision. LPIPS, a critic, cuDNN's workspace and the allocator's gaps are left out. Time is the
number of operations over what a card is guessed to reach of its best; no card has been measured.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train import controlnet, ip2p, networks, onestep
from train.options import parse_options

TRAINERS = {"ip2p": ip2p.Ip2pOptions, "controlnet": controlnet.ControlnetOptions, "onestep": onestep.OneStepOptions}
GIB = 2**30


def stable_diffusion(image_conditioned: bool) -> dict[str, torch.nn.Module]:
    """Stable Diffusion 1.5's networks by name, without weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = networks.SD15
    with torch.device("meta"):
        vae = networks.autoencoder(config["autoencoder"])
        text = CLIPTextModel(CLIPTextConfig(**config["text_encoder"]))
        unet = networks.unet(config["unet"], vae, text, image_conditioned)
    return {"unet": unet, "vae": vae, "text_encoder": text}


class Kept:
    """Bytes of the different tensors that autograd keeps while this context is open, but not those of parameters."""

    def __init__(self, modules: list[torch.nn.Module]) -> None:
        self.known = {p.untyped_storage()._cdata for module in modules for p in module.parameters()}
        self.alive, self.bytes = [], 0

    def __enter__(self) -> Kept:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.keep, lambda kept: kept)
        self.hooks.__enter__()
        return self

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.alive.append(storage)  # or another takes its address
            self.bytes += storage.nbytes()
        return tensor

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)


def forward(trainer: str, parts: dict[str, torch.nn.Module], count: int) -> torch.Tensor:
    """What the networks that are trained, and those behind them, make of `count` samples."""
    half = {"dtype": torch.bfloat16, "device": "meta"}
    side = parts["unet"].config.sample_size
    noisy = torch.zeros(count, parts["unet"].config.in_channels, side, side, **half)
    text, time = torch.zeros(count, 77, 768, **half), torch.zeros(count, dtype=torch.long, device="meta")
    residuals = {}
    if "controlnet" in parts:
        hint = torch.zeros(count, 3, 8 * side, 8 * side, **half)
        down, middle = parts["controlnet"](noisy, time, text, hint, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    made = parts["unet"](noisy, time, text, **residuals).sample
    return parts["vae"].decode(made).sample if trainer == "onestep" else made


def activations(trainer: str, parts: dict[str, torch.nn.Module], count: int) -> tuple[int, int]:
    """Bytes kept by a forward pass of `count` samples, and the most that one layer keeps."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    layers, starts, largest = [], [], [0]
    kept = Kept(list(parts.values()))

    def before(*_: object) -> None:
        starts.append(kept.bytes)

    def after(*_: object) -> None:
        largest[0] = max(largest[0], kept.bytes - starts.pop())

    for part in parts.values():
        layers += [layer for layer in part.modules() if isinstance(layer, (ResnetBlock2D, BasicTransformerBlock))]
    handles = [h for x in layers for h in (x.register_forward_pre_hook(before), x.register_forward_hook(after))]
    with kept:
        forward(trainer, parts, count)
    for handle in handles:
        handle.remove()
    return kept.bytes, largest[0]


def networks_of(trainer: str, options) -> dict[str, torch.nn.Module]:
    """The networks of a trainer by name, in half precision; what it trains requires gradients."""
    parts = stable_diffusion(trainer != "controlnet")
    if trainer == "controlnet":
        with torch.device("meta"):
            parts["controlnet"] = networks.controlnet(parts["unet"], options.conditioning_channels)
    for part in parts.values():
        part.requires_grad_(False)
    learning = [parts["unet"]] if trainer != "controlnet" or options.train_unet else []
    learning += [parts["controlnet"]] if trainer == "controlnet" else []
    learning += [parts["text_encoder"]] if options.train_text_encoder else []
    learning += [parts["vae"].decoder] if getattr(options, "train_decoder", False) else []
    for part in learning:
        part.requires_grad_(True)
    if options.lora_rank:
        networks.add_lora(parts["unet"], options.lora_rank)
    return {name: part.to(torch.bfloat16) for name, part in parts.items()}


def checkpointed(parts: dict[str, torch.nn.Module]) -> None:
    """Let all but the text encoder, whose activations are not counted, compute theirs twice."""
    for part in (parts[name] for name in parts if name != "text_encoder"):
        part.enable_gradient_checkpointing()


def numbers(parts: dict[str, torch.nn.Module]) -> tuple[int, int]:
    """How many weights there are, and how many are trained."""
    parameters = [p for part in parts.values() for p in part.parameters()]
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def memory(trainer: str, options) -> dict[str, float]:
    """GiB on the GPU by part, of a trainer with its options."""
    parts = networks_of(trainer, options)
    every, trained = numbers(parts)
    kept, largest = activations(trainer, parts, options.batch_size)
    if options.gradient_checkpointing:
        checkpointed(parts)
        kept = activations(trainer, parts, options.batch_size)[0] + largest
    averaged = trained * 4
    if options.ema_on_cpu:  # they visit when the activations are gone
        kept, averaged = max(kept, averaged), 0
    half = options.mixed_precision != "no"
    return {
        "parameters": every * 4 / GIB,
        "their half-precision copies": every * 2 * half / GIB,
        "gradients": trained * 4 / GIB,
        "optimiser": trained * moments(options) / GIB,
        "averaged weights": averaged / GIB,
        "activations": (1 if half else 2) * kept / GIB,
    }


def moments(options) -> int:
    """Bytes of AdamW's state, by trained weight."""
    return 2 if options.optimizer == "adamw8bit" else 8


def disk(trainer: str, options) -> dict[str, float]:
    """GiB of what a run writes: a checkpoint to resume from, and the pipeline in half precision."""
    every, trained = numbers(networks_of(trainer, replace(options, lora_rank=0)))
    learning = numbers(networks_of(trainer, options))[1] if options.lora_rank else trained
    return {"checkpoint": learning * (8 + moments(options)) / GIB, "pipeline": every * 2 / GIB}


def operations(trainer: str, options) -> float:
    """Floating-point operations by sample of a training step: encoding, forward, backward, and what is computed twice.

    Matrix products and convolutions, as `torch.utils.flop_counter` counts them; the text encoder, which runs once a
    prompt, is left out. Of onestep, as if every sample was compared in pixels.
    """
    parts = networks_of(trainer, options)
    if options.gradient_checkpointing:
        checkpointed(parts)
    encoded = {"ip2p": 2, "controlnet": 1, "onestep": 1}[trainer]
    side = 8 * parts["unet"].config.sample_size
    with FlopCounterMode(display=False) as counter:
        with torch.no_grad():
            parts["vae"].encode(torch.zeros(encoded, 3, side, side, dtype=torch.bfloat16, device="meta"))
        forward(trainer, parts, 1).sum().backward()
    return counter.get_total_flops()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("train/configs/sd15_24gb.yaml"))
    parser.add_argument("--trainer", choices=TRAINERS, action="append", help="default: all")
    parser.add_argument("--tflops", type=float, default=165.2, help="of the card at its best; default: an RTX 4090's")
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of it that is reached; a guess")
    args = parser.parse_args(argv)
    for trainer in args.trainer or TRAINERS:
        options = parse_options(TRAINERS[trainer], trainer, ["--config", str(args.config)], "")
        parts = memory(trainer, options)
        print(f"{trainer}, batches of {options.batch_size}: {sum(parts.values()):.1f} GiB")
        for name, size in parts.items():
            print(f"  {size:6.2f}  {name}")
        for name, size in disk(trainer, options).items():
            print(f"  {size:6.2f}  on the disk: a {name}")
        samples, each = options.steps * options.batch_size * options.gradient_accumulation, operations(trainer, options)
        hours = samples * each / (args.tflops * 1e12 * args.utilisation) / 3600
        print(f"  {each / 1e12:6.2f}  TFLOP a sample: {samples:,} of them take {hours:.0f} h, if the guess is right")


if __name__ == "__main__":
    main()
