"""How much GPU memory training by a config takes, part by part, without a GPU or weights.

    python tools/memory.py --config train/configs/sd15_24gb.yaml

The networks are those of Stable Diffusion 1.5 on PyTorch's meta device, so nothing is computed: parameters, gradients,
optimiser and averaged weights are counted, and what the forward pass keeps for the backward one is added up from
the shapes, in half precision. LPIPS, a critic, cuDNN's workspace and the allocator's gaps are left out.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train import controlnet, ip2p, networks, onestep
from train.options import parse_options

TRAINERS = {"ip2p": ip2p.Ip2pOptions, "controlnet": controlnet.ControlnetOptions, "onestep": onestep.OneStepOptions}
GIB = 2**30


def stable_diffusion(image_conditioned: bool) -> dict[str, torch.nn.Module]:
    """Stable Diffusion 1.5's networks by name, without weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    levels = [128, 256, 512, 512]
    clip = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    with torch.device("meta"):
        return {
            "unet": UNet2DConditionModel(
                sample_size=64, in_channels=8 if image_conditioned else 4, cross_attention_dim=768, attention_head_dim=8
            ),
            "vae": AutoencoderKL(
                block_out_channels=levels,
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                layers_per_block=2,
                sample_size=512,
            ),
            "text_encoder": CLIPTextModel(clip),
        }


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


def forward(trainer: str, parts: dict[str, torch.nn.Module], count: int) -> tuple[int, int]:
    """Bytes kept by a forward pass of `count` samples, and the most that one layer keeps."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.resnet import ResnetBlock2D

    half = {"dtype": torch.bfloat16, "device": "meta"}
    side = parts["unet"].config.sample_size
    noisy, text = (
        torch.zeros(count, parts["unet"].config.in_channels, side, side, **half),
        torch.zeros(count, 77, 768, **half),
    )
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
        time, residuals = torch.zeros(count, dtype=torch.long, device="meta"), {}
        if "controlnet" in parts:
            hint = torch.zeros(count, 3, 8 * side, 8 * side, **half)
            down, middle = parts["controlnet"](noisy, time, text, hint, return_dict=False)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        made = parts["unet"](noisy, time, text, **residuals).sample
        if trainer == "onestep":
            parts["vae"].decode(made)
    for handle in handles:
        handle.remove()
    return kept.bytes, largest[0]


def account(trainer: str, options) -> dict[str, float]:
    """GiB on the GPU by part, of a trainer with its options."""
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
    parameters = [p for part in parts.values() for p in part.parameters()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    casts = sum(p.numel() for p in parameters) * 2 if options.mixed_precision != "no" else 0
    for part in parts.values():
        part.to(torch.bfloat16)
    activations, largest = forward(trainer, parts, options.batch_size)
    if options.gradient_checkpointing:
        for part in (parts[name] for name in parts if name != "text_encoder"):
            part.enable_gradient_checkpointing()
        activations = forward(trainer, parts, options.batch_size)[0] + largest
    averaged = trained * 4
    if options.ema_on_cpu:  # they visit when the activations are gone
        activations, averaged = max(activations, averaged), 0
    scale = 1 if options.mixed_precision != "no" else 2
    return {
        "parameters": sum(p.numel() for p in parameters) * 4 / GIB,
        "their half-precision copies": casts / GIB,
        "gradients": trained * 4 / GIB,
        "optimiser": trained * (2 if options.optimizer == "adamw8bit" else 8) / GIB,
        "averaged weights": averaged / GIB,
        "activations": scale * activations / GIB,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("train/configs/sd15_24gb.yaml"))
    parser.add_argument("--trainer", choices=TRAINERS, action="append", help="default: all")
    args = parser.parse_args(argv)
    for trainer in args.trainer or TRAINERS:
        options = parse_options(TRAINERS[trainer], trainer, ["--config", str(args.config)], "")
        parts = account(trainer, options)
        print(f"{trainer}, batches of {options.batch_size}: {sum(parts.values()):.1f} GiB")
        for name, size in parts.items():
            print(f"  {size:6.2f}  {name}")


if __name__ == "__main__":
    main()
