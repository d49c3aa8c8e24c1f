"""Measure checkpoints on paired data: tables, figures and a report.

    python -m mediffuse.evaluate --data data/mini --split val --output runs/results
    python -m mediffuse.evaluate --data data/mini --split val --speed fast --speed sharp --speed diffusion \\
        --samples 8 --sweep 6 --checkpoint assets/checkpoints --checkpoint runs/mini/baseline/direct \\
        --wild other/pairs --output runs/report
    accelerate launch -m mediffuse.evaluate ...     # on several GPUs

Without --checkpoint, the bundled ones. --data is what train/prepare.py wrote, or a folder of any layout
that it reads. Writes into --output:
  results.json   rows (a mean over patients per model, direction, speed, split and protocol), tests,
                 sweeps, uncertainty, pairs that look misregistered
  images.csv     the scores of every image
  results.md     the tables; card_<checkpoint>.md with the model-index metadata that the hub reads
  report.html    tables and figures in one file, which opens from disk; figures/ as PNG and SVG
  measured-*.jsonl, pictures/   what was measured so far: the same command goes on from there
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from mediffuse.dataset import DatasetError
from mediffuse.directions import CONTRASTS, DIRECTIONS
from mediffuse.files import trouble
from mediffuse.machine import shared_work
from mediffuse.prepare import LayoutError
from mediffuse.scan import PLANES
from mediffuse.translate.checkpoints import SPEEDS, CheckpointError
from mediffuse.translate.slices import STARTS, Settings


def _at_least(low: int):
    def convert(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"must be {low} or more")
        return value

    return convert


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m mediffuse.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = made.add_argument
    add(
        "--checkpoint",
        action="append",
        help="folder, hub id or list (see mediffuse.translate.checkpoints), or a direct U-Net",
    )
    add("--zero-shot", action="append", help="a base pipeline that was not tuned for this; sampled only")
    add("--data", type=Path, help="what train/prepare.py wrote, or a folder that it reads")
    add("--split", action="append", help="default: val. Several times for several, e.g. train and val")
    add("--wild", action="append", type=Path, default=[], help="a folder of pairs from elsewhere, reported apart")
    add("--direction", action="append", choices=DIRECTIONS, help="default: all that a checkpoint serves")
    add("--speed", action="append", choices=SPEEDS, help="default: fast")
    add("--plane", default="axial", choices=PLANES)
    add("--contrast", choices=CONTRASTS, help="of --data; default: T1 where there is any; --wild takes either")
    add("--source", help="only pairs of this input folder of train/prepare.py")
    add(
        "--around",
        type=_at_least(0),
        default=0,
        help="of volumes not prepared yet: slices around the central one",
    )
    add("--limit", type=_at_least(1), help="images per direction, split and folder")
    add("--steps", type=int, default=Settings.steps, help="of diffusion")
    add("--start", action="append", choices=STARTS, help="where diffusion starts, several times for several; mean")
    add("--guidance", type=float, default=1.0, help="classifier-free guidance scale; 1: off")
    add("--image-guidance", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add(
        "--samples",
        type=int,
        default=1,
        help="of diffusion; from 2 on also their mean and its uncertainty (not on train)",
    )
    add(
        "--sweep",
        type=_at_least(0),
        default=0,
        metavar="N",
        help="also other steps, guidance, thresholds, on N images",
    )
    add("--sweep-steps", type=_at_least(1), nargs="+", default=[2, 5, 10, 20, 50])
    add("--sweep-guidance", type=float, nargs="+", default=[1.0, 1.5, 3.0, 7.5])
    add(
        "--sweep-thresholds",
        type=float,
        nargs="+",
        default=[0.25, 0.5, 1.0, 1.5, 2.0],
        help="of the contours, times the checkpoint's own; in one step",
    )
    add("--fid", type=Path, metavar="FILE", help="torch-fidelity's InceptionV3 weights (.pth): FID too")
    add("--no-pictures", action="store_true", help="leave pictures of --data out of the report: it may be published")
    add("--again", action="store_true", help="measure nothing: lay out the report that is in --output anew")
    add("--output", required=True, type=Path)
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    args.command = shlex.join(["python", "-m", "mediffuse.evaluate", *(sys.argv[1:] if argv is None else argv)])
    from mediffuse.evaluate import experiment, report

    try:
        if args.again:
            report.lay_out_again(args.output)
            return 0
        with shared_work() as state:
            results = experiment.run(args, state)
        if state.is_main_process:
            report.write(results, args.output)
    except (CheckpointError, DatasetError, LayoutError, OSError, ValueError) as error:
        print(f"error: {(isinstance(error, OSError) and trouble(error)) or error}", file=sys.stderr)
        return 1
    if state.is_main_process:
        print((args.output / "results.md").read_text(encoding="utf-8"))
        for line in results.warnings:
            print(f"warning: {line}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
