"""Train everything that a config lists, from raw scans to the folder of finished pipelines, in one command.

    python train/stages.py --config train/configs/mini_gpu.yaml --input central --input levels --input t2

It runs train/prepare.py (unless `data` is there), then the config's `stages`, each by a trainer's own command line,
and copies the `bundle`. Started again after it was cut, it skips the stages that have finished and goes on with the
one that was cut from its newest checkpoint; remove the folders of a config's runs to start anew. Seconds of a stage,
its start and validation included, are in finished.json in its output.

Measured so far: nothing on a GPU. On one core of a processor, preparing the pictures behind the bundled checkpoints
takes 13 s, and a sample of pairs 9 to 12 ms (so 14 cores draw the 32,000 to cache in half a minute). The stages of
mini_gpu.yaml have run with tiny networks alone. Their time limits, together 17 of the 25 minutes that it should take,
hold by the clock; what is around them is an estimate.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from train.options import command_line

ROOT = Path(__file__).resolve().parents[1]
FINISHED = "finished.json"
"""File in a stage's output with the command that made it and its seconds."""


def run(words: list[str]) -> float:
    """Run a command of this repository; its seconds. A failure ends this one, too."""
    print(shlex.join(words), flush=True)
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *words[1:]], check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{words[1]} failed. Started again, this command goes on with it.")
    return time.perf_counter() - started


def prepare(inputs: dict[str, list[Path]], output: Path, options: dict) -> None:
    """Write the dataset that the stages read, from raw scans by prepare.py's option."""
    words = ["python", "train/prepare.py", "--output", str(output)]
    for option, paths in inputs.items():
        for path in paths:
            words += [option, str(path.resolve())]
    for name, value in options.items():
        words += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    run(words)


def train(config: Path, name: str, options: dict) -> None:
    """Run a stage, unless it has finished."""
    options = dict(options)
    words = command_line(options.pop("script"), {"config": config, **options})
    finished = ROOT / options["output"] / FINISHED
    if finished.is_file():
        print(f"{name} has finished in {json.loads(finished.read_text())['seconds']} s.", flush=True)
        return
    seconds = run(words)
    finished.write_text(json.dumps({"command": shlex.join(words), "seconds": round(seconds)}) + "\n")


def bundle(pipelines: list[str], output: Path) -> None:
    """Copy finished pipelines side by side, as the app looks for them."""
    for pipeline in pipelines:
        target = output / Path(pipeline).name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(ROOT / pipeline, target)
    print(f"MEDIFFUSE_CHECKPOINTS={output} python app.py", flush=True)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "train" / "configs" / "mini_gpu.yaml")
    parser.add_argument("--input", action="append", default=[], type=Path, help="raw scans, as train/prepare.py's")
    parser.add_argument(
        "--ct-only", action="append", default=[], type=Path, help="CT without MRI, as train/prepare.py's"
    )
    args = parser.parse_args(argv)
    config = yaml.safe_load(args.config.read_text())
    for options in (*config.values(), *config["stages"].values()):
        if not (ROOT / options.get("lpips", ".")).exists():  # now, not when its stage begins
            parser.error(f"There is no {options['lpips']}: make it with tools/lpips_weights.py.")
    data = ROOT / config["common"]["data"]
    if not (data / "train" / "metadata.jsonl").is_file():
        if not args.input:
            parser.error(f"There is no dataset in {data}: give --input, the raw scans.")
        prepare({"--input": args.input, "--ct-only": args.ct_only}, data, config["prepare"])
    path = args.config.resolve()
    path = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    for name, options in config["stages"].items():
        train(path, name, options)
    bundle(config["bundle"]["pipelines"], ROOT / config["bundle"]["output"])


if __name__ == "__main__":
    main()
