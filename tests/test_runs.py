"""A run that is left or stopped ends, and the next one works."""

import threading
import time

import gradio as gr
import numpy as np
import pytest

from mediffuse.scan import Slice
from mediffuse.translate import Settings, Translation, Translator
from mediffuse.translate.checkpoints import Checkpoints
from mediffuse.ui import runs
from tests import tiny

ONE = Slice(np.random.default_rng(0).normal(0, 300, (40, 40)).astype(np.float32), (1, 1), "CT")
LONG = Settings("diffusion", steps=200)


@pytest.fixture(scope="module")
def number(tmp_path_factory):
    translator = Translator(Checkpoints(str(tiny.save_all(tmp_path_factory.mktemp("tiny")))))
    number = runs.register(translator)
    # What loads first says so.
    *phases, one, two, last = run(number, Settings("diffusion", steps=2))
    assert phases == [runs.Phase.LOADING, runs.Phase.TRANSLATING]
    assert one.left is None
    assert two.left == 0
    assert isinstance(last, Translation)
    return number


def run(number, settings):
    return runs.stream(number, ONE, "ct2mr", settings, None, "visitor")


def threads_end(before, seconds=20) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if threading.active_count() <= before:
            return True
        time.sleep(0.05)
    return False


def test_steps_come_before_the_result(number):
    *steps, last = run(number, Settings("diffusion", steps=3))
    assert [s[:2] for s in steps] == [(1, 3), (2, 3), (3, 3)]
    assert isinstance(last, Translation)


def test_leaving_ends_the_run(number):
    before = threading.active_count()
    items = run(number, LONG)
    assert next(items)[0] == 1
    items.close()
    assert threads_end(before)
    assert isinstance(list(run(number, Settings()))[-1], Translation)


def test_stop_ends_the_run_of_that_visitor_only(number):
    items = run(number, LONG)
    next(items)
    runs.stop(gr.Request(session_hash="someone else"))
    assert next(items)[0] == 2
    runs.stop(gr.Request(session_hash="visitor"))
    rest = list(items)
    assert len(rest) < 10
    assert not any(isinstance(item, Translation) for item in rest)


def test_a_missing_checkpoint_is_said(tmp_path):
    lost = runs.register(Translator(Checkpoints(str(tmp_path))))
    with pytest.raises(gr.Error, match="no checkpoint"):
        list(run(lost, Settings()))
