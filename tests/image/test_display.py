import numpy as np
import pytest

from mediffuse.image.display import ERROR_SCALE, MOST_SIDE, enlarge, error_map, picture, uncertainty_map


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
    assert uncertainty_map(np.zeros((30, 30)), "MR").shape == (512, 512, 3)


def test_a_picture_has_bounds_however_long_its_pixels_are():
    assert max(enlarge(np.zeros((4, 512), np.uint8), (1000.0, 0.01)).shape) <= MOST_SIDE
    assert max(enlarge(np.zeros((20, 20), np.uint8), (1.0, 1.0)).shape) == 512
