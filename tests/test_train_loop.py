"""The training loop on a linear network, in this process."""

import csv
import json
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import Dataset

from tests import tiny
from train.loop import Run, write_details
from train.options import OptionError, Options


class Numbers(Dataset):
    def __init__(self, poisoned=()) -> None:
        self.poisoned = poisoned

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, item: int) -> torch.Tensor:
        time.sleep(0.01)
        return torch.full((1,), float("nan") if item in self.poisoned else float(item % 7))


class Line(torch.nn.Module):
    def __init__(self, frozen: float) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.frozen = torch.nn.Parameter(torch.tensor(frozen), requires_grad=False)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        self.calls += 1
        return (self.frozen * self.layer(batch) - 3 * batch).square().mean()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in tiny.cpu_environment().items():
        monkeypatch.setenv(name, value)


def fit(output, *, frozen=1.0, poisoned=(), validate=dict, **options) -> Run:
    torch.manual_seed(0)
    options = {"data": output / "none", "output": output, "batch_size": 2, "workers": 0, "warmup": 2, **options}
    run = Run(Options(**{"log_every": 1, "validate_every": 0, **options}), Line(frozen))
    run.fit(Numbers(poisoned), validate, lambda folder: (folder.mkdir(exist_ok=True), write_details(folder, run)))
    return run


def log(output) -> list[dict[str, str]]:
    return list(csv.DictReader((output / "log.csv").open()))


def test_a_time_limit_ends_a_run_as_its_last_step_would(tmp_path):
    run = fit(tmp_path, steps=1 << 30, time_limit=2, checkpoint_every=1 << 30, checkpoint_seconds=0.5)
    rows = log(tmp_path)
    assert 3 < run.steps == int(rows[-1]["step"]) < 1 << 20
    seconds, rates = ([float(row[name]) for row in rows] for name in ("seconds", "rate"))
    assert seconds[-2] < 2 <= seconds[-1]
    assert rates[-1] == 0
    for passed, rate in list(zip(seconds, rates, strict=True))[2:-1]:
        assert rate == pytest.approx(1e-4 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * passed / 2)).item()), abs=1e-6)
    newest = tmp_path / f"checkpoint-{run.steps}"
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2  # of several
    assert json.loads((newest / "step.json").read_text())["step"] == run.steps
    assert json.loads((tmp_path / "mediffuse.json").read_text())["training"]["steps"] == run.steps


def test_a_run_that_was_cut_has_the_rest_of_its_time(tmp_path):
    first = fit(tmp_path, steps=20, checkpoint_every=10)
    (path,) = tmp_path.glob("checkpoint-20/step.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1e6}))
    second = fit(tmp_path, steps=100, checkpoint_every=10, time_limit=1e6)
    assert (first.steps, second.steps) == (20, 20)
    path.unlink()  # as if it had been cut while it was written
    third = fit(tmp_path, steps=23, checkpoint_every=10)
    assert third.steps == 23
    assert len((tmp_path / "training.csv").read_text().splitlines()) == 1 + 23


def weights(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.parameters])


def test_a_run_goes_on_with_its_own_options_alone(tmp_path):
    fit(tmp_path, steps=4, checkpoint_every=2)
    described = (tmp_path / "options.yaml").read_text()
    with pytest.raises(SystemExit, match=r"learning_rate was 0.0001 and is 0.5; seed was 0 and is 3\. .*--overwrite"):
        fit(tmp_path, steps=4, learning_rate=0.5, seed=3)
    with pytest.raises(SystemExit, match="steps was 4 and is 3"):
        fit(tmp_path, steps=3)
    with pytest.raises(SystemExit, match="frozen_weights_sha256"):
        fit(tmp_path, steps=4, frozen=2.0)
    data = tmp_path / "none" / "train"
    data.mkdir(parents=True)
    (data / "metadata.jsonl").write_text("{}")
    with pytest.raises(SystemExit, match="data_sha256 was None"):
        fit(tmp_path, steps=4)
    (data / "metadata.jsonl").unlink()
    assert (tmp_path / "options.yaml").read_text() == described
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    # What does no harm may differ, and more steps may be asked for.
    assert fit(tmp_path, steps=6, checkpoint_every=1, log_every=2).steps == 6
    fit(tmp_path, steps=2, seed=3, checkpoint_every=1, overwrite=True)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    fit(tmp_path / "new", steps=2, seed=3, checkpoint_every=1)
    assert [row["loss"] for row in log(tmp_path)] == [row["loss"] for row in log(tmp_path / "new")]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    unbroken = fit(tmp_path / "whole", steps=6, checkpoint_every=2)
    for number, damage in enumerate(
        [
            lambda path: (path / "optimizer.bin").write_bytes((path / "optimizer.bin").read_bytes()[:100]),
            lambda path: (path / "optimizer.bin").write_bytes(bytes((path / "optimizer.bin").stat().st_size)),
            lambda path: (path / "step.json").write_text("{"),
        ]
    ):
        folder = tmp_path / str(number)
        fit(folder, steps=6, checkpoint_every=2)
        damage(folder / "checkpoint-6")
        assert torch.equal(weights(fit(folder, steps=6, checkpoint_every=2)), weights(unbroken))
        said = capsys.readouterr().out
        assert "checkpoint-6 is damaged" in said
        assert "checkpoint-4 at step 4" in said
        assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    for path in folder.glob("checkpoint-*"):
        (path / "step.json").unlink()
    with pytest.raises(SystemExit, match="none of the checkpoints"):
        fit(folder, steps=6)


