"""Fresh models and pipelines from a config. All are stock diffusers and transformers classes."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiffusionPipeline,
    ModelMixin,
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from mediffuse.translate import checkpoints
from train.options import OptionError

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
"""Stable Diffusion's schedule, with the trailing timesteps of Lin et al., arXiv 2305.08891."""

SD15 = {
    "autoencoder": {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": 32,
        "sample_size": 512,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "unet": {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "addition_embed_type": None,
    },
}
"""Configs of Stable Diffusion 1.5's networks."""


def schedule(prediction: str = "v_prediction") -> DDIMScheduler:
    """The noise schedule of training and of the saved pipelines.

    "v_prediction" with zero terminal SNR (Lin et al., arXiv 2305.08891); "epsilon" with Stable
    Diffusion's own, for it cannot predict without a signal.
    """
    return DDIMScheduler(prediction_type=prediction, rescale_betas_zero_snr=prediction == "v_prediction", **SCHEDULE)


@contextlib.contextmanager
def told(option: str) -> Iterator[None]:
    """Raises OptionError, naming the option with the config, where a network cannot be built of it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        missing = f"it needs {error}" if isinstance(error, KeyError) else error
        raise OptionError(f"no network can be made of the option {option}: {missing}") from error


@told("autoencoder")
def autoencoder(config: dict) -> AutoencoderKL:
    levels = len(config["block_out_channels"])
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        scaling_factor=1.0,
        **config,
    )


@told("unet")
def unet(config: dict, vae: AutoencoderKL, text: CLIPTextModel, image_conditioned: bool) -> UNet2DConditionModel:
    """A UNet over `vae`'s latents; `image_conditioned` doubles its input channels."""
    channels = vae.config.latent_channels
    levels = len(config["block_out_channels"])
    ours = {
        # An aligned pair needs attention least: it costs half of a step, so only the middle has it.
        "down_block_types": ["DownBlock2D"] * levels,
        "up_block_types": ["UpBlock2D"] * levels,
        # So the prompt reaches every block beside the timestep.
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
    }
    return UNet2DConditionModel(
        in_channels=channels * (2 if image_conditioned else 1),
        out_channels=channels,
        cross_attention_dim=text.config.hidden_size,
        **(ours | config),
    )


def byte_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with no merges: a token per byte, so that no vocabulary is downloaded."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=77)


@told("text_encoder")
def text_encoder(config: dict, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            max_position_embeddings=tokenizer.model_max_length,
            **config,
        )
    )


def widen_conv_in(model: UNet2DConditionModel, channels: int) -> None:
    """Grow or shrink conv_in to `channels` inputs, in place: kept ones stay, new ones are zero.

    (Brooks et al., InstructPix2Pix, arXiv 2211.09800, section 3.2.)
    """
    old = model.conv_in
    new = torch.nn.Conv2d(channels, old.out_channels, old.kernel_size, old.stride, old.padding)
    kept = min(channels, old.in_channels)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :kept] = old.weight[:, :kept]
        new.bias.copy_(old.bias)
    model.conv_in = new
    model.register_to_config(in_channels=channels)


def ip2p_pipeline(vae, text, tokenizer, unet) -> StableDiffusionInstructPix2PixPipeline:
    return StableDiffusionInstructPix2PixPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def controlnet_pipeline(vae, text, tokenizer, unet, controlnet) -> StableDiffusionControlNetPipeline:
    return StableDiffusionControlNetPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        controlnet=controlnet,
        scheduler=schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def controlnet(unet: UNet2DConditionModel, embedding_channels: list[int]) -> ControlNetModel:
    """A ControlNet that starts as a copy of the UNet's encoder (Zhang et al., arXiv 2302.05543).

    As `ControlNetModel.from_unet`, which neither keeps `addition_embed_type_num_heads` nor copies
    the embedding that it shapes.
    """
    known = inspect.signature(ControlNetModel).parameters
    config = {name: value for name, value in unet.config.items() if name in known}
    config |= {"conditioning_channels": 3, "conditioning_embedding_out_channels": tuple(embedding_channels)}
    model = ControlNetModel(**config)
    model.load_state_dict(unet.state_dict(), strict=False)
    return model


def add_lora(unet: UNet2DConditionModel, rank: int) -> None:
    """Let a UNet learn low-rank changes of its attention (Hu et al., arXiv 2106.09685) and conv_in alone.

    Raises OptionError without peft, or if the UNet has no attention.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise OptionError("lora_rank needs the package peft: pip install peft") from error
    if not any(name.endswith("to_q") for name, _ in unet.named_modules()):
        raise OptionError("lora_rank needs a UNet with attention, and this one has none.")
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    unet.conv_in.requires_grad_(True)  # its channels of the input image begin at zero


def plain(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A UNet as it is, or if it has low-rank changes a copy with them in its weights."""
    if not getattr(unet, "peft_config", None):
        return unet
    merged = copy.deepcopy(unet)
    merged.fuse_lora()
    merged.unload_lora()
    return merged


def load_pipeline(source: str, revision: str = "", variant: str = "") -> DiffusionPipeline:
    """The pipeline in a folder or on the hub, to go on training from, in full precision."""
    if source.endswith((".safetensors", ".ckpt")):
        raise OptionError(
            f"--base {source} is a single file, and a pipeline's folder is needed: make one by "
            f"StableDiffusionPipeline.from_single_file({source!r}).save_pretrained('base')."
        )
    try:
        return DiffusionPipeline.from_pretrained(
            source, safety_checker=None, dtype=torch.float32, revision=revision or None, variant=variant or None
        )
    except Exception as error:  # diffusers, safetensors, the hub and json each have their own
        raise OptionError(
            f"--base {source} cannot be loaded: it is neither a whole pipeline's folder nor one on the hub that "
            f"can be reached ({type(error).__name__})."
        ) from error


def load_autoencoder(folder: Path | None) -> AutoencoderKL:
    """The autoencoder that train/autoencoder.py saved in `folder`."""
    if not folder or not (Path(folder) / "config.json").is_file():
        raise OptionError(f"No autoencoder is in {folder}: run train/autoencoder.py, or give --vae-dir or --base.")
    return AutoencoderKL.from_pretrained(folder)


def save_half(pipeline, folder: Path, largest_mib: float = 0, sharp: ModelMixin | None = None) -> None:
    """Save a copy of a pipeline in fp16; the one in memory stays as it is.

    `largest_mib`: no file is larger than this, so parts come in several; 0: a file for each part.
    `sharp`: what the sharp variant has of its own, saved as that variant beside the pipeline's.
    """
    own, pipeline.unet = pipeline.unet, plain(pipeline.unet)
    kept = {name: part.dtype for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    state = {name: {k: v.clone() for k, v in getattr(pipeline, name).state_dict().items()} for name in kept}
    pipeline.to(dtype=torch.float16)
    header = 2**17  # bytes, and more than any
    largest = int(largest_mib * 2**20) - header if largest_mib else None
    pipeline.save_pretrained(folder, max_shard_size=largest)
    if sharp:
        half = copy.deepcopy(plain(sharp)).half()
        half.save_pretrained(
            folder / checkpoints.reader(pipeline), variant=checkpoints.SHARP, max_shard_size=largest or "10GB"
        )
    for name, dtype in kept.items():
        part = getattr(pipeline, name).to(dtype=dtype)
        part.load_state_dict(state[name])
    pipeline.unet = own
