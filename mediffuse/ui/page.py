"""The page: its tabs, and what stands above and below them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import gradio as gr
import numpy as np
from starlette.middleware import Middleware

from mediffuse.directions import DIRECTIONS
from mediffuse.image.intensity import AIR_HU
from mediffuse.scan import ScanError, Slice, guard
from mediffuse.translate import Translator
from mediffuse.translate.checkpoints import CheckpointError, Checkpoints
from mediffuse.translate.slices import DEFAULT_SIZE
from mediffuse.ui import about, api, examples, faults, ready, results, store, uploads, zero_gpu
from mediffuse.ui.controls import PRIVATE
from mediffuse.ui.server import Guard, Page, sweeping
from mediffuse.ui.slice_tab import SLICE_TABS, SliceTab
from mediffuse.ui.volume_tab import VolumeTab

MAX_UPLOAD = "300mb"
ASSETS = Path(__file__).resolve().parents[2] / "assets"
STYLE, NAMES = ASSETS / "style.css", ASSETS / "names.js"
_TEAL = gr.themes.colors.teal
# Soft writes with, and on, 500 (in the dark 600): both as dark as teal's 700, which can be read.
_PRIMARY = gr.themes.Color(
    c50=_TEAL.c50, c100=_TEAL.c100, c200=_TEAL.c200, c300=_TEAL.c300, c400=_TEAL.c800, c500=_TEAL.c700,
    c600=_TEAL.c700, c700=_TEAL.c800, c800=_TEAL.c800, c900=_TEAL.c900, c950=_TEAL.c950,
)  # fmt: skip
THEME = gr.themes.Soft(
    primary_hue=_PRIMARY, font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(
    body_text_color_subdued="*neutral_600", link_text_color_dark="*secondary_300", checkbox_border_color="*neutral_500"
)

_INTRO = """# Mediffuse: head CT to MRI, and MRI to CT
**Research use only, not for diagnosis.** Every picture made here is synthetic: it shows what a model
finds plausible, and may invent or hide disease. [What happens to what you upload, paper, code, how to cite](#about)
"""

QUEUE = 32
"""How many runs may wait."""
SESSIONS = 128
"""How many visitors' sessions are remembered, the latest: a third of a MiB each."""


def _link(demo: gr.Blocks, tabs: gr.Tabs, places: list[gr.Tab]) -> None:
    """Have the address of the page name the open tab, and open the one that it names."""
    known = [place.id for place in places]
    for place in places:
        # A tab is selected when the page is made, too.
        write = f"""() => {{
          if (!window.mediffuseOpened) return;
          const address = new URL(window.location);
          address.searchParams.set("tab", {json.dumps(place.id)});
          window.history.replaceState(null, "", address);
        }}"""
        place.select(None, js=write, **PRIVATE)
    read = f"""() => {{
      window.mediffuseOpened = true;
      const named = new URL(window.location).searchParams.get("tab");
      return {json.dumps(known)}.includes(named) ? {{ selected: named, __type__: "update" }} : {{ __type__: "update" }};
    }}"""
    demo.load(None, outputs=tabs, js=read, **PRIVATE)


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
    # Not copied to where what is not used for a while is deleted.
    gr.set_static_paths([examples.FOLDER, ready.FOLDER])
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # it keeps them, and sums them up after each
    with Page(title="Mediffuse", analytics_enabled=False) as demo:
        demo.translator = translator
        gr.Markdown(_INTRO, elem_classes="intro")
        slices, places = {}, []
        with gr.Tabs(elem_id="tabs") as tabs:
            for options in SLICE_TABS:
                with gr.Tab(options.title, id=options.direction, elem_id=f"tab-{options.direction}") as place:
                    slices[options.direction] = SliceTab(options, translator)
                places.append(place)
            with gr.Tab("Volume", id="volume", elem_id="tab-volume") as place:
                VolumeTab(translator)
            places.append(place)
            with gr.Tab("Results", id="results", elem_id="tab-results") as place:
                results.build(place)
            places.append(place)
        for each in slices.values():
            each.connect(tabs, slices)
        _link(demo, tabs, places)
        demo.load(None, js=NAMES.read_text(encoding="utf-8"), **PRIVATE)
        about.build(store.keep_seconds() / 60)
        api.describe(demo.fns.values())
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
        "_frontend": False,  # or a page that takes over 3 s to answer itself, on a busy machine, is not served
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


def warm_up(translator: Translator) -> None:
    """Load the models, and run each once, so that the first visitor waits no longer than the second."""
    head = Slice(np.full((DEFAULT_SIZE, DEFAULT_SIZE), AIR_HU, np.float32), (1.0, 1.0), "CT")
    head.pixels[64:192, 64:192] = 40
    for direction in ("ct2mr", "contour2mr"):  # one model serves both others
        with contextlib.suppress(CheckpointError, ScanError):  # who opens its tab is told
            translator.translate(head, direction)


def serve(demo: gr.Blocks, argv: Sequence[str] | None = None) -> None:
    """Serve the page as the command line says, until the process is ended."""
    options = command_line(argv)
    store.leave_on_sigterm()
    with faults.end_with_a_sentence():
        store.take_all_temporary_files()
        guard.warm_up()
        if not zero_gpu.ACTIVE:  # where it is, they are loaded, and run in another process
            threading.Thread(target=warm_up, args=[demo.translator], daemon=True).start()
        demo.launch(**launch_options(), **options)
