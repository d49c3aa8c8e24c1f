"""Train an InstructPix2Pix UNet for CT->MRI and MRI->CT at once; the prompt says which.

    accelerate launch train/ip2p.py --config train/configs/mini.yaml     # from scratch, bundled size
    accelerate launch train/ip2p.py --config train/configs/sd15.yaml     # fine-tunes Stable Diffusion 1.5

v-prediction with zero terminal SNR (Lin et al., arXiv 2305.08891). A share of the samples is
trained at the last timestep from zero latents: there the target is the pair's other image alone, so
one step is a prediction and more steps sample; train/onestep.py goes on with it in pixels.
`mean_share` of them learn to sample from that prediction instead of from noise: the noise of the
schedule is the model's own prediction with a little noise on it, which keeps a sample as near to the
truth as a realistic image can be (posterior-mean rectified flow, Ohayon et al., arXiv 2410.00418).

Writes a StableDiffusionInstructPix2PixPipeline that the app and `from_pretrained` load.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from train import latents, networks
from train.denoising import DenoisingOptions, Ip2p, check_size, start_of_sampling
from train.loop import Run, write_details
from train.options import parse_options, run_as_command
from train.pairs import training_pairs
from train.validate import validate_pipeline


@dataclass
class Ip2pOptions(DenoisingOptions):
    base: Annotated[str, "Stable Diffusion, or a pipeline of this script, to go on from; none: from scratch"] = ""
    vae_dir: Annotated[Path | None, "the autoencoder, where there is no base"] = None
    unet: Annotated[dict, "UNet2DConditionModel's config, where there is no base"] = field(default_factory=dict)
    text_encoder: Annotated[dict, "CLIPTextConfig's values, where there is no base"] = field(default_factory=dict)
    directions: Annotated[list[Literal["ct2mr", "mr2ct"]], "what is translated"] = field(
        default_factory=lambda: ["ct2mr", "mr2ct"]
    )
    cache: Annotated[int, "augmented samples to encode once and train on; 0: encode new ones as they come"] = 0


def build(options: Ip2pOptions):
    """The pipeline to train: Stable Diffusion with a wider conv_in, or a fresh small one."""
    if options.base:
        base = networks.load_pipeline(options.base, options.revision, options.variant)
        networks.widen_conv_in(base.unet, 2 * base.vae.config.latent_channels)
        return networks.ip2p_pipeline(base.vae, base.text_encoder, base.tokenizer, base.unet)
    vae = networks.load_autoencoder(options.vae_dir)
    tokenizer = networks.byte_tokenizer()
    text = networks.text_encoder(options.text_encoder, tokenizer)
    return networks.ip2p_pipeline(vae, text, tokenizer, networks.unet(options.unet, vae, text, image_conditioned=True))


def main(argv: list[str] | None = None) -> None:
    options = parse_options(Ip2pOptions, "ip2p", argv, __doc__)
    dataset = training_pairs(options, options.directions)
    torch.manual_seed(options.seed)
    pipeline = build(options)
    check_size(dataset.side, pipeline)
    pipeline.text_encoder.requires_grad_(options.train_text_encoder)
    run = Run(options, Ip2p(pipeline, options))

    def save(output: Path) -> None:
        networks.save_half(pipeline, output / "ip2p", options.largest_mib)
        write_details(
            output / "ip2p",
            run,
            options.base or options.vae_dir,
            directions=options.directions,
            **start_of_sampling(options),
        )

    if options.cache:
        dataset = latents.cached(dataset, pipeline.vae, options, options.cache, run.accelerator)
    run.fit(dataset, lambda: validate_pipeline(pipeline, options, options.directions), save)


if __name__ == "__main__":
    run_as_command(main)
