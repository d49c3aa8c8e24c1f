"""Turn paired CT/MR scans into datasets of model images; train/prepare.py tells the layouts."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2

from mediffuse.dataset import Row
from mediffuse.prepare.layouts import existing, items_alone, items_of
from mediffuse.prepare.plan import SPLITS, Item, LayoutError, Plan, UnpairedRow
from mediffuse.prepare.writer import REPORT, Writer, left_out, said

__all__ = ["REPORT", "SPLITS", "LayoutError", "Plan", "left_out", "prepare", "said"]


def prepare(
    inputs: Sequence[Path], output: Path, plan: Plan | None = None, ct_only: Sequence[Path] = ()
) -> dict[str, list[Row | UnpairedRow]]:
    """Write the dataset that mediffuse.dataset reads; its rows by split. ct_only: folders of CT pictures without MRI.

    What the manifest in `output` tells to be made already, from the same files in the same way, is not made again; the
    pictures of items that are gone are removed. Raises LayoutError for an input that holds no scans of a known layout
    (see train/prepare.py), for an output that was made otherwise, and, where the plan is strict, for the first scan
    that there is something to say of.
    """
    plan = plan or Plan()
    todo, splits = {}, {}
    for given in inputs:
        todo[given] = items_of(given, plan, splits)
    for given in ct_only:
        todo[given] = items_alone(existing(given))
    items = [item for group in todo.values() for item in group]
    _refuse_one_name(items)
    writer = Writer(output, plan)
    writer.begin({"inputs": [path.resolve().name for path in inputs], "ct_only": [p.resolve().name for p in ct_only]})
    with _processes(plan.jobs, len(items)) as run:
        for given, group in todo.items():
            made = writer.write(group, run)
            if not made:
                if given in ct_only:
                    raise LayoutError(f"{given} holds no PNG that can be used.")
                first = writer.report[-1]["message"] if writer.report else "There is nothing of the planes asked for."
                raise LayoutError(f"No pair of {given} can be used. {first}")
    return writer.close([item.name for item in items])


def _refuse_one_name(items: Sequence[Item]) -> None:
    """Raise LayoutError if the pictures of two items would have one name."""
    seen = set()
    for item in (item for item in items if item.mr or item.kind == "alone"):
        if item.name in seen:
            raise LayoutError(
                f"Two pictures would be called {item.stem}: give them, or their folders, different names."
            )
        seen.add(item.name)


@contextlib.contextmanager
def _processes(jobs: int, count: int) -> Iterator[Callable]:
    """A function as `map`, whose calls up to `jobs` processes share. Raises LayoutError where one of them is ended."""
    if min(jobs, count) < 2 or count <= 2:
        yield map
        return
    # Not forked: the guard that reads scans has threads' locks, and so have OpenCV and ITK.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, count), context, initializer=cv2.setNumThreads, initargs=(1,))
    try:
        yield pool.map
    except BrokenProcessPool as error:
        raise LayoutError(
            "A process that prepared scans was ended by the system, which may want memory: give fewer --jobs. Started "
            "again, the command goes on where it was."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
