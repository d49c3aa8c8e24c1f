"""What the page shows beforehand is what the bundled checkpoints make of the bundled examples."""

import numpy as np
import pytest

from mediffuse.translate import Translator
from mediffuse.translate.checkpoints import BUNDLED, Checkpoints
from mediffuse.ui import ready
from mediffuse.ui.ready import ReadyResults
from mediffuse.ui.slice_tab import SLICE_TABS

AGAIN = "remake them: python tools/ready.py"


@pytest.fixture(scope="module")
def translator():
    return Translator(Checkpoints(str(BUNDLED)))


def results_of(options, checkpoints) -> ReadyResults:
    defaults = options.defaults(checkpoints)
    return ReadyResults(options.direction, options.target, options.examples, defaults, checkpoints)


@pytest.mark.parametrize("options", SLICE_TABS, ids=lambda options: options.direction)
def test_they_are_of_the_bundled_weights_and_examples(options, translator):
    results = results_of(options, translator.checkpoints)
    assert results.record, AGAIN
    made = results.result(0)
    again = translator.translate(
        made.source, options.direction, results.defaults.settings(), results.defaults.thresholds()
    )
    # Half precision and the levels of a PNG set them apart, by less than 1 % of the range.
    off = np.abs(made.translation.pixels - again.pixels).mean()
    assert off < (15 if options.target == "CT" else 2.5), AGAIN
    assert np.ptp(made.translation.pixels) > 100
    shown = results.opening()
    assert all(ready.Path(path).is_file() for path in (*shown.pictures.values(), *shown.files))
    assert all(results.thumbnail(number) for number in range(len(options.examples)))


def test_other_weights_have_nothing_ready(checkpoints):
    for options in SLICE_TABS:
        results = results_of(options, Checkpoints(str(checkpoints)))
        assert not results.record
        assert results.opening() is None


def test_they_are_small():
    assert sum(path.stat().st_size for path in ready.FOLDER.rglob("*") if path.is_file()) < 2 << 20


def test_pixels_are_kept_to_a_level(tmp_path):
    for modality, (factor, offset) in ready.LEVELS.items():
        pixels = np.linspace(offset, 255 if modality == "MR" else 2000, 600, dtype=np.float32).reshape(20, 30)
        ready.write_pixels(tmp_path / "pixels.png", pixels, modality)
        assert np.abs(ready.read_pixels(tmp_path / "pixels.png", modality) - pixels).max() <= 0.51 * factor
