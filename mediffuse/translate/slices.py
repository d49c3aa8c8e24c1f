"""Translate a slice: slice in, slice out, on the slice's own grid and in HU or MR units."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from mediffuse.directions import modalities, prompt_for
from mediffuse.image.contours import Thresholds, contour_hint
from mediffuse.image.intensity import background, clear_air, decode, decode_ct, encode
from mediffuse.image.letterbox import Letterbox
from mediffuse.machine import half_precision
from mediffuse.scan import Slice
from mediffuse.translate.checkpoints import SPEEDS, Checkpoint, CheckpointError, Checkpoints, name_of, reader

if TYPE_CHECKING:
    import torch
    from diffusers import DDIMScheduler

DEFAULT_SIZE = 256
STARTS = ("mean", "noise")
MAX_SEED = 2**31 - 1

OnStep = Callable[[int, int, Callable[[], np.ndarray]], None]
"""Called after each step with (step from 1, steps, function that decodes the first sample to a
model image (S, S, 3)). What it raises ends the run."""


@dataclass(frozen=True)
class Settings:
    """How to translate.

    speed: "fast", one deterministic step to the mean of what is possible; "sharp", one to a realistic
    picture, whose finer detail may be invented; "diffusion", `steps` steps to one of `seed`.
    guidance, image_guidance: classifier-free guidance scales; 1 is off. samples: drawn with seeds
    seed, seed + 1, ... contrast: "T1" or "T2", of the MRI. control: strength of the contours.
    mirror: "fast" is the mean of a slice's and its mirror image's translation. start: diffusion starts
    from the fast translation with a little noise ("mean"), or from pure noise ("noise", as published).
    Raises ValueError for values out of range.
    """

    speed: str = "fast"
    steps: int = 6
    guidance: float = 1.0
    image_guidance: float = 1.0
    seed: int = 0
    samples: int = 1
    contrast: str = "T1"
    control: float = 1.0
    mirror: bool = True
    start: str = "mean"

    def __post_init__(self) -> None:
        for name, choices in (("speed", SPEEDS), ("start", STARTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name.capitalize()} is {' or '.join(choices)}, not {getattr(self, name)!r}.")
        for name, low, high in (
            ("steps", 1, 1000),
            ("samples", 1, 64),
            ("seed", 0, MAX_SEED),
            ("guidance", 1, 30),
            ("image_guidance", 1, 30),
            ("control", 0, 2),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name.replace('_', ' ').capitalize()} must be between {low} and {high}.")


@dataclass(frozen=True)
class Translation:
    """What a translation made, on the grid of the slice it was made from.

    pixels: (rows, columns), HU or MR in `intensity.MR_OUTPUT_LIMITS`; the mean of the samples.
    samples: each sample likewise. deviation: their standard deviation, None for one sample.
    """

    pixels: np.ndarray
    samples: tuple[np.ndarray, ...]
    deviation: np.ndarray | None
    modality: str
    seconds: float
    settings: Settings


class TurnLock:
    """A lock that goes to who has waited longest, so that a loop that takes it again and again lets others in."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._line: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        mine = threading.Event()
        with self._mutex:
            self._line.append(mine)
            if len(self._line) == 1:
                mine.set()
        mine.wait()

    def __exit__(self, *error: object) -> None:
        with self._mutex:
            self._line.popleft()
            if self._line:
                self._line[0].set()


class Translator:
    """Translates slices with the checkpoints of `Checkpoints`, loaded when first used."""

    def __init__(self, checkpoints: Checkpoints | None = None) -> None:
        self.checkpoints = checkpoints or Checkpoints()
        # A pipeline keeps its scheduler's state: one run at a time.
        self._lock = TurnLock()

    def translate(
        self,
        source: Slice,
        direction: str,
        settings: Settings | None = None,
        thresholds: Thresholds | None = None,
        on_step: OnStep | None = None,
    ) -> Translation:
        """Translate a slice. Raises CheckpointError if its checkpoint cannot be used."""
        settings = settings or Settings()
        checkpoint = self.checkpoints.get(direction)
        started = time.perf_counter()
        box = source.letterbox(checkpoint.size)
        made = self.generate(direction, to_model_image(source, box)[None], settings, thresholds, on_step)
        output = modalities(direction)[1]
        samples = tuple(to_slice(m, output, box) for m in made)
        deviation = np.std(samples, axis=0) if len(samples) > 1 else None
        seconds = time.perf_counter() - started
        return Translation(np.mean(samples, axis=0), samples, deviation, output, seconds, settings)

    def generate(
        self,
        direction: str,
        images: np.ndarray,
        settings: Settings,
        thresholds: Thresholds | None = None,
        on_step: OnStep | None = None,
    ) -> np.ndarray:
        """`generate` with the checkpoint for a direction, one run at a time.

        Raises CheckpointError if its checkpoint cannot be used, or makes no picture.
        """
        checkpoint = self.checkpoints.get(direction)
        with self._lock:
            return generate(checkpoint, direction, images, settings, thresholds, on_step)

    def hint(self, source: Slice, thresholds: Thresholds) -> np.ndarray:
        """The contours (S, S, 3), uint8, that the contour model would get. Runs no model."""
        try:
            size = self.checkpoints.get("contour2mr").size
        except CheckpointError:
            size = DEFAULT_SIZE
        return contour_hint(decode_ct(to_model_image(source, source.letterbox(size))), thresholds)


