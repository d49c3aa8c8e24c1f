"""Whole volumes: in place to the voxel, on any grid."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from mediffuse.scan import Scan, ScanError, read_scan
from mediffuse.scan.resample import resampled, straightened
from mediffuse.scan.write import write_nifti
from mediffuse.translate import Settings, Translator
from mediffuse.translate.checkpoints import Checkpoints
from mediffuse.translate.slices import to_model_image, to_slice
from mediffuse.translate.volumes import Passes, translate_volume
from tests import tiny
from tests.conftest import rotation


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    return Translator(Checkpoints(str(tiny.save_all(tmp_path_factory.mktemp("volume")))))


def stored(scan: Scan, path, affine: np.ndarray, order=(0, 1, 2), flips=(1, 1, 1)):
    """Write `scan`'s voxels as a file with `affine`, its axes permuted and flipped."""
    image = nib.Nifti1Image(scan.voxels.astype(np.int16), affine)
    image = image.as_reoriented(np.array([[o, f] for o, f in zip(order, flips, strict=True)]))
    nib.save(image, path)
    return path


@pytest.mark.parametrize("seed", range(4))
def test_the_result_has_the_grid_of_the_file_whatever_its_axes(translator, ct, tmp_path, seed):
    rng = np.random.default_rng(seed)
    turn = rotation(rng, rng.uniform(0, 15))
    shear = np.eye(3)
    shear[1, 2] = rng.uniform(-0.2, 0.2)
    affine = nib.affines.from_matvec(turn @ shear @ np.diag([1.25, 1.25, 4.0]), rng.uniform(-200, 200, 3))
    path = stored(ct, tmp_path / "a.nii.gz", affine, rng.permutation(3), rng.choice([-1, 1], 3))
    scan = read_scan(path, "CT")
    made = translate_volume(translator, scan, "ct2mr", passes=Passes(batch=5))
    image, given = scan.to_nifti(made.voxels), nib.load(path)
    assert image.shape == given.shape
    np.testing.assert_allclose(image.affine, given.affine, atol=1e-4)
    # Voxel for voxel what the same scan gives in its own orientation.
    straight = translate_volume(translator, ct, "ct2mr", passes=Passes(batch=5))
    inverse = nib.orientations.ornt_transform(
        nib.io_orientation(given.affine), nib.io_orientation(nib.Nifti1Image(ct.voxels, affine).affine)
    )
    back = np.asarray(image.as_reoriented(inverse).dataobj)
    np.testing.assert_allclose(back, straight.voxels, atol=0.6)


@pytest.mark.parametrize("seed", range(3))
def test_simpleitk_finds_the_head_where_it_was(translator, ct, tmp_path, seed):
    import SimpleITK as sitk

    rng = np.random.default_rng(seed)
    turn = rotation(rng, rng.uniform(5, 19))
    affine = nib.affines.from_matvec(turn @ np.diag([1.25, 1.25, 4.0]), rng.uniform(-200, 200, 3))
    path = stored(ct, tmp_path / "a.nii.gz", affine, rng.permutation(3), rng.choice([-1, 1], 3))
    scan = read_scan(path, "CT")
    made = translate_volume(translator, scan, "ct2mr")
    write_nifti(scan, made.voxels, "MR", tmp_path / "made.nii.gz")
    # A landmark: the middle between the ends of the head along the file's axes, MARGIN_MM beyond which air begins.
    ends = []
    for file, above in ((path, -300.0), (tmp_path / "made.nii.gz", 0.0)):
        image = sitk.ReadImage(str(file))
        solid = sitk.BinaryFillhole(image > above)
        shape = sitk.LabelShapeStatisticsImageFilter()
        shape.Execute(sitk.RelabelComponent(sitk.ConnectedComponent(solid)))
        low = np.array(shape.GetBoundingBox(1)[:3])
        high = low + shape.GetBoundingBox(1)[3:] - 1
        ends.append(image.TransformContinuousIndexToPhysicalPoint(((low + high) / 2).tolist()))
    was, now = (np.array(image.TransformPhysicalPointToContinuousIndex(end)) for end in ends)
    assert np.abs(now - was).max() < 0.5  # voxels


def test_slices_are_those_of_the_page(translator, ct):
    made = translate_volume(translator, ct, "ct2mr", passes=Passes(batch=7))
    one = ct.slice("axial", 11)
    alone = translator.translate(one, "ct2mr").pixels
    inside = Scan.shown_in(ct.head_mask(), one)
    np.testing.assert_allclose(Scan.shown_in(made.voxels, one)[inside], alone[inside], atol=1e-2)
    assert made.slices == ct.count("axial")


