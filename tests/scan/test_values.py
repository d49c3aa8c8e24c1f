"""What is certain about a volume's values is put right and said; the rest is said."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from scipy import ndimage

from mediffuse.image.intensity import fillers, mr_limits
from mediffuse.scan import Scan, ScanError, read_scan
from mediffuse.scan.values import hu_shift, looks_like


@pytest.fixture(scope="module")
def hu(ct) -> np.ndarray:
    return ct.voxels


@pytest.fixture(scope="module")
def t1(mr) -> np.ndarray:
    return mr.voxels


@pytest.fixture(scope="module")
def head(hu) -> np.ndarray:
    return ndimage.binary_fill_holes(ndimage.binary_opening(hu > -300, iterations=2))


@pytest.fixture(scope="module")
def field(hu) -> np.ndarray:
    """A round field of view that holds the head."""
    x, y = np.ogrid[: hu.shape[0], : hu.shape[1]]
    inside = ((x - 87) / 86) ** 2 + ((y - 106) / 105) ** 2 < 1
    return np.broadcast_to(inside[..., None], hu.shape)


@pytest.fixture
def read(tmp_path, ct):
    """A volume on the example's grid, saved and read."""

    def reading(voxels: np.ndarray, modality: str) -> Scan:
        nib.save(nib.Nifti1Image(voxels, ct.affine), tmp_path / "scan.nii")
        return read_scan(tmp_path / "scan.nii", modality)

    return reading


def shown(scan: Scan, voxels: np.ndarray | None = None) -> np.ndarray:
    """0 to 255, as a model sees an MRI."""
    black, white = scan.limits
    return np.clip(((scan.voxels if voxels is None else voxels) - black) / (white - black), 0, 1) * 255


# HU


@pytest.mark.parametrize(
    ("added", "kind"), [(1024, np.uint16), (1000, np.int16), (-1024, np.int16), (32768, np.uint16)]
)
def test_what_was_added_to_hu_is_taken_off(read, hu, added, kind):
    moved = hu + added
    scan = read(np.maximum(moved, 0).astype(kind) if added == 1024 else moved.astype(kind), "CT")
    np.testing.assert_allclose(scan.voxels, np.maximum(hu, -1024), atol=0.5)
    assert scan.warnings == (
        f"The values are HU {'+' if added > 0 else '-'} {abs(added)}, not HU: this was put right.",
    )
    assert scan.wrong == ()


def test_a_dicom_without_intercept(series, tmp_path, ct):
    for path in series.iterdir():
        one = pydicom.dcmread(path)
        one.PixelData = (
            np.clip(one.pixel_array.astype(int) + int(one.RescaleIntercept) + 1024, 0, 4095).astype(np.uint16).tobytes()
        )
        one.PixelRepresentation = 0
        del one.RescaleIntercept, one.RescaleSlope
        one.save_as(tmp_path / path.name)
    scan = read_scan(tmp_path, "CT")
    assert "HU + 1024" in scan.warnings[0]
    np.testing.assert_allclose(scan.voxels, np.clip(ct.voxels, -1024, 3071), atol=1)


@pytest.mark.parametrize("value", [63536, -3024, -2000, 0, 3071])
def test_what_was_not_measured_is_air(read, hu, field, value):
    scan = read(np.where(field, hu, np.float32(value)), "CT")
    np.testing.assert_array_equal(scan.voxels, np.where(field, hu, -1000))
    assert f"is {value} HU" in scan.warnings[0]
    assert "taken for air" in scan.warnings[0]
    assert scan.wrong == ()


def test_zero_within_the_head_stays(read, hu, head):
    scan = read(np.where(head, hu, 0).astype(np.int16), "CT")
    assert (scan.voxels[~head] == -1000).mean() > 0.999
    assert (scan.voxels[head] == hu[head]).mean() > 0.999


@pytest.mark.parametrize(
    ("limits", "top", "kind"),
    [
        ((-1000, 2000), 1, np.float32),
        ((-1000, 2000), 255, np.uint8),
        ((-500, 1500), 255, np.uint8),
        ((0, 80), 255, np.uint8),
    ],
)
def test_scaled_values_are_read_as_a_picture_is(read, hu, limits, top, kind):
    scaled = (np.clip(hu, *limits) - limits[0]) / (limits[1] - limits[0]) * top
    scan = read((np.round(scaled) if top > 1 else scaled).astype(kind), "CT")
    assert "The values are no HU" in scan.warnings[0]
    assert scan.wrong == scan.warnings[:1]
    soft = (hu > 5) & (hu < 75)
    assert np.median(np.abs(scan.voxels - hu)[soft]) < 8
    assert np.median(scan.voxels[hu < -950]) == pytest.approx(-1000, abs=6)


def test_hu_cut_to_a_window(read, hu):
    scan = read(np.clip(hu, -150, 250).astype(np.int16), "CT")
    assert scan.wrong[0].startswith("The values end at 250 HU")
    assert np.median(scan.voxels[hu < -950]) == -1000
    assert np.median(scan.voxels[hu > 500]) == 700


def test_a_ct_without_air(read, hu):
    scan = read(hu[50:130, 60:150].astype(np.int16), "CT")
    np.testing.assert_array_equal(scan.voxels, hu[50:130, 60:150])
    assert any("no air near -1000 HU" in text for text in scan.warnings) or (hu[50:130, 60:150] < -300).mean() > 0.001


@pytest.mark.parametrize("divisor", [1, 1438, 4.8])
def test_an_mri_is_no_ct_whatever_its_scale(read, t1, divisor):
    assert "looks like an MRI" in read((t1 / divisor).astype(np.float32), "CT").wrong[0]


