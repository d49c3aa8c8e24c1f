import nibabel as nib
import numpy as np
import pytest

from mediffuse.compare import compare, compare_volumes, matching_slice
from mediffuse.metrics import paper
from mediffuse.scan import ScanError, Slice, read_scan


def test_ct_is_compared_in_hu(ct):
    truth = ct.slice()
    made = truth.pixels + 10
    comparison = compare(made, truth, truth)
    np.testing.assert_allclose(comparison.error, 10, atol=1e-3)
    by_paper, by_synthrad = comparison.scores
    assert by_synthrad.mae == pytest.approx(10, abs=1e-3)
    assert by_paper.protocol == "paper"
    assert by_paper.mae == pytest.approx(10 / 2000 * 255, abs=0.3)


def test_mri_truth_is_scaled_to_the_output_range(ct, mr):
    truth = mr.slice()
    low, high = truth.limits
    scaled = np.clip((truth.pixels - low) / (high - low), 0, 1) * 255
    comparison = compare(scaled, truth, ct.slice())
    assert np.abs(comparison.error).max() < 1e-2
    assert all(s.ssim == pytest.approx(1, abs=1e-6) for s in comparison.scores)
    dimmed = compare(scaled * 0.5, truth, ct.slice()).scores[0]
    grey = np.round(scaled).astype(np.uint8)
    assert dimmed.psnr == pytest.approx(paper(grey, np.round(scaled * 0.5).astype(np.uint8)).psnr, abs=0.05)


def test_other_sizes_and_constant_truths_are_refused(ct):
    truth = ct.slice()
    with pytest.raises(ScanError, match="same size"):
        compare(truth.pixels[1:], truth)
    flat = Slice(np.zeros((20, 20), np.float32), (1, 1), "CT")
    with pytest.raises(ScanError, match="constant"):
        compare(flat.pixels, flat)


def test_matching_slice_is_the_same_place(ct, mr, mr_path):
    one = ct.slice("axial", 7)
    assert np.array_equal(matching_slice(ct, one, mr).pixels, mr.slice("axial", 7).pixels)
    assert read_scan(mr_path, "MR").plane == "axial"


def test_flicker_between_slices_is_measured_and_an_even_error_is_none(ct, mr):
    even = compare_volumes(ct.voxels + 30, mr, ct)
    assert even.delta_z == pytest.approx(0, abs=1e-3)
    real = np.abs(np.diff(ct.voxels, axis=2))
    assert 0.3 * real.mean() < even.delta_z_truth < 3 * real.mean()
    flicker = compare_volumes(ct.voxels + 30 * (np.arange(ct.count()) % 2), mr, ct)
    assert flicker.delta_z == pytest.approx(30, abs=1e-3)
    assert even.tissues["mae_bone"] == pytest.approx(30, abs=1e-3)
    assert 0 < even.tissues["share_air"] < 0.1
    assert not compare_volumes(np.zeros_like(mr.voxels), ct, mr).tissues
    assert flicker.delta_z_truth == pytest.approx(even.delta_z_truth, abs=1e-2)


def test_a_one_slice_truth_must_lie_in_its_place(ct, mr, tmp_path):
    one = ct.slice("axial", 7)
    truth = mr.slice("axial", 7)
    slab = mr.slice_to_nifti(truth, truth.pixels)
    nib.save(slab, tmp_path / "slab.nii.gz")
    found = matching_slice(ct, one, read_scan(tmp_path / "slab.nii.gz", "MR"))
    np.testing.assert_allclose(found.pixels, truth.pixels)
    with pytest.raises(ScanError, match="same grid"):
        matching_slice(ct, ct.slice("axial", 8), read_scan(tmp_path / "slab.nii.gz", "MR"))


def test_a_truth_that_is_black_at_eight_bits_is_refused_kindly(ct):
    dim = np.zeros((20, 20), np.float32)
    dim[3, 3] = 1
    with pytest.raises(ScanError, match="cannot be compared"):
        compare(np.zeros((20, 20), np.float32), Slice(dim, (1, 1), "MR", (0.0, 1000.0)))
