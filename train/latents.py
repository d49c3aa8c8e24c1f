"""Latents of augmented samples, computed once: encoding and augmenting cost more than a small UNet's step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mediffuse.files import write_text
from train.options import Options
from train.pairs import ENDLESS, PairDataset, data_sha256

NAMES = ("input", "target")


class LatentDataset(Dataset):
    """Samples drawn from (seed, n) out of what `cached` wrote.

    Items are dicts: input_latents and target_latents, float32 (C, h, w), and the prompt.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.latents = folder, seed, None
        self.prompts = json.loads((folder / "latents.json").read_text())["prompts"]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, item: int) -> dict:
        if self.latents is None:  # opened by the process that reads it
            self.latents = np.load(self.folder / "latents.npy", mmap_mode="r")
        index = int(np.random.default_rng([self.seed, item]).integers(len(self.prompts)))
        pair = dict(zip((f"{name}_latents" for name in NAMES), self.latents[index].astype(np.float32), strict=True))
        return {**pair, "prompt": self.prompts[index]}


def cached(dataset: PairDataset, vae, options: Options, count: int, accelerator: Accelerator) -> LatentDataset:
    """The first `count` samples of `dataset` as latents, kept in `options.output`; made where they are not there.

    Each process of `accelerator` encodes every so manieth batch, so that none waits long for another.
    """
    encoder = {**vae.encoder.state_dict(), **vae.quant_conv.state_dict()}
    weights = b"".join(v.detach().float().cpu().numpy().tobytes() for v in encoder.values())
    key = {
        "count": count,
        "data_sha256": data_sha256(options.data),
        "encoder_sha256": hashlib.sha256(weights).hexdigest(),
        **{k: getattr(options, k) for k in ("seed", "directions", "augment", "weights", "ct_windows", "samples")},
    }
    path, main = options.output / "latents.json", accelerator.is_main_process
    missing = not path.is_file() or json.loads(path.read_text())["key"] != key
    accelerator.wait_for_everyone()  # all have looked
    if missing:
        if main:
            options.output.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            side = dataset.side // 2 ** (len(vae.config.block_out_channels) - 1)
            shape = (count, len(NAMES), vae.config.latent_channels, side, side)
            np.lib.format.open_memmap(options.output / "latents.npy", "w+", np.float16, shape).flush()
        accelerator.wait_for_everyone()
        prompts = gather_object(_write(dataset, vae, options, count, accelerator))
        if main:  # last: without it, what was written is not used
            named = [prompt for _, group in sorted(prompts) for prompt in group]
            write_text(path, json.dumps({"key": key, "prompts": named}))
        accelerator.wait_for_everyone()
    return LatentDataset(options.output, options.seed)


@torch.no_grad()
def _write(
    dataset: PairDataset, vae, options: Options, count: int, accelerator: Accelerator
) -> list[tuple[int, list[str]]]:
    """Write the latents of this process's batches; (number of the first sample, prompts) of each."""
    vae.to(accelerator.device, memory_format=torch.channels_last)  # a quarter less time on two AVX-512 cores
    size = options.batch_size
    starts = range(accelerator.process_index * size, count, accelerator.num_processes * size)
    batches = [range(start, min(start + size, count)) for start in starts]
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=options.workers)
    out, prompts = np.load(options.output / "latents.npy", mmap_mode="r+"), []
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(accelerator.mixed_precision)
    for numbers, batch in zip(
        tqdm(batches, desc="latents", disable=not accelerator.is_main_process), loader, strict=True
    ):
        pair = torch.cat([batch[name] for name in NAMES]).to(vae.device)
        with torch.autocast(vae.device.type, half, enabled=half is not None):
            latents = vae.encode(pair).latent_dist.mode().float().cpu().numpy()
        out[numbers.start : numbers.stop] = np.stack(np.split(latents, len(NAMES)), axis=1)
        prompts.append((numbers.start, batch["prompt"]))
    out.flush()
    return prompts
