"""What goes wrong, in a sentence: for visitors, and for the one who started the page."""

from __future__ import annotations

import contextlib
import errno
import html
import logging
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from mediffuse.files import is_full, trouble
from mediffuse.ui import zero_gpu

UNFIT = "The values do not fit: one is missing, out of range or of the wrong kind. /gradio_api/info says what fits."
FAULT = "This did not work, by a fault of the server. Try again; if it stays, please report it."
FULL = "The server's disk is full. Try again later: it deletes files that are not used."

_GRADIO = Path(gr.__file__).parent
_log = logging.getLogger("mediffuse")


def said(error: BaseException) -> gr.Error:
    """An error of a handler as visitors may see it: our own with its text, never as markup, any other in general words.

    An unexpected error is logged by its kind and place alone: its text may hold the name of a file or of a patient.
    """
    if isinstance(error, gr.Error) and not error.print_exception:
        text = html.escape(zero_gpu.plain(error), quote=False)
        return gr.Error(text, duration=error.duration, title=error.title, print_exception=False)
    return gr.Error(_general(error), print_exception=False)


def _general(error: BaseException) -> str:
    """What is said of an error whose text is not shown."""
    inside = error.__traceback__
    while inside and inside.tb_next:
        inside = inside.tb_next
    if isinstance(error, gr.Error):  # of a component, which shows the value
        return UNFIT
    log_place(error)
    if is_full(error):
        return FULL
    by_gradio = inside and Path(inside.tb_frame.f_code.co_filename).is_relative_to(_GRADIO)
    return UNFIT if by_gradio else FAULT


def log_place(error: BaseException) -> None:
    """Log the kind of an error, and the lines of code that it came through."""
    _log.error("%s\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))


@contextlib.contextmanager
def end_with_a_sentence() -> Iterator[None]:
    """End the process with a sentence where the page cannot be served."""
    try:
        yield
    except OSError as error:
        if "port" in str(error).lower() or error.errno == errno.EADDRINUSE:
            sys.exit(
                "The port is in use: is the app running already? Choose another by --port or GRADIO_SERVER_PORT, or "
                "end what uses it."
            )
        sys.exit(trouble(error) or f"The page cannot be served: {error}")
