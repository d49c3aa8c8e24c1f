"""The training loop: distributed and resumable, with checkpoints, logs and a record of how a model was made."""

from __future__ import annotations

import copy
import csv
import dataclasses
import hashlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration, set_seed
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from mediffuse import machine
from mediffuse.dataset import anatomy_of, read_rows, shared_patients
from mediffuse.directions import ANATOMIES
from mediffuse.translate import checkpoints
from train import card, compute, hub, sharding
from train.options import OptionError, Options
from train.pairs import data_sha256
from train.states import States

TRAINED = "trained.safetensors"
"""File in a checkpoint with the weights that are trained."""

SKIPPED = 10
"""Steps in a row without finite gradients after which a run stops; fp16 begins with some of them."""


class Run:
    """A resumable, distributed training run.

    A trainer adds `objective`, a module whose forward(batch, generator) is the loss and whose
    trained parts require gradients, and whose `uneven`, if it has that and it is true, tells that what is
    computed differs from batch to batch; `validate() -> dict of figures`, called with the averaged weights
    in place; and `save(folder)`.
    """

    def __init__(self, options: Options, objective: torch.nn.Module) -> None:
        self.options = options
        if options.patience and not (options.best and options.validate_every):
            raise OptionError("patience needs best, the figure that is judged by, and validate_every.")
        if options.best and not options.validate_images:
            raise OptionError("best needs validations: give validate_images above 0.")
        compute.refuse_others_sharding()
        cuda = torch.cuda.is_available()
        if cuda:
            # What is not in half precision may use TF32. cuDNN's benchmark stays off: the parts of a batch of
            # train/onestep.py have ever other sizes.
            torch.set_float32_matmul_precision("high" if options.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = options.tf32
        self.uneven = getattr(objective, "uneven", False)
        self.accelerator = Accelerator(
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=self.uneven)],
            mixed_precision=compute.precision(options),
            gradient_accumulation_steps=options.gradient_accumulation,
            log_with=compute.trackers(options) or None,
            project_config=ProjectConfiguration(str(options.output), logging_dir=str(options.output / "logs")),
        )
        if options.shard:
            sharding.check(options, self.accelerator.num_processes, self.uneven)
        if options.push_to_hub and self.accelerator.is_main_process:
            hub.prepare(options.push_to_hub)
        set_seed(options.seed)
        self.whole = objective  # what is judged and saved; the same as the model, unless that is sharded
        self.model, self.optimizer = self._prepare(objective)
        self.states = self._open(objective)  # now that nothing is refused any more
        self.parameters = trained_parameters(self.model)
        self.schedule = compute.schedule(options)
        self.averaged = sharding.own_shards(self.parameters) if options.shard else self.parameters
        self.ema = EMAModel(self.averaged, decay=options.ema_decay, min_decay=0.0, foreach=cuda)
        self.ema_device = torch.device("cpu") if options.ema_on_cpu else self.accelerator.device
        self.ema.to(self.ema_device)
        self.accelerator.register_for_checkpointing(self.ema)
        self.accelerator.register_save_state_pre_hook(self._write_trained)
        self.accelerator.register_load_state_pre_hook(self._read_trained)
        self.skipped = 0  # steps in a row
        # Now: the code may change while this runs.
        self.commit = _commit()
        self.stopped = False  # by its patience
        self.steps = options.steps  # of the whole run: fewer once its time limit has ended it
        self.elapsed = 0.0  # seconds of training, of resumed runs too
        self.saved = 0.0  # seconds of training in the newest checkpoint
        self.peak_memory = 0.0  # MiB

    def _prepare(self, objective: torch.nn.Module) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        """The model and its optimiser, of all processes; a sharded one is a copy."""
        options, accelerator = self.options, self.accelerator
        model = copy.deepcopy(objective) if options.shard else objective
        compute.set_up(model, options)
        if options.shard:
            sharding.shard(model, accelerator)
            return model, accelerator.prepare(compute.optimizer(trained_parameters(model), options))
        if accelerator.device.type == "cuda":  # tensor cores want it
            model.to(memory_format=torch.channels_last)
        return accelerator.prepare(model, compute.optimizer(trained_parameters(model), options))

    def fit(
        self,
        dataset: Dataset,
        validate: Callable[[], dict[str, float]],
        save: Callable[[Path], None],
    ) -> None:
        """Train to `options.steps` or `options.time_limit`, then save the averaged weights with `save(output)`."""
        o, accelerator = self.options, self.accelerator
        step = self._resume()
        if accelerator.is_main_process:
            self._describe()
            for name in _of_data(o.data).get("leaking_splits", ()):
                tqdm.write(f"Patients of {o.data / name} are in train, too: figures on it flatter.", file=sys.stderr)
            for name in ("log.csv", "validation.csv") if step == 0 else ():
                (o.output / name).unlink(missing_ok=True)  # of a run before this one
        kept = {"wandb": {"dir": o.output}}
        accelerator.init_trackers("mediffuse", {k: str(v) for k, v in _plain_options(o).items()}, kept)
        self.stopped = self._lost_patience(step)
        bar = tqdm(total=o.steps, initial=step, disable=not accelerator.is_main_process, desc=str(o.output))
        if step and self._due(step) and not _has_row(o.output / "validation.csv", step):
            self._validate(validate, save, step)  # it was cut between the checkpoint and this
        started, losses = time.perf_counter() - self.elapsed, []
        for batch in self._loader(dataset, step):
            if self._over(step):
                break
            losses.append(self._learn(batch, step, len(losses)))
            if not accelerator.sync_gradients:
                continue
            step += 1
            if self.skipped == 0:
                self._average()
            elif self.skipped >= SKIPPED:
                raise SystemExit(
                    f"error: the gradients of {SKIPPED} steps in a row, up to step {step}, are not finite. Lower "
                    "--learning-rate, or use --mixed-precision no; the run goes on from its last checkpoint."
                )
            loss, self.elapsed = self._mean(torch.stack(losses).mean(), time.perf_counter() - started)
            losses = []
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}")
            over = self._over(step)
            if step % o.log_every == 0 or over:
                self._log("log.csv", step, loss=loss, rate=self.rate(step), seconds=self.elapsed)
            late = o.checkpoint_seconds and self.elapsed - self.saved >= o.checkpoint_seconds
            if step % o.checkpoint_every == 0 or late or over or self._due(step):
                self._checkpoint(step)
            if not over and self._due(step):
                self._validate(validate, save, step)
        bar.close()
        self.steps = step
        self.ema.copy_to(self.averaged)
        self._gather()
        if accelerator.is_main_process:
            save(o.output)
            figures = validate()
            self._judge(figures, save, step)
            card.write(o.output, o.data.name, figures)
            if o.push_to_hub:
                hub.push(o.output, o.push_to_hub)
        accelerator.wait_for_everyone()
        accelerator.end_training()

    def _loader(self, dataset: Dataset, step: int) -> DataLoader:
        """The batches that this process sees from `step` on."""
        o = self.options
        per_step = o.batch_size * o.gradient_accumulation * self.accelerator.num_processes
        remaining = Subset(dataset, range(step * per_step, o.steps * per_step))
        return self.accelerator.prepare(
            DataLoader(remaining, o.batch_size, num_workers=o.workers, drop_last=True, persistent_workers=o.workers > 0)
        )

    def _learn(self, batch, step: int, number: int) -> torch.Tensor:
        """Learn from the batch of a `number` within its step; its loss ()."""
        o, accelerator = self.options, self.accelerator
        seed = (o.seed, step, number, accelerator.process_index)
        drawn = int(np.random.SeedSequence(seed).generate_state(1)[0])
        generator = torch.Generator().manual_seed(drawn)
        torch.manual_seed(drawn)  # dropout's
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                loss = self.model(batch, generator)
            accelerator.backward(loss)
            finite = True
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.parameters, o.max_grad_norm)
                finite = math.isfinite((norm.full_tensor() if o.shard else norm).item())
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(step)
            if finite or accelerator.scaler:  # the scaler skips such steps itself, and learns from them
                self.optimizer.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients:
            self.skipped = 0 if finite else self.skipped + 1
            if not finite:
                tqdm.write(f"step {step + 1}: the gradients are not finite, so it is skipped", file=sys.stderr)
        return loss.detach()

    def _mean(self, loss: torch.Tensor, seconds: float) -> tuple[float, float]:
        """Loss () and seconds as means of all processes, which so agree on when their time is over."""
        both = torch.stack([loss.float(), loss.new_tensor(seconds, dtype=torch.float32)])
        return tuple(self.accelerator.reduce(both, "mean").tolist())

    def _average(self) -> None:
        """A step of the averaged weights; those on the CPU visit the GPU for it."""
        self.ema.to(self.accelerator.device)
        self.ema.step(self.averaged)
        self.ema.to(self.ema_device)

    def _time_share(self) -> float:
        """Share of the time limit that has passed; 0 where there is none."""
        return self.elapsed / self.options.time_limit if self.options.time_limit else 0.0

    def _over(self, step: int) -> bool:
        return step >= self.options.steps or self._time_share() >= 1 or self.stopped

    def rate(self, step: int) -> float:
        """Learning rate at a step, by the schedule that the options name."""
        return self.schedule(step, self._time_share())

    def _validate(self, validate: Callable[[], dict], save: Callable[[Path], None], step: int) -> None:
        self.ema.store(self.averaged)
        self.ema.copy_to(self.averaged)
        self._gather()
        if self.accelerator.is_main_process:
            self._judge(validate(), save, step)
        if self.options.shard:
            self.whole.cpu()
        self.ema.restore(self.averaged)
        self.accelerator.wait_for_everyone()
        self.stopped = self._lost_patience(step)

    def _gather(self) -> None:
        """Give what is judged and saved the model's weights, if they are sharded."""
        if self.options.shard:
            sharding.gather(self.model, self.whole, self.accelerator)

    def _judge(self, figures: dict, save: Callable[[Path], None], step: int) -> None:
        """Log the figures of a validation, and keep the model where it is the best so far."""
        name = self.options.best
        if name:
            before = self._judged(step - 1)
            if not before or _goodness(name, figures[name]) > max(before.values()):
                save(self.options.output / "best")
                card.write(self.options.output / "best", self.options.data.name, figures)
        self._log("validation.csv", step, **figures)

    def _judged(self, step: int) -> dict[int, float]:
        """How good the model was at its validations up to `step`, more being better."""
        path, name = self.options.output / "validation.csv", self.options.best
        rows = csv.DictReader(path.open()) if path.is_file() else []
        return {int(row["step"]): _goodness(name, float(row[name])) for row in rows if int(row["step"]) <= step}

    def _lost_patience(self, step: int) -> bool:
        """Whether `patience` validations up to `step` were no better than one before; the first process knows."""
        o = self.options
        if not (o.patience and o.best and step):
            return False
        judged = self._judged(step) if self.accelerator.is_main_process else {}
        best = max(judged, key=lambda at: (judged[at], -at), default=step)
        late = torch.tensor(float(sum(at > best for at in judged) >= o.patience), device=self.accelerator.device)
        return bool(self.accelerator.reduce(late, "sum"))

    def _log(self, name: str, step: int, **values: float) -> None:
        pictures = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
        values = {name: value for name, value in values.items() if name not in pictures}
        if not values:
            return
        self.accelerator.log(values, step=step)
        for tracker in self.accelerator.trackers if pictures else ():
            tracker.log_images(pictures, step, **({"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}))
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

    def _due(self, step: int) -> bool:
        """Whether a validation follows a step."""
        return bool(self.options.validate_every) and step % self.options.validate_every == 0

    def _open(self, objective: torch.nn.Module) -> States:
        """The checkpoints in the output folder. Raises SystemExit if they are of another run."""
        o = self.options
        identity = {
            "options": _plain_options(o),
            "data_sha256": data_sha256(o.data),
            "frozen_weights_sha256": _sha256([p for p in objective.parameters() if not p.requires_grad]),
            "processes": self.accelerator.num_processes,
        }
        states = States(o.output, identity, _plain_options(type(o)()))
        if self.accelerator.is_main_process:
            o.output.mkdir(parents=True, exist_ok=True)
            if o.overwrite:
                states.remove()
        self.accelerator.wait_for_everyone()
        states.refuse_others()
        return states

    def _checkpoint(self, step: int) -> None:
        self.saved = self.elapsed
        self.peak_memory = max(self.peak_memory, machine.peak_mib())
        state = {"seconds": self.elapsed, "peak_memory_mib": self.peak_memory, "skipped": self.skipped}
        main, wait = self.accelerator.is_main_process, self.accelerator.wait_for_everyone
        self.states.write(step, state, self._write_state, main, wait)
        if main:
            self.states.rotate(step, self.options.keep_checkpoints)

    def _resume(self) -> int:
        say = self.accelerator.print
        state = self.states.load(self._read_state, say)
        if not state:
            return 0
        self.ema.to(self.ema_device)  # loaded to the CPU
        self.elapsed, self.peak_memory = state.get("seconds", 0.0), state.get("peak_memory_mib", 0.0)
        self.saved, self.skipped = self.elapsed, state.get("skipped", 0)
        before = state.get("identity", {}).get("options", {}).get("steps", self.options.steps)
        if before != self.options.steps:
            say(f"steps was {before} and is {self.options.steps}: the learning rate goes on as these want it.")
        return state["step"]

    def _write_state(self, folder: Path) -> None:
        if self.options.shard:
            self._shard().write(folder)
        else:
            self.accelerator.save_state(str(folder))

    def _read_state(self, folder: Path) -> None:
        if self.options.shard:
            self._shard().read(folder)
        else:
            self.accelerator.load_state(str(folder))

    def _shard(self) -> sharding.Shard:
        tensors = [*self.averaged, *self.model.buffers()]
        return sharding.Shard(self.accelerator, tensors, self.optimizer, self.ema)

    def _trained(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds of the model: all but the frozen parts, which come from where they came from."""
        model = self.accelerator.unwrap_model(self.model)
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        return {name: value for name, value in model.state_dict().items() if name not in frozen}

    def _write_trained(self, models: list, weights: list, folder: str) -> None:
        weights.clear()
        if self.accelerator.is_main_process:
            save_file({k: v.contiguous() for k, v in self._trained().items()}, Path(folder) / TRAINED)

    def _read_trained(self, models: list, folder: str) -> None:
        models.clear()
        saved, own = load_file(Path(folder) / TRAINED), self._trained()
        if saved.keys() != own.keys():
            raise ValueError(f"{folder} has other weights than are trained.")
        self.accelerator.unwrap_model(self.model).load_state_dict(saved, strict=False)

    def _describe(self) -> None:
        """Write the command, commit, data hash and options beside the checkpoints."""
        text = yaml.safe_dump(_plain_options(self.options), sort_keys=False)
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
            "steps": self.steps,
            "batch_size": self.options.batch_size * self.options.gradient_accumulation * self.accelerator.num_processes,
            "parameters": sum(p.numel() for p in self.parameters),
            "seconds": round(self.elapsed),
            "peak_memory_mib": round(self.peak_memory),
            "hardware": torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{torch.get_num_threads()} CPU cores",
            "processes": self.accelerator.num_processes,
        }


def write_details(folder: Path, run: Run, *bases: str | Path | None, **details) -> None:
    """Write mediffuse.json and training.csv beside a model: how it was trained, and `details`.

    `bases` are the checkpoints that it went on from; what they say of their own training is kept.
    """
    bases = [str(base) for base in bases if base]
    earlier = []
    for before in map(checkpoints.details, bases):
        stages = [*before.get("earlier", ()), *([before["training"]] if "training" in before else [])]
        earlier += [stage for stage in stages if stage not in earlier]
    training = {"stage": run.options.output.as_posix().removeprefix("runs/"), **run.provenance()}
    text = json.dumps({**details, **_of_data(run.options.data), "training": training, "earlier": earlier}, indent=2)
    (folder / checkpoints.DETAILS).write_text(text + "\n")
    with (folder / checkpoints.LOSSES).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["stage", "step", "loss"])
        old: dict[tuple, None] = {}
        for path in (checkpoints.find_file(base, checkpoints.LOSSES) for base in bases):
            old |= dict.fromkeys(tuple(row) for row in list(csv.reader(path.open()))[1:]) if path else {}
        writer.writerows(old)
        # A resumed run logs some steps twice: the later is what counts. Of those that it ended before, none does.
        losses = {int(row["step"]): row["loss"] for row in csv.DictReader((run.options.output / "log.csv").open())}
        writer.writerows([training["stage"], step, loss] for step, loss in losses.items() if step <= run.steps)


def _of_data(data: Path) -> dict:
    """The part of mediffuse.json that the data tell: the parts of the body, and what their splits are good for."""
    if not (data / "train" / "metadata.jsonl").is_file():
        return {}
    shown = {anatomy_of(row) for row in read_rows(data / "train")}
    splits = [name for name in ("val", "test") if (data / name / "metadata.jsonl").is_file()]
    leaking = [name for name in splits if shared_patients(data, name)]
    told = {"anatomies": [name for name in ANATOMIES if name in shown]}
    return {**told, "leaking_splits": leaking} if leaking else told


def trained_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _goodness(name: str, figure: float) -> float:
    return -figure if name.endswith("lpips") else figure


def _commit() -> str | None:
    command = ["git", "rev-parse", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip() if done.returncode == 0 else None


def _plain_options(options: Options) -> dict:
    """Options as JSON and YAML hold them."""
    values = dataclasses.asdict(options).items()
    return {name: str(value) if isinstance(value, Path) else value for name, value in values}


def _sha256(tensors: list[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _has_row(path: Path, step: int) -> bool:
    return path.is_file() and any(int(row["step"]) == step for row in csv.DictReader(path.open()))
