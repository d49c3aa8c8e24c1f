"""Take a report into the repository: assets/results/, README.md and the model cards.

    python tools/publish.py runs/report

The report must be one made with --no-pictures: those of the data may not be passed on.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

from huggingface_hub import ModelCard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.directions import DIRECTION_TITLES
from mediffuse.evaluate.report import LEAK, cards, cell, mae, markdown
from mediffuse.evaluate.summary import title_of
from mediffuse.translate.checkpoints import limits

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "assets" / "results"
FILES = ("report.html", "results.json")
_MARKS = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def quote(text: str, table: str) -> str:
    """`text` with `table` between its marks. Raises ValueError if it has none."""
    made, count = _MARKS.subn(lambda found: found[1] + table + found[2], text)
    if count != 1:
        raise ValueError("There is no <!-- results --> ... <!-- /results --> to fill.")
    return made


def readme_table(rows: list[dict]) -> str:
    """A line per model on the val split: protocol "paper", with the MAE of "synthrad"."""
    lines = [
        "| Direction | Model | PSNR (dB) | SSIM | MAE in the body | LPIPS | Sharpness | s/image |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        if r["split"] != "val" or r["protocol"] != "paper":
            continue
        same = ("dataset", "split", "direction", "model", "speed")
        inside = next((o for o in rows if o["protocol"] == "synthrad" and all(o[k] == r[k] for k in same)), None)
        seconds = f"{r['seconds_per_image']:.2f}" if r["speed"] != "none" else ""
        cells = (
            DIRECTION_TITLES[r["direction"]],
            title_of(r["model"], r["speed"]),
            cell(r, "psnr", 2),
            cell(r, "ssim", 3),
        )
        realism = (f"{r['lpips']:.3f}", f"{r['sharpness']:.2f}") if "lpips" in r else ("", "")
        lines.append(f"| {' | '.join((*cells, mae(inside) if inside else '', *realism, seconds))} |")
    return "\n".join(lines) + "\n"


def card(text: str, name: str, rows: list[dict], said: list[str]) -> str:
    """A model card with the model-index metadata and the table of checkpoint `name`, and the sentences `said`."""
    made = ModelCard(cards(rows)[name])
    kept = ModelCard(text)
    kept.data.model_name, kept.data.eval_results = made.data.model_name, made.data.eval_results
    directions = {r["direction"] for r in rows if r["model"].split(",")[0] == name}
    shown = [r for r in rows if r["direction"] in directions and r["split"] != "wild"]
    shown = [r for r in shown if r["speed"] == "none" or r["model"].split(",")[0] == name]
    return quote(str(kept), "\n\n".join([*said, markdown(shown)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="--output of mediffuse.evaluate")
    given = parser.parse_args().report
    results = json.loads((given / "results.json").read_text(encoding="utf-8"))
    rows = results["rows"]
    if results["settings"]["limit"]:
        parser.error(f"{given} was made with --limit")
    if "left out of this copy" not in (given / "report.html").read_text(encoding="utf-8"):
        parser.error(f"{given} was not made with --no-pictures")
    RESULTS.mkdir(exist_ok=True)
    for name in FILES:
        shutil.copyfile(given / name, RESULTS / name)
    readme = ROOT / "README.md"
    readme.write_text(quote(readme.read_text(encoding="utf-8"), readme_table(rows)), encoding="utf-8")
    for path in sorted((ROOT / "assets" / "checkpoints").glob("*/README.md")):
        said = [*limits(str(path.parent)), *([LEAK.strip()] if results["settings"]["unseen"] is False else [])]
        path.write_text(card(path.read_text(encoding="utf-8"), path.parent.name, rows, said), encoding="utf-8")


if __name__ == "__main__":
    main()
