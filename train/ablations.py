"""Run the ablations of train/configs/ablations.yaml and write their table to docs/ablations.md.

    python train/ablations.py                                    # all, each resumable
    python train/ablations.py --only loss                        # groups with "loss" in their title

Each arm is one run of a trainer's own command line, in runs/ablations; the table names it. Figures are
the trainer's last validation: protocol "paper" on the val split's central axial slices.
"""

from __future__ import annotations

import argparse
import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from train.options import command_line

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = {
    "mr": "MRI, encoded and decoded",
    "ct": "CT, encoded and decoded",
    "ct2mr": "CT → MRI",
    "mr2ct": "MRI → CT",
    "contour2mr": "Contours → MRI",
}


def figures(output: Path) -> dict[str, float]:
    """The last line of a run's validation.csv; empty where it has none."""
    path = output / "validation.csv"
    if not path.is_file():
        return {}
    return {k: float(v) for k, v in list(csv.DictReader(path.open()))[-1].items()}


def table(groups: list[dict]) -> str:
    """Markdown: per group the figures of its arms (those that have run) and the command of the first."""
    parts = [
        "# Ablations",
        "",
        "Short runs at equal budget within a group, one change each, one seed: small differences mean little.",
        "PSNR (dB) / SSIM by protocol *paper* on central axial slices of the val split, in one step where not",
        "said otherwise. Made by `python train/ablations.py` from `train/configs/ablations.yaml`.",
    ]
    for group in groups:
        done = [(name, words, found) for name, words, found in group["runs"] if found]
        if not done:
            continue
        keys = [k for k in COLUMNS if any(f"{k}_psnr" in found for _, _, found in done)]
        parts += ["", f"## {group['title']}", ""]
        parts += ["| | " + " | ".join(COLUMNS[k] for k in keys) + " |", "| --- " * (len(keys) + 1) + "|"]
        for name, _, found in done:
            cells = [
                " / ".join(f"{found[f'{k}_{m}']:.{n}f}" for m, n in (("psnr", 2), ("ssim", 3)) if f"{k}_{m}" in found)
                for k in keys
            ]
            parts.append(f"| {name} | " + " | ".join(cells) + " |")
        parts += ["", f"{int(done[0][2]['step'])} steps. The first: `{shlex.join(done[0][1])}`"]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "train" / "configs" / "ablations.yaml")
    parser.add_argument("--only", default="", help="run only groups with this in their title")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "ablations.md")
    args = parser.parse_args()
    config = yaml.safe_load(args.config.read_text())
    for group in config["groups"]:
        group["runs"] = []
        for name, own in group["arms"].items():
            output = args.runs / re.sub(r"[^a-z0-9]+", "-", f"{group['title']} {name}".lower()).strip("-")
            options = {**config["common"], **group["options"], **own, "output": output}
            words = command_line(group["script"], options)
            if args.only.lower() in group["title"].lower():
                print(shlex.join(words), flush=True)
                subprocess.run([sys.executable, *words[1:]], check=True, cwd=ROOT)
            group["runs"].append((name, words, figures(ROOT / output)))
    args.output.parent.mkdir(exist_ok=True)
    args.output.write_text(table(config["groups"]), encoding="utf-8")


if __name__ == "__main__":
    main()