def to_model_image(source: Slice, box: Letterbox) -> np.ndarray:
    """A slice as the model image (S, S, 3) that training saw. Slice in HU or MR units."""
    return encode(box.fit(source.pixels, source.background), source.modality, source.limits)


def to_slice(image: np.ndarray, modality: str, box: Letterbox) -> np.ndarray:
    """A made model image (S, S, 3) as HU or MR (rows, columns) on the slice's grid; air outside `box`."""
    return box.restore(decode(image, modality), background(modality))


def generate(
    checkpoint: Checkpoint,
    direction: str,
    images: np.ndarray,
    settings: Settings,
    thresholds: Thresholds | None = None,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Run a checkpoint's pipeline on model images (B, S, S, 3) in [0, 1].

    Returns model images (B * samples, S, S, 3), the samples of an image together. One seed gives
    every image the same noise, so that slices of one volume agree.
    """
    if settings.speed == "fast" and settings.mirror:
        plain = replace(settings, mirror=False)
        made = with_mirror(lambda batch: generate(checkpoint, direction, batch, plain, thresholds, on_step), images)
        return clear_air(made) if direction == "mr2ct" else made
    _check(checkpoint, settings.speed)
    if direction == "contour2mr":
        hints = [contour_hint(decode_ct(image), thresholds or checkpoint.thresholds) for image in images]
        images = np.stack(hints).astype(np.float32) / 255
    if settings.speed == "diffusion":
        made = _sample(checkpoint, direction, images, settings, on_step)
    else:
        made = _one_step(checkpoint, direction, images, settings, on_step)
    return clear_air(made) if direction == "mr2ct" else made


def _check(checkpoint: Checkpoint, speed: str) -> None:
    """Raise CheckpointError if a checkpoint was not trained for a speed."""
    if speed != "diffusion" and not checkpoint.one_step:
        raise CheckpointError(
            f"The checkpoint {name_of(checkpoint.source)} was not trained for one step (v-prediction with zero "
            "terminal SNR). Choose the speed Diffusion."
        )
    if speed == "sharp" and not checkpoint.sharp:
        raise CheckpointError(
            f"The checkpoint {name_of(checkpoint.source)} has no sharp variant: train/onestep.py makes one with "
            "--sharp. Choose the speed Fast or Diffusion."
        )


@dataclass(frozen=True)
class _Start:
    """Where a run of the pipeline starts: latents (B, C, h, w), steps to go, and another scheduler than its own."""

    latents: torch.Tensor
    steps: int
    scheduler: DDIMScheduler | None = None


def _one_step(checkpoint: Checkpoint, direction, images, settings: Settings, on_step=None, output_type="np"):
    """One step from zero latents, which is trained without guidance."""
    import torch

    start = _Start(torch.zeros(len(images), *_latent_shape(checkpoint)), 1)
    plain = replace(settings, guidance=1.0, image_guidance=1.0)
    return _run(checkpoint, direction, images, plain, start, on_step, output_type)


def _sample(checkpoint: Checkpoint, direction, images, settings: Settings, on_step=None) -> np.ndarray:
    """`settings.samples` samples of each image, together."""
    import torch

    noise = _noise(checkpoint, settings).repeat(len(images), 1, 1, 1)
    start = _Start(noise, settings.steps)
    if settings.start == "mean" and checkpoint.one_step:
        fast = replace(settings, speed="fast")
        mean = torch.as_tensor(_one_step(checkpoint, direction, images, fast, output_type="latent")).float().cpu()
        mean = mean.repeat_interleave(settings.samples, 0)
        if checkpoint.mean_noise is None:
            start = _late_start(checkpoint.pipeline.scheduler, mean, noise, settings.steps)
        else:
            start = _Start(mean + checkpoint.mean_noise * noise, settings.steps)
    return _run(checkpoint, direction, np.repeat(images, settings.samples, axis=0), settings, start, on_step)


LATE_START = 200
"""Timestep of 1000 at which a denoiser that was trained from pure noise alone starts from the fast translation."""


def _late_start(scheduler, mean, noise, steps: int) -> _Start:
    """A diffusion that starts at timestep `LATE_START` from noised `mean` (B, C, h, w).

    The rest of the schedule is as trained (Meng et al., SDEdit, arXiv 2108.01073).
    """
    betas = scheduler.betas[: LATE_START + 1]
    late = type(scheduler).from_config(
        scheduler.config, trained_betas=betas.tolist(), num_train_timesteps=len(betas), rescale_betas_zero_snr=False
    )
    kept = late.alphas_cumprod[-1]
    return _Start(kept.sqrt() * mean + (1 - kept).sqrt() * noise, steps, late)


def _run(
    checkpoint: Checkpoint,
    direction: str,
    images: np.ndarray,
    settings: Settings,
    start: _Start,
    on_step: OnStep | None = None,
    output_type: str = "np",
):
    """Call the pipeline on images or hints (B, S, S, 3) in [0, 1]."""
    import torch

    pipeline = checkpoint.pipeline
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    arguments = {
        "prompt": [prompt_for(direction, settings.contrast)] * len(images),
        "image": torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device, dtype),
        "latents": start.latents.to(device, dtype),
        "num_inference_steps": start.steps,
        "guidance_scale": settings.guidance,
        "output_type": output_type,
        "callback_on_step_end": _callback(on_step, start.steps) if on_step else None,
    }
    if direction == "contour2mr":
        arguments["controlnet_conditioning_scale"] = float(settings.control)
    else:
        arguments["image_guidance_scale"] = settings.image_guidance
    part = reader(pipeline)
    trained, own = pipeline.scheduler, getattr(pipeline, part)
    pipeline.scheduler = start.scheduler or trained
    if settings.speed == "sharp":
        setattr(pipeline, part, checkpoint.sharp)
    try:
        with half_precision(device):
            made = pipeline(**arguments).images
    finally:
        pipeline.scheduler = trained
        setattr(pipeline, part, own)
    if output_type == "latent":
        return made
    made = np.asarray(made, np.float32)
    _check_made(checkpoint, images, made)
    return made


def _check_made(checkpoint: Checkpoint, images: np.ndarray, made: np.ndarray) -> None:
    """Raise CheckpointError for what only damaged weights make of images (B, S, S, 3): no numbers, or one grey."""
    shows = (images > 0.1).mean(axis=(1, 2, 3)) > 0.05
    if not np.isfinite(made).all() or (np.ptp(made, axis=(1, 2, 3))[shows] == 0).any():
        raise CheckpointError(
            f"The checkpoint {name_of(checkpoint.source)} makes no picture: its weights are damaged. Train or download "
            "it again."
        )


def with_mirror(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """The mean of what `run` makes of model images (B, S, S, 3) and of their mirror images, turned back."""
    straight, mirrored = np.split(run(np.concatenate([images, images[:, :, ::-1]])), 2)
    return (straight + mirrored[:, :, ::-1]) / 2


def _latent_shape(checkpoint: Checkpoint) -> tuple[int, int, int]:
    side = checkpoint.pipeline.unet.config.sample_size
    return checkpoint.pipeline.vae.config.latent_channels, side, side


def _noise(checkpoint: Checkpoint, settings: Settings):
    """Noise (samples, C, h, w) that depends on the seed alone."""
    import torch

    seeds = [(settings.seed + i) % (MAX_SEED + 1) for i in range(settings.samples)]
    shape = (1, *_latent_shape(checkpoint))
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


def _callback(on_step: OnStep, steps: int):
    import torch

    def call(pipeline, step: int, timestep, values: dict) -> dict:
        def preview() -> np.ndarray:
            latents = values["latents"][:1] / pipeline.vae.config.scaling_factor
            with torch.no_grad(), half_precision(latents.device):
                image = pipeline.vae.decode(latents).sample.float()
            return pipeline.image_processor.postprocess(image, output_type="np")[0]

        on_step(step + 1, steps, preview)
        return {}

    return call
