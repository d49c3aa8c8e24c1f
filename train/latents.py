"""Latents of augmented samples, computed once: encoding and augmenting cost more than a small UNet's step."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

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


def cached(dataset: PairDataset, vae, options: Options, count: int) -> LatentDataset:
    """The first `count` samples of `dataset` as latents, kept in `options.output`; made where they are not there."""
    encoder = {**vae.encoder.state_dict(), **vae.quant_conv.state_dict()}
    weights = b"".join(v.detach().float().cpu().numpy().tobytes() for v in encoder.values())
    key = {
        "count": count,
        "data_sha256": data_sha256(options.data),
        "encoder_sha256": hashlib.sha256(weights).hexdigest(),
        **{k: getattr(options, k) for k in ("seed", "directions", "augment", "weights", "ct_windows", "samples")},
    }
    path = options.output / "latents.json"
    if not path.is_file() or json.loads(path.read_text())["key"] != key:
        options.output.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        prompts = _write(dataset, vae, options, count)
        # Last: without it, what was written is not used.
        path.write_text(json.dumps({"key": key, "prompts": prompts}))
    return LatentDataset(options.output, options.seed)


@torch.no_grad()
def _write(dataset: PairDataset, vae, options: Options, count: int) -> list[str]:
    vae.to(memory_format=torch.channels_last)  # a quarter less time on two AVX-512 cores
    loader = DataLoader(Subset(dataset, range(count)), options.batch_size, num_workers=options.workers)
    out, prompts = None, []
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(options.mixed_precision)
    for batch in tqdm(loader, desc="latents"):
        pair = torch.cat([batch[name] for name in NAMES]).to(vae.device)
        with torch.autocast(vae.device.type, half, enabled=half is not None):
            latents = vae.encode(pair).latent_dist.mode().float().cpu().numpy()
        latents = np.stack(np.split(latents, len(NAMES)), axis=1)
        if out is None:
            shape = (count, *latents.shape[1:])
            out = np.lib.format.open_memmap(options.output / "latents.npy", "w+", np.float16, shape)
        out[len(prompts) : len(prompts) + len(latents)] = latents
        prompts += batch["prompt"]
    out.flush()
    return prompts
