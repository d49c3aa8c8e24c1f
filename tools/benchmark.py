"""Speed and memory of translating volumes with the bundled checkpoints, on the bundled example.

    python tools/benchmark.py                 # writes docs/benchmark.md
    python tools/benchmark.py --slices 2      # fewer slices at the reference setting, which is slow

Slices per second in one step against the reference setting (50 steps, guidance 7.5, image guidance 1.5,
as published) with the same checkpoint in the same run; peak memory of fresh processes against the
number of slices, beside the memory of the volumes themselves; and how far neighbouring slices agree:
the error of the change from slice to slice (`mediffuse.compare.VolumeComparison.delta_z`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.compare import compare_volumes
from mediffuse.directions import modalities
from mediffuse.machine import peak_mib
from mediffuse.scan import PLANES, Scan, read_scan
from mediffuse.translate import Settings, Translator
from mediffuse.translate.volumes import Passes, translate_volume

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Settings("diffusion", steps=50, guidance=7.5, image_guidance=1.5, start="noise")
SAMPLED = Settings("diffusion")
COUNTS = (20, 80, 320)


def example(count: int) -> Scan:
    """The example CT with its slices repeated to `count`."""
    ct = read_scan(ROOT / "assets" / "examples" / "head_ct.nii.gz", "CT")
    return replace(ct, voxels=ct.voxels[:, :, np.arange(count) % ct.count()])


def seconds_per_slice(translator: Translator, count: int, settings: Settings, batch: int | None) -> float:
    """Mean over the example CT, repeated to `count` slices, to MRI. batch: as in `Passes`."""
    started = time.perf_counter()
    made = translate_volume(translator, example(count), "ct2mr", settings, Passes(batch=batch))
    return (time.perf_counter() - started) / made.slices


def memory(count: int) -> None:
    """Print the peak memory (MiB) of this process before and after a volume of `count` slices."""
    translator = Translator()
    translate_volume(translator, example(1), "ct2mr")
    scan, before = example(count), peak_mib()
    translate_volume(translator, scan, "ct2mr")
    print(json.dumps({"before": before, "after": peak_mib(), "volume": scan.voxels.nbytes / 2**20}))


def slice_by_slice(translator: Translator, scan: Scan, direction: str, settings: Settings) -> np.ndarray:
    """`scan` translated with another seed for each axial slice."""
    made = []
    for index in range(scan.count("axial")):
        single = scan.only("axial", index)
        made.append(translate_volume(translator, single, direction, replace(settings, seed=index)).voxels)
    return np.concatenate(made, axis=2)


def consistency(translator: Translator) -> list[str]:
    """Lines of a table: |delta z| of the example, both directions, by setting."""
    files = {m: ROOT / "assets" / "examples" / f"head_{n}.nii.gz" for m, n in (("CT", "ct"), ("MR", "t1"))}
    scans = {modality: read_scan(path, modality) for modality, path in files.items()}
    lines = []
    for direction, unit in (("ct2mr", "of 255"), ("mr2ct", "HU")):
        source, target = (scans[m] for m in modalities(direction))
        for name, settings, planes in (
            ("Fast", Settings(), ("axial",)),
            ("Fast, axial, coronal and sagittal averaged", Settings(), PLANES),
            (f"Diffusion, {SAMPLED.steps} steps, one noise for all slices", SAMPLED, ("axial",)),
            (f"Diffusion, {SAMPLED.steps} steps, another noise for each slice", SAMPLED, None),
        ):
            if planes:
                made = translate_volume(translator, source, direction, settings, Passes(tuple(planes))).voxels
            else:
                made = slice_by_slice(translator, source, direction, settings)
            found = compare_volumes(made, source, target)
            values = (found.delta_z, found.delta_z_truth, np.abs(found.error[source.head_mask()]).mean())
            lines.append(f"| {direction}: {name} | {' | '.join(f'{v:.1f} {unit}' for v in values)} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=4, help="at the reference setting")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "benchmark.md")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        memory(args.memory)
        return
    translator = Translator()
    translate_volume(translator, example(1), "ct2mr")  # loads
    rows = []
    for name, count, settings, batch in (
        ("Fast, 8 slices at a time", 40, Settings(), 8),
        ("Fast, 1 slice at a time", 40, Settings(), 1),
        (f"Diffusion, {SAMPLED.steps} steps", args.slices, SAMPLED, None),
        ("Reference: 50 steps, guidance 7.5 and 1.5", args.slices, REFERENCE, None),
    ):
        rows.append((name, seconds_per_slice(translator, count, settings, batch)))
        print(f"{name}: {rows[-1][1]:.3f} s a slice", flush=True)
    peaks = {}
    for count in COUNTS:
        words = [sys.executable, __file__, "--memory", str(count)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks[count] = json.loads(done.stdout.splitlines()[-1])
        print(count, peaks[count], flush=True)
    agreement = consistency(translator)
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    lines = [
        "# Volumes",
        "",
        f"Made by `python tools/benchmark.py` on {device} ({platform.machine()}, {os.cpu_count()} cores); the",
        "example CT (175 x 213 x 20 voxels, repeated along z where more slices were wanted) to MRI.",
        "",
        "| | s a slice | slices a second | times the reference |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {s:.3f} | {1 / s:.2f} | {rows[-1][1] / s:.1f} |" for name, s in rows),
        "",
        "| Slices | One volume (MiB) | Peak memory before (MiB) | Peak memory after (MiB) |",
        "| --- | --- | --- | --- |",
        *(f"| {n} | {p['volume']:.0f} | {p['before']:.0f} | {p['after']:.0f} |" for n, p in peaks.items()),
        "",
        "How far neighbouring axial slices of the example (4 mm apart) agree: mean, in the head, of the error",
        "of the change from a slice to the next, beside the real change and the error of the slices themselves.",
        "",
        "| | Error of the change | The real change | Error |",
        "| --- | --- | --- | --- |",
        *agreement,
    ]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
