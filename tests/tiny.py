"""Real pipelines with tiny configs and random weights, at 64x64."""

from __future__ import annotations

import json
import os

import torch

from mediffuse.translate import direct
from train import networks

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


DIRECT = {"sample_size": SIZE // 8, "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4}


def cpu_environment() -> dict:
    """The environment for commands in tests: no GPU, no hub, one thread each."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}


def parts(image_conditioned: bool):
    torch.manual_seed(0)
    tokenizer = networks.byte_tokenizer()
    vae, text = networks.autoencoder(AUTOENCODER), networks.text_encoder(TEXT, tokenizer)
    return vae, text, tokenizer, networks.unet(UNET, vae, text, image_conditioned)


def ip2p():
    return networks.ip2p_pipeline(*parts(image_conditioned=True))


def controlnet():
    vae, text, tokenizer, unet = parts(image_conditioned=False)
    return networks.controlnet_pipeline(vae, text, tokenizer, unet, networks.controlnet(unet, [4, 8, 8, 8]))


def strengthen(net) -> None:
    """A fresh ControlNet adds nothing (its last convolutions are zero): give it something to add."""
    for block in [*net.controlnet_down_blocks, net.controlnet_mid_block]:
        block.weight.data.fill_(0.1)
    net.controlnet_cond_embedding.conv_out.weight.data.fill_(0.1)


def modules(pipeline) -> list[torch.nn.Module]:
    return [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]


def save_all(folder):
    """Checkpoints as train/ leaves them: folder/ip2p, folder/controlnet and folder/direct."""
    networks.save_half(ip2p(), folder / "ip2p")
    networks.save_half(controlnet(), folder / "controlnet")
    torch.manual_seed(0)
    direct.build(DIRECT, 8).half().save_pretrained(folder / "direct")
    (folder / "direct" / "mediffuse.json").write_text('{"directions": ["ct2mr", "mr2ct"]}')
    details = {"directions": ["ct2mr", "mr2ct"], "training": {"steps": 2}, "earlier": [{"steps": 1}]}
    (folder / "ip2p" / "mediffuse.json").write_text(json.dumps(details))
    (folder / "ip2p" / "training.csv").write_text("stage,step,loss\na,1,1.0\nb,1,0.9\nb,2,0.5\n")
    return folder


def change(folder) -> None:
    """Change the weights of a saved part."""
    from safetensors.torch import load_file, save_file

    (path,) = folder.glob("*.safetensors")
    save_file({k: v + 0.1 for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
