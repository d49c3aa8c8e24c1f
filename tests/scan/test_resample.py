"""Scans on other grids."""

import pickle
import tracemalloc
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from mediffuse.evaluate.registration import misregistration
from mediffuse.scan import ScanError, deface
from mediffuse.scan.resample import registered, straightened
from tests.conftest import rotation


def test_a_coronal_scan_is_straightened_with_its_own_spacing(ct):
    axes = nib.affines.from_matvec(rotation(np.random.default_rng(3), 25) @ np.diag([1.0, 5.0, 1.0]))
    coronal = replace(ct, voxels=np.ascontiguousarray(ct.voxels.transpose(0, 2, 1)), affine=axes)
    np.testing.assert_allclose(straightened(coronal).spacing, [1, 5, 1])


def test_registration_finds_a_known_turn(ct, mr):
    shift = nib.affines.from_matvec(rotation(np.random.default_rng(2), 8), [6, -9, 5])
    moved = replace(mr, affine=shift @ mr.affine)
    transform, millimetres = registered(moved, ct)
    head = nib.affines.apply_affine(ct.affine, np.argwhere(ct.head_mask())[::5000])
    off = nib.affines.apply_affine(transform, head) - nib.affines.apply_affine(shift, head)
    assert np.linalg.norm(off, axis=1).mean() < 2.5
    assert millimetres == pytest.approx(
        np.linalg.norm(nib.affines.apply_affine(shift, head) - head, axis=1).mean(), abs=3
    )
    _, still = registered(mr, ct)
    assert still < 2.5


REGISTRATIONS = {
    "of a ground truth": lambda ct, mr: registered(mr, ct),
    "to find the face": lambda ct, mr: deface._register(ct),
    "of a pair that should lie on each other": lambda ct, mr: misregistration(
        ct.slice().pixels, mr.slice().pixels, ct.slice().pixels > -200
    ),
}


@pytest.mark.parametrize("name", REGISTRATIONS)
def test_a_registration_is_the_same_to_the_bit_with_any_number_of_threads(ct, mr, name):
    process, found = sitk.ProcessObject, []
    threads = process.GetGlobalDefaultNumberOfThreads()
    try:
        for number in (1, 3):
            process.SetGlobalDefaultNumberOfThreads(number)
            found.append(REGISTRATIONS[name](ct, mr))
    finally:
        process.SetGlobalDefaultNumberOfThreads(threads)
    assert pickle.dumps(found[0]) == pickle.dumps(found[1])


def test_large_voxels_do_not_make_a_large_grid(ct):
    huge = replace(ct, affine=np.diag([60.0, 60, 60, 1]))
    with pytest.raises(ScanError, match="too large to read here"):
        registered(huge, huge)


def test_the_head_is_sought_in_few_samples_however_large_the_voxels_are(ct):
    wide = replace(ct, voxels=np.broadcast_to(np.float32(40), (512, 512, 1200)), affine=np.diag([5.0, 5, 5, 1]))
    tracemalloc.start()
    low, high = wide.head
    assert tracemalloc.get_traced_memory()[1] < 600 * 2**20
    tracemalloc.stop()
    np.testing.assert_array_equal(low, 0)
    assert all(high >= wide.voxels.shape)
