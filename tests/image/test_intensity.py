from __future__ import annotations

import numpy as np
import pytest

from mediffuse.image.intensity import (
    clear_air,
    decode_ct,
    decode_mr,
    encode_ct,
    encode_mr,
    mr_limits,
    to_uint8,
    window,
)

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


def test_uneven_air_is_cleared_and_nothing_else():
    image = np.stack([encode_ct(np.array([[-1000.0, -985, -975, 35, 900]], np.float32))])
    hu = decode_ct(clear_air(image)[0])
    np.testing.assert_allclose(hu, [[-1000, -1000, -975, 35, 900]], atol=0.5)
