from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from mediffuse.image.contours import CONTOUR_WINDOWS, Thresholds, contour_hint
from mediffuse.image.intensity import to_uint8, window


def step(low: float, high: float) -> np.ndarray:
    """HU (64, 64) with one vertical edge between columns 31 and 32."""
    hu = np.full((64, 64), low, np.float32)
    hu[:, 32:] = high
    return hu


def columns(plane: np.ndarray) -> set[int]:
    return set(np.nonzero(plane[8:-8])[1].tolist())


def test_edges_of_a_real_slice(ct_pixels):
    hint = contour_hint(ct_pixels)
    assert hint.shape == (*ct_pixels.shape, 3)
    assert hint.dtype == np.uint8
    assert set(np.unique(hint)) == {0, 255}
    np.testing.assert_array_equal(hint, contour_hint(ct_pixels.copy()))
    shares = (hint > 0).mean(axis=(0, 1))
    assert (shares > 0.01).all()
    assert (shares < 0.2).all()


def test_red_is_canny_of_the_bone_window(ct_pixels):
    expected = cv2.Canny(to_uint8(window(ct_pixels, CONTOUR_WINDOWS["bone"])), 80, 200)
    np.testing.assert_array_equal(contour_hint(ct_pixels)[..., 0], expected)


@pytest.mark.parametrize(
    ("low", "high", "seen"),
    [
        (40, 1000, {"bone", "tissue", "brain"}),
        (600, 1200, {"bone"}),  # inside bone: saturated in the soft windows
        (-100, 60, {"tissue", "brain"}),  # fat and muscle
        (8, 38, {"brain"}),  # CSF and brain: what the published 2000-HU window cannot see
        (30, 33, set()),  # noise
    ],
)
def test_each_window_sees_its_own_edges(low, high, seen):
    hint = contour_hint(step(low, high))
    found = {
        name
        for name, plane in zip(("bone", "tissue", "brain"), np.moveaxis(hint, -1, 0), strict=True)
        if columns(plane)
    }
    assert found == seen
    for plane in np.moveaxis(hint, -1, 0):
        assert columns(plane) <= {30, 31, 32, 33}


def test_noise_is_no_edge():
    """A few HU of noise, amplified 25 times by the brain window, in tissue without any contrast."""
    noisy = np.random.default_rng(0).normal(35, 5, (128, 128)).astype(np.float32)
    assert (contour_hint(noisy) > 0).mean() < 0.001
    assert columns(contour_hint(step(8, 38) + noisy[:64, :64] - 35)[..., 2]), "and does not hide a ventricle"


def test_single_mode_is_white_canny_of_one_window(ct_pixels):
    hint = contour_hint(ct_pixels, Thresholds(mode="single", bone=(100, 200)))
    expected = cv2.Canny(to_uint8((np.clip(ct_pixels, -1000, 1000) + 1000) / 2000), 100, 200)
    for channel in range(3):
        np.testing.assert_array_equal(hint[..., channel], expected)
    assert not contour_hint(step(8, 38), Thresholds(mode="single")).any()


@pytest.mark.parametrize("name", ["bone", "tissue", "brain"])
def test_thresholds_act_on_their_own_channel(ct_pixels, name):
    channel = ["bone", "tissue", "brain"].index(name)
    default = contour_hint(ct_pixels)
    strict = contour_hint(ct_pixels, Thresholds(**{name: (400.0, 900.0)}))
    lax = contour_hint(ct_pixels, Thresholds(**{name: (10.0, 30.0)}))
    assert (strict[..., channel] > 0).sum() < (default[..., channel] > 0).sum() < (lax[..., channel] > 0).sum()
    others = [c for c in range(3) if c != channel]
    np.testing.assert_array_equal(strict[..., others], default[..., others])


def test_higher_thresholds_leave_fewer_edges(ct_pixels):
    counts = [(contour_hint(ct_pixels, Thresholds().times(factor)) > 0).sum((0, 1)) for factor in (0.5, 1, 2)]
    assert (counts[0] > counts[1]).all()
    assert (counts[1] > counts[2]).all()


def test_swapped_thresholds_are_put_in_order(ct_pixels):
    np.testing.assert_array_equal(
        contour_hint(ct_pixels, Thresholds(bone=(200.0, 80.0))), contour_hint(ct_pixels, Thresholds(bone=(80.0, 200.0)))
    )


def test_thresholds_survive_json(ct_pixels):
    thresholds = Thresholds(brain=(20.0, 60.0))
    back = Thresholds(**json.loads(json.dumps(thresholds.as_dict())))
    np.testing.assert_array_equal(contour_hint(ct_pixels, back), contour_hint(ct_pixels, thresholds))
    assert (contour_hint(ct_pixels, back) != contour_hint(ct_pixels)).any()


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'sobel' is none of windows, single"):
        Thresholds(mode="sobel")
