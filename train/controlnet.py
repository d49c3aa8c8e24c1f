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
from typing import Annotated, Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.image.contours import Thresholds
from train import networks
from train.denoising import Contours, DenoisingOptions, check_size, start_of_sampling
from train.loop import Run, write_details
from train.options import OptionError, Share, parse_options, run_as_command
from train.pairs import training_pairs
from train.validate import validate_pipeline


@dataclass
class ControlnetOptions(DenoisingOptions):
    base: Annotated[str, "Stable Diffusion, or a pipeline of train/ip2p.py, to start from"] = ""
    train_unet: Annotated[bool, "train the UNet, too, which has learnt MRI alone"] = True
    train_text_encoder: Annotated[bool, "train the text encoder, too"] = False
    conditioning_channels: Annotated[list[int], "of the layers of the hint's encoder"] = field(
        default_factory=lambda: [16, 32, 64, 96]
    )
    contours: Annotated[Literal["windows", "single"], "windows, or single for plain Canny"] = "windows"
    drop_image: Annotated[float, "share of samples without the hint, which learn MRI alone", Share] = 0.1


def main(argv: list[str] | None = None) -> None:
    options = parse_options(ControlnetOptions, "controlnet", argv, __doc__)
    if not options.base:
        raise OptionError("Give --base: Stable Diffusion, or the ip2p folder that train/ip2p.py wrote.")
    thresholds = Thresholds(mode=options.contours)
    dataset = training_pairs(options, ["contour2mr"], thresholds)
    torch.manual_seed(options.seed)
    base = networks.load_pipeline(options.base, options.revision, options.variant)
    check_size(dataset.side, base)
    networks.widen_conv_in(base.unet, base.vae.config.latent_channels)
    controlnet = networks.controlnet(base.unet, options.conditioning_channels)
    pipeline = networks.controlnet_pipeline(base.vae, base.text_encoder, base.tokenizer, base.unet, controlnet)
    pipeline.unet.requires_grad_(options.train_unet)
    pipeline.text_encoder.requires_grad_(options.train_text_encoder)
    run = Run(options, Contours(pipeline, options))

    def save(output: Path) -> None:
        networks.save_half(pipeline, output / "controlnet", options.largest_mib)
        write_details(
            output / "controlnet",
            run,
            options.base,
            directions=["contour2mr"],
            contours=thresholds.as_dict(),
            **start_of_sampling(options),
        )

    run.fit(dataset, lambda: validate_pipeline(pipeline, options, ["contour2mr"], thresholds), save)


if __name__ == "__main__":
    run_as_command(main)
