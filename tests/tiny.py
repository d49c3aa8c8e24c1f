"""Real pipelines with tiny configs and random weights, at 64x64."""

from __future__ import annotations

import torch

from train import models

SIZE = 64
AUTOENCODER = {
    "block_out_channels": [8, 8, 8, 8],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "mid_block_add_attention": False,
    "sample_size": SIZE,
}
UNET = {
    "sample_size": SIZE // 8,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def parts(image_conditioned: bool):
    torch.manual_seed(0)
    tokenizer = models.byte_tokenizer()
    vae, text = models.autoencoder(AUTOENCODER), models.text_encoder(TEXT, tokenizer)
    return vae, text, tokenizer, models.unet(UNET, vae, text, image_conditioned)


def ip2p():
    return models.ip2p_pipeline(*parts(image_conditioned=True))


def controlnet():
    vae, text, tokenizer, unet = parts(image_conditioned=False)
    return models.controlnet_pipeline(vae, text, tokenizer, unet, models.controlnet(unet, [4, 8, 8, 8]))


def save_all(folder):
    """Both checkpoints as train/ leaves them: folder/ip2p and folder/controlnet."""
    models.save_half(ip2p(), folder / "ip2p")
    models.save_half(controlnet(), folder / "controlnet")
    return folder
