"""Train the autoencoder (AutoencoderKL) of the mini checkpoints on CT and MR model images.

    accelerate launch train/autoencoder.py --config train/configs/mini.yaml
    accelerate launch train/autoencoder.py --config train/configs/mini_whole.yaml    # then on whole images
    python train/autoencoder.py --data data/mini --judge-dir assets/checkpoints/ip2p/vae    # its ceiling only

It learns on crops, since it is convolutional, and is judged on whole images (where group norm sees
other statistics, hence the second stage): its encode-decode PSNR is the ceiling of every
translation through it. What it saves has latents of zero mean per
channel and unit variance overall (folded into the 1x1 convolutions around them), so
scaling_factor is 1. With `train_encoder: false` the latents stay as they are, and the decoder alone
learns to forgive `latent_noise` on them: a denoiser's latents are slightly off.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch.utils.data import Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.dataset import DatasetError, central_rows, read_image, read_rows
from mediffuse.image.intensity import MR_OUTPUT_LIMITS, decode
from mediffuse.metrics import paper, to_grey
from train import augment, networks
from train.loop import Run, write_details
from train.options import Count, OptionError, Options, Share, parse_options, run_as_command
from train.pairs import ENDLESS, check_val, to_tensor
from train.pixels import PixelLoss, PixelOptions


@dataclass
class AutoencoderOptions(PixelOptions, Options):
    autoencoder: Annotated[dict, "AutoencoderKL's config, of a fresh one"] = field(default_factory=dict)
    base_dir: Annotated[Path | None, "an autoencoder to go on from; none: a fresh one"] = None
    crop: Annotated[int, "side of the training crops in pixels", Count] = 128
    window_weights: Annotated[list[float], "of the loss of the full, tissue and brain window"] = field(
        default_factory=lambda: [1.0, 1.0, 1.0]
    )
    kl_weight: Annotated[float, "of the loss that keeps latents near a standard normal distribution"] = 1e-6
    train_encoder: Annotated[bool, "false: the decoder alone, so the latents stay as they are"] = True
    latent_noise: Annotated[float, "largest standard deviation of the noise on the latents, drawn from 0 up"] = 0.0
    unpaired_share: Annotated[float, "share of samples from the CT pictures that have no MRI", Share] = 0.2
    judge_dir: Annotated[Path | None, "print the ceiling of this autoencoder and train nothing"] = None


class ImageDataset(Dataset):
    """Augmented crops of CT and MR model images: float32 (3, crop, crop) in [-1, 1]."""

    def __init__(self, options: AutoencoderOptions) -> None:
        self.options = options
        data = options.data
        rows = [r for r in read_rows(data / "train") if r["direction"] == "ct2mr"]
        self.ct = [data / "train" / r["input_image_file_name"] for r in rows]
        self.mr = [data / "train" / r["edited_image_file_name"] for r in rows]
        if not rows:
            raise DatasetError(f"{data / 'train'} has no pairs for ct2mr. Run train/prepare.py first.")
        side = read_image(self.ct[0]).shape[0]
        if options.crop > side:
            raise OptionError(f"crop is {options.crop}, and the pictures are {side} pixels a side.")
        unpaired = data / "unpaired"
        self.unpaired = []
        if unpaired.is_dir() and options.unpaired_share:
            self.unpaired = [unpaired / r["file_name"] for r in read_rows(unpaired)]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, item: int) -> np.ndarray:
        o = self.options
        rng = np.random.default_rng([o.seed, item])
        is_ct = rng.random() < 0.5
        paths = self.ct if is_ct else self.mr
        if is_ct and self.unpaired and rng.random() < 2 * o.unpaired_share:
            paths = self.unpaired
        image = read_image(paths[rng.integers(len(paths))])
        if o.augment:
            if rng.random() < 0.7:
                image = augment.warp(image, augment.warp_field(image.shape[0], rng))
            image = (augment.jitter_ct if is_ct else augment.jitter_mr)(image, rng)
        room = image.shape[0] - o.crop
        # Heads lie in the middle: a triangular draw sees fewer empty corners.
        top, left = (int(rng.integers(room // 2 + 1) + rng.integers(room - room // 2 + 1)) for _ in range(2))
        return to_tensor(image[top : top + o.crop, left : left + o.crop])


class Objective(torch.nn.Module):
    """Pixel loss and a small KL term (Rombach et al., arXiv 2112.10752, without the critic)."""

    def __init__(self, vae, options: AutoencoderOptions) -> None:
        super().__init__()
        self.vae, self.options, self.compare = vae, options, PixelLoss(options)
        for part in (vae.encoder, vae.quant_conv):
            part.requires_grad_(options.train_encoder)

    def forward(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """The loss () of images (B, 3, crop, crop) in [-1, 1]."""
        o = self.options
        with torch.set_grad_enabled(o.train_encoder):
            posterior = self.vae.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        strength = o.latent_noise * torch.rand(len(images), 1, 1, 1, generator=generator)
        latents = posterior.mean + (posterior.std * noise.to(images.device) if o.train_encoder else 0)
        if o.latent_noise:
            noise = torch.randn(posterior.mean.shape, generator=generator)
            latents = latents + (strength * noise).to(images.device)
        reconstruction = self.vae.decode(latents).sample.float()
        loss = self.compare(reconstruction, images).mean()
        if o.lpips_weight:
            loss = loss + self.compare.perceptual(reconstruction, images).mean()
        if o.train_encoder:
            loss = loss + o.kl_weight * posterior.kl().sum() / images.numel()
        return loss


@torch.no_grad()
def latent_moments(vae, images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean per channel (C,) and overall standard deviation () of the latents of `images`."""
    latents = torch.cat([vae.encode(x[None]).latent_dist.mode() for x in images])
    mean = latents.mean((0, 2, 3))
    return mean, (latents - mean[None, :, None, None]).std()


