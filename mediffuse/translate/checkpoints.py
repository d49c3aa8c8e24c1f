"""Where checkpoints come from: bundled in assets/, a folder, or the Hugging Face hub."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mediffuse import files
from mediffuse.directions import ANATOMIES, DIRECTIONS
from mediffuse.image.contours import Thresholds

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, ModelMixin

BUNDLED = Path(__file__).resolve().parents[2] / "assets" / "checkpoints"
VARIABLE = "MEDIFFUSE_CHECKPOINTS"
DETAILS = "mediffuse.json"
"""File beside model_index.json with what a stock pipeline does not store: contour thresholds, the
directions and anatomies it was trained for, and how it was trained."""
LOSSES = "training.csv"
"""File beside it with the training loss: stage, step, loss."""
SUMS = "SHA256SUMS"
"""File beside it with hashes of the weights, as sha256sum takes it, where there is one (the bundled ones have it)."""

SPEEDS = ("fast", "sharp", "diffusion")
UNTOLD_SPEEDS = ("fast", "diffusion")
"""Of a checkpoint whose mediffuse.json does not tell."""

SHARP = "sharp"
"""The `variant` under which a checkpoint has `reader` of its sharp variant, beside its own."""

_FAMILY = {"ct2mr": "ip2p", "mr2ct": "ip2p", "contour2mr": "controlnet"}
_PIPELINES = {
    "ip2p": "StableDiffusionInstructPix2PixPipeline",
    "controlnet": "StableDiffusionControlNetPipeline",
}


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of the wrong kind; the message is for the user."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded diffusers pipeline and the facts about it that translation needs.

    size: side of its model images in pixels. one_step: whether it was trained so that one
    trailing step from zero latents is a prediction (v-prediction, zero terminal SNR). sharp: what takes
    the place of `reader` in that step's sharp variant, None if there is none. mean_noise: standard deviation
    of the noise on that prediction from which it was trained to sample; None if it was trained from pure noise alone.
    anatomies: the parts of the body that it knows, of `ANATOMIES`.
    """

    source: str
    pipeline: DiffusionPipeline
    size: int
    one_step: bool
    thresholds: Thresholds
    sharp: ModelMixin | None = None
    mean_noise: float | None = None
    anatomies: tuple[str, ...] = ("head",)


def name_of(source: str) -> str:
    """What messages call a checkpoint: its hub id, or the name of its folder; where that lies is not for visitors."""
    return source if source.count("/") == 1 and not Path(source).exists() else Path(source).name


