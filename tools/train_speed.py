"""How fast a training step is on this machine, by what makes it faster: images a second, utilisation and peak memory.

    python tools/train_speed.py                          # the bundled size; with --shape sd15 Stable Diffusion 1.5's
    python tools/train_speed.py --steps 5 --batch-size 8 --compile

A step is train/ip2p.py's: loss, gradients, AdamW, on one batch of noise, with fresh weights. *Utilisation* is the
share of what a matrix product reaches here in the same precision, by the operations that PyTorch counts. On a
processor time is the process's own over its threads, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse import machine
from mediffuse.directions import prompt_for
from train import compute, networks
from train.denoising import Ip2p
from train.ip2p import Ip2pOptions

CONFIGS = Path(__file__).resolve().parents[1] / "train" / "configs"
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Way:
    """A way to compute a step. cached: from latents, as train/ip2p.py's option cache makes them."""

    precision: str
    channels_last: bool = False
    cached: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        words = [{"no": "full precision"}.get(self.precision, self.precision)]
        told = {"channels last": self.channels_last, "cached latents": self.cached, "compiled": self.compiled}
        return ", ".join([*words, *(name for name, on in told.items() if on)])


def pipeline_of(shape: str):
    """A fresh InstructPix2Pix pipeline of the size "mini" or "sd15"."""
    config = networks.SD15
    if shape == "mini":
        parts = yaml.safe_load((CONFIGS / "mini.yaml").read_text(encoding="utf-8"))
        config = {"autoencoder": parts["autoencoder"]["autoencoder"], **parts["ip2p"]}
    tokenizer = networks.byte_tokenizer()
    vae, text = networks.autoencoder(config["autoencoder"]), networks.text_encoder(config["text_encoder"], tokenizer)
    return networks.ip2p_pipeline(vae, text, tokenizer, networks.unet(config["unet"], vae, text, True))


def batch_of(pipeline, way: Way, count: int, device: torch.device) -> dict:
    """A batch of noise, as train.pairs or train.latents give one."""
    side = pipeline.unet.config.sample_size
    scale = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    shape = (pipeline.vae.config.latent_channels, side, side) if way.cached else (3, scale * side, scale * side)
    ending = "_latents" if way.cached else ""
    batch = {f"{name}{ending}": torch.randn(count, *shape, device=device) for name in ("input", "target")}
    return {**batch, "prompt": [prompt_for("ct2mr")] * count}


def clock(device: torch.device) -> float:
    """Seconds of this device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()


def peak_flops(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations a second of matrix products of 2048 (on a GPU 8192) rows and columns."""
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    started, done = clock(device), 0
    while clock(device) - started < seconds:
        a @ b
        done += 1
    return 2 * side**3 * done / (clock(device) - started)


def measure(shape: str, way: Way, count: int, steps: int, device: torch.device) -> dict[str, float]:
    """images_per_second, utilisation in [0, 1] and peak_mib of training steps of `count` samples."""
    torch.manual_seed(0)
    options = Ip2pOptions(mixed_precision=way.precision, compile=way.compiled)
    pipeline = pipeline_of(shape)
    objective = Ip2p(pipeline, options).to(device)
    if way.channels_last:
        objective.to(memory_format=torch.channels_last)
    compute.set_up(objective, options)
    optimizer = compute.optimizer([p for p in objective.parameters() if p.requires_grad], options)
    batch = batch_of(pipeline, way, count, device)

    def step(number: int) -> None:
        dtype = DTYPES[way.precision]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = objective(batch, torch.Generator().manual_seed(number))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    counter = FlopCounterMode(display=False)
    if way.compiled:
        step(0)  # which counts nothing
    else:
        with counter:
            step(0)
    machine.reset_peak()
    started = clock(device)
    for number in range(steps):
        step(number)
    seconds = (clock(device) - started) / steps
    reached = counter.get_total_flops() / seconds / peak_flops(device, DTYPES[way.precision])
    return {
        "images_per_second": count / seconds,
        "utilisation": float("nan") if way.compiled else reached,
        "peak_mib": machine.peak_mib(),
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["mini", "sd15"], default="mini")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="that are measured, after one that is not")
    parser.add_argument("--precision", choices=DTYPES, nargs="+", default=["no", "bf16"])
    parser.add_argument("--compile", action="store_true", help="also with torch.compile, which starts slowly")
    args = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    kind = f", {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else ""
    print(f"{args.shape}, batches of {args.batch_size}, {args.steps} steps, on {name}{kind}\n")
    print("| Way | images/s | utilisation | peak MiB |\n| --- | --- | --- | --- |")
    for precision, cached, last in itertools.product(args.precision, (False, True), (False, True)):
        for compiled in (False, True) if args.compile else (False,):
            way = Way(precision, channels_last=last, cached=cached, compiled=compiled)
            made = measure(args.shape, way, args.batch_size, args.steps, device)
            used = "" if made["utilisation"] != made["utilisation"] else f"{100 * made['utilisation']:.0f} %"
            print(f"| {way} | {made['images_per_second']:.2f} | {used} | {made['peak_mib']:.0f} |", flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
