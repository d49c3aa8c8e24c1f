"""Copy finished pipelines into assets/checkpoints/, keeping their model cards and pictures.

python tools/bundle.py runs/pictures/pixels/ip2p runs/mini_contours/onestep/controlnet
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.translate.checkpoints import write_sums

CHECKPOINTS = Path(__file__).resolve().parents[1] / "assets" / "checkpoints"
MOST_TOGETHER, MOST_EACH = 150 * 2**20, 45 * 2**20
"""Bytes: what a clone of the repository should have to carry."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", nargs="+", type=Path, help="folder with a model_index.json; its name is kept")
    for source in parser.parse_args().pipeline:
        if not (source / "model_index.json").is_file():
            parser.error(f"{source} is no pipeline: it has no model_index.json")
        target = CHECKPOINTS / source.name
        kept = {path.name: path.read_bytes() for pattern in ("README.md", "*.png") for path in target.glob(pattern)}
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        for name, content in kept.items():
            (target / name).write_bytes(content)
        write_sums(target)
    sizes = {path: path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()}
    print(f"{sum(sizes.values()) / 2**20:.1f} MiB in {CHECKPOINTS}")
    if sum(sizes.values()) > MOST_TOGETHER or max(sizes.values()) > MOST_EACH:
        sys.exit("Too large to bundle: at most 150 MiB together and 45 MiB a file.")


if __name__ == "__main__":
    main()
