"""Translate a slice: slice in, slice out, on the slice's own grid and in HU or MR units."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mediffuse.directions import modalities, prompt_for
from mediffuse.image.contours import Thresholds, contour_hint
from mediffuse.image.intensity import AIR_HU, MR_OUTPUT_LIMITS, clear_air, decode, decode_ct, encode
from mediffuse.image.letterbox import Letterbox
from mediffuse.scan import Slice
from mediffuse.translate.checkpoints import Checkpoint, CheckpointError, Checkpoints

DEFAULT_SIZE = 256
SPEEDS = ("fast", "diffusion")
MAX_SEED = 2**31 - 1

OnStep = Callable[[int, int, Callable[[], np.ndarray]], None]
"""Called after each step with (step from 1, steps, function that decodes the first sample to a
model image (S, S, 3)). What it raises ends the run."""


@dataclass(frozen=True)
class Settings:
    """How to translate.

    speed: "fast", one deterministic step, or "diffusion", `steps` steps from noise of `seed`.
    guidance, image_guidance: classifier-free guidance scales; 1 is off. samples: drawn with seeds
    seed, seed + 1, ... contrast: "T1" or "T2", of the MRI. control: strength of the contours.
    mirror: "fast" is the mean of a slice's and its mirror image's translation.
    Raises ValueError for values out of range.
    """

    speed: str = "fast"
    steps: int = 20
    guidance: float = 1.0
    image_guidance: float = 1.0
    seed: int = 0
    samples: int = 1
    contrast: str = "T1"
    control: float = 1.0
    mirror: bool = True

    def __post_init__(self) -> None:
        if self.speed not in SPEEDS:
            raise ValueError(f"Speed is {' or '.join(SPEEDS)}, not {self.speed!r}.")
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


class Translator:
    """Translates slices with the checkpoints of `Checkpoints`, loaded when first used."""

    def __init__(self, checkpoints: Checkpoints | None = None) -> None:
        self.checkpoints = checkpoints or Checkpoints()
        # A pipeline keeps its scheduler's state: one run at a time.
        self._lock = threading.Lock()

    def translate(
        self,
        one: Slice,
        direction: str,
        settings: Settings | None = None,
        thresholds: Thresholds | None = None,
        on_step: OnStep | None = None,
    ) -> Translation:
        """Translate a slice. Raises CheckpointError if its checkpoint cannot be used."""
        settings = settings or Settings()
        checkpoint = self.checkpoints.get(direction)
        started = time.perf_counter()
        box = one.letterbox(checkpoint.size)
        made = self.generate(direction, to_model_image(one, box)[None], settings, thresholds, on_step)
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
        """`generate` with the checkpoint for a direction, one run at a time."""
        checkpoint = self.checkpoints.get(direction)
        with self._lock:
            return generate(checkpoint, direction, images, settings, thresholds, on_step)

    def hint(self, one: Slice, thresholds: Thresholds) -> np.ndarray:
        """The contours (S, S, 3), uint8, that the contour model would get. Runs no model."""
        try:
            size = self.checkpoints.get("contour2mr").size
        except CheckpointError:
            size = DEFAULT_SIZE
        return contour_hint(decode_ct(to_model_image(one, one.letterbox(size))), thresholds)


def to_model_image(one: Slice, box: Letterbox) -> np.ndarray:
    """A slice as the model image (S, S, 3) that training saw. Slice in HU or MR units."""
    return encode(box.fit(one.pixels, one.background), one.modality, one.limits)


def to_slice(image: np.ndarray, modality: str, box: Letterbox) -> np.ndarray:
    """A made model image (S, S, 3) as HU or MR (rows, columns) on the slice's grid; air outside `box`."""
    return box.restore(decode(image, modality), AIR_HU if modality == "CT" else MR_OUTPUT_LIMITS[0])


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
    import torch

    fast = settings.speed == "fast"
    if fast and settings.mirror:
        plain = replace(settings, mirror=False)
        made = with_mirror(lambda both: generate(checkpoint, direction, both, plain, thresholds, on_step), images)
        return clear_air(made) if direction == "mr2ct" else made
    pipeline, count = checkpoint.pipeline, settings.samples
    if fast and not checkpoint.one_step:
        raise CheckpointError(
            f"The checkpoint {checkpoint.source} was not trained for one step (v-prediction with zero "
            "terminal SNR). Choose the speed Diffusion."
        )
    if fast:
        count = 1
    steps = 1 if fast else settings.steps
    latents = _noise(checkpoint, settings, count, zero=fast).repeat(len(images), 1, 1, 1)
    if direction == "contour2mr":
        hints = [contour_hint(decode_ct(image), thresholds or checkpoint.thresholds) for image in images]
        images = np.stack(hints).astype(np.float32) / 255
    batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).repeat_interleave(count, 0)
    device, dtype = pipeline.unet.device, pipeline.unet.dtype
    common = {
        "prompt": [prompt_for(direction, settings.contrast)] * len(batch),
        "image": batch.to(device, dtype),
        "latents": latents.to(device, dtype),
        "num_inference_steps": steps,
        # One step from zero latents is trained without guidance.
        "guidance_scale": 1.0 if fast else settings.guidance,
        "output_type": "np",
        "callback_on_step_end": _callback(on_step, steps) if on_step else None,
    }
    if direction == "contour2mr":
        made = pipeline(controlnet_conditioning_scale=float(settings.control), **common)
    else:
        made = pipeline(image_guidance_scale=1.0 if fast else settings.image_guidance, **common)
    images = np.asarray(made.images, np.float32)
    return clear_air(images) if direction == "mr2ct" else images


def with_mirror(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """The mean of what `run` makes of model images (B, S, S, 3) and of their mirror images, turned back."""
    straight, mirrored = np.split(run(np.concatenate([images, images[:, :, ::-1]])), 2)
    return (straight + mirrored[:, :, ::-1]) / 2


def _noise(checkpoint: Checkpoint, settings: Settings, count: int, zero: bool):
    """Latents to start from (count, C, h, w): zeros, or noise that depends on the seed alone."""
    import torch

    side = checkpoint.pipeline.unet.config.sample_size
    shape = (1, checkpoint.pipeline.vae.config.latent_channels, side, side)
    if zero:
        return torch.zeros(shape)
    seeds = [(settings.seed + i) % (MAX_SEED + 1) for i in range(count)]
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in seeds])


def _callback(on_step: OnStep, steps: int):
    import torch

    def call(pipeline, step: int, timestep, values: dict) -> dict:
        def preview() -> np.ndarray:
            latents = values["latents"][:1] / pipeline.vae.config.scaling_factor
            with torch.no_grad():
                image = pipeline.vae.decode(latents).sample
            return pipeline.image_processor.postprocess(image, output_type="np")[0]

        on_step(step + 1, steps, preview)
        return {}

    return call
