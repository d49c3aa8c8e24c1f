"""The folder of a prepared dataset: its pictures, manifest, report and splits."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from mediffuse.dataset import Row
from mediffuse.files import complete, remove_leftovers, write_text
from mediffuse.prepare.make import make
from mediffuse.prepare.manifest import Manifest, Record
from mediffuse.prepare.plan import HARMLESS, PUBLISHED_TEST, VERSION, Item, LayoutError, Plan, UnpairedRow

REPORT = "report.csv"
REPORT_COLUMNS = ("patient", "source", "outcome", "message")
"""Of the report beside a dataset. outcome: "left out" or "warning"."""


class Writer:
    """Writes a dataset: the items by whichever processes, what is of all of them here."""

    def __init__(self, output: Path, plan: Plan) -> None:
        self.output, self.plan = output, plan
        self.manifest = Manifest(output)
        self.report: list[dict[str, str]] = []
        self.done: dict[str, Record] = {}

    def begin(self, inputs: dict[str, list[str]]) -> None:
        """Go on with what is in the output, or start. Raises LayoutError if that was made otherwise."""
        options = {name: value for name, value in asdict(self.plan).items() if name not in HARMLESS}
        made_by = json.loads(json.dumps({"version": VERSION, "options": options, **inputs}))
        before = self.manifest.made_by
        metadata = list(self.output.glob("*/metadata.jsonl"))
        if metadata and not before:
            raise LayoutError(f"{self.output} already holds a dataset: remove it, or choose another --output.")
        if before and (different := _differences(before, made_by)):
            raise LayoutError(
                f"{self.output} already holds a dataset that was made otherwise: {'; '.join(different)}. Give these "
                "values to go on with it, or choose another --output."
            )
        remove_leftovers(self.output)
        for path in metadata:  # a killed run has none to offer
            path.unlink()
        if self.plan.published:
            _move(self.output, (self.output / "test").glob("*.png"), "train")
        self.manifest.begin(made_by)

    def write(self, items: Sequence[Item], run: Callable) -> int:
        """Prepare items by `run`, which is as `map`; how many can be used."""
        made = 0
        known = self.manifest.records
        task = functools.partial(make, plan=self.plan, output=self.output)
        results = run(task, items, [known.get(item.name) for item in items])
        title = f"{items[0].source} {items[0].kind.replace('alone', 'CT only')}" if items else ""
        for item, record in zip(tqdm(items, desc=title), results, strict=True):
            self._remove(known.get(item.name), record)
            self.manifest.add(record)
            self.done[item.name] = record
            made += bool(record["rows"])
            for outcome, message in record["said"]:
                self._tell(item.patient, item.source, outcome, message)
        return made

    def _remove(self, before: Record | None, now: Record | None = None) -> None:
        """Remove the pictures that an item had, and has no more."""
        kept = {(now["split"], name) for name in now["pictures"]} if now else set()
        for name in before["pictures"] if before else ():
            if (before["split"], name) not in kept:
                (self.output / before["split"] / name).unlink(missing_ok=True)

    def _tell(self, patient: str, source: str, outcome: str, message: str) -> None:
        """Print what there is to say, and remember it for the report. Raises LayoutError where the plan is strict."""
        row = dict(zip(REPORT_COLUMNS, (patient, source, outcome, message), strict=True))
        if row in self.report:
            return
        self.report.append(row)
        if self.plan.strict:
            raise LayoutError(f"{patient}: {message} (--strict stops here)")
        tqdm.write(f"{patient}: {outcome}: {message}", file=sys.stderr)

    def close(self, items: Sequence[str]) -> dict[str, list[Row | UnpairedRow]]:
        """Write the manifest, the report where there is something to say, and last, so that a killed run has none to
        offer, each split's metadata.jsonl; the rows by split."""
        for name in self.manifest.records.keys() - set(items):
            self._remove(self.manifest.records[name])
        self.manifest.finish(list(items))
        if self.report:
            with complete(self.output / REPORT) as part, part.open("w", encoding="utf-8", newline="") as file:
                table = csv.DictWriter(file, REPORT_COLUMNS)
                table.writeheader()
                table.writerows(self.report)
        else:
            (self.output / REPORT).unlink(missing_ok=True)
        tested = self._published_test() if self.plan.published else set()
        rows: dict[str, list] = {}
        for name in items:
            record = self.manifest.records[name]
            for row in record["rows"]:
                rows.setdefault("test" if _ct_of(row) in tested else record["split"], []).append(row)
        for split, own in rows.items():
            text = "".join(json.dumps(row) + "\n" for row in own)
            write_text(self.output / split / "metadata.jsonl", text)
        return rows

    def _published_test(self) -> set[str]:
        """Move the pictures of a fixed share of the slices of all patients to the test split; their CT's names."""
        rows = [row for record in self.done.values() if record["split"] == "train" for row in record["rows"]]
        names = sorted({_ct_of(row) for row in rows}, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        tested = set(names[: max(1, round(PUBLISHED_TEST * len(names)))])
        columns = ("input_image_file_name", "edited_image_file_name", "mask_image_file_name")
        moved = {row[c] for row in rows if _ct_of(row) in tested for c in columns if c in row}
        _move(self.output, [self.output / "train" / name for name in moved], "test")
        return tested


def _ct_of(row: dict) -> str | None:
    """The CT picture of a pair's row, by which its slice is known; None of an unpaired one."""
    return row.get("edited_image_file_name" if row.get("direction") == "mr2ct" else "input_image_file_name")


def _move(output: Path, paths: Iterable[Path], split: str) -> None:
    (output / split).mkdir(parents=True, exist_ok=True)
    for path in list(paths):
        path.replace(output / split / path.name)


def _differences(before: dict, now: dict) -> list[str]:
    """What a dataset was made with otherwise, in words; inputs may be added."""
    pairs = {name: (before["options"].get(name), value) for name, value in now["options"].items()}
    pairs["version"] = before["version"], now["version"]
    pairs |= {
        name: (before[name], now[name]) for name in ("inputs", "ct_only") if not set(before[name]) <= set(now[name])
    }
    return [f"{name} was {a} and is {b}" for name, (a, b) in pairs.items() if a != b]


def left_out(output: Path) -> list[str]:
    """What the report beside a dataset says was left out, a sentence each."""
    return [f"{row['patient']}: {row['message']}" for row in _report(output) if row["outcome"] == "left out"]


def said(output: Path, outcome: str) -> list[str]:
    """The patients, each once, of whom the report beside a dataset tells an outcome."""
    return list(dict.fromkeys(row["patient"] for row in _report(output) if row["outcome"] == outcome))


def _report(output: Path) -> list[dict[str, str]]:
    path = output / REPORT
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
