"""Options of the trainers, from a config and the command line, and how a trainer's command ends."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from mediffuse.dataset import DatasetError

Count = (1, math.inf)
Share = (0, 1)
"""Least and greatest value of an option; without one of these numbers are at least 0."""


FIGURES = (
    *(f"{d}_{m}" for d in ("ct2mr", "mr2ct", "contour2mr") for m in ("psnr", "ssim", "lpips", "sharpness")),
    "mr_psnr",
    "ct_psnr",
)
"""What a validation can give."""


@dataclass
class Options:
    """Options of every trainer. Values come from defaults, then --config, then the command line.

    The annotation of an option holds its type, the sentence that --help shows, and the range of a number.
    """

    data: Annotated[Path, "folder that train/prepare.py wrote"] = Path("data/mini")
    output: Annotated[Path, "folder for checkpoints, logs and the final model"] = Path("runs/out")
    overwrite: Annotated[bool, "start anew where the output folder has a run: its checkpoints are removed"] = False
    steps: Annotated[int, "optimiser steps", Count] = 1000
    time_limit: Annotated[float, "seconds of training that end it before its steps do; 0: no limit"] = 0.0
    batch_size: Annotated[int, "samples a process and step", Count] = 8
    gradient_accumulation: Annotated[int, "batches whose gradients an optimiser step adds up", Count] = 1
    learning_rate: Annotated[float, "its peak, from which its schedule takes it down"] = 1e-4
    lr_schedule: Annotated[
        Literal["cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial"],
        "one of diffusers' schedules; cosine is half of one, to zero",
    ] = "cosine"
    warmup: Annotated[int, "steps in which the learning rate rises linearly"] = 100
    optimizer: Annotated[Literal["adamw", "adamw8bit"], "adamw, or adamw8bit with its state in 8 bits"] = "adamw"
    weight_decay: Annotated[float, "AdamW's"] = 0.01
    adam_beta1: Annotated[float, "AdamW's", Share] = 0.9
    adam_beta2: Annotated[float, "AdamW's", Share] = 0.999
    adam_epsilon: Annotated[float, "AdamW's"] = 1e-8
    max_grad_norm: Annotated[float, "gradients of a larger norm are scaled down to it"] = 1.0
    ema_decay: Annotated[
        float, "decay of the averaged weights, which are the ones that are judged and saved", Share
    ] = 0.999
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], "no, fp16 or bf16"] = "no"
    tf32: Annotated[bool, "on a GPU, let what is not in half precision use TF32"] = True
    gradient_checkpointing: Annotated[bool, "compute activations twice rather than keep them: less memory"] = False
    ema_on_cpu: Annotated[bool, "keep the averaged weights in the processor's memory: less of the GPU's"] = False
    shard: Annotated[bool, "split weights, gradients and the optimiser's state over the processes, by FSDP2"] = False
    attention: Annotated[Literal["sdpa", "xformers"], "sdpa is PyTorch's own"] = "sdpa"
    compile: Annotated[bool, "compile the networks with torch.compile: minutes before the first step; for GPUs"] = False
    augment: Annotated[bool, "warp the pairs, and change what differs between scanners"] = True
    ct_windows: Annotated[
        Literal[3, 1], "3, or 1 for the full range alone, to compare with: the app has no such mode"
    ] = 3
    weights: Annotated[dict, 'sampling weights by "source/plane", source or plane; 1 for what is not named'] = field(
        default_factory=dict
    )
    samples: Annotated[int, "pairs to learn from, drawn from the train split; 0: all"] = 0
    seed: Annotated[int, "of the samples, the noise and fresh weights"] = 0
    workers: Annotated[int, "processes that load data; 0: none beside the trainer"] = 1
    checkpoint_every: Annotated[int, "steps between the checkpoints from which a run can go on", Count] = 500
    checkpoint_seconds: Annotated[float, "seconds of training between checkpoints at most; 0: by steps alone"] = 0.0
    keep_checkpoints: Annotated[int, "newest checkpoints that are kept", Count] = 2
    validate_every: Annotated[int, "steps between validations on the val split; 0: only at the end"] = 500
    validate_images: Annotated[int, "val patients that are validated on, by a central slice of each; 0: none"] = 18
    validate_speed: Annotated[Literal["fast", "diffusion"], "fast, or diffusion, which takes longer"] = "fast"
    validate_pictures: Annotated[int, "val pictures a direction, input beside output, that trackers get"] = 0
    best: Annotated[
        Literal[("", *FIGURES)], "figure of validation.csv whose best model is kept, in the folder best"
    ] = ""
    patience: Annotated[int, "validations without a better one that end the run; 0: none; needs best"] = 0
    trackers: Annotated[list[Literal["tensorboard", "wandb"]], "where losses and validations go, too"] = field(
        default_factory=lambda: ["tensorboard"]
    )
    log_every: Annotated[int, "steps between lines of log.csv", Count] = 10
    push_to_hub: Annotated[str, "hub id, owner/name, that the finished pipeline is uploaded to; none: nowhere"] = ""


HARMLESS = frozenset(
    {
        "data",  # its hash is compared instead
        "output",
        "overwrite",
        "time_limit",
        "workers",
        "checkpoint_every",
        "checkpoint_seconds",
        "keep_checkpoints",
        "validate_every",
        "validate_images",
        "validate_speed",
        "validate_pictures",
        "trackers",
        "best",
        "patience",
        "log_every",
        "largest_mib",
        "push_to_hub",
    }
)
"""Options that a run may be resumed with other values of. `steps` may be raised; the rate follows the new ones."""


class OptionError(ValueError):
    """An option that cannot be; the message is for the user."""


def parse_options(cls: type[Options], section: str, argv: list[str] | None, doc: str) -> Options:
    """Options from `--config FILE` (its `common` and `section` parts) and the command line.

    Lists and mappings are given as YAML; a mapping is merged over the config's. What cannot be ends the
    command with a sentence.
    """
    parser = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", type=Path, default=None, help="YAML file, e.g. train/configs/mini.yaml")
    hints, defaults = get_type_hints(cls, include_extras=True), cls()
    names = [option.name for option in dataclasses.fields(cls)]
    for name in names:
        kind, sentence, *_ = get_args(hints[name])
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            f"--{name}",
            dest=name,
            metavar=_metavar(kind),
            help=f"{sentence} (default: {_shown(getattr(defaults, name))})".replace("%", "%%"),
        )
    given = vars(parser.parse_args(argv))
    try:
        values = _of_config(given.pop("config"), section, names)
        for name, text in given.items():
            value = _of_command_line(name, text, get_args(hints[name])[0])
            merge = isinstance(value, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **value} if merge else value
        return cls(**{name: _typed(name, value, *get_args(hints[name])) for name, value in values.items()})
    except OptionError as error:
        raise SystemExit(f"error: {error}") from error


def _of_config(path: Path | None, section: str, names: list[str]) -> dict:
    """The values in a config for the trainer of a `section`, whose options are `names`."""
    if not path:
        return {}
    try:
        parts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OptionError(f"There is no config {path}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise OptionError(f"The config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(parts, dict) or not all(isinstance(parts[key] or {}, dict) for key in parts):
        raise OptionError(f"{path} is not a config: it should hold sections such as common: and {section}:.")
    elsewhere = _all_names()
    _known(f"{path} has a section that nothing reads:", parts, [*SECTIONS, section, *elsewhere])
    # `common` may hold what another trainer needs; a section may not.
    common, own = parts.get("common") or {}, parts.get(section) or {}
    _known(f"{path}: common holds what no trainer has,", common, [*names, *set().union(*elsewhere.values())])
    _known(f"{path}: {section} has no option", own, names)
    return {name: value for name, value in {**common, **own}.items() if name in names}


SECTIONS = ("common", "prepare", "stages", "bundle")
"""Of a config, beside those of the trainers."""


def _all_names() -> dict[str, set[str]]:
    """The options of each trainer's own, read from its source: no trainer imports another."""
    shared, found = {field.name for field in dataclasses.fields(Options)}, {}
    for path in Path(__file__).parent.glob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name.endswith("Options")]
        names = {node.target.id for c in classes for node in c.body if isinstance(node, ast.AnnAssign)}
        if classes and any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in body):
            found[path.stem] = names
        shared |= names
    return {trainer: names | shared for trainer, names in found.items()}


