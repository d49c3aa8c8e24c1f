import numpy as np
import pytest

from mediffuse.image.display import (
    BRAIN_AND_BONE,
    ERROR_SCALE,
    MOST_SIDE,
    SLICE_VIEWS,
    enlarge,
    error_map,
    picture,
    uncertainty_map,
)


def test_error_map_is_signed_and_saturates():
    scale = ERROR_SCALE["CT"]
    error = np.array([[-2 * scale, 0, 2 * scale]] * 3).repeat(200, 0).repeat(200, 1)
    image = error_map(error, "CT")[50]
    np.testing.assert_array_equal(image[50], [0, 0, 255])
    np.testing.assert_array_equal(image[image.shape[0] // 2], [255, 255, 255])
    np.testing.assert_array_equal(image[-50], [255, 0, 0])


def test_pictures_are_isotropic_and_say_synthetic(ct_pixels):
    plain = picture(ct_pixels, (0, 80), (2.0, 1.0))
    height, width = ct_pixels.shape
    assert plain.shape[0] / plain.shape[1] == pytest.approx(2 * height / width, rel=0.01)
    marked = picture(ct_pixels, (0, 80), (2.0, 1.0), synthetic=True)
    different = np.argwhere((plain != marked).any(-1))
    assert len(different) > 50
    assert different[:, 0].min() > 0.9 * plain.shape[0]  # at the lower edge only


def test_maps_have_a_colour_bar_below_them():
    for modality in ("CT", "MR"):
        error, spread = error_map(np.zeros((30, 30)), modality), uncertainty_map(np.zeros((30, 30)), modality)
        assert error.shape == spread.shape > (540, 512, 3)
        np.testing.assert_array_equal(error[515, [0, -1]], [[0, 0, 255], [255, 0, 0]])
        assert spread[515, 0].max() < 10
        assert spread[515, -1].min() > 150


def test_sides_are_written_where_they_are_known(ct):
    from mediffuse.scan import read_scan
    from mediffuse.ui.examples import CT_PICTURE

    known, unknown = ct.slice("axial", 10), read_scan(CT_PICTURE, "CT").slice()
    assert (known.sides, ct.slice("sagittal").sides, unknown.sides) == ("RL", "AP", "")
    plain, marked = (picture(known.pixels, (0, 80), sides=sides) for sides in ("", known.sides))
    columns = np.argwhere((plain != marked).any(-1))[:, 1]
    assert (columns < 0.1 * plain.shape[1]).any()
    assert (columns > 0.9 * plain.shape[1]).any()


def test_brain_and_bone_are_told_apart_in_one_picture():
    hu = np.repeat(np.array([[-1000.0, 5, 25, 45, 700, 1400]]), 6, axis=0)
    air, water, white, grey, spongy, dense = picture(hu, SLICE_VIEWS[BRAIN_AND_BONE])[256, 42::85, 0].astype(int)
    assert air == 0
    assert min(white - water, grey - white, dense - spongy) > 20


def test_a_picture_has_bounds_however_long_its_pixels_are():
    assert max(enlarge(np.zeros((4, 512), np.uint8), (1000.0, 0.01)).shape) <= MOST_SIDE
    assert max(enlarge(np.zeros((20, 20), np.uint8), (1.0, 1.0)).shape) == 512
