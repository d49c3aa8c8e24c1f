"""A server with tiny checkpoints in this process."""

from __future__ import annotations

import pytest

from tests import serving, tiny
from tools.load import Visitor


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def served(checkpoints):
    with serving.served(checkpoints) as demo:
        yield demo


@pytest.fixture
def visitor(served):
    """Makes visitors of that server, each with a session of its own."""
    functions = {fn.api_name: number for number, fn in served.fns.items() if fn.api_name}
    return lambda: Visitor(served.local_url.rstrip("/"), functions)
