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

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.translate import checkpoints
from train import latents, networks
from train.loop import Options, Run, enter, parse_options, schedule, training_pairs, validate_pipeline, write_details


@dataclass
class DenoisingOptions(Options):
    """What trainers of denoising UNets share."""

    train_text_encoder: bool = True
    prediction: str = "v_prediction"  # or epsilon, to compare with: it has no fast path
    zero_share: float = 0.25  # share of samples at the last timestep from zero latents
    terminal_share: float = 0.25  # share of samples at the last timestep from noise
    mean_share: float = 0.0  # share of samples whose noise is the model's own prediction, see mean_noise
    mean_noise: list = field(default_factory=lambda: [0.1, 0.3])  # standard deviation put on that prediction, drawn
    drop_prompt: float = 0.05  # share of samples without a prompt, for guidance
    drop_image: float = 0.05  # share of samples without the input image (or hint), for guidance


@dataclass
class Ip2pOptions(DenoisingOptions):
    base: str = ""  # Stable Diffusion, or a pipeline of this script, to go on from; empty: from scratch
    vae_dir: Path | None = None  # the autoencoder, where there is no base
    unet: dict = field(default_factory=dict)  # UNet2DConditionModel's config, from scratch
    text_encoder: dict = field(default_factory=dict)  # CLIPTextConfig, from scratch
    directions: list = field(default_factory=lambda: ["ct2mr", "mr2ct"])
    cache: int = 0  # augmented samples to encode once and train on; 0: encode new ones as they come


class Denoising(torch.nn.Module):
    """The v-prediction loss that ip2p, controlnet and onestep share.

    Subclasses give `predict(noisy, timesteps, text, batch, drop)`, the UNet's output.
    """

    def __init__(self, pipeline, options) -> None:
        super().__init__()
        if options.prediction == "epsilon" and (
            options.zero_share or options.mean_share or options.validate_speed == "fast"
        ):
            raise SystemExit("epsilon has no fast path: give --zero-share 0 --mean-share 0 --validate-speed diffusion")
        self.vae, self.text_encoder, self.unet = pipeline.vae, pipeline.text_encoder, pipeline.unet
        self.tokenizer, self.options = pipeline.tokenizer, options
        self.scheduler = pipeline.scheduler = schedule(options.prediction)
        self.vae.requires_grad_(False).eval()

    def embed(self, prompts: list[str]) -> torch.Tensor:
        """Prompts to embeddings (B, 77, D); each different prompt is encoded once."""
        different = sorted(set(prompts))
        tokens = self.tokenizer(
            different,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        embedded = self.text_encoder(tokens.input_ids.to(self.vae.device))[0]
        return embedded[[different.index(p) for p in prompts]]

    @torch.no_grad()
    def latents(self, batch: dict, name: str) -> torch.Tensor:
        """Latents (B, C, h, w) of the batch's "input" or "target" images."""
        if f"{name}_latents" in batch:
            return batch[f"{name}_latents"]
        # float: in half precision the schedule near t = 0 rounds to no noise at all.
        return self.vae.encode(batch[name].to(self.vae.dtype)).latent_dist.mode().float()

    def forward(self, batch: dict, generator: torch.Generator) -> torch.Tensor:
        o = self.options
        clean = self.latents(batch, "target") * self.vae.config.scaling_factor
        device, count = clean.device, len(clean)
        draw = torch.rand(4, count, generator=generator)
        last = self.scheduler.config.num_train_timesteps - 1
        zero = draw[0] < o.zero_share
        terminal = draw[0] < o.zero_share + o.terminal_share
        mean = draw[0] > 1 - o.mean_share
        timesteps = torch.where(terminal, last, torch.randint(0, last + 1, (count,), generator=generator)).to(device)
        noise = torch.randn(clean.shape, generator=generator)
        noise[zero] = 0
        # Neither the fast path nor what starts from it has guidance.
        drop_prompt = ~zero & ~mean & (draw[1] < o.drop_prompt)
        drop_image = ~zero & ~mean & (draw[2] < o.drop_image)
        prompts = ["" if drop else prompt for prompt, drop in zip(batch["prompt"], drop_prompt, strict=True)]
        text = self.embed(prompts)
        if mean.any():
            low, high = o.mean_noise
            noise[mean] *= (low + (high - low) * draw[3])[mean, None, None, None]
            with torch.no_grad():
                noise[mean] += self.one_step(select(batch, mean), text[mean], clean[mean]).float().cpu()
        noise = noise.to(device)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        wanted = noise if o.prediction == "epsilon" else self.scheduler.get_velocity(clean, noise, timesteps)
        made = self.predict(noisy, timesteps, text, batch, drop_image.to(device))
        return F.mse_loss(made.float(), wanted.float())

    def one_step(self, batch: dict, text: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The fast path's scaled latents, of the shape of `like` (B, C, h, w): at zero SNR they are -v."""
        last = torch.full((len(like),), self.scheduler.config.num_train_timesteps - 1, device=like.device)
        nothing = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        return -self.predict(torch.zeros_like(like), last, text, batch, nothing)

    def predict(self, noisy, timesteps, text, batch, drop) -> torch.Tensor:
        raise AssertionError("a subclass predicts")


def starts(options: DenoisingOptions, base: str = "") -> dict:
    """The part of mediffuse.json that says from how noisy a prediction a model, gone on from `base`, samples."""
    known = checkpoints.details(base).get("mean_noise") if base else None
    noise = sum(options.mean_noise) / 2 if options.mean_share else known
    return {} if noise is None else {"mean_noise": noise}


def select(batch: dict, keep: torch.Tensor) -> dict:
    """The samples of a batch where `keep` (B,) is true."""
    chosen = keep.nonzero().flatten().tolist()
    return {k: v[chosen] if isinstance(v, torch.Tensor) else [v[i] for i in chosen] for k, v in batch.items()}


class Ip2p(Denoising):
    def predict(self, noisy, timesteps, text, batch, drop):
        image = self.latents(batch, "input") * (~drop)[:, None, None, None]
        return self.unet(torch.cat([noisy, image], 1), timesteps, text).sample


def build(options: Ip2pOptions):
    """The pipeline to train: Stable Diffusion with a wider conv_in, or a fresh small one."""
    if options.base:
        from diffusers import DiffusionPipeline

        base = DiffusionPipeline.from_pretrained(options.base, safety_checker=None, dtype=torch.float32)
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
    pipeline.text_encoder.requires_grad_(options.train_text_encoder)
    run = Run(options, Ip2p(pipeline, options))

    def save(output: Path) -> None:
        networks.save_half(pipeline, output / "ip2p")
        write_details(
            output / "ip2p", run, options.base or options.vae_dir, directions=options.directions, **starts(options)
        )

    if options.cache:
        with run.accelerator.main_process_first():
            dataset = latents.cached(dataset, pipeline.vae, options, options.cache)
    run.fit(dataset, lambda: validate_pipeline(pipeline, options, options.directions), save)


if __name__ == "__main__":
    enter(main)
