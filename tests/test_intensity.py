from __future__ import annotations

import numpy as np
import pytest

from mediffuse.image.ct_picture import SATURATED_BONE_HU, guess_picture_modality, guess_png_window, png_ct_to_hu
from mediffuse.image.intensity import (
    AIR_HU,
    clear_air,
    decode_ct,
    decode_mr,
    encode_ct,
    encode_mr,
    mr_limits,
    to_uint8,
    window,
)
from mediffuse.image.letterbox import Letterbox

HU = np.arange(-1100, 2101, 0.5, dtype=np.float32)[None]


def test_window_clips_and_scales():
    grey = window(np.array([[-10, 0, 20, 80, 900]]), (0, 80))
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey, [[0, 0, 0.25, 1, 1]])


def test_encode_ct_channels_are_full_tissue_and_brain_windows():
    image = encode_ct(np.array([[-1000.0, 50.0, 2000.0]]))
    np.testing.assert_allclose(image[0, 0], [0, 0, 0])
    np.testing.assert_allclose(image[0, 1], [0.35, 0.5, 0.625])
    np.testing.assert_allclose(image[0, 2], [1, 1, 1])


def test_ct_round_trip_in_float_is_exact_and_clips():
    np.testing.assert_allclose(decode_ct(encode_ct(HU)), np.clip(HU, -1000, 2000), atol=1e-3)


@pytest.mark.parametrize(
    ("low", "high", "half_a_level"),
    [
        (-1000, -155, 3000 / 510),
        (-140, -20, 400 / 510),
        (3, 77, 80 / 510),
        (100, 240, 400 / 510),
        (260, 2000, 3000 / 510),
    ],
)
def test_ct_round_trip_in_8_bit_has_the_precision_of_the_narrowest_window(low, high, half_a_level):
    """A decoder that read one channel only would fail in one of these ranges."""
    hu = np.arange(low, high + 0.25, 0.25, dtype=np.float32)[None]
    off = np.abs(decode_ct(to_uint8(encode_ct(hu)) / 255) - hu)
    assert off.max() <= half_a_level + 1e-3


def test_ct_round_trip_of_a_real_slice(ct_pixels):
    off = np.abs(decode_ct(to_uint8(encode_ct(ct_pixels)) / 255) - np.clip(ct_pixels, -1000, 2000))
    brain = (ct_pixels > 2) & (ct_pixels < 78)
    assert brain.sum() > 5000
    assert off[brain].max() < 0.2
    assert off.max() < 6


def test_decode_ct_trusts_the_full_window_where_the_others_disagree():
    """At a blurred edge the narrow windows say "brain", and only the full one is right."""
    image = np.array([[[0.8, 0.5, 0.5]]], np.float32)
    assert decode_ct(image)[0, 0] == pytest.approx(1400, abs=1e-2)


def test_mr_limits_are_the_minimum_and_the_99_95th_percentile():
    voxels = np.arange(10_001, dtype=np.float32)
    assert mr_limits(voxels) == pytest.approx((0, 9995))
    spike = np.zeros(100_000, np.float32)
    spike[0] = 7
    assert mr_limits(spike) == pytest.approx((0, 7)), "percentiles that coincide must fall back on the extremes"


def test_mr_limits_of_the_example_keep_all_but_single_bright_voxels(mr):
    low, high = mr_limits(mr.voxels)
    assert low == mr.voxels.min()
    assert 0 < (mr.voxels > high).mean() <= 0.0005


def test_mr_round_trip(mr_pixels):
    limits = float(mr_pixels.min()), float(mr_pixels.max())
    np.testing.assert_allclose(decode_mr(encode_mr(mr_pixels, limits), limits), mr_pixels, atol=1e-3)
    in_8_bit = decode_mr(to_uint8(encode_mr(mr_pixels, limits)) / 255, limits)
    np.testing.assert_allclose(in_8_bit, mr_pixels, atol=(limits[1] - limits[0]) / 510 + 1e-3)


