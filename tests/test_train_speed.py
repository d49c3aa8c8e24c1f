"""The speed of training steps: the real tool's measure, on networks of a few weights."""

import math

import pytest
import torch

from tests import tiny
from tools import train_speed
from train import networks


@pytest.mark.parametrize("cached", [False, True])
def test_a_training_step_is_measured(monkeypatch, cached):
    config = {"autoencoder": tiny.AUTOENCODER, "text_encoder": tiny.TEXT, "unet": tiny.UNET}
    monkeypatch.setattr(networks, "SD15", config)
    way = train_speed.Way("no", channels_last=True, cached=cached)
    made = train_speed.measure("sd15", way, 2, 1, torch.device("cpu"))
    assert made["images_per_second"] > 0
    assert 0 < made["utilisation"] < 1.5
    assert math.isfinite(made["peak_mib"])
    assert ("cached latents" in str(way)) == cached


def test_stable_diffusions_networks_have_its_number_of_weights():
    with torch.device("meta"):
        pipeline = train_speed.pipeline_of("sd15")
    millions = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (pipeline.unet, pipeline.vae)]
    assert millions == pytest.approx([859.5, 83.7], abs=0.1)
