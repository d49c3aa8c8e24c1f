"""Train the fast path: one step from zero latents, compared with the truth in pixels.

    accelerate launch train/onestep.py --config train/configs/mini.yaml             # after train/ip2p.py
    accelerate launch train/onestep.py --config train/configs/mini_contours.yaml    # after train/controlnet.py

Goes on from a pipeline of train/ip2p.py or train/controlnet.py. At t = T with zero terminal SNR the
noise carries nothing, so a step from zero latents is a plain regression, which the loss compares in
pixels through the frozen decoder (Garcia et al., arXiv 2409.11355). `keep_share` of the samples go on
denoising at every timestep, so that the same weights still sample. Writes the pipeline that it was given.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.translate import checkpoints
from train import models
from train.common import (
    Run,
    enter,
    parse_options,
    training_pairs,
    validate_pipeline,
    weighted_windows,
    write_details,
)
from train.controlnet import Contours
from train.ip2p import Denoising, DenoisingOptions, Ip2p


@dataclass
class OneStepOptions(DenoisingOptions):
    base: str = ""  # the pipeline to go on from
    train_unet: bool = True  # of a ControlNet pipeline
    l1_weight: float = 1.0
    l2_weight: float = 2.0
    ssim_weight: float = 0.0  # of 1 - SSIM
    lpips_weight: float = 0.0
    lpips: Path | None = None  # AlexNet's weights, as mediffuse.evaluate takes them
    window_weights: list = field(default_factory=lambda: [1.5, 0.9, 0.6])  # loss of the full, tissue and brain window
    crop: int = 0  # side in pixels of the random part that is decoded and compared; 0: all
    keep_share: float = 0.2  # share of samples that go on denoising
    keep_weight: float = 0.25  # of their loss, which is in latents
    zero_share: float = 0.0  # these three: of the samples that go on denoising
    terminal_share: float = 0.25


class OneStep(torch.nn.Module):
    """Pixel loss of one step from zero latents, and `denoising` on a share of the samples."""

    def __init__(self, denoising: Denoising, options: OneStepOptions) -> None:
        super().__init__()
        self.denoising, self.options = denoising, options
        self.register_buffer("weights", weighted_windows(options.window_weights), persistent=False)
        self.lpips = None
        if options.lpips_weight:
            from mediffuse.evaluate.perceptual import load_lpips

            self.lpips = load_lpips(options.lpips).requires_grad_(False)

    def forward(self, batch: dict, generator: torch.Generator) -> torch.Tensor:
        o = self.options
        keep = torch.rand(len(batch["prompt"]), generator=generator) < o.keep_share
        loss = torch.zeros((), device=batch["target"].device)
        if not keep.all():
            made, target = self.one_step(_select(batch, ~keep), generator)
            loss = loss + (~keep).float().mean() * self.compare(made, target)
        if keep.any():
            loss = loss + keep.float().mean() * o.keep_weight * self.denoising(_select(batch, keep), generator)
        return loss

    def one_step(self, batch: dict, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """(made, target) as model images (B, 3, S, S) in [-1, 1], or a random part of them."""
        net, vae = self.denoising, self.denoising.vae
        target, count = batch["target"], len(batch["target"])
        scale = 2 ** (len(vae.config.block_out_channels) - 1)
        side = target.shape[-1] // scale
        zeros = torch.zeros(count, vae.config.latent_channels, side, side, device=target.device)
        last = torch.full((count,), net.scheduler.config.num_train_timesteps - 1, device=target.device)
        nothing = torch.zeros(count, dtype=torch.bool, device=target.device)
        # At zero SNR the prediction of the clean latents is -v.
        latents = -net.predict(zeros, last, net.embed(batch["prompt"]), batch, nothing) / vae.config.scaling_factor
        if self.options.crop:
            part = self.options.crop // scale
            top, left = torch.randint(0, side - part + 1, (2,), generator=generator).tolist()
            latents = latents[..., top : top + part, left : left + part]
            top, left, part = top * scale, left * scale, part * scale
            target = target[..., top : top + part, left : left + part]
        return vae.decode(latents).sample.float(), target.float()

    def compare(self, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        o, difference = self.options, made - target
        loss = (self.weights * (o.l1_weight * difference.abs() + o.l2_weight * difference.square())).mean()
        if o.ssim_weight:
            loss = loss + o.ssim_weight * (self.weights * (1 - ssim(made, target))).mean()
        if self.lpips:
            loss = loss + o.lpips_weight * self.lpips(made.clamp(-1, 1), target).mean()
        return loss


def ssim(a: torch.Tensor, b: torch.Tensor, data_range: float = 2.0, size: int = 7) -> torch.Tensor:
    """SSIM map (B, C, H - 6, W - 6) with a uniform window, as protocol "paper" (skimage) computes it."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, size, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    sample = size**2 / (size**2 - 1)  # skimage's covariances are unbiased
    var_a, var_b = sample * (mean(a * a) - mean_a**2), sample * (mean(b * b) - mean_b**2)
    covariance = sample * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def _select(batch: dict, keep: torch.Tensor) -> dict:
    """The samples of a batch where `keep` (B,) is true."""
    chosen = keep.nonzero().flatten().tolist()
    return {k: v[chosen] if isinstance(v, torch.Tensor) else [v[i] for i in chosen] for k, v in batch.items()}


def main(argv: list[str] | None = None) -> None:
    from diffusers import DiffusionPipeline

    options = parse_options(OneStepOptions, "onestep", argv, __doc__)
    if not options.base:
        raise SystemExit("Give --base: the pipeline that train/ip2p.py or train/controlnet.py wrote.")
    if options.lpips_weight and not options.lpips:
        raise SystemExit("--lpips-weight needs --lpips: a file with AlexNet's weights.")
    torch.manual_seed(options.seed)
    pipeline = DiffusionPipeline.from_pretrained(options.base, safety_checker=None, dtype=torch.float32)
    checkpoint = checkpoints.describe(pipeline, options.base)
    if not checkpoint.one_step:
        raise SystemExit(f"{options.base} has another schedule than v-prediction with zero terminal SNR.")
    contours = hasattr(pipeline, "controlnet")
    details = {"directions": checkpoints.details(options.base).get("directions", ["ct2mr", "mr2ct"])}
    if contours:
        details = {"directions": ["contour2mr"], "contours": checkpoint.thresholds.as_dict()}
        pipeline.unet.requires_grad_(options.train_unet)
    thresholds = checkpoint.thresholds if contours else None
    dataset = training_pairs(options, details["directions"], thresholds)
    pipeline.text_encoder.requires_grad_(options.train_text_encoder)
    denoising = (Contours if contours else Ip2p)(pipeline, options)
    run = Run(options, OneStep(denoising, options))

    def save(output: Path) -> None:
        folder = output / ("controlnet" if contours else "ip2p")
        models.save_half(pipeline, folder)
        write_details(folder, run, options.base, **details)

    run.fit(dataset, lambda: validate_pipeline(pipeline, options, details["directions"], thresholds), save)


if __name__ == "__main__":
    enter(main)
