from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mediffuse.metrics import body_mask, ct_to_grey, lpips, paper, sharpness, synthrad_ct, synthrad_mr, tissues


def ssim_by_hand(x: np.ndarray, y: np.ndarray, data_range: float, keep: np.ndarray | None = None) -> float:
    """Mean SSIM (Wang et al. 2004) over 7x7 windows that lie inside, whose centre is in `keep`.

    A plain loop with sample (N - 1) variances, to be independent of skimage.
    """
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for row in range(3, x.shape[0] - 3):
        for column in range(3, x.shape[1] - 3):
            if keep is not None and not keep[row, column]:
                continue
            a = x[row - 3 : row + 4, column - 3 : column + 4].astype(float).ravel()
            b = y[row - 3 : row + 4, column - 3 : column + 4].astype(float).ravel()
            covariance = np.cov(a, b, ddof=1)
            top = (2 * a.mean() * b.mean() + c1) * (2 * covariance[0, 1] + c2)
            values.append(top / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)))
    return float(np.mean(values))


@pytest.fixture(scope="module")
def pair(ct_pixels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A piece of a real CT slice, a noisy and shifted copy, and a mask that does not fill the frame."""
    truth = ct_pixels[60:100, 20:62].astype(np.float64)
    made = np.roll(truth, 1, axis=1) + np.random.default_rng(1).normal(20, 60, truth.shape)
    made[20, 20] = 5000  # beyond the range: clipped for PSNR and SSIM, not for MAE
    rows, columns = np.mgrid[: truth.shape[0], : truth.shape[1]]
    return truth, made, (rows - 22) ** 2 + (columns - 18) ** 2 < 17**2


def test_ct_to_grey_is_the_published_window():
    np.testing.assert_array_equal(ct_to_grey(np.array([-3000, -1000, 0, 1000, 3000])), [0, 0, 128, 255, 255])


def test_paper_is_skimage_on_8_bit(pair):
    truth, made = ct_to_grey(np.minimum(pair[0], 500)), ct_to_grey(pair[1])
    scores = paper(truth, made)
    data_range = int(truth.max()) - int(truth.min())
    assert 0 < data_range < 255
    assert scores.protocol == "paper"
    assert scores.psnr == pytest.approx(peak_signal_noise_ratio(truth, made, data_range=data_range))
    assert scores.ssim == pytest.approx(structural_similarity(truth, made, data_range=data_range))
    assert scores.ssim == pytest.approx(ssim_by_hand(truth, made, data_range))


def test_paper_by_hand():
    """Range 100; half the pixels off by 10: MSE 50, PSNR 10 log10(100^2 / 50) = 23.01 dB, MAE 5."""
    truth = np.full((8, 8), 50, np.uint8)
    truth[:, 4:] = 150
    made = truth.copy()
    made[:4] -= 10
    scores = paper(truth, made)
    assert scores.psnr == pytest.approx(10 * math.log10(200))
    assert scores.mae == pytest.approx(5)


def test_paper_error_does_not_wrap_around_in_8_bit():
    truth = np.zeros((8, 8), np.uint8)
    truth[0, 0] = 255
    made = np.full((8, 8), 255, np.uint8)
    assert paper(truth, made).mae == pytest.approx(255 * 63 / 64)
    assert paper(truth, made).psnr == pytest.approx(-10 * math.log10(63 / 64))


def test_perfect_copies(ct_pixels):
    grey, mask = ct_to_grey(ct_pixels), ct_pixels > -300
    for scores in (paper(grey, grey.copy()), synthrad_ct(ct_pixels, ct_pixels.copy(), mask)):
        assert scores.psnr == math.inf
        assert scores.ssim == pytest.approx(1)
        assert scores.mae == 0


def test_synthrad_ct_by_hand(pair):
    truth, made, mask = pair
    scores = synthrad_ct(truth, made, mask)
    assert scores.protocol == "synthrad"
    assert scores.mae == pytest.approx(sum(abs(truth[mask] - made[mask])) / mask.sum())
    clipped = [np.minimum(np.maximum(x, -1024), 3000) for x in (truth, made)]
    mse = np.mean((clipped[0][mask] - clipped[1][mask]) ** 2)
    assert scores.psnr == pytest.approx(10 * math.log10(4024**2 / mse))
    # The challenge counts from -1024 upwards, and fills the outside with it.
    filled = [np.where(mask, x + 1024, 0) for x in clipped]
    assert scores.ssim == pytest.approx(ssim_by_hand(*filled, 4024, mask), abs=1e-9)


def test_synthrad_mae_by_hand():
    """Two of the four masked pixels are 30 HU off; what lies outside the mask does not count."""
    truth, made, mask = np.zeros((9, 9)), np.zeros((9, 9)), np.zeros((9, 9), bool)
    mask[4, 3:7] = True
    made[4, 3], made[4, 4], made[0, 0] = 30, -30, 900
    scores = synthrad_ct(truth, made, mask)
    assert scores.mae == pytest.approx(15)
    assert scores.psnr == pytest.approx(10 * math.log10(4024**2 / 450))


def test_synthrad_ignores_the_outside_of_the_mask(pair):
    truth, made, mask = pair
    other = np.where(mask, made, 1234.0)
    assert synthrad_ct(truth, other, mask) == synthrad_ct(truth, made, mask)
    assert synthrad_ct(truth, other, np.ones_like(mask)) != synthrad_ct(truth, made, np.ones_like(mask))


def test_synthrad_takes_the_masks_of_files(pair):
    """0 and 255, or 0 and 1, as the challenge's files hold them."""
    truth, made, mask = pair
    for stored in (mask.astype(np.uint8) * 255, mask.astype(np.float32)):
        assert synthrad_ct(truth, made, stored) == synthrad_ct(truth, made, mask)


def test_synthrad_mr_by_hand(mr_pixels):
    truth = mr_pixels[60:100, 20:62].astype(np.float64)
    made = 0.9 * truth + 10
    mask = np.zeros(truth.shape, bool)
    mask[5:35, 8:40] = True
    low, high = np.percentile(truth[mask], [0.5, 99.5])
    scaled = [(x - low) / (high - low) for x in (truth, made)]
    scores = synthrad_mr(truth, made, mask)
    assert scores.mae == pytest.approx(np.mean(np.abs(scaled[0] - scaled[1])[mask]))
    clipped = [np.clip(x, 0, 1) for x in scaled]
    assert scores.psnr == pytest.approx(-10 * math.log10(np.mean((clipped[0] - clipped[1])[mask] ** 2)))
    filled = [np.where(mask, x, 0) for x in clipped]
    assert scores.ssim == pytest.approx(ssim_by_hand(*filled, 1, mask), abs=1e-9)


def test_synthrad_mr_does_not_depend_on_units(mr_pixels):
    truth, made = mr_pixels.astype(np.float64), np.roll(mr_pixels, 2, axis=0).astype(np.float64)
    mask = truth > 100
    one, other = synthrad_mr(truth, made, mask), synthrad_mr(7 * truth + 40, 7 * made + 40, mask)
    assert (one.psnr, one.ssim, one.mae) == pytest.approx((other.psnr, other.ssim, other.mae))


GREY = np.arange(100, dtype=np.uint8).reshape(10, 10)
HU = GREY.astype(np.float64)
CORNER = np.zeros((10, 10), bool)
CORNER[0, 0] = True


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paper(GREY, GREY[:9]), "different shapes"),
        (lambda: paper(HU, HU), "8-bit"),
        (lambda: paper(GREY, HU), "8-bit"),
        (lambda: paper(np.full_like(GREY, 3), GREY), "constant"),
        (lambda: paper(GREY[:6], GREY[:6]), "at least 7x7"),
        (lambda: paper(np.dstack([GREY] * 3), np.dstack([GREY] * 3)), "2D"),
        (lambda: synthrad_ct(HU, HU, np.ones((9, 10), bool)), "different shapes"),
        (lambda: synthrad_ct(HU, HU, np.zeros((10, 10), bool)), "mask is empty"),
        (lambda: synthrad_ct(HU, HU + 1, CORNER), "border"),
        (lambda: synthrad_mr(np.ones((10, 10)), HU, np.ones((10, 10), bool)), "constant inside the mask"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_body_mask_holds_the_head_and_its_air_but_not_the_table(ct_pixels):
    mask = body_mask(ct_pixels)
    assert mask.dtype == bool
    assert mask[(ct_pixels > 0) & (ct_pixels < 80)].mean() > 0.99
    assert mask[ct_pixels > 300].mean() > 0.99
    assert not mask[:4].any()
    assert not mask[:, :4].any()
    hollow = ct_pixels.copy()
    hollow[100:120, 80:100] = -1000
    np.testing.assert_array_equal(body_mask(hollow), mask)
    with_table = ct_pixels.copy()
    with_table[-6:] = 100
    np.testing.assert_array_equal(body_mask(with_table), mask)
    assert not body_mask(np.full((32, 32), -1000.0)).any()


def test_lpips_tells_blur_from_likeness(ct_pixels):
    truth = ct_to_grey(ct_pixels)
    blurred = np.round(ndimage.gaussian_filter(truth.astype(float), 2)).astype(np.uint8)
    more = np.round(ndimage.gaussian_filter(truth.astype(float), 4)).astype(np.uint8)
    assert lpips(truth, truth) == 0
    assert 0.05 < lpips(truth, blurred) < lpips(truth, more) < lpips(truth, np.zeros_like(truth)) < 1.5
    with pytest.raises(ValueError, match="at least 32x32"):
        lpips(truth[:20, :20], truth[:20, :20])


def test_lpips_layer_by_layer():
    """The first layer's distance by plain numpy, with the other heads at zero."""
    from mediffuse.lpips import Lpips

    model = Lpips()
    for i in range(1, 5):
        getattr(model, f"head{i}_weight").zero_()
    rng = np.random.default_rng(0)
    pair = rng.uniform(-1, 1, (2, 3, 35, 35)).astype(np.float32)
    weight, bias = model.conv0_weight.numpy(), model.conv0_bias.numpy()
    maps = []
    for image in pair:
        x = (image - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[:, None, None]
        x = np.pad(x, ((0, 0), (2, 2), (2, 2)))
        patches = np.lib.stride_tricks.sliding_window_view(x, (11, 11), axis=(1, 2))[:, ::4, ::4]
        found = np.maximum(np.einsum("chwij,ocij->ohw", patches, weight) + bias[:, None, None], 0)
        maps.append(found / (np.sqrt((found**2).sum(0)) + 1e-10))
    wanted = np.einsum("chw,c->hw", (maps[0] - maps[1]) ** 2, model.head0_weight.numpy()[0, :, 0, 0]).mean()
    assert model(*torch.from_numpy(pair)[:, None]).item() == pytest.approx(wanted, rel=1e-3)


def test_sharpness_is_the_ratio_of_gradients():
    truth = np.tile(np.arange(0, 200, 10, dtype=np.uint8), (20, 1))
    assert sharpness(truth, truth) == 1
    assert sharpness(truth, truth // 2) == pytest.approx(0.5)
    assert math.isnan(sharpness(np.zeros_like(truth), truth))


def test_tissues_by_hand():
    truth = np.array([[1000, 1000, 40, 40], [1000, 1000, 40, -900]] * 4, float).repeat(2, 1)
    made = truth.copy()
    made[:, 0] = 200  # an eighth of the picture: a quarter of the bone is lost, 800 HU each
    made[:, 4] = 60
    found = tissues(truth, made, np.ones(truth.shape, bool))
    assert found["dice_bone"] == pytest.approx(2 * 3 / (4 + 3))
    assert found["mae_bone"] == pytest.approx(200)
    assert found["mae_soft"] == pytest.approx(20 * 8 / 24)
    assert found["mae_air"] == 0
    nothing = tissues(np.full((8, 8), 40.0), np.full((8, 8), 40.0), np.ones((8, 8), bool))
    assert math.isnan(nothing["dice_bone"])
