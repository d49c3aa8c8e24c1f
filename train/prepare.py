"""Turn paired CT/MR scans into the dataset that the trainers read.

    python train/prepare.py --input Task1/brain --output data/synthrad --around 5
    python train/prepare.py --input central --input levels --input t2 --output data/mini --plane axial coronal sagittal

Inputs, told apart by what they hold:
  SynthRAD2023   <patient>/{ct,mr,mask}.nii.gz  (mask optional), at any depth: the central slice of each
                 plane, and with --around N also N slices on either side
  SynthRAD2025   <region>/<patient>/{ct,mr,mask}.mha: likewise (the models that are bundled know heads only)
  NIfTI folder   <patient>_ct.nii.gz and <patient>_{mr,t1,t2}.nii.gz [_mask.nii.gz]: likewise
  PNG folders    [train|val|test/]<patient>_<rest>_{ct,mr[,mask]}.png, with HU from a manifest.csv
                 (patient, plane or z, hu_slope, hu_intercept) where there is one; a pair whose CT
                 is a brain window gives CT->MR only, for it holds no HU to learn
Where there are volumes, the pictures beside them are not taken. CT pictures without an MRI, for the autoencoder, are
given by --ct-only DIR.

What cannot be learnt from is left out: swapped pairs, a CT that is not in HU, pairs that do not lie on each other. It
is printed and stands by patient in report.csv in the output, with what there is to say of the rest.

Output: {train,val,test}/metadata.jsonl and images, as `datasets.load_dataset("imagefolder", ...)`
reads them (input_image, edited_image, edit_prompt, and mask_image where known), and
unpaired/metadata.jsonl. Images are model images (CT as three HU windows in RGB, MR grey),
letterboxed to --size. Patients, never slices, are split; folders named train, val, test are kept. A patient in several
inputs goes where the first of them puts it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.files import trouble
from mediffuse.prepare import REPORT, LayoutError, Plan, prepare
from mediffuse.scan import PLANES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", action="append", default=[], type=Path, help="pairs; may be given several times")
    parser.add_argument("--ct-only", action="append", default=[], type=Path, help="CT pictures without MRI; likewise")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--around", type=int, default=0, help="slices on either side of the central one")
    parser.add_argument("--plane", nargs="+", choices=PLANES, default=["axial"])
    parser.add_argument("--size", type=int, default=256, help="side of the model image in pixels")
    parser.add_argument("--contrast", choices=["T1", "T2"], help="default: T2 where the folder's name says so, else T1")
    parser.add_argument("--val", type=float, default=0.1, help="share of patients, where folders do not say")
    parser.add_argument("--test", type=float, default=0.1)
    parser.add_argument("--strict", action="store_true", help="stop at the first scan that is left out or warned of")
    args = parser.parse_args(argv)
    if not args.input and not args.ct_only:
        parser.error("give --input, the pairs, or --ct-only")
    if any(args.output.glob("*/metadata.jsonl")):
        parser.error(f"{args.output} already holds a dataset: remove it, or choose another --output")
    fractions = {"val": args.val, "test": args.test}
    plan = Plan(tuple(args.plane), args.around, args.size, args.contrast, fractions, strict=args.strict)
    try:
        made = prepare(args.input, args.output, plan, args.ct_only)
    except LayoutError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(trouble(error) or str(error))
    for split, rows in made.items():
        patients = len({row.get("patient") for row in rows if row.get("patient")})
        print(f"{split}: {len(rows)} rows, {patients} patients")
    if (args.output / REPORT).is_file():
        print(f"What was left out, and what there is to say of the rest: {args.output / REPORT}")


if __name__ == "__main__":
    main()
