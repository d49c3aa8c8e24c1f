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
from train.options import HARMLESS, Options, command_line, parse_options

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


@pytest.mark.parametrize(
    ("config", "given", "sentence"),
    [
        ("common: {stepps: 7}", [], "common holds what no trainer has, stepps. Did you mean steps?"),
        ("ip2p: {crop: 7}", [], "ip2p has no option crop."),
        ("ip2pp: {steps: 7}", [], "a section that nothing reads: ip2pp. Did you mean ip2p?"),
        ("pixels: {crop: 7}", [], "a section that nothing reads: pixels."),
        ("ip2p: [steps, 7]", [], "is not a config"),
        ("steps", [], "is not a config"),
        ("ip2p: {steps: 7", [], "cannot be read"),
        ("ip2p: {augment: nope}", [], "augment is 'nope', and should be true or false."),
        ("ip2p: {steps: true}", [], "steps is True, and should be a whole number."),
        ("ip2p: {steps: [1]}", [], "steps is [1], and should be a whole number."),
        ("ip2p: {base: 7}", [], "base is 7, and should be a text."),
        ("ip2p: {vae_dir: 2026-01-01}", [], "should be a path."),
        ("ip2p: {weights: 1}", [], "weights is 1, and should be a mapping"),
        ("", ["--augment", "nope"], "augment is 'nope', and should be true or false."),
        ("", ["--steps", "1.9"], "steps is 1.9, and should be a whole number."),
        ("", ["--steps", "many"], "steps is 'many', and should be a whole number."),
        ("", ["--steps", "0"], "steps is 0, and should be at least 1."),
        ("", ["--learning-rate", ".nan"], "learning_rate is nan, and should be a number."),
        ("", ["--learning-rate", "-1"], "learning_rate is -1, and should be at least 0."),
        ("", ["--drop-prompt", "2"], "drop_prompt is 2, and should be at least 0 and at most 1."),
        ("", ["--directions", "ct2mr"], "directions is 'ct2mr', and should be a list"),
        (
            "",
            ["--directions", "[ct2mr, ct2pet]"],
            "an item is 'ct2pet', and should be one of ct2mr, mr2ct.",
        ),
        ("", ["--mean-noise", "[0.1, b]"], "mean_noise: an item is 'b', and should be a number."),
        ("", ["--mixed-precision", "fp8"], "mixed_precision is 'fp8', and should be one of no, fp16, bf16."),
        ("", ["--weights", "{a: 1"], "which is not YAML"),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(tmp_path, config, given, sentence):
    (tmp_path / "c.yaml").write_text(config or "{}")
    with pytest.raises(SystemExit) as ended:
        parse_options(Ip2pOptions, "ip2p", ["--config", str(tmp_path / "c.yaml"), *given], "")
    assert sentence in str(ended.value)
    assert str(tmp_path / "none") not in str(ended.value)


def test_values_are_taken_as_they_are_meant(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "common: {learning_rate: 1e-4, patch: 4, mixed_precision: no, steps: 8.0, window_weights: [1, 2, 3]}"
    )
    given = ["--config", str(path), "--output", "010", "--base", "1e3", "--vae-dir", "", "--mean-noise", "[1e-1, 1]"]
    options = parse_options(Ip2pOptions, "ip2p", given, "")
    assert (options.learning_rate, options.mixed_precision, options.steps) == (1e-4, "no", 8)
    assert isinstance(options.steps, int)
    assert (options.output, options.base, options.vae_dir, options.mean_noise) == (Path("010"), "1e3", None, [0.1, 1])
    with pytest.raises(SystemExit, match="There is no config"):
        parse_options(Ip2pOptions, "ip2p", ["--config", str(tmp_path / "none.yaml")], "")


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


def test_the_docs_name_what_a_resumed_run_may_change():
    text = (CONFIGS.parents[1] / "docs" / "training.md").read_text()
    named = text.split("What may differ: ")[1].split(".")[0]
    assert {name.strip(" `") for name in named.replace("\n", " ").split(",")} == HARMLESS
