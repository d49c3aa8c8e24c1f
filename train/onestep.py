"""Train the one-step paths, Fast and Sharp: one step from zero latents, compared with the truth in pixels.

    accelerate launch train/onestep.py --config train/configs/mini.yaml             # after train/ip2p.py
    accelerate launch train/onestep.py --config train/configs/mini_contours.yaml    # after train/controlnet.py

Goes on from a pipeline of train/ip2p.py or train/controlnet.py. At t = T with zero terminal SNR the
noise carries nothing, so a step from zero latents is a plain regression, which the loss compares in
pixels through the decoder (Garcia et al., arXiv 2409.11355). `keep_share` of the samples go on denoising
at every timestep, so that the same weights still sample. Writes the pipeline that it was given.

With `sharp` that pipeline stays as it is, and a copy of its part that reads the input, the UNet or the
ControlNet (or the sharp variant that it has), is trained and saved beside it as that variant: with LPIPS
and a patch critic that sees the input too (Isola et al., arXiv 1611.07004) in its loss it is realistic
where Fast is the mean of what is possible.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.translate import checkpoints
from train import networks
from train.denoising import Contours, Denoising, DenoisingOptions, Ip2p, check_size, select, start_of_sampling
from train.loop import Run, write_details
from train.options import OptionError, Share, parse_options, run_as_command
from train.pairs import training_pairs
from train.pixels import Critic, PixelLoss, PixelOptions, limited, random_part
from train.validate import validate_pipeline


@dataclass
class OneStepOptions(PixelOptions, DenoisingOptions):
    base: Annotated[str, "the pipeline to go on from"] = ""
    vae_dir: Annotated[Path | None, "an autoencoder to use, with the latents of the base's and another decoder"] = None
    train_unet: Annotated[bool, "train the UNet of a ControlNet pipeline, too"] = True
    train_decoder: Annotated[bool, "train the autoencoder's decoder, too"] = False
    crop: Annotated[int, "side in pixels of the random part that LPIPS and the critic compare; 0: all"] = 0
    sharp: Annotated[bool, "train a UNet, or a ControlNet, of the sharp variant's own, and nothing else"] = False
    sharp_from: Annotated[str, "a pipeline whose Sharp less its Fast is added to Fast to begin with"] = ""
    critic_share: Annotated[float, "gradient of the critic's verdict over that of the other losses; 0: no critic"] = 0.0
    critic_ramp: Annotated[int, "steps until the critic has that share"] = 300
    keep_share: Annotated[float, "share of samples that go on denoising, by the next three options, too", Share] = 0.2
    keep_weight: Annotated[float, "of their loss, which is in latents"] = 0.25
    zero_share: Annotated[float, "of the samples that go on denoising, those from zero latents", Share] = 0.0
    terminal_share: Annotated[float, "of the samples that go on denoising, those at the last timestep from noise"] = (
        0.25
    )


class OneStep(torch.nn.Module):
    """Pixel loss of one step from zero latents, and `denoising` on a share of the samples."""

    def __init__(self, denoising: Denoising, options: OneStepOptions) -> None:
        super().__init__()
        self.denoising, self.options, self.compare = denoising, options, PixelLoss(options)
        self.uneven = not options.sharp and 0 < options.keep_share < 1  # a batch may have samples of one kind alone
        self.critic = Critic() if options.critic_share else None
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        for part in (denoising.vae.decoder, denoising.vae.post_quant_conv):
            part.requires_grad_(options.train_decoder)

    def forward(self, batch: dict, generator: torch.Generator) -> torch.Tensor:
        """The loss () of a batch of train.pairs."""
        o = self.options
        keep = torch.rand(len(batch["prompt"]), generator=generator) < (0 if o.sharp else o.keep_share)
        loss = torch.zeros((), device=batch["target"].device)
        if not keep.all():
            loss = loss + (~keep).float().mean() * self.in_pixels(select(batch, ~keep), generator)
        if keep.any():
            loss = loss + keep.float().mean() * o.keep_weight * self.denoising(select(batch, keep), generator)
        self.calls += self.training
        return loss

    def in_pixels(self, batch: dict, generator: torch.Generator) -> torch.Tensor:
        """Mean loss of a batch in pixels."""
        o = self.options
        prediction, target, source = self.one_step(batch)
        loss = self.compare(prediction, target).mean()
        # The decoder needs all of the latents: its group norm sees another picture in a part of them.
        side = o.crop or prediction.shape[-1]
        top, left = random_part(prediction.shape[-1], side, generator)
        made, real, given = (x[..., top : top + side, left : left + side] for x in (prediction, target, source))
        if o.lpips_weight:
            loss = loss + self.compare.perceptual(made, real).mean()
        if not self.critic:
            return loss
        # In full precision: spectral norm's power iteration needs it, and it is a small part of a step.
        with torch.autocast(prediction.device.type, enabled=False):
            share = o.critic_share * min(1.0, float(self.calls) / max(1, o.critic_ramp))
            total = limited(loss, -self.critic(given, made).mean(), prediction, share)
            return total + self.critic.loss(given, made, real)

    def one_step(self, batch: dict) -> tuple[torch.Tensor, ...]:
        """(prediction, target, source) as pictures (B, 3, S, S) in [-1, 1]."""
        net, vae = self.denoising, self.denoising.vae
        target, count = batch["target"], len(batch["target"])
        source = batch["hint"] * 2 - 1 if "hint" in batch else batch["input"]
        scale = 2 ** (len(vae.config.block_out_channels) - 1)  # pixels a latent, per side
        side = target.shape[-1] // scale
        zeros = torch.zeros(count, vae.config.latent_channels, side, side, device=target.device)
        latents = net.one_step(batch, net.embed(batch["prompt"]), zeros) / vae.config.scaling_factor
        return vae.decode(latents).sample.float(), target.float(), source.float()


def first_sharp(options: OneStepOptions, pipeline) -> torch.nn.Module:
    """What the sharp variant of `pipeline` begins with: that which it has, else Fast, or what `sharp_from` adds to it.

    Differences between weights that were trained from each other can be added to their relatives (task arithmetic:
    Ilharco et al., arXiv 2212.04089).
    """
    part = checkpoints.reader(pipeline)
    if not options.sharp_from:
        own = checkpoints.load_sharp(options.base, pipeline, torch.float32)
        return own or copy.deepcopy(getattr(pipeline, part))
    other = networks.load_pipeline(options.sharp_from)
    sharp = checkpoints.load_sharp(options.sharp_from, other, torch.float32)
    if sharp is None:
        raise OptionError(f"sharp_from is {options.sharp_from}, which has no sharp variant.")
    first = copy.deepcopy(getattr(pipeline, part))
    fast, sharp = getattr(other, part, torch.nn.Module()).state_dict(), sharp.state_dict()
    for name, weight in first.state_dict().items():
        if name not in fast or fast[name].shape != weight.shape:
            raise OptionError(f"sharp_from is {options.sharp_from}, which has another layout than the base.")
        weight.add_(sharp[name] - fast[name])
    return first


def main(argv: list[str] | None = None) -> None:
    options = parse_options(OneStepOptions, "onestep", argv, __doc__)
    if not options.base:
        raise OptionError("Give --base: the pipeline that train/ip2p.py or train/controlnet.py wrote.")
    if options.sharp and options.train_decoder:
        raise OptionError("--sharp leaves the decoder as it is, for Fast needs it too: give --train-decoder false.")
    torch.manual_seed(options.seed)
    pipeline = networks.load_pipeline(options.base, options.revision, options.variant)
    if options.vae_dir:
        vae = networks.load_autoencoder(options.vae_dir)
        if vae.config.latent_channels != pipeline.vae.config.latent_channels:
            raise OptionError(f"{options.vae_dir} has other latents than {options.base}: it cannot take their place.")
        pipeline.vae = vae
    checkpoint = checkpoints.describe(pipeline, options.base)
    if not checkpoint.one_step:
        raise OptionError(f"{options.base} has another schedule than v-prediction with zero terminal SNR.")
    contours = hasattr(pipeline, "controlnet")
    details = {"directions": checkpoints.details(options.base).get("directions", ["ct2mr", "mr2ct"])}
    if contours:
        details = {"directions": ["contour2mr"], "contours": checkpoint.thresholds.as_dict()}
        pipeline.unet.requires_grad_(options.train_unet)
    thresholds = checkpoint.thresholds if contours else None
    dataset = training_pairs(options, details["directions"], thresholds)
    check_size(dataset.side, pipeline)
    if options.crop > dataset.side:
        raise OptionError(f"crop is {options.crop}, and the pictures are {dataset.side} pixels a side.")
    pipeline.text_encoder.requires_grad_(options.train_text_encoder)
    part, sharp = checkpoints.reader(pipeline), None
    own = getattr(pipeline, part)
    if options.sharp:
        for other in (pipeline.unet, pipeline.text_encoder, own):
            other.requires_grad_(False)
        sharp = first_sharp(options, pipeline)
        setattr(pipeline, part, sharp.requires_grad_(True))
    denoising = (Contours if contours else Ip2p)(pipeline, options)
    setattr(pipeline, part, own)
    run = Run(options, OneStep(denoising, options))

    def save(output: Path) -> None:
        folder = output / ("controlnet" if contours else "ip2p")
        networks.save_half(pipeline, folder, options.largest_mib, sharp)
        speeds = ["fast", *(["sharp"] if sharp else []), "diffusion"]
        details.update(speeds=speeds, **start_of_sampling(options, options.base))
        write_details(folder, run, options.base, options.vae_dir, **details)

    def judge() -> dict:
        return validate_pipeline(pipeline, options, details["directions"], thresholds, sharp)

    run.fit(dataset, judge, save)


if __name__ == "__main__":
    run_as_command(main)
