"""Real parts that tests start: the page's server in this process, and commands of the repository."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mediffuse.translate.checkpoints import VARIABLE
from tests import tiny
from tests.conftest import ROOT

if TYPE_CHECKING:
    import gradio as gr


@contextmanager
def served(checkpoints: Path | None = None, queue: int | None = None) -> Iterator[gr.Blocks]:
    """The page, served with the checkpoints of a folder or, without one, with the bundled ones.

    queue: how many runs may wait, if not as many as usual.
    """
    from mediffuse.ui.page import build, launch_options

    with pytest.MonkeyPatch.context() as patch:
        if checkpoints:
            patch.setenv(VARIABLE, str(checkpoints))
        else:
            patch.delenv(VARIABLE, raising=False)
        demo = build()
        if queue:
            demo.queue(max_size=queue, default_concurrency_limit=4, api_open=False)
        demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        try:
            yield demo
        finally:
            demo.close()


def python(*arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run Python on the processor from the root of the repository, to its end; what it prints is UTF-8."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**tiny.cpu_environment(), **environment},
        check=False,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )


def in_a_loop(coroutine: Coroutine) -> object:
    """Run a coroutine to its end, in a thread: Playwright keeps a loop of its own going in the main one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
