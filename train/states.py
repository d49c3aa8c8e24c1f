"""Checkpoints from which a run can go on: complete or not there, and of one set of options and data."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from train.options import HARMLESS

STATE = "step.json"
"""File in a checkpoint with its step, what it was made with, and the sizes of its files."""


class States:
    """The checkpoints of the run in a folder, `checkpoint-STEP` each.

    identity: what they must have been made with, as plain values; its "options" holds options by name.
    defaults: of those options, for checkpoints that are older than an option.
    """

    def __init__(self, folder: Path, identity: dict, defaults: dict) -> None:
        self.folder, self.identity, self.defaults = folder, identity, defaults

    def found(self) -> list[Path]:
        """The complete ones and the damaged ones, by step."""
        return sorted(self.folder.glob("checkpoint-*"), key=_step)

    def remove(self) -> None:
        for path in (*self.found(), *self.folder.glob(".checkpoint-*")):
            shutil.rmtree(path)

    def refuse_others(self) -> None:
        """Raises SystemExit, saying which values differ, if a checkpoint here was made with others."""
        for path in self.found():
            state = read(path)
            if state and (different := self._different(state)):
                raise SystemExit(
                    f"error: {self.folder} has a run that was made otherwise: {'; '.join(different)}. Give these "
                    "values to go on with it, another --output, or --overwrite true to remove its checkpoints."
                )

    def _different(self, state: dict) -> list[str]:
        before, now = state.get("identity", {}), self.identity
        options = {**self.defaults, **before.get("options", {})} if "options" in before else now["options"]
        pairs = {name: (options.get(name), now["options"].get(name)) for name in options.keys() | now["options"].keys()}
        if pairs["steps"][1] >= (pairs["steps"][0] or 0):
            del pairs["steps"]
        pairs = {name: pair for name, pair in pairs.items() if name not in HARMLESS}
        pairs |= {name: (before[name], value) for name, value in now.items() if name != "options" and name in before}
        return [f"{name} was {_short(a)} and is {_short(b)}" for name, (a, b) in sorted(pairs.items()) if a != b]

    def write(self, step: int, state: dict, save: Callable[[Path], None], main: bool, wait: Callable[[], None]) -> None:
        """Write a checkpoint by `save(folder)`, which every process calls, under another name, and rename it."""
        part, folder = self.folder / f".checkpoint-{step}", self.folder / f"checkpoint-{step}"
        if main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        wait()
        save(part)
        wait()
        if main:
            sizes = {file.relative_to(part).as_posix(): file.stat().st_size for file in files(part)}
            text = json.dumps({**state, "step": step, "identity": self.identity, "files": sizes})
            (part / STATE).write_text(text)
            for file in files(part):
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
            shutil.rmtree(folder, ignore_errors=True)
            part.rename(folder)
        wait()

    def rotate(self, step: int, keep: int) -> None:
        """Remove all but the newest `keep` up to `step`; what is later is damaged, for the run has not been there."""
        kept = [path for path in self.found() if _step(path) <= step][-keep:]
        for path in self.found():
            if path not in kept:
                shutil.rmtree(path)

    def load(self, load: Callable[[Path], None], say: Callable[[str], None]) -> dict | None:
        """Load the newest that is whole by `load(folder)`; its state, or None where there is no checkpoint.

        Raises SystemExit if there are some, but none can be read.
        """
        for path in reversed(self.found()):
            state = read(path)
            if state:
                try:
                    load(path)
                except Exception as error:  # noqa: BLE001  torch, pickle and safetensors each have their own
                    say(f"{path} is damaged ({type(error).__name__}): going back to the one before it.")
                    continue
                say(f"Resuming from {path} at step {state['step']}.")
                return state
            say(f"{path} is damaged or was cut short: going back to the one before it.")
        if self.found():
            raise SystemExit(
                f"error: none of the checkpoints in {self.folder} can be read. Give --overwrite true to start anew."
            )
        return None


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def read(folder: Path) -> dict | None:
    """What a checkpoint says of itself; None if a file of it is missing or of another size."""
    try:
        state = json.loads((folder / STATE).read_text())
        whole = all((folder / name).stat().st_size == size for name, size in state.get("files", {}).items())
    except (OSError, ValueError):
        return None
    return state if whole else None


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _short(value) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:60] + "…"