@torch.no_grad()
def fold_moments(vae, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Make latents (z - mean) / std by changing the 1x1 convolutions that write and read them."""
    channels = vae.config.latent_channels
    write, read = vae.quant_conv, vae.post_quant_conv
    write.weight[:channels] /= std
    write.bias[:channels] = (write.bias[:channels] - mean) / std
    write.bias[channels:] -= 2 * std.log()
    read.bias += read.weight[:, :, 0, 0] @ mean
    read.weight *= std


@torch.no_grad()
def ceiling(vae, paths: list[Path], modality: str) -> float:
    """Mean encode-decode PSNR in dB of prepared pictures, by protocol "paper"."""
    device = next(vae.parameters()).device
    values = []
    for path in paths:
        image = read_image(path)
        x = torch.from_numpy(to_tensor(image))[None].to(device)
        made = vae.decode(vae.encode(x).latent_dist.mode()).sample[0].float().cpu().numpy()
        made = made.transpose(1, 2, 0) / 2 + 0.5
        values.append(paper(*(to_grey(decode(i, modality), modality, MR_OUTPUT_LIMITS) for i in (image, made))).psnr)
    return float(np.mean(values))


def ceilings(vae, options: AutoencoderOptions) -> dict[str, float]:
    """`ceiling` on the val split, a central slice a patient, for MR and CT."""
    if not options.validate_images:
        return {}
    folder = options.data / "val"
    rows = [r for r in read_rows(folder) if r["direction"] == "ct2mr"]
    rows = central_rows(rows)[: options.validate_images]
    return {
        "mr_psnr": ceiling(vae, [folder / r["edited_image_file_name"] for r in rows], "MR"),
        "ct_psnr": ceiling(vae, [folder / r["input_image_file_name"] for r in rows], "CT"),
    }


def main(argv: list[str] | None = None) -> None:
    options = parse_options(AutoencoderOptions, "autoencoder", argv, __doc__)
    if options.judge_dir:
        print(ceilings(networks.load_autoencoder(options.judge_dir), options))
        return
    check_val(options, ["ct2mr"])
    dataset = ImageDataset(options)
    torch.manual_seed(options.seed)
    vae = networks.load_autoencoder(options.base_dir) if options.base_dir else networks.autoencoder(options.autoencoder)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels a latent, per side
    if options.crop % factor:
        raise OptionError(f"crop is {options.crop}, and should be a multiple of {factor} for this autoencoder.")
    run = Run(options, Objective(vae, options))

    def save(output: Path) -> None:
        folder = options.data / "train"
        pairs = [r for r in read_rows(folder) if r["direction"] == "ct2mr"]
        some = [
            folder / row[f"{kind}_image_file_name"]
            for row in pairs[:: max(1, len(pairs) // 50)]
            for kind in ("input", "edited")
        ]
        if options.train_encoder:
            images = [torch.from_numpy(to_tensor(read_image(p))).to(run.accelerator.device) for p in some]
            fold_moments(vae, *latent_moments(vae, images))
        vae.save_pretrained(output / "vae")
        write_details(output / "vae", run, options.base_dir)

    run.fit(dataset, lambda: ceilings(vae, options), save)


if __name__ == "__main__":
    run_as_command(main)
