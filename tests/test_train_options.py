"""Options of the trainers: configs, command lines and --help. Trains nothing."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml

from train.autoencoder import AutoencoderOptions
from train.baseline import BaselineOptions
from train.controlnet import ControlnetOptions
from train.ip2p import Ip2pOptions
from train.onestep import OneStepOptions
from train.options import Options, command_line, parse_options

CONFIGS = Path(__file__).resolve().parents[1] / "train" / "configs"
CLASSES = {
    "autoencoder": AutoencoderOptions,
    "baseline": BaselineOptions,
    "controlnet": ControlnetOptions,
    "ip2p": Ip2pOptions,
    "onestep": OneStepOptions,
}


@pytest.mark.parametrize("section", CLASSES)
def test_help_has_a_sentence_and_the_default_of_every_option(section, capsys):
    with pytest.raises(SystemExit):
        parse_options(CLASSES[section], section, ["--help"], "What it trains.")
    shown = " ".join(capsys.readouterr().out.split())
    for name, hint in get_type_hints(CLASSES[section], include_extras=True).items():
        sentence = get_args(hint)[1]
        assert len(sentence) > 3, name
        assert f"--{name.replace('_', '-')} " in shown
        assert f"{sentence} (default: " in shown, name
    assert "(default: 0.0001)" in shown


def test_options_merge_config_and_command_line(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("common: {seed: 3, mixed_precision: no}\nip2p: {steps: 7, weights: {axial: 2.0}}\n")
    options = parse_options(
        Options, "ip2p", ["--config", str(config), "--steps", "9", "--weights", "{coronal: 0.5}"], ""
    )
    assert (options.seed, options.steps, options.mixed_precision) == (3, 9, "no")
    assert options.weights == {"axial": 2.0, "coronal": 0.5}
    config.write_text("ip2p: {stepps: 7}\n")
    with pytest.raises(SystemExit):
        parse_options(Options, "ip2p", ["--config", str(config)], "")


def test_shipped_ablations_are_understood():
    config = yaml.safe_load((CONFIGS / "ablations.yaml").read_text())
    for group in config["groups"]:
        section = group["script"].removesuffix(".py")
        words = [
            command_line(group["script"], {**config["common"], **group["options"], **own})[2:]
            for own in group["arms"].values()
        ]
        options = [parse_options(CLASSES[section], section, given, "") for given in words]
        assert all(a != b for i, a in enumerate(options) for b in options[:i]), group["title"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("[!a]*.yaml")), ids=lambda path: path.stem)
def test_shipped_configs_are_understood(path):
    sections = yaml.safe_load(path.read_text())
    assert set(sections) <= {"common", "prepare", "stages", "bundle", *CLASSES}
    for section in set(sections) & set(CLASSES):
        assert parse_options(CLASSES[section], section, ["--config", str(path)], "").steps > 0
    for options in sections.get("stages", {}).values():
        script = options.pop("script")
        section = script.removesuffix(".py")
        parsed = parse_options(CLASSES[section], section, command_line(script, {"config": path, **options})[2:], "")
        assert parsed.checkpoint_seconds <= 8 * 60
        assert parsed.time_limit <= 8 * 60
