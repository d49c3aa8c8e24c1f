"""How a step is computed: what saves memory changes nothing, and what changes the loss is right."""

import numpy as np
import pytest
import torch

from tests import tiny
from train import compute, networks
from train.denoising import Contours, Ip2p
from train.ip2p import Ip2pOptions
from train.onestep import OneStep, OneStepOptions
from train.options import OptionError


def batch(count: int = 2) -> dict:
    generator = torch.Generator().manual_seed(1)
    pictures = {name: torch.rand(count, 3, 64, 64, generator=generator) for name in ("input", "target", "hint")}
    return {**pictures, "prompt": ["a", "b"][:count]}


def gradients(objective: torch.nn.Module) -> list[torch.Tensor]:
    objective(batch(), torch.Generator().manual_seed(0)).backward()
    return [p.grad for p in objective.parameters() if p.requires_grad]


@pytest.mark.parametrize("kind", ["ip2p", "controlnet"])
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    made = []
    for saving in (False, True):
        options = OneStepOptions(gradient_checkpointing=saving, train_decoder=True, keep_share=0.5)
        objective = OneStep({"ip2p": Ip2p, "controlnet": Contours}[kind](getattr(tiny, kind)(), options), options)
        compute.set_up(objective, options)
        on = [part for part in objective.modules() if getattr(part, "gradient_checkpointing", False)]
        assert bool(on) == saving
        made.append(gradients(objective))
    for one, two in zip(*made, strict=True):
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, atol=1e-7)


def test_min_snr_weights_are_those_of_the_paper_in_v():
    from diffusers.training_utils import compute_snr

    options = Ip2pOptions(snr_gamma=5.0)
    objective = Ip2p(tiny.ip2p(), options)
    timesteps = torch.tensor([0, 10, 300, 700, 998])
    snr = compute_snr(objective.scheduler, timesteps)
    torch.testing.assert_close(objective.snr_weights(timesteps), snr.clamp(max=5) / (snr + 1), rtol=1e-4, atol=1e-6)
    assert objective.snr_weights(torch.tensor([999])) == 1  # the fast path


def test_low_rank_changes_end_in_an_ordinary_pipeline(tmp_path):
    from diffusers import DiffusionPipeline

    pipeline = tiny.ip2p()
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    objective = Ip2p(pipeline, Ip2pOptions(lora_rank=2, train_text_encoder=False))
    learning = {name for name, p in pipeline.unet.named_parameters() if p.requires_grad}
    assert {name for name in learning if "lora" not in name} == {"conv_in.weight", "conv_in.bias"}
    for p in pipeline.unet.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p.data, std=0.1)
    given = torch.randn(1, 8, 8, 8), torch.tensor([5]), objective.embed(["a"])
    with torch.no_grad():
        wanted = pipeline.unet(*given).sample
        networks.save_half(pipeline, tmp_path / "ip2p")
        torch.testing.assert_close(pipeline.unet(*given).sample, wanted)  # and can go on learning
        saved = DiffusionPipeline.from_pretrained(tmp_path / "ip2p", dtype=torch.float32)
        torch.testing.assert_close(saved.unet(*given).sample, wanted, atol=0.02, rtol=0.02)
    after = saved.unet.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name].half().float(), after[name])}
    assert {name.split(".")[-2] for name in changed} == {"conv_in", "to_q", "to_k", "to_v", "0"}


def test_a_base_in_the_hubs_own_layout_is_gone_on_from(tmp_path):
    """As stable-diffusion-v1-5 lies there: half-precision files by a variant, PNDM, a safety checker."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vae, text, tokenizer, unet = tiny.parts(image_conditioned=False)
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(
        CLIPConfig(vision_config={**vision, "image_size": 32, "patch_size": 16}, projection_dim=8)
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, checker, CLIPImageProcessor())
    pipeline.to(dtype=torch.float16).save_pretrained(tmp_path / "sd", variant="fp16")
    assert (tmp_path / "sd" / "safety_checker").is_dir()
    assert (tmp_path / "sd" / "feature_extractor").is_dir()
    base = networks.load_pipeline(str(tmp_path / "sd"), variant="fp16")
    assert base.unet.dtype == torch.float32
    assert base.safety_checker is None
    networks.widen_conv_in(base.unet, 8)
    made = networks.ip2p_pipeline(base.vae, base.text_encoder, base.tokenizer, base.unet)
    assert made.scheduler.config.prediction_type == "v_prediction"
    assert made.scheduler.config.rescale_betas_zero_snr
    networks.save_half(made, tmp_path / "ip2p")
    assert not (tmp_path / "ip2p" / "safety_checker").exists()
    for source, sentence in ((tmp_path / "sd", "cannot be loaded"), (tmp_path / "v1-5.safetensors", "single file")):
        with pytest.raises(OptionError, match=sentence):  # the first has no files without the variant
            networks.load_pipeline(str(source))


def test_adam_in_eight_bits_learns():
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 128)
    optimizer = compute.optimizer(list(layer.parameters()), Ip2pOptions(optimizer="adamw8bit", learning_rate=0.05))
    x = torch.randn(32, 64)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (layer(x) - x.repeat(1, 2)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert any(
        value.dtype == torch.uint8
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )


def test_pictures_of_a_validation_are_input_beside_output():
    from train.validate import watched

    kept: list[np.ndarray] = []
    predict = watched(lambda source, row: np.stack([source, 1 - source]), kept, 1)
    for value in (0.25, 0.5):
        predict(np.full((4, 4, 3), value, np.float32), {})
    assert [picture.shape for picture in kept] == [(4, 8, 3)]
    np.testing.assert_allclose(kept[0][:, :4], 0.25)
    np.testing.assert_allclose(kept[0][:, 4:], 0.5)
