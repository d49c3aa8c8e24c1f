"""The denoising loss of the trainers of UNets, and how each kind of pipeline predicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F

from mediffuse.translate import checkpoints
from train import networks
from train.networks import schedule
from train.options import OptionError, Options, Share


@dataclass
class DenoisingOptions(Options):
    """What trainers of denoising UNets share."""

    train_text_encoder: Annotated[bool, "train the text encoder, too"] = True
    prediction: Annotated[
        Literal["v_prediction", "epsilon"], "v_prediction, or epsilon, to compare with: it has no fast path"
    ] = "v_prediction"
    zero_share: Annotated[float, "share of samples at the last timestep from zero latents", Share] = 0.25
    terminal_share: Annotated[float, "share of samples at the last timestep from noise", Share] = 0.25
    mean_share: Annotated[
        float, "share of samples whose noise is the model's own prediction, see --mean-noise", Share
    ] = 0.0
    mean_noise: Annotated[list[float], "least and largest standard deviation of what is added to that prediction"] = (
        field(default_factory=lambda: [0.1, 0.3])
    )
    snr_gamma: Annotated[float, "limit of min-SNR's loss weights (arXiv 2303.09556); 0: equal ones"] = 0.0
    lora_rank: Annotated[int, "train low-rank changes of the UNet's attention, and conv_in, alone; 0: all of it"] = 0
    revision: Annotated[str, "of a base on the hub; none: the newest"] = ""
    variant: Annotated[str, "of the base's files, such as fp16; none: those without"] = ""
    largest_mib: Annotated[float, "MiB that no file of the saved pipeline exceeds; 0: a file for each part"] = 0.0
    drop_prompt: Annotated[float, "share of samples without a prompt, for guidance", Share] = 0.05
    drop_image: Annotated[float, "share of samples without the input image, for guidance", Share] = 0.05


class Denoising(torch.nn.Module):
    """The v-prediction loss that ip2p, controlnet and onestep share.

    Subclasses give `predict`, the UNet's output.
    """

    def __init__(self, pipeline, options: DenoisingOptions) -> None:
        super().__init__()
        if options.prediction == "epsilon" and (
            options.zero_share or options.mean_share or options.validate_speed == "fast"
        ):
            raise OptionError("epsilon has no fast path: give --zero-share 0 --mean-share 0 --validate-speed diffusion")
        if len(options.mean_noise) != 2 or options.mean_noise[0] > options.mean_noise[1]:
            raise OptionError(f"mean_noise is {options.mean_noise}, and should be a least and a largest value.")
        if max(options.zero_share + options.terminal_share, options.zero_share + options.mean_share) > 1:
            raise OptionError("zero_share with terminal_share, or with mean_share, is more than all samples.")
        self.vae, self.text_encoder, self.unet = pipeline.vae, pipeline.text_encoder, pipeline.unet
        self.tokenizer, self.options = pipeline.tokenizer, options
        self.scheduler = pipeline.scheduler = schedule(options.prediction)
        self.uneven = options.mean_share > 0  # a batch has one more prediction, or not
        self.vae.requires_grad_(False).eval()
        if options.lora_rank:
            networks.add_lora(self.unet, options.lora_rank)

    def embed(self, prompts: list[str]) -> torch.Tensor:
        """Encoder hidden states (B, 77, D) of prompts; each different prompt is encoded once."""
        different = sorted(set(prompts))
        tokens = self.tokenizer(
            different,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        encoder_hidden_states = self.text_encoder(tokens.input_ids.to(self.vae.device))[0]
        return encoder_hidden_states[[different.index(p) for p in prompts]]

    @torch.no_grad()
    def latents(self, batch: dict, name: str) -> torch.Tensor:
        """Latents (B, C, h, w), not scaled, of the batch's "input" or "target" images."""
        if f"{name}_latents" in batch:
            return batch[f"{name}_latents"]
        # float: in half precision the schedule near t = 0 rounds to no noise at all.
        return self.vae.encode(batch[name].to(self.vae.dtype)).latent_dist.mode().float()

    def forward(self, batch: dict, generator: torch.Generator) -> torch.Tensor:
        """The mean squared error (), of a batch of train.pairs or train.latents."""
        o = self.options
        latents = self.latents(batch, "target") * self.vae.config.scaling_factor
        device, count = latents.device, len(latents)
        draw = torch.rand(4, count, generator=generator)
        last = self.scheduler.config.num_train_timesteps - 1
        zero = draw[0] < o.zero_share
        terminal = draw[0] < o.zero_share + o.terminal_share
        mean = draw[0] > 1 - o.mean_share
        timesteps = torch.where(terminal, last, torch.randint(0, last + 1, (count,), generator=generator)).to(device)
        noise = torch.randn(latents.shape, generator=generator)
        noise[zero] = 0
        # Neither the fast path nor what starts from it has guidance.
        drop_prompt = ~zero & ~mean & (draw[1] < o.drop_prompt)
        drop_image = ~zero & ~mean & (draw[2] < o.drop_image)
        prompts = ["" if drop else prompt for prompt, drop in zip(batch["prompt"], drop_prompt, strict=True)]
        encoder_hidden_states = self.embed(prompts)
        if mean.any():
            low, high = o.mean_noise
            noise[mean] *= (low + (high - low) * draw[3])[mean, None, None, None]
            with torch.no_grad():
                predicted = self.one_step(select(batch, mean), encoder_hidden_states[mean], latents[mean])
            noise[mean] += predicted.float().cpu()
        noise = noise.to(device)
        noisy_latents = self.scheduler.add_noise(latents, noise, timesteps)
        target = noise if o.prediction == "epsilon" else self.scheduler.get_velocity(latents, noise, timesteps)
        model_pred = self.predict(noisy_latents, timesteps, encoder_hidden_states, batch, drop_image.to(device))
        if not o.snr_gamma:
            return F.mse_loss(model_pred.float(), target.float())
        loss = (model_pred.float() - target.float()).square().mean((1, 2, 3))
        return (loss * self.snr_weights(timesteps)).mean()

    def snr_weights(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Min-SNR weights (B,) (Hang et al., arXiv 2303.09556): min(SNR, gamma) over SNR + 1 for v, SNR for epsilon.

        1 at zero SNR, where the formula is 0 and would end the fast path.
        """
        signal = self.scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
        snr = signal / (1 - signal).clamp_min(1e-12)
        weights = snr.clamp_max(self.options.snr_gamma) / (snr if self.options.prediction == "epsilon" else snr + 1)
        return torch.where(signal == 0, 1.0, weights)

    def one_step(self, batch: dict, encoder_hidden_states: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """The fast path's scaled latents, of the shape of `like` (B, C, h, w): at zero SNR they are -v."""
        last = torch.full((len(like),), self.scheduler.config.num_train_timesteps - 1, device=like.device)
        drop_image = torch.zeros(len(like), dtype=torch.bool, device=like.device)
        return -self.predict(torch.zeros_like(like), last, encoder_hidden_states, batch, drop_image)

    def predict(
        self,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        batch: dict,
        drop_image: torch.Tensor,
    ) -> torch.Tensor:
        """The UNet's output (B, C, h, w) for scaled noisy latents of that shape.

        timesteps: (B,). encoder_hidden_states: (B, 77, D). drop_image: bool (B,), the samples that do
        without the batch's input image or hint.
        """
        raise AssertionError("a subclass predicts")


class Ip2p(Denoising):
    """InstructPix2Pix: the input's latents are further channels of the UNet's input."""

    def predict(self, noisy_latents, timesteps, encoder_hidden_states, batch, drop_image):
        image_latents = self.latents(batch, "input") * (~drop_image)[:, None, None, None]
        return self.unet(torch.cat([noisy_latents, image_latents], 1), timesteps, encoder_hidden_states).sample


class Contours(Denoising):
    """ControlNet: what it makes of the hint is added to the UNet's features."""

    def __init__(self, pipeline, options: DenoisingOptions) -> None:
        super().__init__(pipeline, options)
        self.controlnet = pipeline.controlnet

    def predict(self, noisy_latents, timesteps, encoder_hidden_states, batch, drop_image):
        keep = (~drop_image)[:, None, None, None]
        controlnet_cond = batch["hint"].to(noisy_latents.dtype)
        down, middle = self.controlnet(
            noisy_latents, timesteps, encoder_hidden_states, controlnet_cond, return_dict=False
        )
        return self.unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states,
            down_block_additional_residuals=[residual * keep for residual in down],
            mid_block_additional_residual=middle * keep,
        ).sample


def check_size(side: int, pipeline) -> None:
    """Raises OptionError if a pipeline is not for pictures of `side` pixels a side: the app would give it others."""
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)  # pixels a latent, per side
    wanted = pipeline.unet.config.sample_size * factor
    if side != wanted:
        raise OptionError(
            f"the pictures of the data are {side} pixels a side, and the model is for {wanted}: run "
            f"train/prepare.py with --size {wanted}, or take another base or the unet's sample_size."
        )


def start_of_sampling(options: DenoisingOptions, base: str = "") -> dict[str, float]:
    """The part of mediffuse.json that says from how noisy a prediction a model, gone on from `base`, samples."""
    known = checkpoints.details(base).get("mean_noise") if base else None
    noise = sum(options.mean_noise) / 2 if options.mean_share else known
    return {} if noise is None else {"mean_noise": noise}


def select(batch: dict, keep: torch.Tensor) -> dict:
    """The samples of a batch where `keep`, bool (B,), is true."""
    chosen = keep.nonzero().flatten().tolist()
    return {k: v[chosen] if isinstance(v, torch.Tensor) else [v[i] for i in chosen] for k, v in batch.items()}