def locate(direction: str, given: str | None = None) -> str:
    """Folder or hub id of the checkpoint for a direction.

    `given` (default: the environment variable MEDIFFUSE_CHECKPOINTS, then the bundled ones) is a
    comma-separated list of: a pipeline (folder or hub id); a folder with `ip2p` and `controlnet`
    (or one per direction: `ct2mr`, `mr2ct`, `contour2mr`); or `name=` one of these names and a
    pipeline. Raises CheckpointError if it names none for this direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"Unknown direction {direction!r}: choose one of {', '.join(DIRECTIONS)}.")
    given = given or os.environ.get(VARIABLE) or str(BUNDLED)
    names = (direction, _FAMILY[direction])
    anonymous = []
    for entry in (e.strip() for e in given.split(",")):
        name, _, value = entry.rpartition("=")
        if name in names:
            return value
        if not name and entry:
            anonymous.append(entry)
    for entry in anonymous:
        folder = Path(entry)
        for inner in names:
            if (folder / inner / "model_index.json").is_file() and _trained_for(folder / inner, direction):
                return str(folder / inner)
        if (folder / "model_index.json").is_file():
            if _class_name(folder) == _PIPELINES[_FAMILY[direction]] and _trained_for(folder, direction):
                return entry
        elif (
            not folder.is_dir() and entry.count("/") == 1 and (len(anonymous) == 1 or _hub_class_fits(entry, direction))
        ):
            return entry
    raise CheckpointError(
        f"There is no checkpoint for this direction ({direction}) where {VARIABLE} or --checkpoint says "
        f"({', '.join(name_of(entry.strip()) for entry in given.split(','))}). It should hold a folder "
        f"'{_FAMILY[direction]}' that train/{_FAMILY[direction]}.py wrote for it, with a model_index.json."
    )


def _trained_for(folder: Path, direction: str) -> bool:
    """Whether a checkpoint folder says that it was trained for a direction, or says nothing of it."""
    return direction in (details(str(folder)).get("directions") or DIRECTIONS)


def _class_name(folder: Path) -> str | None:
    try:
        return json.loads((folder / "model_index.json").read_text()).get("_class_name")
    except (OSError, ValueError):
        return None


def _hub_class_fits(entry: str, direction: str) -> bool:
    """Whether a hub id may serve a direction. Where the hub cannot be asked, loading will tell."""
    from diffusers import DiffusionPipeline

    try:
        name = DiffusionPipeline.load_config(entry).get("_class_name")
    except (OSError, ValueError):
        return True
    return name == _PIPELINES[_FAMILY[direction]]


def load(source: str, direction: str) -> Checkpoint:
    """Load a pipeline from a folder or hub id, on the CPU in float32 or CUDA in float16.

    Raises CheckpointError with a message for the user if it is damaged or of the wrong kind.
    """
    import torch
    from diffusers import DiffusionPipeline

    _check_sums(Path(source))
    device, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    try:
        pipeline = DiffusionPipeline.from_pretrained(source, dtype=dtype, safety_checker=None)
        wanted = _PIPELINES[_FAMILY[direction]]
        if type(pipeline).__name__ == wanted:
            pipeline.to(device)
            pipeline.vae.to(memory_format=torch.channels_last)  # a fifth less time a slice on two AVX2 cores
            sharp = load_sharp(source, pipeline, dtype)
            _check_numbers(source, [*pipeline.components.values(), sharp])
            return describe(pipeline, source, sharp.to(device) if sharp else None)
    except CheckpointError:
        raise
    except Exception as error:  # diffusers, safetensors, the hub and json each have their own
        raise CheckpointError(
            f"The checkpoint {name_of(source)} cannot be loaded: it is missing, incomplete or damaged "
            f"({type(error).__name__}). Train or download it again."
        ) from error
    raise CheckpointError(
        f"The checkpoint {name_of(source)} is a {type(pipeline).__name__}; this tab needs a {wanted}."
    )


def write_sums(folder: Path) -> None:
    """Write the hashes of a checkpoint's weights beside them."""
    paths = sorted(folder.rglob("*.safetensors"))
    files.write_text(
        folder / SUMS, "".join(f"{files.sha256_of(p)}  {p.relative_to(folder).as_posix()}\n" for p in paths)
    )


def _check_sums(folder: Path) -> None:
    """Raise CheckpointError if weights are not those whose hashes were written down."""
    sums = folder / SUMS
    if not sums.is_file():
        return
    for line in sums.read_text(encoding="utf-8").splitlines():
        wanted, _, name = line.partition("  ")
        path = folder / name
        if not path.is_file() or files.sha256_of(path) != wanted:
            raise CheckpointError(
                f"The checkpoint {name_of(str(folder))} is damaged: {name} is not the file it should be. "
                "Train or download it again."
            )


def _check_numbers(source: str, parts: Iterable) -> None:
    """Raise CheckpointError for weights that are no numbers: random bytes load as well as others."""
    import torch

    for part in parts:
        if isinstance(part, torch.nn.Module) and not all(p.isfinite().all() for p in part.parameters()):
            raise CheckpointError(
                f"The checkpoint {name_of(source)} is damaged: it has weights that are no numbers (NaN or infinite). "
                "Train or download it again."
            )


def reader(pipeline: DiffusionPipeline) -> str:
    """The name of a pipeline's part that reads the input image: its ControlNet, or else its UNet."""
    return "controlnet" if hasattr(pipeline, "controlnet") else "unet"


def load_sharp(source: str, pipeline: DiffusionPipeline, dtype: torch.dtype) -> ModelMixin | None:
    """`reader` of the sharp variant of a checkpoint that was loaded, None where its mediffuse.json tells of none."""
    if "sharp" not in details(source).get("speeds", UNTOLD_SPEEDS):
        return None
    part = reader(pipeline)
    return type(getattr(pipeline, part)).from_pretrained(source, subfolder=part, variant=SHARP, dtype=dtype)