def test_mr_outside_the_limits_is_clipped():
    image = encode_mr(np.array([[-5.0, 0, 10, 20, 90]]), (0, 20))
    np.testing.assert_allclose(image[0, :, 0], [0, 0, 0.5, 1, 1])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


def test_to_uint8_rounds():
    np.testing.assert_array_equal(to_uint8(np.array([-1, 0, 0.501 / 255, 1.49 / 255, 1, 2])), [0, 0, 1, 1, 255, 255])


@pytest.mark.parametrize("shown", ["full", "bone", "brain"])
def test_window_of_every_picture_of_the_example_is_guessed(ct_pictures, shown):
    assert {guess_png_window(grey / 255) for grey in ct_pictures[shown]} == {shown}


def test_window_guess_of_the_widest_full_range(ct):
    """-1024..3071 HU shows the brain as dark as a bone window does."""
    assert guess_png_window(to_uint8(window(ct.slice().pixels, (-1024, 3071))) / 255) == "full"


@pytest.mark.parametrize("shown", ["full", "bone", "brain"])
def test_pictures_of_a_ct_are_told_from_mr(ct_pictures, shown):
    assert {guess_picture_modality(grey / 255) for grey in ct_pictures[shown]} == {"CT"}


def test_pictures_of_an_mr_are_told_from_ct(mr_pictures):
    guesses = [guess_picture_modality(grey / 255) for grey in mr_pictures]
    assert "CT" not in guesses
    assert guesses.count("MR") >= 0.9 * len(guesses)


def test_black_picture_has_no_guess_to_make():
    assert guess_png_window(np.zeros((32, 32))) == "full"
    assert np.isfinite(png_ct_to_hu(np.zeros((32, 32)), "full")).all()


@pytest.mark.parametrize("limits", [(-1000, 2000), (-1024, 1600), (-1000, 3071)])
def test_full_range_picture_to_hu_needs_no_limits(ct_pixels, limits):
    """Air and the brain are the anchors, so any scaling of the file gives the same HU."""
    hu = png_ct_to_hu(to_uint8(window(ct_pixels, limits)) / 255, "full")
    soft = (ct_pixels > -20) & (ct_pixels < 80)
    assert np.median(hu[soft] - ct_pixels[soft]) == pytest.approx(0, abs=10)
    assert np.median(hu[ct_pixels < -950]) == pytest.approx(-1000, abs=30)
    bone = (ct_pixels > 700) & (ct_pixels < 1500)
    np.testing.assert_allclose(hu[bone], ct_pixels[bone], rtol=0.06)


def test_brain_window_picture_to_hu(ct_pixels):
    hu = png_ct_to_hu(to_uint8(window(ct_pixels, (0, 80))) / 255, "brain")
    inside = (ct_pixels > 1) & (ct_pixels < 79)
    np.testing.assert_allclose(hu[inside], ct_pixels[inside], atol=80 / 510 + 1e-3)
    assert set(hu[ct_pixels < 0]) == {AIR_HU}
    assert set(hu[ct_pixels > 80]) == {SATURATED_BONE_HU}


def test_bone_window_picture_to_hu(ct_pixels):
    hu = png_ct_to_hu(to_uint8(window(ct_pixels, (-500, 1500))) / 255, "bone")
    inside = (ct_pixels > -490) & (ct_pixels < 1490)
    np.testing.assert_allclose(hu[inside], ct_pixels[inside], atol=2000 / 510 + 1e-2)
    assert set(hu[ct_pixels < -500]) == {AIR_HU}
    assert set(hu[ct_pixels > 1500]) <= {1500.0}


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


def test_uneven_air_is_cleared_and_nothing_else():
    image = np.stack([encode_ct(np.array([[-1000.0, -985, -975, 35, 900]], np.float32))])
    hu = decode_ct(clear_air(image)[0])
    np.testing.assert_allclose(hu, [[-1000, -1000, -975, 35, 900]], atol=0.5)