@pytest.mark.parametrize("change", [lambda x: x, lambda x: x + 1024, lambda x: (np.clip(x, -1000, 2000) + 1000) / 3000])
def test_a_ct_is_no_mri_whatever_its_scale(read, hu, change):
    assert "looks like a CT" in read(change(hu).astype(np.float32), "MR").wrong[0]


def test_clean_values_are_untouched(ct, mr, ct_path, mr_path):
    np.testing.assert_array_equal(ct.voxels, nib.as_closest_canonical(nib.load(ct_path)).get_fdata())
    np.testing.assert_array_equal(mr.voxels, nib.as_closest_canonical(nib.load(mr_path)).get_fdata())
    assert mr.limits == (0, np.percentile(mr.voxels, 99.95))
    assert (looks_like(ct.voxels), looks_like(mr.voxels)) == ("CT", "MR")
    assert hu_shift(ct.voxels.ravel(), fillers(ct.voxels)) == 0


# MRI


def few(t1: np.ndarray, number: int, low: int, high: int) -> np.ndarray:
    """`number` voxels of the air made `low` to `high`."""
    rng = np.random.default_rng(0)
    changed = t1.copy()
    dark = np.argwhere(t1 < 20)
    changed[tuple(dark[rng.choice(len(dark), number, replace=False)].T)] = rng.integers(low, high, number)
    return changed


@pytest.mark.parametrize(
    ("number", "low", "high", "said"),
    [
        (1, -3000, -2999, "darker than air"),
        (300, -321, -100, "darker than air"),
        (3000, -321, -100, "darker than air"),
        (1, 32000, 32767, "far brighter"),
        (1000, 32000, 32767, "far brighter"),
    ],
)
def test_a_few_voxels_do_not_move_the_limits(read, t1, mr, number, low, high, said):
    scan = read(few(t1, number, low, high).astype(np.float32), "MR")
    assert np.abs(shown(scan) - shown(mr)).mean() < 0.4
    assert scan.limits == pytest.approx(mr.limits, rel=0.02)
    assert said in scan.warnings[0]
    assert str(number) in scan.warnings[0]


@pytest.mark.parametrize("value", [-1000, 231.5, 4095, 65535])
def test_padding_is_black(read, t1, mr, field, value):
    scan = read(np.where(field, t1, np.float32(value)), "MR")
    assert np.abs(shown(scan) - shown(mr))[field].mean() < 2.1
    assert shown(scan)[~field].max() < 8
    assert f"is {value:g}" in scan.warnings[0]


def test_z_scores_with_a_background_of_zero(read, t1, mr, head):
    tissue = t1 > 60
    scores = (t1 - t1[tissue].mean()) / t1[tissue].std()
    scan = read(np.where(head, scores, 0).astype(np.float32), "MR")
    assert np.abs(shown(scan) - shown(mr))[head].mean() < 3
    assert (shown(scan)[~head] == 0).mean() > 0.999
    assert scan.voxels[0, 0, 0] < scan.tissue, "the head mask leaves it out"
    assert not scan.head_mask()[0, 0].any()
    assert scan.wrong == ()


def test_masked_air_of_an_mri_is_its_black(read, t1, head):
    scan = read(np.where(head, t1, 0).astype(np.int16), "MR")
    assert scan.limits[0] == 0
    assert scan.warnings == ()


def test_limits_follow_a_linear_change(t1):
    black, white = mr_limits(t1)
    assert mr_limits(t1 * 2 - 700) == pytest.approx((2 * black - 700, 2 * white - 700))


# Not numbers


@pytest.mark.parametrize(("modality", "air"), [("CT", -1000), ("MR", None)])
def test_nan_outside_the_head_is_air(read, hu, t1, head, modality, air):
    voxels = hu if modality == "CT" else t1
    scan = read(np.where(head, voxels, np.nan).astype(np.float32), modality)
    assert "not numbers" in scan.warnings[0]
    assert "taken for air" in scan.warnings[0]
    np.testing.assert_array_equal(scan.voxels[head], voxels[head])
    assert (scan.voxels[~head] == (scan.limits[0] if air is None else air)).all()


def test_nothing_but_nan_is_refused(tmp_path: Path, ct):
    nib.save(nib.Nifti1Image(np.full((20, 20, 20), np.nan, np.float32), np.eye(4)), tmp_path / "nan.nii")
    with pytest.raises(ScanError, match="nothing but voxels that are not numbers"):
        read_scan(tmp_path / "nan.nii", "CT")


# Units


@pytest.mark.parametrize(
    ("scale", "units", "said"),
    [
        (1000, "micron", "in micrometres, as its header says"),
        (1e-3, "meter", "in metres, as its header says"),
        (1e-3, "mm", "taken for metres"),
        (1, "micron", "taken for mm"),
    ],
)
def test_sizes_in_other_units(tmp_path, ct, scale, units, said):
    image = nib.Nifti1Image(ct.voxels.astype(np.int16), np.diag([scale, scale, scale, 1]) @ ct.affine)
    image.header.set_xyzt_units(units)
    nib.save(image, tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii", "CT")
    np.testing.assert_allclose(scan.affine, ct.affine, atol=1e-3)
    assert said in scan.warnings[0]
    made = scan.to_nifti(scan.voxels)
    assert made.header.get_xyzt_units()[0] == "mm"
    assert made.header.get_zooms() == pytest.approx((1.25, 1.25, 4), abs=1e-4)
