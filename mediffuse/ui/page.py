"""The page: its tabs, and what stands above and below them."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
from starlette.middleware import Middleware

from mediffuse.directions import DIRECTIONS
from mediffuse.scan import guard
from mediffuse.translate import Translator
from mediffuse.translate.checkpoints import CheckpointError, Checkpoints
from mediffuse.ui import faults, results, store, uploads, zero_gpu
from mediffuse.ui.server import Guard, Page, sweeping
from mediffuse.ui.slice_tab import SLICE_TABS, SliceTab
from mediffuse.ui.volume_tab import VolumeTab

MAX_UPLOAD = "300mb"
STYLE = Path(__file__).resolve().parents[2] / "assets" / "style.css"
THEME = gr.themes.Soft(primary_hue="teal", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

_INTRO = """# Mediffuse
Head CT ↔ MRI with diffusion models.
**Research use only, not for diagnosis.** Every picture made here is synthetic: it shows what a model
finds plausible, and may invent or hide disease. What you upload and what is made of it stays on this server, is
shown to you alone, and is deleted about {minutes:g} minutes after its last use, or when the server stops. Names in its
header are not needed: remove them first. **A head can be recognised by its face**, also without a name: upload only
what you may.
"""

QUEUE = 32
"""How many runs may wait."""
SESSIONS = 128
"""How many visitors' sessions are remembered, the latest: a third of a MiB each."""


def build() -> gr.Blocks:
    """The demo, ready for `launch(**launch_options())`. Checkpoints load when first used, except on
    ZeroGPU, where they must be placed on CUDA at start."""
    translator = Translator(Checkpoints())
    uploads.expect(translator.checkpoints.anatomies(*DIRECTIONS))
    if zero_gpu.ACTIVE:
        for direction in DIRECTIONS:
            with contextlib.suppress(CheckpointError):  # its tab will say so; the others work
                translator.checkpoints.get(direction)
    store.own_folder()
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # it keeps them, and sums them up after each
    with Page(title="Mediffuse", analytics_enabled=False) as demo:
        gr.Markdown(_INTRO.format(minutes=store.keep_seconds() / 60))
        with gr.Tabs():
            for options in SLICE_TABS:
                with gr.Tab(options.title, id=options.direction, elem_id=f"tab-{options.direction}"):
                    SliceTab(options, translator)
            with gr.Tab("Volume", id="volume", elem_id="tab-volume"):
                VolumeTab(translator)
            with gr.Tab("Results", id="results", elem_id="tab-results") as tab:
                results.build(tab)
    return demo.queue(max_size=QUEUE, default_concurrency_limit=4, api_open=False)


def launch_options() -> dict:
    """Options for `Blocks.launch`: private, bounded, and without anything from another server."""
    return {
        "theme": THEME,
        "css_paths": [STYLE],
        "show_error": False,
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": MAX_UPLOAD,
        "footer_links": ["api"],
        "ssr_mode": False,  # Node would answer in front of `Guard`
        "state_session_capacity": SESSIONS,
        "app_kwargs": {"middleware": [Middleware(Guard)], "lifespan": sweeping},
    }


def command_line(argv: Sequence[str] | None = None) -> dict:
    """Options for `Blocks.launch` from the command line and the environment; ends the process where they are wrong."""
    environment = os.environ.get
    parser = argparse.ArgumentParser(
        prog="python app.py", description="Mediffuse in the browser.", epilog="Environment variables are the defaults."
    )
    parser.add_argument(
        "--host",
        default=environment("GRADIO_SERVER_NAME") or "127.0.0.1",
        help="address to listen on, 0.0.0.0 for all (GRADIO_SERVER_NAME; default 127.0.0.1: this machine alone)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=environment("GRADIO_SERVER_PORT") or None,
        help="(GRADIO_SERVER_PORT; default: the first that is free from 7860 on)",
    )
    parser.add_argument(
        "--share",
        action=argparse.BooleanOptionalAction,
        default=environment("GRADIO_SHARE", "").lower() in ("true", "1"),
        help="also a public address, by a tunnel of Gradio's (GRADIO_SHARE)",
    )
    parser.add_argument(
        "--auth",
        type=_logins,
        default=environment("MEDIFFUSE_AUTH") or None,
        help="who may use it: user:password, or better a file with one such line each (MEDIFFUSE_AUTH)",
    )
    options = parser.parse_args(argv)
    return {
        "server_name": options.host,
        "server_port": options.port,
        "share": options.share,
        "auth": options.auth,
    }


def _logins(given: str) -> list[tuple[str, str]]:
    """The pairs of user and password in a text, or in the file it names. Raises argparse.ArgumentTypeError."""
    try:
        lines = Path(given).read_text(encoding="utf-8").split("\n") if Path(given).is_file() else [given]
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError("this file cannot be read") from error
    pairs = [line.strip().partition(":") for line in lines if line.strip()]
    if not pairs or not all(user and password for user, _, password in pairs):
        raise argparse.ArgumentTypeError("give user:password, or a file with such lines")
    return [(user, password) for user, _, password in pairs]


def serve(demo: gr.Blocks, argv: Sequence[str] | None = None) -> None:
    """Serve the page as the command line says, until the process is ended."""
    options = command_line(argv)
    store.leave_on_sigterm()
    with faults.said():
        store.take_all_temporary_files()
        guard.warm_up()
        demo.launch(**launch_options(), **options)
