"""What is measured: checkpoints at each speed, the direct U-Net, and trivial baselines."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mediffuse.dataset import Row
from mediffuse.directions import DIRECTIONS
from mediffuse.evaluate.predict import (
    Predict,
    black,
    copied,
    direct_predictor,
    mean_image,
    predictor,
    training_rows_like,
)
from mediffuse.evaluate.rows import TrainingFacts
from mediffuse.evaluate.summary import DIRECT, title_of
from mediffuse.image.intensity import AIR_HU
from mediffuse.translate import Settings, checkpoints, direct
from mediffuse.translate.checkpoints import CheckpointError


@dataclass
class Model:
    """A model for one direction.

    speed: "fast", "sharp" or "diffusion", or "none" for a baseline without checkpoint. load: gives the
    predictor, when first needed. identity: changes whenever the predictions might. source: the checkpoint's folder
    or hub id, empty for a baseline. thresholds: the contours' over the checkpoint's own.
    """

    name: str
    direction: str
    speed: str
    load: Callable[[], Predict]
    identity: str
    source: str = ""
    settings: Settings = field(default_factory=Settings)
    thresholds: float = 1.0
    facts: TrainingFacts = field(default_factory=TrainingFacts)

    @property
    def title(self) -> str:
        """Name and speed, as tables and figures show them."""
        return title_of(self.name, self.speed)


def baselines(direction: str, data: Path | None, rows: list[Row]) -> list[Model]:
    """The trivial baselines; without training images like `rows` there is no mean image."""
    made = [
        Model("black", direction, "none", lambda: black(direction), f"black {AIR_HU}"),
        Model("input copied", direction, "none", lambda: copied(direction), "copied"),
    ]
    train = data / "train" if data else None
    like = training_rows_like(direction, train, rows) if train and (train / "metadata.jsonl").is_file() else []
    if like:
        digest = hashlib.sha256()
        for row in like:
            path = train / row["edited_image_file_name"]
            digest.update(path.read_bytes() if path.is_file() else b"")
        load = lambda: mean_image(direction, train, like)  # noqa: E731
        made.append(Model("mean image", direction, "none", load, f"mean {digest.hexdigest()}"))
    return made


class Sources:
    """The checkpoints that were asked for, by direction; keeps one loaded at a time."""

    def __init__(self, given: list[str] | None, zero_shot: list[str] | None = None) -> None:
        # The default chain (environment variable, then bundled) is locate's.
        self.given = given or [os.environ.get(checkpoints.VARIABLE) or str(checkpoints.BUNDLED)]
        self.zero_shot = zero_shot or []
        self._loaded: tuple[tuple, object] | None = None
        found = {source for d in DIRECTIONS for source, _ in self._find(d)}
        self._names = unique_names([s for s in found if not direct.is_direct(Path(s))])
        self._names |= unique_names([s for s in found if direct.is_direct(Path(s))])

    def _find(self, direction: str) -> list[tuple[str, bool]]:
        """(source, whether it is zero-shot) of each checkpoint of a direction, each once."""
        found: dict[tuple, tuple[str, bool]] = {}
        for entries, zero_shot in ((self.given, False), (self.zero_shot, True)):
            for source in (s for entry in entries for s in _sources(entry, direction)):
                same = Path(source).resolve() if Path(source).is_dir() else source
                found.setdefault((same, zero_shot), (source, zero_shot))
        return list(found.values())

    def directions(self, asked: list[str] | None) -> list[str]:
        """The directions to measure: those asked for, or all that a checkpoint serves.

        Raises CheckpointError where a checkpoint serves none of them, or one has no checkpoint.
        """
        for entry in [*self.given, *self.zero_shot]:
            if not any(_sources(entry, d) for d in asked or DIRECTIONS):
                # Says what is wrong with it: missing, damaged, or for other directions.
                checkpoints.locate((asked or DIRECTIONS)[0], entry)
        served = [d for d in asked or DIRECTIONS if any(_sources(e, d) for e in self.given)]
        for direction in asked or ():
            if direction not in served:
                raise CheckpointError(f"None of {', '.join(self.given)} is a checkpoint for {direction}.")
        return served

    def models(
        self, direction: str, speeds: list[str], settings: Settings, starts: Sequence[str] = ("mean",)
    ) -> list[Model]:
        """One Model per checkpoint and speed, of diffusion per start. A direct U-Net and a zero-shot model have
        one speed each, and a checkpoint without a sharp variant is not asked for it.

        Several samples are a further model, scored by their mean.
        """
        made = []
        for source, zero_shot in self._find(direction):
            folder = Path(source)
            name = self._names[source]
            if direct.is_direct(folder):
                title = DIRECT if name == folder.name else f"{DIRECT} {name}"
                made.append(self._model(title, direction, "fast", source, Settings()))
                continue
            single = dataclasses.replace(settings, samples=1)
            if zero_shot:
                made.append(self._model(f"zero-shot {name}", direction, "diffusion", source, single))
                continue
            known = checkpoints.details(source).get("speeds", checkpoints.UNTOLD_SPEEDS)
            if not set(speeds) & set(known):
                raise CheckpointError(f"The checkpoint {source} has no variant {', '.join(speeds)}.")
            made += [self._model(name, direction, s, source, single) for s in speeds if s in known and s != "diffusion"]
            for start in starts if "diffusion" in speeds else ():
                title = name if start == "mean" else f"{name}, from noise"
                made.append(
                    self._model(title, direction, "diffusion", source, dataclasses.replace(single, start=start))
                )
                if settings.samples > 1:
                    several = dataclasses.replace(settings, start=start)
                    title += f", mean of {settings.samples}"
                    made.append(self._model(title, direction, "diffusion", source, several))
        return made

    def sweeps(self, direction: str, settings: Settings, steps: Sequence[int], scales: Sequence[float]) -> list[Model]:
        """Each diffusion checkpoint at other numbers of steps and other guidance scales."""
        changes = [{"steps": n} for n in steps] + [{"guidance": scale} for scale in scales]
        single = dataclasses.replace(settings, samples=1)
        return [
            self._model(model.name, direction, "diffusion", model.source, dataclasses.replace(single, **change))
            for model in self.models(direction, ["diffusion"], single)
            if not model.name.startswith((DIRECT, "zero-shot"))
            for change in changes
        ]

    def threshold_sweeps(self, speeds: list[str], factors: Sequence[float]) -> list[Model]:
        """Each contour checkpoint at its thresholds times other factors, by one step."""
        direction = "contour2mr"
        return [
            self._model(model.name, direction, model.speed, model.source, model.settings, factor)
            for model in self.models(direction, [s for s in speeds if s != "diffusion"], Settings())
            if not model.name.startswith((DIRECT, "zero-shot"))
            for factor in factors
        ]

    def _model(
        self, name: str, direction: str, speed: str, source: str, settings: Settings, thresholds: float = 1.0
    ) -> Model:
        # One step from zero latents has no other settings.
        settings = dataclasses.replace(settings if speed == "diffusion" else Settings(), speed=speed)
        identity = f"{fingerprint(source)} {dataclasses.asdict(settings)}"
        identity += f" thresholds x {thresholds:g}" if thresholds != 1 else ""
        load = self._loader(source, direction, settings, thresholds)
        facts = training_facts(source)
        return Model(name, direction, speed, load, identity, source, settings, thresholds, facts)

    def _loader(self, source: str, direction: str, settings: Settings, thresholds: float) -> Callable[[], Predict]:
        def load() -> Predict:
            if direct.is_direct(Path(source)):
                return direct_predictor(self._keep((source,), lambda: direct.load(source)), direction)
            # InstructPix2Pix is one pipeline for two directions.
            key = source, direction == "contour2mr"
            checkpoint = self._keep(key, lambda: checkpoints.load(source, direction))
            return predictor(checkpoint, direction, settings, checkpoint.thresholds.times(thresholds))

        return load

    def _keep(self, key: tuple, load: Callable):
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None  # before the next is loaded: two may not fit
            self._loaded = key, load()
        return self._loaded[1]


def _sources(entry: str, direction: str) -> list[str]:
    """Checkpoints of a direction in one --checkpoint: a pipeline, and any direct U-Net."""
    found = []
    with contextlib.suppress(CheckpointError):
        found.append(checkpoints.locate(direction, entry))
    for part in (p.strip() for p in entry.split(",")):
        for folder in (Path(part), Path(part) / "direct"):
            if direct.is_direct(folder):
                trained = checkpoints.details(str(folder)).get("directions") or DIRECTIONS
                if direction in trained:
                    found.append(str(folder))
    return found


def unique_names(sources: list[str]) -> dict[str, str]:
    """Names by source: the last part of its path, and as many before it as tell it from the others."""
    parts = {s: (Path(s).resolve() if Path(s).exists() else Path(s)).parts for s in sources}
    names = {}
    for source, own in parts.items():
        others = [p for s, p in parts.items() if s != source]
        count = next((n for n in range(1, len(own)) if all(p[-n:] != own[-n:] for p in others)), len(own))
        names[source] = "/".join(own[-count:])
    return names


@functools.cache
def fingerprint(source: str) -> str:
    """Hash of a checkpoint folder's weights and configs, or the commit of a hub id."""
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import HfApi

        with contextlib.suppress(OSError, ValueError):  # no network, no such repository
            return HfApi().model_info(source).sha or source
        return source
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".safetensors", ".bin"}:
            digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def training_facts(source: str) -> TrainingFacts:
    """What a checkpoint's mediffuse.json tells of its training; None if unknown."""
    details = checkpoints.details(source)
    stages = [*details.get("earlier", ()), *([details["training"]] if "training" in details else [])]

    def over_stages(key: str, combine: Callable) -> float | None:
        """`combine` of what all stages say; None if one does not."""
        values = [s.get(key) for s in stages]
        return combine(values) if values and None not in values else None

    return TrainingFacts(
        parameters=_parameters(source),
        training_steps=over_stages("steps", sum),
        training_seconds=over_stages("seconds", sum),
        training_peak_memory_mib=over_stages("peak_memory_mib", max),
        training_hardware=stages[-1].get("hardware") if stages else None,
        training_data_sha256=stages[-1].get("data_sha256") if stages else None,
    )


_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
"""Weights as they are loaded, shards too; not the copies in other precisions beside them."""


def _parameters(source: str) -> int | None:
    """Parameters of all parts, from the headers of the weight files; None where there are no such files."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in Path(source).rglob("*.safetensors"):
        if _WEIGHTS.fullmatch(path.name) and path.parent.name != "safety_checker":
            try:
                with safe_open(path, "pt") as file:
                    total += sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{path} is damaged: train or download the checkpoint again.") from error
    return total or None
