"""The training loop on a linear network, in this process."""

import csv
import json
import time

import pytest
import torch
from torch.utils.data import Dataset

from tests import tiny
from train.loop import Run, write_details
from train.options import Options


class Numbers(Dataset):
    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, item: int) -> torch.Tensor:
        time.sleep(0.01)
        return torch.full((1,), float(item % 7))


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return (self.layer(batch) - 3 * batch).square().mean()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in tiny.cpu_environment().items():
        monkeypatch.setenv(name, value)


def fit(output, **options) -> Run:
    torch.manual_seed(0)
    options = {"data": output / "none", "output": output, "batch_size": 2, "workers": 0, "warmup": 2, **options}
    run = Run(Options(log_every=1, validate_every=0, **options), Line())
    run.fit(Numbers(), dict, lambda folder: write_details(folder, run))
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
    third = fit(tmp_path, steps=15, checkpoint_every=10)
    assert third.steps == 15
    assert len((tmp_path / "training.csv").read_text().splitlines()) == 1 + 15
