"""Make assets/ready/: what the page's tabs open on, the bundled examples translated by the bundled checkpoints.

    python tools/ready.py

To be run again whenever weights or examples change; until then, the page shows nothing beforehand. Per tab: the made
pixels of each example, a small picture of its input, and the pictures, scores and files of the first one. About a
minute on two CPU cores.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse import files
from mediffuse.translate import Translator
from mediffuse.translate.checkpoints import BUNDLED, Checkpoints
from mediffuse.ui import ready
from mediffuse.ui.contour_controls import contour_picture
from mediffuse.ui.slice_result import SliceResult, file_name, slice_picture
from mediffuse.ui.slice_tab import SLICE_TABS, SliceTabOptions
from mediffuse.ui.uploads import open_scan, slice_of

SMALL = 112
"""Pixels of the longer side of a small picture."""


def result_of(options: SliceTabOptions, number: int, translator: Translator) -> SliceResult:
    """An example translated, and compared with its ground truth."""
    example, asked = options.examples[number], options.defaults(translator.checkpoints)
    source = slice_of(open_scan(str(example.scan), options.source), example.index)
    made = translator.translate(source, options.direction, asked.settings(), asked.thresholds())
    result = SliceResult(
        options.direction, str(example.scan), "auto", source, made, recipe=asked.recipe(), bundled=True
    )
    return result.with_truth(str(example.truth) if example.truth else None)


def opening(options: SliceTabOptions, result: SliceResult, translator: Translator) -> dict:
    """Write the pictures and files that a tab opens on: what `Shown` needs."""
    place = ready.FOLDER / options.direction
    written = [Path(path).name for path in result.write(place, options.default_view)]
    pictures = {"made": written[0]}
    for role in ("input", "truth", "error", "right", *(["contours"] if options.direction == "contour2mr" else [])):
        if role == "contours":
            image = contour_picture(translator, result.source, translator.checkpoints.thresholds())
        else:
            image = result.picture_of(role, options.default_view)
        pictures[role] = f"{file_name(result, role)}.webp"
        Image.fromarray(image).save(place / pictures[role], quality=88, method=6)
    return {
        "titles": {role: result.title(role) for role in ("made", "truth")},
        "pictures": pictures,
        "files": written,
        "scores": [one.as_dict() for one in result.comparison.scores],
        "tissues": {name: value for name, value in result.comparison.tissues.items() if math.isfinite(value)},
    }


def small_picture(result: SliceResult, view: str) -> Image.Image:
    image = slice_picture(replace(result.source, sides=""), view)  # letters would not be read
    scale = SMALL / max(image.shape[:2])
    return Image.fromarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def main() -> None:
    translator = Translator(Checkpoints(str(BUNDLED)))
    shutil.rmtree(ready.FOLDER, ignore_errors=True)
    ready.FOLDER.mkdir()
    record = {}
    for options in SLICE_TABS:
        place = ready.FOLDER / options.direction
        place.mkdir()
        for number in range(len(options.examples)):
            result = result_of(options, number, translator)
            ready.write_pixels(place / f"{number}.png", result.translation.pixels, result.target)
            small_picture(result, options.default_view).save(place / f"{number}_small.webp", quality=85)
            if number == 0:
                first = opening(options, result, translator)
        weights = translator.checkpoints.weights(options.direction)
        defaults, checkpoints = options.defaults(translator.checkpoints), translator.checkpoints
        inputs = ready.ReadyResults(options.direction, options.target, options.examples, defaults, checkpoints).inputs
        record[options.direction] = {"weights": weights, "inputs": inputs, "opening": first}
        print(options.direction, flush=True)
    files.write_text(ready.FOLDER / ready.RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")
    sizes = [path.stat().st_size for path in ready.FOLDER.rglob("*") if path.is_file()]
    print(f"{ready.FOLDER}: {len(sizes)} files, {sum(sizes) / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
