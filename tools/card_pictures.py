"""Draw the bundled example, translated by the bundled checkpoints, into their model cards' folders.

    python tools/card_pictures.py

Per direction a sheet of axial slices: input, Fast, Sharp where the checkpoint knows it, a diffusion sample, truth,
and the error of Fast.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.compare import compare, matching_slice
from mediffuse.directions import modalities
from mediffuse.image.display import CT_VIEWS, SOFT_TISSUE, error_map, picture
from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.scan import read_scan
from mediffuse.translate import SPEEDS, Settings, Translator
from mediffuse.translate.checkpoints import BUNDLED

EXAMPLES = Path(__file__).resolve().parents[1] / "assets" / "examples"
SLICES = (2, 6, 10, 14, 18)
SHEETS = {"ct2mr": "ip2p", "mr2ct": "ip2p", "contour2mr": "controlnet"}
CT_VIEW = CT_VIEWS[SOFT_TISSUE]
SIDE = 256


def sheet(direction: str, translator: Translator) -> np.ndarray:
    """Rows of slices, RGB uint8."""
    scans = {"CT": read_scan(EXAMPLES / "head_ct.nii.gz", "CT"), "MR": read_scan(EXAMPLES / "head_t1.nii.gz", "MR")}
    source, target = modalities(direction)
    rows, known = [], translator.checkpoints.speeds(direction)
    for index in SLICES:
        source_slice = scans[source].slice("axial", index)
        truth = matching_slice(scans[source], source_slice, scans[target])
        made = [
            translator.translate(source_slice, direction, Settings(speed)).pixels for speed in SPEEDS if speed in known
        ]
        views = {"CT": CT_VIEW, "MR": MR_OUTPUT_LIMITS}
        cells = [
            picture(source_slice.pixels, source_slice.limits or CT_VIEW, source_slice.spacing),
            *(picture(pixels, views[target], source_slice.spacing, synthetic=True) for pixels in made),
            picture(truth.pixels, truth.limits or CT_VIEW, source_slice.spacing),
            error_map(compare(made[0], truth).error, target, source_slice.spacing),
        ]
        if direction == "contour2mr":
            hint = translator.hint(source_slice, translator.checkpoints.thresholds())
            cells[0] = picture(source_slice.letterbox(len(hint)).restore(hint.max(-1)), (0, 255), source_slice.spacing)
        rows.append(np.hstack([_square(c) for c in cells]))
    return np.vstack(rows)


def _square(image: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) shrunk or enlarged to fit `SIDE` x `SIDE` pixels, black around it."""
    scale = SIDE / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    out = np.zeros((SIDE, SIDE, 3), np.uint8)
    top, left = ((SIDE - n) // 2 for n in small.shape[:2])
    out[top : top + small.shape[0], left : left + small.shape[1]] = small
    return out


def main() -> None:
    translator = Translator()
    for direction, folder in SHEETS.items():
        path = BUNDLED / folder / f"example_{direction}.png"
        cv2.imwrite(str(path), sheet(direction, translator)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
        print(path)


if __name__ == "__main__":
    main()
