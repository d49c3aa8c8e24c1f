"""Options of the trainers, from a config and the command line, and how a trainer's command ends."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import yaml

from mediffuse.dataset import DatasetError


@dataclass
class Options:
    """Options of every trainer. Values come from defaults, then --config, then the command line.

    The annotation of an option holds its type and the sentence that --help shows.
    """

    data: Annotated[Path, "folder that train/prepare.py wrote"] = Path("data/mini")
    output: Annotated[Path, "folder for checkpoints, logs and the final model"] = Path("runs/out")
    steps: Annotated[int, "optimiser steps"] = 1000
    time_limit: Annotated[float, "seconds of training that end it before its steps do; 0: no limit"] = 0.0
    batch_size: Annotated[int, "samples a process and step"] = 8
    gradient_accumulation: Annotated[int, "batches whose gradients an optimiser step adds up"] = 1
    learning_rate: Annotated[float, "its peak; after the warmup half a cosine takes it to zero"] = 1e-4
    warmup: Annotated[int, "steps in which the learning rate rises linearly"] = 100
    weight_decay: Annotated[float, "AdamW's"] = 0.01
    max_grad_norm: Annotated[float, "gradients of a larger norm are scaled down to it"] = 1.0
    ema_decay: Annotated[float, "decay of the averaged weights, which are the ones that are judged and saved"] = 0.999
    mixed_precision: Annotated[str, "no, fp16 or bf16"] = "no"
    augment: Annotated[bool, "warp the pairs, and change what differs between scanners"] = True
    ct_windows: Annotated[int, "3, or 1 for the full range alone, to compare with: the app has no such mode"] = 3
    weights: Annotated[dict, 'sampling weights by "source/plane", source or plane; 1 for what is not named'] = field(
        default_factory=dict
    )
    seed: Annotated[int, "of the samples, the noise and fresh weights"] = 0
    workers: Annotated[int, "processes that load data; 0: none beside the trainer"] = 1
    checkpoint_every: Annotated[int, "steps between the checkpoints from which a run can go on"] = 500
    checkpoint_seconds: Annotated[float, "seconds of training between checkpoints at most; 0: by steps alone"] = 0.0
    keep_checkpoints: Annotated[int, "newest checkpoints that are kept"] = 2
    resume: Annotated[bool, "go on from the newest checkpoint in the output folder"] = True
    validate_every: Annotated[int, "steps between validations on the val split; 0: only at the end"] = 500
    validate_images: Annotated[int, "val patients that are validated on, by a central slice of each"] = 18
    validate_speed: Annotated[str, "fast, or diffusion, which takes longer"] = "fast"
    log_every: Annotated[int, "steps between lines of log.csv"] = 10


def parse_options(cls: type[Options], section: str, argv: list[str] | None, doc: str) -> Options:
    """Options from `--config FILE` (its `common` and `section` parts) and the command line.

    Lists and mappings are given as YAML; a mapping is merged over the config's.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file, e.g. train/configs/mini.yaml")
    hints, defaults = get_type_hints(cls, include_extras=True), cls()
    names = [option.name for option in dataclasses.fields(cls)]
    for name in names:
        kind, sentence = get_args(hints[name])
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            f"--{name}",
            dest=name,
            type=yaml.safe_load,
            metavar=kind.__name__.upper() if isinstance(kind, type) else "PATH",
            help=f"{sentence} (default: {_shown(getattr(defaults, name))})".replace("%", "%%"),
        )
    given = vars(parser.parse_args(argv))
    config = given.pop("config")
    values = {}
    if config:
        parts = yaml.safe_load(config.read_text())
        # `common` may hold what another trainer needs; a section may not.
        unknown = set(parts.get(section, {})) - set(names)
        if unknown:
            parser.error(f"{config}: {section} has no option {', '.join(sorted(unknown))}")
        values = {**parts.get("common", {}), **parts.get(section, {})}
        values = {name: value for name, value in values.items() if name in names}
    for name, value in given.items():
        if value is not None:
            merge = isinstance(value, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **value} if merge else value
    return cls(
        **{name: _typed(value, getattr(defaults, name), get_args(hints[name])[0]) for name, value in values.items()}
    )


def _typed(value: Any, default: Any, kind: type) -> Any:
    """What YAML read, as the type of an option."""
    if kind in (Path, Path | None):
        return Path(value) if value else None
    if isinstance(default, str):
        return "no" if value is False else str(value)  # YAML reads a bare no as false
    if isinstance(default, bool):
        return bool(value)
    if isinstance(default, (int, float)):
        return type(default)(float(value))
    return value


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
    except DatasetError as error:
        raise SystemExit(f"error: {error}") from error