def test_a_failing_validation_costs_nothing(tmp_path):
    def fails() -> dict:
        raise RuntimeError("no judge")

    with pytest.raises(RuntimeError):
        fit(tmp_path, steps=4, validate=fails, validate_every=3)
    assert json.loads((tmp_path / "checkpoint-3" / "step.json").read_text())["step"] == 3
    run = fit(tmp_path, steps=4, validate=lambda: {"x_psnr": 1.0}, validate_every=3)
    assert run.steps == 4
    rows = list(csv.DictReader((tmp_path / "validation.csv").open()))
    assert [row["step"] for row in rows] == ["3", "4"]  # the one that failed is made up for


def test_steps_without_finite_gradients_are_skipped_until_there_are_too_many(tmp_path, capsys):
    run = fit(tmp_path / "some", steps=6, poisoned=range(4, 6))  # of 2 samples each: step 3
    assert weights(run).isfinite().all()
    assert all(value.isfinite().all() for value in run.ema.shadow_params)
    assert "step 3: the gradients are not finite" in capsys.readouterr().err
    assert run.ema.optimization_step == 5
    with pytest.raises(SystemExit, match=r"10 steps in a row, up to step 12"):
        fit(tmp_path / "all", steps=40, poisoned=range(4, 80), checkpoint_every=2)
    assert json.loads((tmp_path / "all" / "checkpoint-10" / "step.json").read_text())["skipped"] == 8


def test_frozen_weights_are_not_in_checkpoints(tmp_path):
    fit(tmp_path, steps=2, checkpoint_every=2)
    assert set(load_file(tmp_path / "checkpoint-2" / "trained.safetensors")) == {"layer.weight", "layer.bias", "calls"}


def test_the_best_model_is_kept_and_patience_ends_a_run(tmp_path):
    options = {"validate_every": 2, "best": "ct2mr_lpips", "patience": 2, "keep_checkpoints": 5, "steps": 20}
    values, judged = [0.5, 0.3, 0.4, 0.3], []

    def judge() -> dict:
        judged.append(0)
        return {"ct2mr_lpips": values[min(len(judged), 4) - 1]}

    run = fit(tmp_path, validate=judge, **options)
    assert run.steps == 8  # 2 validations after the best, of step 4, are no better
    assert (tmp_path / "best" / "training.csv").read_text().splitlines()[-1].split(",")[1] == "4"
    again = fit(tmp_path, validate=judge, **options)
    assert again.steps == 8


@pytest.mark.parametrize("name", ["cosine", "linear", "constant", "constant_with_warmup", "polynomial"])
def test_schedules_follow_the_steps_or_the_clock(name):
    from train import compute

    options = Options(lr_schedule=name, steps=100, warmup=10, learning_rate=2.0)
    rate = compute.schedule(options)
    if name != "constant":
        assert rate(0, 0) == pytest.approx(0.2)
        assert rate(9, 0) == pytest.approx(2.0)
    if name == "cosine":
        assert rate(55, 0) == pytest.approx(1.0)
        assert rate(30, 0.5) == pytest.approx(1.0)
    if "constant" in name:
        assert rate(99, 1.0) == 2.0
    else:
        assert rate(50, 1.0) == pytest.approx(0, abs=1e-6)


def test_memory_is_saved_with_the_same_steps(tmp_path):
    plain = fit(tmp_path / "a", steps=4)
    frugal = fit(tmp_path / "b", steps=4, ema_on_cpu=True, gradient_checkpointing=True, tf32=False)
    assert torch.equal(weights(plain), weights(frugal))


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_weights_are_sharded_here_and_not_by_accelerate(tmp_path, monkeypatch, name):
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    with pytest.raises(OptionError, match=f"accelerate's {name} .*--shard true"):
        fit(tmp_path, steps=1)


def test_options_that_need_others_say_so(tmp_path, monkeypatch):
    fit(tmp_path, steps=2)  # which is not removed for what cannot be
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)  # whoever runs this may have one
    for package in ("wandb", "tensorboard", "bitsandbytes"):  # or these
        monkeypatch.setitem(sys.modules, package, None)
    for options, sentence in (
        ({"patience": 1}, "patience needs best"),
        ({"best": "ct2mr_psnr", "validate_images": 0}, "best needs validations"),
        ({"shard": True}, "shard: there is one process"),
        ({"trackers": ["wandb"]}, "needs the package wandb: pip install wandb"),
        ({"trackers": ["tensorboard"]}, "needs the package tensorboard"),
        ({"optimizer": "adamw8bit"}, "needs the package bitsandbytes"),
        ({"attention": "xformers"}, "xformers is for GPUs, and there is none"),
        ({"push_to_hub": "a/b/c"}, "should be a hub id"),
        ({"push_to_hub": "me/heads"}, "needs a token"),
    ):
        with pytest.raises(OptionError, match=sentence):
            fit(tmp_path, steps=1, overwrite=True, **{"trackers": [], **options})
    assert (tmp_path / "checkpoint-2").is_dir()