def _known(sentence: str, given: dict, known: list[str]) -> None:
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, 1)
        raise OptionError(f"{sentence} {', '.join(unknown)}." + (f" Did you mean {near[0]}?" if near else ""))


def _of_command_line(name: str, text: str, kind: Any) -> Any:
    """The value that a word of a command line stands for: YAML, but where a text or path is wanted."""
    if kind in (str, Path, Path | None) or (_is_choice(kind) and isinstance(get_args(kind)[0], str)):
        return None if kind == Path | None and text in ("", "null", "none") else text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise OptionError(f"{name} is {text!r}, which is not YAML: put lists in [] and mappings in {{}}.") from error


_WANTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    list: "a list, such as [1, 2]",
    dict: "a mapping, such as {a: 1}",
}


def _typed(name: str, value: Any, kind: Any, _: str, limits: tuple = (0, math.inf)) -> Any:
    """What YAML read, as the type of an option. Raises OptionError where it is something else."""
    if _is_choice(kind):
        choices = get_args(kind)
        value = "no" if value is False and "no" in choices else value  # YAML reads a bare no as false
        if isinstance(value, bool) or value not in choices:
            raise OptionError(f"{name} is {value!r}, and should be one of {', '.join(map(str, choices))}.")
        return value
    if kind == Path | None and value in (None, ""):
        return None
    kind, items = (Path if kind == Path | None else get_origin(kind) or kind), get_args(kind)
    wrong = OptionError(f"{name} is {value!r}, and should be {_WANTED[kind]}.")
    if kind in (int, float):
        return _number(name, value, kind, limits, wrong)
    if not isinstance(value, (str, Path) if kind is Path else kind):
        raise wrong
    if kind is list and items:
        return [_typed(f"{name}: an item", item, items[0], _, limits) for item in value]
    return kind(value) if kind is Path else value


