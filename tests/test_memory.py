"""The account of GPU memory, on Stable Diffusion 1.5's networks without weights."""

from pathlib import Path

import pytest

from tools import memory
from train.options import parse_options

CONFIGS = Path(__file__).resolve().parents[1] / "train" / "configs"


def options(trainer: str, *words: str):
    given = ["--config", str(CONFIGS / "sd15_24gb.yaml"), *words]
    return parse_options(memory.TRAINERS[trainer], trainer, given, "")


@pytest.mark.parametrize("trainer", memory.TRAINERS)
def test_sd15_fits_24_gb_by_its_config(trainer):
    def parts(*words: str) -> dict[str, float]:
        return memory.memory(trainer, options(trainer, *words))

    frugal = parts()
    # 859.5 M of the UNet, 83.7 M of the autoencoder, 123.1 M of the text encoder; a ControlNet has 361.3 M.
    millions = 859.5 + 83.7 + 123.1 + (361.3 if trainer == "controlnet" else 0)
    assert frugal["parameters"] == pytest.approx(millions * 4e6 / 2**30, rel=0.001)
    learning = 361.3 if trainer == "controlnet" else 859.5
    assert frugal["gradients"] == pytest.approx(learning * 4e6 / 2**30, rel=0.001)
    assert sum(frugal.values()) < 24e9 / 2**30 - 4  # for what the account leaves out
    whole = parts("--gradient-checkpointing", "false", "--optimizer", "adamw", "--ema-on-cpu", "false")
    assert whole["optimiser"] == pytest.approx(4 * frugal["optimiser"])
    assert whole["averaged weights"] == pytest.approx(frugal["gradients"])
    assert whole["activations"] > 3 * frugal["activations"]


def test_operations_and_disk_are_counted():
    # TFLOP: 0.803 forward through the UNet, twice that back, 1.117 for each of two pictures that are encoded.
    plain = memory.operations("ip2p", options("ip2p", "--gradient-checkpointing", "false"))
    assert plain == pytest.approx((3 * 0.803 + 2 * 1.117) * 1e12, rel=0.01)
    twice = memory.operations("ip2p", options("ip2p"))
    assert 0.5 * 0.803e12 < twice - plain < 0.803e12  # not all of it is computed again
    whole = memory.disk("ip2p", options("ip2p"))
    assert whole["pipeline"] == pytest.approx(2 * (859.5 + 83.7 + 123.1) * 1e6 / 2**30, rel=0.001)
    assert whole["checkpoint"] == pytest.approx(10 * 859.5e6 / 2**30, rel=0.001)
    low = memory.disk("ip2p", options("ip2p", "--lora-rank", "16"))
    assert low["pipeline"] == whole["pipeline"]
    assert low["checkpoint"] < 0.01 * whole["checkpoint"]
