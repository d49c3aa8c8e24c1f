"""What can be wrong with the machine that the page runs on, in a sentence for the one who started it."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Iterator

from mediffuse.files import trouble


@contextlib.contextmanager
def said() -> Iterator[None]:
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
