"""Translate whole volumes, as many as there are: the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mediffuse.directions import ANATOMIES, CONTRASTS, DIRECTION_TO
from mediffuse.scan import PLANES
from mediffuse.translate.checkpoints import SPEEDS, CheckpointError, anatomies, locate
from mediffuse.translate.jobs import find_jobs
from mediffuse.translate.records import FORMATS, Order, run
from mediffuse.translate.slices import STARTS, Settings
from mediffuse.translate.volumes import Passes

_DOC = """Translate head volumes: CT to MRI, or MRI to CT.

    python -m mediffuse.translate scan.nii.gz --to mri --output out
    python -m mediffuse.translate patients/ 'more/**/*.nrrd' --to ct --output out --format nifti --format dicom
    accelerate launch -m mediffuse.translate ...                      # many GPUs or machines

An input is a NIfTI, NRRD, MHA or zip file, a DICOM file, a folder (all scans in it and below, each DICOM
series one), or a quoted pattern. What this made before from the same input with the same settings is not
made again. An input that cannot be translated is reported and does not stop the rest; the exit code is
then 1. Beside each result a .json says what it was made from, and how."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mediffuse.translate", description=_DOC, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("input", nargs="+", help="files, folders, or quoted patterns")
    parser.add_argument("--to", choices=DIRECTION_TO, required=True, help="what to make")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--format", choices=FORMATS, action="append", help="default nifti; may be given twice")
    parser.add_argument("--contrast", choices=CONTRASTS, default="T1", help="of the MRI")
    parser.add_argument("--anatomy", choices=ANATOMIES, help="what is shown; default: what the checkpoint knows")
    parser.add_argument("--checkpoint", help="as MEDIFFUSE_CHECKPOINTS; default: that, or the bundled ones")
    parser.add_argument("--speed", choices=SPEEDS, default="fast", help="likeliest, sharper, or sampled; default fast")
    parser.add_argument("--steps", type=int, default=Settings.steps, help="of diffusion")
    parser.add_argument("--start", choices=STARTS, default="mean", help="of diffusion: the fast translation, or noise")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--image-guidance", type=float, default=1.0)
    parser.add_argument("--samples", type=int, default=1, help="of diffusion; the mean is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plane", choices=PLANES, action="append", help="default axial; several are averaged")
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="mirrored slices as a pass of their own, for --uncertainty; default: in one step averaged at once; "
        "--no-mirror: none, in half the time",
    )
    parser.add_argument("--uncertainty", action="store_true", help="also write the standard deviation (NIfTI)")
    parser.add_argument("--deface", action="store_true", help="blank the face and ears; fails where none is found")
    parser.add_argument("--batch-size", type=int, help="slices at once; default: 8 on a GPU, 1 on a processor")
    parser.add_argument("--series", help="SeriesInstanceUID, for a zip or folder with several")
    parser.add_argument("--overwrite", action="store_true", help="make again what is there already")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"--output {args.output} is a file: give a folder.")
    try:
        settings = Settings(
            args.speed,
            args.steps,
            args.guidance,
            args.image_guidance,
            args.seed,
            args.samples,
            args.contrast,
            mirror=args.mirror is not False,
            start=args.start,
            anatomy=args.anatomy,
        )
        passes = Passes(tuple(dict.fromkeys(args.plane or ["axial"])), bool(args.mirror), args.batch_size)
        known = anatomies(locate(DIRECTION_TO[args.to], args.checkpoint))
        if args.anatomy and args.anatomy not in known:
            parser.error(f"--anatomy {args.anatomy}: the checkpoint knows {' and '.join(known)} alone.")
        jobs, problems = find_jobs(args.input, args.output, args.to, args.series)
        args.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, CheckpointError, OSError) as error:
        parser.error(str(error))
    several = len(passes.planes) > 1 or passes.mirror or (settings.speed == "diffusion" and settings.samples > 1)
    if args.uncertainty and not several:
        parser.error("--uncertainty needs several estimates: --mirror, several --plane, or diffusion with --samples.")
    formats = tuple(args.format or FORMATS[:1])
    order = Order(
        args.to,
        args.output,
        settings,
        passes,
        args.checkpoint,
        formats,
        uncertainty=args.uncertainty,
        overwrite=args.overwrite,
        deface=args.deface,
    )
    return run(jobs, problems, order)


if __name__ == "__main__":
    sys.exit(main())
