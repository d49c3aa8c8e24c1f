from __future__ import annotations

import numpy as np
import pytest

from mediffuse.image.intensity import (
    AIR_HU,
    window,
)
from mediffuse.image.letterbox import Letterbox


@pytest.mark.parametrize(
    ("shape", "spacing", "box"),
    [
        ((100, 100), (1.0, 1.0), (0, 0, 256, 256)),
        ((200, 100), (1.0, 1.0), (0, 64, 256, 128)),
        ((100, 200), (1.0, 1.0), (64, 0, 128, 256)),
        ((20, 175), (4.0, 1.25), (81, 0, 94, 256)),  # 80 x 218.75 mm: 256 * 80 / 218.75 = 93.6 rows
        ((200, 100), (0.5, 2.0), (64, 0, 128, 256)),  # 100 x 200 mm: as wide as it is not in pixels
        ((512, 512), (0.4, 0.4), (0, 0, 256, 256)),
    ],
)
def test_letterbox_geometry(shape, spacing, box):
    fit = Letterbox(shape, spacing, 256)
    assert fit.box == box
    image = fit.fit(np.ones(shape, np.float32), fill=-7)
    top, left, height, width = box
    inside = np.zeros((256, 256), bool)
    inside[top : top + height, left : left + width] = True
    np.testing.assert_allclose(image[inside], 1)
    assert (image[~inside] == -7).all()


def test_letterbox_keeps_a_circle_round_and_in_place():
    """A sphere of 30 mm radius, 10 mm right of the middle, on 1 x 2.5 mm pixels."""
    rows, columns = np.mgrid[:200, :80]
    y, x = (rows + 0.5) - 100, (columns + 0.5) * 2.5 - 100
    disc = ((y**2 + (x - 10) ** 2) < 30**2).astype(np.float32)
    image = Letterbox((200, 80), (1.0, 2.5), 256).fit(disc, 0)
    y, x = np.nonzero(image > 0.5)
    scale = 256 / 200
    assert (y.mean() + 0.5, x.mean() + 0.5) == pytest.approx((128, 128 + 10 * scale), abs=0.5)
    assert np.ptp(y) + 1 == pytest.approx(60 * scale, abs=3)
    assert np.ptp(x) + 1 == pytest.approx(60 * scale, abs=3)


@pytest.mark.parametrize("spacing", [(1.25, 1.25), (1.25, 0.8)])
def test_letterbox_restores_a_real_slice(ct_pixels, spacing):
    box = Letterbox(ct_pixels.shape, spacing, 512)
    back = box.restore(box.fit(ct_pixels, AIR_HU))
    assert back.shape == ct_pixels.shape
    inside = window(back, (-1000, 2000)) - window(ct_pixels, (-1000, 2000))
    assert np.sqrt((inside**2).mean()) < 0.02
    for moved in (np.roll(ct_pixels, 1, axis=0), np.roll(ct_pixels, 1, axis=1)):
        assert np.abs(back - ct_pixels).mean() < 0.4 * np.abs(back - moved).mean(), "shifted by a pixel"


def test_letterbox_is_exact_where_nothing_is_resized():
    pixels = np.random.default_rng(0).normal(size=(64, 40)).astype(np.float32)
    box = Letterbox(pixels.shape, (1.0, 1.0), 64)
    np.testing.assert_array_equal(box.restore(box.fit(pixels, 0)), pixels)


def test_letterbox_takes_colour_channels():
    pixels = np.random.default_rng(0).uniform(size=(64, 40, 3)).astype(np.float32)
    box = Letterbox((64, 40), (1.0, 1.0), 64)
    image = box.fit(pixels, 0)
    assert image.shape == (64, 64, 3)
    np.testing.assert_array_equal(box.restore(image), pixels)
