from __future__ import annotations

import numpy as np
import pytest

from mediffuse.image.ct_picture import SATURATED_BONE_HU, guess_picture_modality, guess_png_window, png_ct_to_hu
from mediffuse.image.intensity import (
    AIR_HU,
    to_uint8,
    window,
)


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
