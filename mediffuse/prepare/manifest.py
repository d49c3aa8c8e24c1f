"""The manifest of a prepared dataset: by item what it was made from and what was made, with hashes.

A line is added as each item is finished, so that a command that was killed goes on where it was.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from mediffuse.files import sha256_of, write_text

NAME = "manifest.jsonl"


class Record(TypedDict):
    """What is known of an item that is finished.

    item: its name. key: changes with what was asked for. split: the folder that its pictures were written to. sources,
    pictures: SHA-256 by the name of a file, of what it was made from and of what was made. rows: of metadata.jsonl.
    said: (outcome, message), of what there is to say of it.
    """

    item: str
    key: str
    split: str
    sources: dict[str, str]
    pictures: dict[str, str]
    rows: list[dict]
    said: list[list[str]]


class Manifest:
    """The manifest in the folder `output`.

    made_by: what all was made with, as plain values; the file's first line. records: by the item's name.
    """

    def __init__(self, output: Path) -> None:
        self.path = output / NAME
        self.made_by: dict = {}
        self.records: dict[str, Record] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                found = json.loads(line)
            except ValueError:  # the command was killed while it wrote this
                continue
            if "made_by" in found:
                self.made_by = found["made_by"]
            else:
                self.records[found["item"]] = found

    def begin(self, made_by: dict) -> None:
        """Start the file anew, with what is known so far."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.made_by = made_by
        self._write()

    def add(self, record: Record) -> None:
        """Remember that an item is finished."""
        if self.records.get(record["item"]) != record:
            self.records[record["item"]] = record
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def finish(self, items: list[str]) -> None:
        """Write the file with the records of `items` alone, in this order."""
        self.records = {name: self.records[name] for name in items}
        self._write()

    def _write(self) -> None:
        lines = [{"made_by": self.made_by}, *self.records.values()]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))


def hashes(paths: dict[str, Path]) -> dict[str, str]:
    """SHA-256 by name of the files that are there."""
    return {name: sha256_of(path) for name, path in paths.items() if path.is_file()}
