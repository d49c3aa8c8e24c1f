"""The direct U-Net: plain pixel regression, the baseline that a diffusion model has to beat.

A stock diffusers UNet2DModel without attention (Ronneberger et al., arXiv 1505.04597), on model
images whose pixels are folded into channels (pixel unshuffle, Shi et al., arXiv 1609.05158). Its class
label says which translation is wanted, as the prompt does for the diffusion models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mediffuse.directions import ANATOMIES, CONTRASTS, DIRECTIONS, prompt_for
from mediffuse.translate.checkpoints import CheckpointError

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DModel

_KINDS = tuple((d, c) for d in DIRECTIONS for c in CONTRASTS)
LABELS = {prompt_for(*kind, anatomy): i for i, kind in enumerate(_KINDS) for anatomy in ANATOMIES}
"""Class label by prompt: a label for each direction and contrast, for the anatomy is seen."""


def is_direct(folder: Path) -> bool:
    """Whether a folder holds a direct U-Net, as train/baseline.py saves it."""
    try:
        return json.loads((folder / "config.json").read_text()).get("_class_name") == "UNet2DModel"
    except (OSError, ValueError):
        return False


def build(config: dict, side: int) -> UNet2DModel:
    """A fresh one; squares of `side` x `side` pixels become channels. `sample_size` is after that."""
    from diffusers import UNet2DModel

    levels = len(config["block_out_channels"])
    return UNet2DModel(
        in_channels=3 * side**2,
        out_channels=3 * side**2,
        num_class_embeds=len(_KINDS),
        down_block_types=["DownBlock2D"] * levels,
        up_block_types=["UpBlock2D"] * levels,
        add_attention=False,
        **config,
    )


def load(folder: str) -> UNet2DModel:
    """Load one, on the CPU in float32 or CUDA in float16. Raises CheckpointError if it is damaged."""
    import torch
    from diffusers import UNet2DModel

    cuda = torch.cuda.is_available()
    try:
        model = UNet2DModel.from_pretrained(folder, torch_dtype=torch.float16 if cuda else torch.float32)
    except Exception as error:  # diffusers, safetensors and json each have their own
        raise CheckpointError(
            f"The direct U-Net {folder} cannot be loaded: it is incomplete or damaged ({type(error).__name__})."
        ) from error
    return model.to("cuda" if cuda else "cpu").eval()


def patch(model: UNet2DModel) -> int:
    """Side in pixels of the squares that are folded into channels."""
    return round((model.config.in_channels / 3) ** 0.5)


def forward(model: UNet2DModel, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Model images (B, 3, S, S) in [-1, 1] to translated ones of the same shape; labels (B,)."""
    import torch.nn.functional as F

    made = model(F.pixel_unshuffle(images, patch(model)), 0, class_labels=labels).sample
    return F.pixel_shuffle(made, patch(model))


def predict(model: UNet2DModel, images: np.ndarray, prompt: str) -> np.ndarray:
    """Translate model images (B, S, S, 3) in [0, 1]."""
    import torch

    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(model.device, model.dtype)
    labels = torch.full((len(batch),), LABELS[prompt], device=model.device)
    with torch.inference_mode():
        made = forward(model, batch * 2 - 1, labels)
    return (made.float().clamp(-1, 1) / 2 + 0.5).cpu().numpy().transpose(0, 2, 3, 1)
