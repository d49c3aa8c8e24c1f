"""Turn paired CT/MR scans into the dataset that the trainers read.

    python train/prepare.py --input Task1/brain --output data/synthrad --around 5
    python train/prepare.py --input central --input levels --input t2 --output data/mini --plane axial coronal sagittal
    python train/prepare.py --input Task1 --output data/all --every 5 --jobs 8

Inputs, told apart by what they hold:
  SynthRAD2023   {brain,pelvis}/<patient>/{ct,mr,mask}.nii.gz  (mask optional), at any depth: the central slice
                 of each plane, with --around N also N slices on either side, or with --every MM all that far apart
  SynthRAD2025   {HN,TH,AB}/<patient>/{ct,mr,mask}.mha: likewise (the models that are bundled know heads only)
  NIfTI folder   <patient>_ct.nii.gz and <patient>_{mr,t1,t2}.nii.gz [_mask.nii.gz]: likewise
  PNG folders    [train|val|test/]<patient>_<rest>_{ct,mr[,mask]}.png, with HU from a manifest.csv
                 (patient, plane or z, hu_slope, hu_intercept) where there is one; a pair whose CT
                 is a brain window gives CT->MR only, for it holds no HU to learn
Where there are volumes, the pictures beside them are not taken. CT pictures without an MRI, for the autoencoder, are
given by --ct-only DIR.

The part of the body is told by SynthRAD's names and by folders called so, else it is the head, or --anatomy; prompts
name it. The MRI is T2 in SynthRAD2023's pelves of centre C and where names say t2; SynthRAD2025 has several contrasts
(see its overviews): prepare those that are T2 apart, with --contrast.

What cannot be learnt from is left out: swapped pairs, a CT that is not in HU, pairs that do not lie on each other. It
is printed and stands by patient in report.csv in the output, with what there is to say of the rest.

Output: {train,val,test}/metadata.jsonl and images, as `datasets.load_dataset("imagefolder", ...)`
reads them (input_image, edited_image, edit_prompt, and mask_image where known), and
unpaired/metadata.jsonl. Images are model images (CT as three HU windows in RGB, MR grey),
letterboxed to --size. Patients, never slices, are split; folders named train, val, test are kept. A patient in several
inputs goes where the first of them puts it. Only --split published shuffles slices over the patients, as the published
project did (2398 to train on, 126 to test, that is 5 %): figures on its test split flatter, for its patients were
trained on; training and evaluation say so.

manifest.jsonl has the hashes of what was read and written. Started again, after it was killed too, the command makes
only what is missing or has changed, and an input may be added; other options need another --output. What is read stays
as it is. Each of --jobs processes holds the volumes of one patient at a time.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.directions import ANATOMIES, CONTRASTS
from mediffuse.files import trouble
from mediffuse.prepare import REPORT, LayoutError, Plan, prepare, said
from mediffuse.scan import PLANES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", action="append", default=[], type=Path, help="pairs; may be given several times")
    parser.add_argument("--ct-only", action="append", default=[], type=Path, help="CT pictures without MRI; likewise")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--around", type=int, default=0, help="slices on either side of the central one")
    parser.add_argument(
        "--every",
        type=float,
        default=0.0,
        metavar="MM",
        help="slices this far apart; all that show the body, or --around",
    )
    parser.add_argument("--plane", nargs="+", choices=PLANES, default=["axial"])
    parser.add_argument("--size", type=int, default=256, help="side of the model image in pixels")
    parser.add_argument("--contrast", choices=CONTRASTS, help="of the MRI; default: T2 where names say so, else T1")
    parser.add_argument("--anatomy", choices=ANATOMIES, help="default: by names, else head")
    parser.add_argument("--split", choices=["patients", "published"], default="patients", help="see above")
    parser.add_argument("--val", type=float, default=0.1, help="share of patients, where folders do not say")
    parser.add_argument("--test", type=float, default=0.1)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes; default: the cores")
    parser.add_argument("--strict", action="store_true", help="stop at the first scan that is left out or warned of")
    args = parser.parse_args(argv)
    if not args.input and not args.ct_only:
        parser.error("give --input, the pairs, or --ct-only")
    if min(args.around, args.every) < 0 or args.size < 8 or args.jobs < 1:
        parser.error("--around and --every are 0 or more, --size is 8 or more, and --jobs 1 or more.")
    plan = Plan(
        planes=tuple(args.plane),
        around=args.around,
        size=args.size,
        contrast=args.contrast,
        fractions={"val": args.val, "test": args.test},
        strict=args.strict,
        every=args.every,
        anatomy=args.anatomy,
        published=args.split == "published",
        jobs=args.jobs,
    )
    try:
        made = prepare(args.input, args.output, plan, args.ct_only)
    except LayoutError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(trouble(error) or str(error))
    for split, rows in made.items():
        patients = len({row.get("patient") for row in rows if row.get("patient")})
        print(f"{split}: {len(rows)} rows, {patients} patients")
    if args.split == "published":
        print("Slices of one patient are in train and in test: figures on that test split flatter.")
    for outcome, title in (("left out", "left out"), ("warning", "used, with something to say of")):
        names = said(args.output, outcome)
        if names:
            print(
                f"{len(names)} {title}: {', '.join(names[:10])}{', …' if len(names) > 10 else ''} ({REPORT} says why)"
            )


if __name__ == "__main__":
    main()
