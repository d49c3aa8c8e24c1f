"""Train a ControlNet that turns CT contours into an MRI, on an MRI prior of our own.

    accelerate launch train/controlnet.py --config train/configs/mini.yaml
    accelerate launch train/controlnet.py --config train/configs/sd15.yaml

With `train_unet` the UNet, our MRI prior, is trained together with the ControlNet: where the hint
is dropped (`drop_image`) it learns MRI alone, elsewhere to follow the hint. Without it, the UNet is
frozen as published (Zhang et al., arXiv 2302.05543). The hint is made by mediffuse.image.contours, as at
inference. Writes a StableDiffusionControlNetPipeline that the app and `from_pretrained` load.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.image.contours import Thresholds
from train import models
from train.common import Run, enter, parse_options, training_pairs, validate_pipeline, write_details
from train.ip2p import Denoising, DenoisingOptions


@dataclass
class ControlnetOptions(DenoisingOptions):
    base: str = ""  # Stable Diffusion, or an InstructPix2Pix pipeline of train/ip2p.py, to start from
    train_unet: bool = True
    train_text_encoder: bool = False
    conditioning_channels: list = field(default_factory=lambda: [16, 32, 64, 96])  # of the hint's encoder
    contours: str = "windows"  # windows, or single for plain Canny
    drop_image: float = 0.1


class Contours(Denoising):
    def __init__(self, pipeline, options) -> None:
        super().__init__(pipeline, options)
        self.controlnet = pipeline.controlnet

    def predict(self, noisy, timesteps, text, batch, drop):
        keep = (~drop)[:, None, None, None]
        down, middle = self.controlnet(noisy, timesteps, text, batch["hint"].to(noisy.dtype), return_dict=False)
        return self.unet(
            noisy,
            timesteps,
            text,
            down_block_additional_residuals=[x * keep for x in down],
            mid_block_additional_residual=middle * keep,
        ).sample


def main(argv: list[str] | None = None) -> None:
    from diffusers import DiffusionPipeline

    options = parse_options(ControlnetOptions, "controlnet", argv, __doc__)
    if not options.base:
        raise SystemExit("Give --base: Stable Diffusion, or the ip2p folder that train/ip2p.py wrote.")
    thresholds = Thresholds(mode=options.contours)
    dataset = training_pairs(options, ["contour2mr"], thresholds)
    torch.manual_seed(options.seed)
    base = DiffusionPipeline.from_pretrained(options.base, safety_checker=None, dtype=torch.float32)
    models.widen_conv_in(base.unet, base.vae.config.latent_channels)
    controlnet = models.controlnet(base.unet, options.conditioning_channels)
    pipeline = models.controlnet_pipeline(base.vae, base.text_encoder, base.tokenizer, base.unet, controlnet)
    pipeline.unet.requires_grad_(options.train_unet)
    pipeline.text_encoder.requires_grad_(options.train_text_encoder)
    run = Run(options, Contours(pipeline, options))

    def save(output: Path) -> None:
        models.save_half(pipeline, output / "controlnet")
        write_details(
            output / "controlnet", run, options.base, directions=["contour2mr"], contours=thresholds.as_dict()
        )

    run.fit(dataset, lambda: validate_pipeline(pipeline, options, ["contour2mr"], thresholds), save)


if __name__ == "__main__":
    enter(main)
