"""What the trainers share: options, data, the training loop, checkpoints and logs."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from mediffuse import machine
from mediffuse.dataset import DatasetError, central_rows, read_pair, read_rows, rows_for
from mediffuse.evaluate.predict import Predict, predictor
from mediffuse.evaluate.score import score_rows
from mediffuse.evaluate.summary import summarise
from mediffuse.image.contours import Thresholds, contour_hint
from mediffuse.image.intensity import CT_WINDOWS, decode_ct, encode_ct
from mediffuse.translate import Settings, checkpoints
from train import augment

SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}
"""Stable Diffusion's schedule, with the trailing timesteps of Lin et al., arXiv 2305.08891."""


@dataclass
class Options:
    """Options of every trainer. Values come from defaults, then --config, then the command line."""

    data: Path = Path("data/mini")  # what train/prepare.py wrote
    output: Path = Path("runs/out")  # checkpoints, logs and the final model
    steps: int = 1000  # optimiser steps
    batch_size: int = 8  # per process
    gradient_accumulation: int = 1
    learning_rate: float = 1e-4  # peak; half a cosine to zero after warmup
    warmup: int = 100  # steps of linear warmup
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999  # decay of the averaged weights, which are the ones saved
    mixed_precision: str = "no"  # no, fp16 or bf16
    augment: bool = True
    ct_windows: int = 3  # 1: the full range alone, to compare with; the app has no such mode
    weights: dict = field(default_factory=dict)  # sampling weight by "source/plane", "source" or plane; default 1
    seed: int = 0
    workers: int = 1  # data loader processes
    checkpoint_every: int = 500  # steps between resumable checkpoints
    keep_checkpoints: int = 2  # the newest that are kept
    resume: bool = True  # go on from the newest checkpoint in output
    validate_every: int = 500  # steps between validations on the val split; 0: only at the end
    validate_images: int = 18  # val patients, one central slice of each
    validate_speed: str = "fast"  # or diffusion, which takes longer
    log_every: int = 10


def parse_options(cls: type[Options], section: str, argv: list[str] | None, doc: str) -> Options:
    """Options from `--config FILE` (its `common` and `section` parts) and the command line.

    Lists and mappings are given as YAML; a mapping is merged over the config's.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file, e.g. train/configs/mini.yaml")
    hints = {f.name: f for f in dataclasses.fields(cls)}
    for name in hints:
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name, type=yaml.safe_load)
    given = vars(parser.parse_args(argv))
    config = given.pop("config")
    values = {}
    if config:
        parts = yaml.safe_load(config.read_text())
        values = {**parts.get("common", {}), **parts.get(section, {})}
        unknown = set(values) - set(hints)
        # `common` may hold what another trainer needs; a section may not.
        unknown &= set(parts.get(section, {}))
        if unknown:
            parser.error(f"{config}: {section} has no option {', '.join(sorted(unknown))}")
        values = {k: v for k, v in values.items() if k in hints}
    for name, value in given.items():
        if value is not None:
            merge = isinstance(value, dict) and isinstance(values.get(name), dict)
            values[name] = {**values[name], **value} if merge else value
    defaults = cls()
    for name, value in values.items():
        default = getattr(defaults, name)
        if "Path" in hints[name].type:
            values[name] = Path(value) if value else None
        elif isinstance(default, str):
            values[name] = "no" if value is False else str(value)  # YAML reads a bare no as false
        elif isinstance(default, bool):
            values[name] = bool(value)
        elif isinstance(default, (int, float)):
            values[name] = type(default)(float(value))
    return cls(**values)


class PairDataset(Dataset):
    """Training samples without end: item n is drawn and augmented from (seed, n) alone.

    So a resumed run sees what an unbroken one would have seen. Items are dicts of float32
    arrays (3, S, S): input and target in [-1, 1], hint in [0, 1] for contours; and the prompt.
    """

    def __init__(
        self,
        data: Path,
        split: str,
        directions: tuple[str, ...],
        *,
        seed: int = 0,
        augmented: bool = True,
        weights: dict | None = None,
        thresholds: Thresholds | None = None,
        ct_windows: int = 3,
        length: int = 1 << 40,
    ) -> None:
        self.folder, self.seed, self.augmented, self.length = Path(data) / split, seed, augmented, length
        self.thresholds, self.ct_windows = thresholds or Thresholds(), ct_windows
        self.rows = list(rows_for(read_rows(self.folder), directions))
        if not self.rows:
            raise DatasetError(f"{self.folder} has no pairs for {', '.join(directions)}. Run train/prepare.py first.")
        weight = np.array([_weight(row, weights or {}) for row in self.rows], float)
        self.shares = weight / weight.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, item: int) -> dict:
        rng = np.random.default_rng([self.seed, item])
        row = self.rows[rng.choice(len(self.rows), p=self.shares)]
        source, target, _ = read_pair(self.folder, row)
        is_ct = row["direction"] != "mr2ct"
        thresholds = self.thresholds
        if self.augmented:
            field_ = augment.warp_field(source.shape[0], rng)
            source, target = augment.warp(source, field_), augment.warp(target, field_)
            if rng.random() < 0.1:
                augment.cut_off([source, target], rng)
            source = (augment.jitter_ct if is_ct else augment.jitter_mr)(source, rng)
            thresholds = _jitter(thresholds, rng)
        if self.ct_windows == 1:
            source, target = (single_window(source), target) if is_ct else (source, single_window(target))
        sample = {"input": to_tensor(source), "target": to_tensor(target), "prompt": row["edit_prompt"]}
        if row["direction"] == "contour2mr":
            sample["hint"] = np.ascontiguousarray(
                contour_hint(decode_ct(source), thresholds).transpose(2, 0, 1)
            ) / np.float32(255)
        return sample


def training_pairs(options: Options, directions: list[str], thresholds: Thresholds | None = None) -> PairDataset:
    """The samples that the options ask a trainer to learn from."""
    return PairDataset(
        options.data,
        "train",
        tuple(directions),
        seed=options.seed,
        augmented=options.augment,
        weights=options.weights,
        thresholds=thresholds,
        ct_windows=options.ct_windows,
    )


def single_window(image: np.ndarray) -> np.ndarray:
    """A CT model image (S, S, 3) with its full window in every channel."""
    return np.repeat(image[..., :1], 3, axis=-1)


def _jitter(thresholds: Thresholds, rng: np.random.Generator) -> Thresholds:
    """Users drag the thresholds: train on a neighbourhood of the defaults."""
    return dataclasses.replace(
        thresholds,
        **{
            name: tuple(np.array(getattr(thresholds, name)) * np.exp(rng.normal(0, 0.2)))
            for name in ("bone", "tissue", "brain")
        },
    )


def to_tensor(image: np.ndarray) -> np.ndarray:
    """Model image (S, S, 3) in [0, 1] to a network's input (3, S, S) in [-1, 1]."""
    return np.ascontiguousarray(image.transpose(2, 0, 1)) * np.float32(2) - np.float32(1)


