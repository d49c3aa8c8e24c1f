"""Make assets/ready/: what the page's tabs open on, the bundled examples translated by the bundled checkpoints.

    python tools/ready.py

To be run again whenever weights or examples change; until then, the page shows nothing beforehand. Per tab: the made
pixels of each example, a small picture of its input, and the pictures, scores and files of the first one; in the Volume
tab, both examples with their scores. About two minutes on two CPU cores.
"""

from __future__ import annotations

import gzip
import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse import files
from mediffuse.directions import modalities
from mediffuse.translate import Translator
from mediffuse.translate.checkpoints import BUNDLED, Checkpoints
from mediffuse.translate.volumes import translate_volume
from mediffuse.ui import ready, viewer
from mediffuse.ui.contour_controls import contour_picture
from mediffuse.ui.examples import VOLUME_EXAMPLES
from mediffuse.ui.slice_result import SliceResult, file_name, slice_picture
from mediffuse.ui.slice_tab import SLICE_TABS, SliceTabOptions
from mediffuse.ui.uploads import open_scan, open_volume, slice_of
from mediffuse.ui.volume_result import compare, write_results

SMALL = 112
"""Pixels of the longer side of a small picture."""
LEVEL = {"CT": 1.0, "MR": 0.5}
"""HU or MR units (of 255) to which a whole head is kept: no eye tells them apart, and it is half as large."""


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
        "tissues": _finite(result.comparison.tissues),
    }


def small_picture(result: SliceResult, view: str) -> Image.Image:
    image = slice_picture(replace(result.source, sides=""), view)  # letters would not be read
    scale = SMALL / max(image.shape[:2])
    return Image.fromarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA))


def volume(ready_one: ready.ReadyVolume, translator: Translator) -> dict:
    """Translate a whole example, write it, and tell what `ReadyVolume` needs.

    It is kept to a `LEVEL`, so that it is small.
    """
    asked, example = ready_one.asked, ready_one.example
    scan = open_volume(asked.paths, modalities(asked.direction)[0])
    made = translate_volume(translator, scan, asked.direction, asked.settings(), asked.passes())
    level = LEVEL[made.modality]
    made = replace(made, voxels=np.round(made.voxels / level) * level)
    place = ready_one.place
    layers, written = write_results(scan, made, asked, place)
    compared = compare(scan, made.voxels, asked.contrast, asked, place, None)
    known = [*layers, *compared.layers]
    about = json.loads(viewer.describe([each.layer for each in known], scan, compared.by_slice))
    paths = {each.layer.role: Path(each.path) for each in known}
    for role, kept in (("input", example.scan), ("truth", example.truth), ("made", Path(written[0]))):
        paths[role].unlink()  # the same voxels as in the other
        paths[role] = kept
    _whole(paths["error"])
    for path in (paths["made"], paths["error"]):
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 9, mtime=0))
    return {
        "layers": [_named(path) for path in paths.values()],
        "about": about,
        "files": [_named(paths["made"])],
        "scores": [one.as_dict() for one in compared.scores],
        "tissues": _finite(compared.tissues),
    }


def _whole(path: Path) -> None:
    """Round a NIfTI to whole numbers."""
    image = nib.load(path)
    image.header.set_data_dtype(np.int16)
    nib.save(nib.Nifti1Image(np.round(image.get_fdata()).astype(np.int16), image.affine, image.header), path)


def _named(path: Path) -> str:
    return path.relative_to(ready.FOLDER.parent).as_posix()


def _finite(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


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
    for direction in VOLUME_EXAMPLES:
        one = ready.ReadyVolume(direction, translator.checkpoints)
        one.place.mkdir()
        about = {"weights": translator.checkpoints.weights(direction), "inputs": one.inputs}
        record[one.place.name] = about | volume(one, translator)
        print(one.place.name, flush=True)
    files.write_text(ready.FOLDER / ready.RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")
    sizes = [path.stat().st_size for path in ready.FOLDER.rglob("*") if path.is_file()]
    print(f"{ready.FOLDER}: {len(sizes)} files, {sum(sizes) / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
