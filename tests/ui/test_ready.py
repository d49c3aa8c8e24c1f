"""What the page shows beforehand is what the bundled checkpoints make of the bundled examples."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from mediffuse.compare import compare_volumes
from mediffuse.directions import modalities
from mediffuse.scan import read_scan
from mediffuse.translate import Translator
from mediffuse.translate.checkpoints import BUNDLED, Checkpoints
from mediffuse.ui import ready
from mediffuse.ui.examples import VOLUME_EXAMPLES
from mediffuse.ui.ready import ReadyResults
from mediffuse.ui.slice_tab import SLICE_TABS
from mediffuse.ui.viewer import described
from mediffuse.ui.volume_result import means
from mediffuse.ui.words import score_row

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


@pytest.mark.parametrize("direction", VOLUME_EXAMPLES)
def test_the_volumes_are_too(direction, translator):
    one = ready.ReadyVolume(direction, translator.checkpoints)
    assert one.record, AGAIN
    shown = one.find(one.asked)
    assert one.find(replace(one.asked, speed="diffusion")) is None
    assert one.find(replace(one.asked, truth=None)) is None
    layers = {layer.role: (layer, path) for layer, path in zip(described(shown.about), shown.layers, strict=True)}
    source, target = modalities(direction)
    for role, modality in (("input", source), ("truth", target)):
        layer, path = layers[role]
        scan = read_scan(path, modality)  # an example as it lies there
        assert np.array_equal(nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32), scan.voxels)
        assert layer.limits == (None if modality == "CT" else pytest.approx(scan.limits))
    made = nib.as_closest_canonical(nib.load(layers["made"][1])).get_fdata()
    tab = next(options for options in SLICE_TABS if options.direction == direction)
    of_slice = results_of(tab, translator.checkpoints).result(0).translation.pixels
    assert np.abs(made[::-1, ::-1, 10].T - of_slice).mean() < (15 if target == "CT" else 2.5), AGAIN
    assert shown.files == [layers["made"][1]]
    compared = compare_volumes(made, read_scan(layers["input"][1], source), read_scan(layers["truth"][1], target))
    error = nib.as_closest_canonical(nib.load(layers["error"][1])).get_fdata()
    np.testing.assert_allclose(error, compared.error, atol=0.51)
    rows = [score_row(one, target) for one in means(compared)]
    assert shown.rows == rows, AGAIN


def test_other_weights_have_nothing_ready(checkpoints):
    for options in SLICE_TABS:
        results = results_of(options, Checkpoints(str(checkpoints)))
        assert not results.record
        assert results.opening() is None
    for direction in VOLUME_EXAMPLES:
        assert ready.ReadyVolume(direction, Checkpoints(str(checkpoints))).shown is None


def test_they_are_small():
    assert sum(path.stat().st_size for path in ready.FOLDER.rglob("*") if path.is_file()) < 4 << 20


def test_pixels_are_kept_to_a_level(tmp_path):
    for modality, (factor, offset) in ready.LEVELS.items():
        pixels = np.linspace(offset, 255 if modality == "MR" else 2000, 600, dtype=np.float32).reshape(20, 30)
        ready.write_pixels(tmp_path / "pixels.png", pixels, modality)
        assert np.abs(ready.read_pixels(tmp_path / "pixels.png", modality) - pixels).max() <= 0.51 * factor