def describe(pipeline: DiffusionPipeline, source: str = "memory", sharp: ModelMixin | None = None) -> Checkpoint:
    """The facts that translation needs about a pipeline, read from its configs; `sharp` as in `Checkpoint`."""
    pipeline.set_progress_bar_config(disable=True)
    scheduler = pipeline.scheduler.config
    one_step = (
        scheduler.get("prediction_type") == "v_prediction"
        and bool(scheduler.get("rescale_betas_zero_snr"))
        and scheduler.get("timestep_spacing") == "trailing"
    )
    size = int(pipeline.unet.config.sample_size) * int(pipeline.vae_scale_factor)
    mean_noise = details(source).get("mean_noise")
    return Checkpoint(source, pipeline, size, one_step, _thresholds(source), sharp, mean_noise, anatomies(source))


def anatomies(source: str) -> tuple[str, ...]:
    """The parts of the body that a checkpoint knows: those of its mediffuse.json, else the head."""
    told = details(source).get("anatomies")
    return (
        tuple(a for a in ANATOMIES if a in told) if isinstance(told, list) and set(told) & set(ANATOMIES) else ("head",)
    )


def limits(source: str) -> list[str]:
    """Sentences for the model card of a checkpoint: what it has not learnt, and which figures flatter it."""
    said = [f"Trained on {', '.join(map(ANATOMIES.get, anatomies(source)))}; it knows no other part of the body."]
    leaking = details(source).get("leaking_splits")
    if leaking:
        said.append(f"**Patients of its {' and '.join(leaking)} split were trained on, so figures on that flatter.**")
    return said


def _thresholds(source: str) -> Thresholds:
    """The contour thresholds that a checkpoint was trained with: those of its mediffuse.json."""
    values = details(source).get("contours", {})
    return Thresholds(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def details(source: str) -> dict:
    """What a checkpoint's mediffuse.json says; empty where there is none, or it cannot be read."""
    path = find_file(source, DETAILS)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find_file(source: str, name: str) -> Path | None:
    """A file of a checkpoint (folder or hub id), or None."""
    path = Path(source) / name
    if path.is_file():
        return path
    if Path(source).is_dir() or source.count("/") != 1:
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, name))
    except (OSError, ValueError):
        return None


class Checkpoints:
    """Loads each checkpoint when it is first needed and keeps it; safe between threads."""

    def __init__(self, given: str | None = None) -> None:
        self.given = given
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, str], Checkpoint] = {}

    def get(self, direction: str) -> Checkpoint:
        """The checkpoint for a direction. A failure is raised again at the next call, not kept."""
        source = locate(direction, self.given)
        key = source, _FAMILY[direction]
        with self._lock:
            if key not in self._loaded:
                self._loaded[key] = load(source, direction)
            return self._loaded[key]

    def loaded(self, direction: str) -> bool:
        """Whether `get` would return at once."""
        return (locate(direction, self.given), _FAMILY[direction]) in self._loaded

    def weights(self, direction: str) -> str | None:
        """A hash of a direction's weights, where a local folder tells those of its files; loads no model."""
        try:
            sums = Path(locate(direction, self.given)) / SUMS
        except (CheckpointError, OSError, ValueError):
            return None
        return files.sha256_of(sums) if sums.is_file() else None

    def speeds(self, direction: str) -> tuple[str, ...]:
        """The speeds that a direction's checkpoint knows, where a local file tells; loads no model."""
        try:
            source = locate(direction, self.given)
        except (CheckpointError, OSError, ValueError):
            return SPEEDS
        return tuple(details(source).get("speeds", UNTOLD_SPEEDS)) if Path(source).is_dir() else SPEEDS

    def anatomies(self, *directions: str) -> tuple[str, ...]:
        """The parts of the body that the checkpoints of directions know, where local files tell; loads no model."""
        known: set[str] = set()
        for direction in directions:
            with contextlib.suppress(CheckpointError, OSError, ValueError):
                source = locate(direction, self.given)
                known |= set(anatomies(source) if Path(source).is_dir() else ("head",))
        return tuple(a for a in ANATOMIES if a in known) or ("head",)

    def thresholds(self) -> Thresholds:
        """What the contour checkpoint was trained with, where a local file tells; loads no model."""
        try:
            source = locate("contour2mr", self.given)
            return _thresholds(source) if Path(source).is_dir() else Thresholds()
        except (CheckpointError, OSError, TypeError, ValueError):
            return Thresholds()