def test_outside_the_head_is_air(translator, mr, ct):
    made = translate_volume(translator, mr, "mr2ct")
    far = ~mr.head_mask()
    far[:, 20:-20] = False
    assert far.any()
    assert (made.voxels[:, :2] == -1000).all()
    empty = replace(ct, voxels=np.full(ct.voxels.shape, -1000, np.float32))
    with pytest.raises(ScanError, match="shows no head"):
        translate_volume(translator, empty, "ct2mr")


def test_passes_are_averaged_and_their_spread_is_known(translator, ct):
    small = replace(ct, voxels=ct.voxels[:, :, 8:12])
    one = translate_volume(translator, small, "ct2mr")
    assert one.deviation is None
    seen = []
    both = translate_volume(
        translator, small, "ct2mr", passes=Passes(mirror=True), on_slices=lambda done, of: seen.append((done, of))
    )
    assert seen[-1] == (8, 8)
    part = small.slice("axial", 2)
    box = part.letterbox(tiny.SIZE)
    image = to_model_image(part, box)[None]
    plain, mirrored = (
        to_slice(made[0], "MR", box)
        for made in (
            translator.generate("ct2mr", image, Settings(mirror=False)),
            translator.generate("ct2mr", image[:, :, ::-1], Settings(mirror=False))[:, :, ::-1],
        )
    )
    inside = Scan.shown_in(small.head_mask(), part)
    shown = [Scan.shown_in(v, part)[inside] for v in (both.voxels, both.deviation)]
    np.testing.assert_allclose(shown[0], (plain + mirrored)[inside] / 2, atol=0.05)
    np.testing.assert_allclose(shown[1], np.abs(plain - mirrored)[inside] / 2, atol=0.05)
    inside = small.head_mask()
    sampled = translate_volume(translator, small, "ct2mr", Settings(speed="diffusion", steps=2, samples=2))
    assert sampled.deviation[inside].mean() > 0


def test_planes_are_averaged(translator, ct):
    small = replace(ct, voxels=ct.voxels[::4, ::4])
    small = replace(small, affine=ct.affine @ np.diag([4, 4, 1, 1]))
    made = translate_volume(translator, small, "ct2mr", passes=Passes(planes=("axial", "sagittal")))
    assert made.deviation[small.head_mask()].mean() > 0


def test_a_very_oblique_scan_is_straightened_and_put_back(ct, tmp_path):
    turn = nib.affines.from_matvec(rotation(np.random.default_rng(1), 40))
    tilted = replace(ct, affine=turn @ ct.affine)
    upright = straightened(tilted)
    assert np.abs(np.diag(upright.affine[:3, :3] / upright.spacing)).min() == pytest.approx(1)
    assert straightened(ct) is ct
    # Landmarks: the brightest voxels keep their place in the world within half a voxel.
    back = resampled(upright, tilted, -1000.0)
    landmark = np.zeros(ct.voxels.shape, np.float32)
    landmark[60:66, 90:96, 9:11] = 1
    there = resampled(replace(tilted, voxels=landmark), upright, 0.0)
    found = np.argwhere(there > 0) @ np.diag([1, 1, 1.0])
    weights = there[there > 0]
    centre = nib.affines.apply_affine(upright.affine, np.average(found, axis=0, weights=weights))
    wanted = nib.affines.apply_affine(tilted.affine, np.argwhere(landmark > 0).mean(0))
    assert np.abs((centre - wanted) / ct.spacing).max() < 0.5
    inside = ct.head_mask()
    assert np.corrcoef(back[inside], ct.voxels[inside])[0, 1] > 0.9


def test_one_oblique_slice_and_a_slab_stay_on_their_own_axes(translator, ct):
    turn = nib.affines.from_matvec(rotation(np.random.default_rng(2), 30))
    tilted = replace(ct.only("axial", 10), affine=turn @ ct.only("axial", 10).affine)
    made = translate_volume(translator, tilted, "ct2mr")
    straight = translate_volume(translator, ct.only("axial", 10), "ct2mr")
    np.testing.assert_allclose(made.voxels, straight.voxels, atol=0.6)
    slab = replace(ct, voxels=ct.voxels[:, :, 5:15], affine=turn @ ct.affine)
    assert straightened(slab) is slab


def test_a_volume_ends_inside_a_slice(translator, ct):
    steps, slices = [], []

    def on_step():
        steps.append(len(slices))
        if len(steps) == 5:
            raise KeyboardInterrupt

    settings = Settings("diffusion", steps=3, start="noise")
    with pytest.raises(KeyboardInterrupt):
        translate_volume(translator, ct, "ct2mr", settings, on_slices=lambda *_: slices.append(1), on_step=on_step)
    assert steps == [0, 0, 0, 1, 1]
    assert translator.translate(ct.slice("axial", 9), "ct2mr").pixels.any()
