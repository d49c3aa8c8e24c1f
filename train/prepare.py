"""Turn paired CT/MR scans into the dataset that the trainers read.

    python train/prepare.py --input Task1/brain --output data/synthrad --around 5
    python train/prepare.py --input central --input levels --input t2 --output data/mini --plane axial coronal sagittal

Inputs, told apart by what they hold:
  SynthRAD2023   <patient>/{ct,mr,mask}.nii.gz  (mask optional): the central slice of each plane,
                 and with --around N also N slices on either side
  NIfTI folder   <patient>_ct.nii.gz and <patient>_{mr,t1,t2}.nii.gz [_mask.nii.gz]: likewise
  PNG folders    [train|val|test/]<patient>_<rest>_{ct,mr[,mask]}.png, with HU from a manifest.csv
                 (patient, plane or z, hu_slope, hu_intercept) where there is one; a pair whose CT
                 is a brain window gives CT->MR only, for it holds no HU to learn
  CT only        PNG folders without any *_ct.png: for the autoencoder

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
from mediffuse.prepare import LayoutError, Plan, prepare
from mediffuse.scan import PLANES


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", action="append", required=True, type=Path, help="may be given several times")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--around", type=int, default=0, help="slices on either side of the central one")
    parser.add_argument("--plane", nargs="+", choices=PLANES, default=["axial"])
    parser.add_argument("--size", type=int, default=256, help="side of the model image in pixels")
    parser.add_argument("--contrast", choices=["T1", "T2"], help="default: T2 where the folder's name says so, else T1")
    parser.add_argument("--val", type=float, default=0.1, help="share of patients, where folders do not say")
    parser.add_argument("--test", type=float, default=0.1)
    args = parser.parse_args(argv)
    if any(args.output.glob("*/metadata.jsonl")):
        parser.error(f"{args.output} already holds a dataset: remove it, or choose another --output")
    fractions = {"val": args.val, "test": args.test}
    plan = Plan(tuple(args.plane), args.around, args.size, args.contrast, fractions)
    try:
        made = prepare(args.input, args.output, plan)
    except LayoutError as error:
        parser.error(str(error))
    except OSError as error:
        parser.error(trouble(error) or str(error))
    for split, rows in made.items():
        patients = len({row.get("patient") for row in rows if row.get("patient")})
        print(f"{split}: {len(rows)} rows, {patients} patients")


if __name__ == "__main__":
    main()