def _number(name: str, value: Any, kind: type, limits: tuple, wrong: OptionError) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise wrong
    try:
        number = float(value)  # YAML reads 1e-4 as a text
    except ValueError:
        raise wrong from None
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise wrong
    if not limits[0] <= number <= limits[1]:
        above = f" and at most {limits[1]:g}" if math.isfinite(limits[1]) else ""
        raise OptionError(f"{name} is {value}, and should be at least {limits[0]:g}{above}.")
    return kind(number)


def _is_choice(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _metavar(kind: Any) -> str:
    if _is_choice(kind):
        return "VALUE"
    return "PATH" if kind == Path | None else (get_origin(kind) or kind).__name__.upper()


def _shown(default: Any) -> str:
    if default is None or default == "":
        return "none"
    return str(default) if isinstance(default, (str, Path)) else json.dumps(default)


def command_line(script: str, options: dict) -> list[str]:
    """A trainer's command line; mappings and lists are given as JSON, which is YAML."""
    words = ["python", f"train/{script}"]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value) if isinstance(value, (str, Path)) else json.dumps(value)]
    return words


def run_as_command(main: Callable[[], None]) -> None:
    """Run a trainer's main; errors that are the user's to mend end it without a traceback."""
    try:
        main()
    except (DatasetError, OptionError) as error:
        raise SystemExit(f"error: {error}") from error