def _weight(row: dict, weights: dict) -> float:
    for key in (f"{row['source']}/{row['plane']}", row["source"], row["plane"]):
        if key in weights:
            return float(weights[key])
    return 1.0


class Run:
    """A resumable, distributed training run.

    A trainer adds `objective`, a module whose forward(batch, generator) is the loss and whose
    trained parts require gradients; `validate() -> dict of figures`, called with the averaged
    weights in place; and `save(folder)`.
    """

    def __init__(self, options: Options, objective: torch.nn.Module) -> None:
        self.options = options
        options.output.mkdir(parents=True, exist_ok=True)
        precision = options.mixed_precision
        cpu = not torch.cuda.is_available()
        if cpu and precision == "bf16" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
            # emulated: 43 s a step of the autoencoder on two AVX2 cores, and 1.3 s in full precision
            print("This processor has no bfloat16: training goes on in full precision.", file=sys.stderr)
            precision = "no"
        self.accelerator = Accelerator(
            mixed_precision=precision,
            gradient_accumulation_steps=options.gradient_accumulation,
            log_with="tensorboard",
            project_config=ProjectConfiguration(str(options.output), logging_dir=str(options.output / "logs")),
        )
        set_seed(options.seed)
        parameters = [p for p in objective.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=options.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(objective, optimizer)
        self.parameters = parameters
        self.ema = EMAModel(parameters, decay=options.ema_decay, min_decay=0.0)
        self.ema.to(self.accelerator.device)
        self.accelerator.register_for_checkpointing(self.ema)
        # Now: the code may change while this runs.
        self.commit = _commit()
        self.elapsed = 0.0  # seconds of training, of resumed runs too
        self.peak_memory = 0.0  # MiB

    def fit(
        self,
        dataset: Dataset,
        validate: Callable[[], dict],
        save: Callable[[Path], None],
    ) -> None:
        """Train to `options.steps`, then save the averaged weights with `save(output)`."""
        o, accelerator = self.options, self.accelerator
        step = self._resume() if o.resume else 0
        per_step = o.batch_size * o.gradient_accumulation * accelerator.num_processes
        if accelerator.is_main_process:
            self._describe()
            for name in ("log.csv", "validation.csv") if step == 0 else ():
                (o.output / name).unlink(missing_ok=True)  # of a run before this one
        accelerator.init_trackers("mediffuse")
        remaining = Subset(dataset, range(step * per_step, o.steps * per_step))
        loader = accelerator.prepare(
            DataLoader(remaining, o.batch_size, num_workers=o.workers, drop_last=True, persistent_workers=o.workers > 0)
        )
        bar = tqdm(total=o.steps, initial=step, disable=not accelerator.is_main_process, desc=str(o.output))
        started, losses = time.perf_counter() - self.elapsed, []
        for batch in loader:
            if step >= o.steps:
                break
            seed = (o.seed, step, len(losses), accelerator.process_index)
            generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
            with accelerator.accumulate(self.model):
                with accelerator.autocast():
                    value = self.model(batch, generator)
                accelerator.backward(value)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(self.parameters, o.max_grad_norm)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.rate(step)
                self.optimizer.step()
                self.optimizer.zero_grad()
            losses.append(value.detach())
            if not accelerator.sync_gradients:
                continue
            step += 1
            self.ema.step(self.parameters)
            mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            losses = []
            if not math.isfinite(mean):
                raise SystemExit(
                    f"The loss is {mean} at step {step}. Lower --learning-rate, or use --mixed-precision no."
                )
            bar.update()
            bar.set_postfix(loss=f"{mean:.4f}")
            self.elapsed = time.perf_counter() - started
            if step % o.log_every == 0 or step == o.steps:
                self._log("log.csv", step, loss=mean, rate=self.rate(step), seconds=self.elapsed)
            if step < o.steps and o.validate_every and step % o.validate_every == 0:
                self._validate(validate, step)
            if step % o.checkpoint_every == 0 or step == o.steps:
                self._checkpoint(step)
        bar.close()
        self.ema.copy_to(self.parameters)
        if accelerator.is_main_process:
            save(o.output)
            self._log("validation.csv", step, **validate())
        accelerator.wait_for_everyone()
        accelerator.end_training()

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warmup, then half a cosine to 0."""
        o = self.options
        if step < o.warmup:
            return o.learning_rate * (step + 1) / o.warmup
        share = (step - o.warmup) / max(1, o.steps - o.warmup)
        return o.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def _validate(self, validate: Callable[[], dict], step: int) -> None:
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        if self.accelerator.is_main_process:
            self._log("validation.csv", step, **validate())
        self.ema.restore(self.parameters)
        self.accelerator.wait_for_everyone()

    def _log(self, name: str, step: int, **values: float) -> None:
        if not values:
            return
        self.accelerator.log(values, step=step)
        if not self.accelerator.is_main_process:
            return
        path = self.options.output / name
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", *values])
            writer.writerow([step, *(f"{v:.6g}" for v in values.values())])
        if name == "validation.csv":
            tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))

    def _checkpoints(self) -> list[Path]:
        found = self.options.output.glob("checkpoint-*")
        return sorted((p for p in found if (p / "step.json").exists()), key=lambda p: int(p.name.split("-")[1]))

    def _checkpoint(self, step: int) -> None:
        folder = self.options.output / f"checkpoint-{step}"
        self.accelerator.save_state(str(folder))
        if self.accelerator.is_main_process:
            # Written last: a checkpoint without it was cut short and is not resumed from.
            self.peak_memory = max(self.peak_memory, machine.peak_mib())
            state = {"step": step, "seconds": self.elapsed, "peak_memory_mib": self.peak_memory}
            (folder / "step.json").write_text(json.dumps(state))
            for old in self._checkpoints()[: -self.options.keep_checkpoints]:
                shutil.rmtree(old)

    def _resume(self) -> int:
        found = self._checkpoints()
        if not found:
            return 0
        self.accelerator.load_state(str(found[-1]))
        self.ema.to(self.accelerator.device)  # loaded to the CPU
        state = json.loads((found[-1] / "step.json").read_text())
        step = state["step"]
        self.elapsed, self.peak_memory = state.get("seconds", 0.0), state.get("peak_memory_mib", 0.0)
        self.accelerator.print(f"Resuming from {found[-1]} at step {step}.")
        return step

    def _describe(self) -> None:
        """Write the command, commit, data hash and options beside the checkpoints."""
        text = yaml.safe_dump({k: _plain(v) for k, v in dataclasses.asdict(self.options).items()}, sort_keys=False)
        (self.options.output / "options.yaml").write_text(text)
        (self.options.output / "training.json").write_text(json.dumps(self.provenance(), indent=2) + "\n")

    def provenance(self) -> dict:
        """How this run was made, for model cards."""
        device = self.accelerator.device
        return {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "commit": self.commit,
            "data_sha256": data_sha256(self.options.data),
            "seed": self.options.seed,
            "steps": self.options.steps,
            "batch_size": self.options.batch_size * self.options.gradient_accumulation * self.accelerator.num_processes,
            "parameters": sum(p.numel() for p in self.parameters),
            "seconds": round(self.elapsed),
            "peak_memory_mib": round(self.peak_memory),
            "hardware": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{torch.get_num_threads()} CPU cores",
            "processes": self.accelerator.num_processes,
        }


def data_sha256(data: Path) -> str | None:
    """Hash of the train split's metadata, which names every picture; None where there is none."""
    path = data / "train" / "metadata.jsonl"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def _commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else None


def _plain(value):
    return str(value) if isinstance(value, Path) else value


@torch.no_grad()
def validate(predict_for: Callable[[str], Predict], options: Options, directions) -> dict:
    """PSNR and SSIM by protocol "paper" on central axial T1 pairs of the val split, where it has some."""
    figures, folder = {}, options.data / "val"
    for direction in directions:
        rows = list(rows_for(read_rows(folder), (direction,))) if (folder / "metadata.jsonl").is_file() else []
        if not rows or not options.validate_images:
            continue
        results = score_rows(folder, central_rows(rows)[: options.validate_images], predict_for(direction))
        means = next(s for s in summarise(results) if s["protocol"] == "paper")
        figures[f"{direction}_psnr"], figures[f"{direction}_ssim"] = means["psnr"], means["ssim"]
    return figures


def validate_pipeline(pipeline, options: Options, directions, thresholds: Thresholds | None = None) -> dict:
    """`validate` of a pipeline, by the very function that the app runs, but without mirror images."""
    checkpoint = checkpoints.describe(pipeline)
    settings = Settings(speed=options.validate_speed, mirror=False)
    training = {name: part.training for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    for name in training:
        getattr(pipeline, name).eval()

    def predict_for(direction: str) -> Predict:
        predict = predictor(checkpoint, direction, settings, thresholds)
        return predict if options.ct_windows == 3 else _of_single_window(predict)

    figures = validate(predict_for, options, directions)
    for name, was in training.items():
        getattr(pipeline, name).train(was)
    return figures


def _of_single_window(predict: Predict) -> Predict:
    """A model of single-window CT images as one of the three-window ones that are scored."""

    def run(source: np.ndarray, row: dict) -> np.ndarray:
        if row["direction"] != "mr2ct":
            return predict(single_window(source), row)
        low, high = CT_WINDOWS["full"]
        return np.stack([encode_ct(low + (high - low) * image.mean(-1)) for image in predict(source, row)])

    return run


def write_details(folder: Path, run: Run, base: str | Path | None = None, **details) -> None:
    """Write mediffuse.json and training.csv beside a model: how it was trained, and `details`.

    `base` is the checkpoint that it went on from; what that says of its own training is kept.
    """
    before = checkpoints.details(str(base)) if base else {}
    earlier = [*before.get("earlier", ()), *([before["training"]] if "training" in before else [])]
    training = {"stage": run.options.output.as_posix().removeprefix("runs/"), **run.provenance()}
    text = json.dumps({**details, "training": training, "earlier": earlier}, indent=2)
    (folder / checkpoints.DETAILS).write_text(text + "\n")
    with (folder / checkpoints.LOSSES).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["stage", "step", "loss"])
        old = checkpoints.find_file(str(base), checkpoints.LOSSES) if base else None
        if old:
            writer.writerows(list(csv.reader(old.open()))[1:])
        # A resumed run logs some steps twice: the later is what counts.
        losses = {row["step"]: row["loss"] for row in csv.DictReader((run.options.output / "log.csv").open())}
        writer.writerows([training["stage"], step, loss] for step, loss in losses.items())


def weighted_windows(weights: list) -> torch.Tensor:
    """Loss weights of the colour channels, i.e. of the HU windows, as (3, 1, 1) of mean 1."""
    values = torch.tensor(weights, dtype=torch.float32)
    return (values / values.mean())[:, None, None]


def enter(main: Callable[[], None]) -> None:
    """Run a trainer's main; errors that are the user's to mend end it without a traceback."""
    try:
        main()
    except DatasetError as error:
        raise SystemExit(f"error: {error}") from error


def schedule(prediction: str = "v_prediction") -> DDIMScheduler:
    """The noise schedule of training and of the saved pipelines.

    "v_prediction" with zero terminal SNR (Lin et al., arXiv 2305.08891); "epsilon" with Stable
    Diffusion's own, for it cannot predict without a signal.
    """
    return DDIMScheduler(prediction_type=prediction, rescale_betas_zero_snr=prediction == "v_prediction", **SCHEDULE)
