"""NRRD and MetaImage: read as ITK reads them, and nothing but the one file."""

import numpy as np
import pytest
import SimpleITK as sitk

from mediffuse.scan import ScanError, read_scan
from mediffuse.scan.nrrd_mha import LPS_TO_RAS, read_mha, read_nrrd

READERS = {".nrrd": read_nrrd, ".mha": read_mha}
SECRET = "voxels of another file"
MHA = "ObjectType = Image\nNDims = 3\nDimSize = 32 32 4\nElementType = MET_UCHAR\nElementSpacing = 1 1 1\n"
NRRD = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: 32 32 4\nencoding: raw\nspacings: 1 1 1\n"


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_voxels_and_place_are_those_that_itk_wrote(tmp_path, suffix, compressed, dtype):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 100, (4, 5, 6)).astype(dtype)
    image = sitk.GetImageFromArray(values)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn[:, 0] *= np.sign(np.linalg.det(turn))
    image.SetDirection(turn.ravel().tolist())
    image.SetSpacing((1.5, 0.7, 2))
    image.SetOrigin((3, -4, 5.5))
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"), compressed)
    voxels, affine, warnings = READERS[suffix](tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(voxels, values.T)
    np.testing.assert_allclose(affine[:3, :3], LPS_TO_RAS @ turn @ np.diag([1.5, 0.7, 2]), atol=1e-6)
    np.testing.assert_allclose(affine[:3, 3], [-3, 4, 5.5])
    assert not warnings


def test_the_space_of_an_nrrd_is_that_of_its_vectors(tmp_path):
    text = NRRD.replace("spacings: 1 1 1\n", "")
    text += "space: {}\nspace directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (1,2,3)\n\n"
    for space, signs in (("RAS", (1, 1, 1)), ("left-anterior-superior", (-1, 1, 1)), ("LPS", (-1, -1, 1))):
        path = tmp_path / "a.nrrd"
        path.write_bytes(text.format(space).encode() + bytes(32 * 32 * 4))
        affine = read_nrrd(path)[1]
        np.testing.assert_allclose(np.diag(affine)[:3], np.array([2, 3, 4]) * signs)
        np.testing.assert_allclose(affine[:3, 3], np.array([1, 2, 3]) * signs)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.mha", MHA + "ElementDataFile = {secret}\nElementDataFile = LOCAL\n"),
        ("a.mha", MHA + "ElementDataFile = {secret}\n"),
        ("a.mha", MHA + "elementdatafile = LIST\n{secret}\n"),
        ("a.mha", MHA + "Comment = \rElementDataFile = {secret}\nElementDataFile = LOCAL\n"),
        ("a.nrrd", NRRD + "data file: {secret}\n\n"),
        ("a.nrrd", NRRD + "datafile: {secret}\n\n"),
        ("a.nrrd", NRRD + "Data File: {secret}\n\n"),
        ("a.nrrd", NRRD + "#\rdata file: {secret}\n\n"),
        ("a.nrrd", NRRD + "# comment\n" * 7000 + "data file: {secret}\n\n"),
        ("a.nrrd", NRRD + "data file: -\n\n"),
        ("a.nrrd", NRRD + "data file: LIST\n{secret}\n\n"),
    ],
)
def test_a_header_never_opens_another_file(tmp_path, name, text):
    secret = tmp_path / "secret.raw"
    secret.write_bytes(np.random.default_rng(0).integers(0, 255, 32 * 32 * 4, np.uint8).tobytes())
    path = tmp_path / name
    path.write_text(text.format(secret=secret), newline="")
    with pytest.raises(ScanError) as refused:
        read_scan(path, "MR")
    assert str(tmp_path) not in str(refused.value)
    # The same file with voxels of its own behind the header is not mended by them.
    path.write_bytes(path.read_bytes() + bytes(range(256)) * 16)
    with pytest.raises(ScanError):
        read_scan(path, "MR")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.mha", MHA.replace("NDims = 3", "NDims = -1") + "ElementDataFile = LOCAL\n", "no 3D volume"),
        ("a.mha", MHA.replace("MET_UCHAR", "MET_STRING") + "ElementDataFile = LOCAL\n", "than numbers"),
        ("a.mha", MHA.replace("32 32 4", "32 32 -4") + "ElementDataFile = LOCAL\n", "side of zero"),
        ("a.mha", MHA.replace("32 32 4", "99999 99999 9999") + "ElementDataFile = LOCAL\n", "too large"),
        ("a.mha", MHA + "Offset = 1 2\nElementDataFile = LOCAL\n", "damaged"),
        ("a.mha", MHA + "Offset = 1 2 1e308\nElementDataFile = LOCAL\n", "no usable position"),
        ("a.mha", MHA, "its header is damaged"),
        ("a.nrrd", NRRD.replace("dimension: 3", "dimension: " + "A" * 300) + "\n", "no 3D volume"),
        ("a.nrrd", NRRD.replace("uint8", "block") + "\n", "than numbers"),
        ("a.nrrd", NRRD.replace("raw", "ascii") + "\n", "as text"),
        ("a.nrrd", NRRD + "byte skip: -1\n\n", "something between"),
        ("a.nrrd", NRRD.replace("spacings: 1 1 1", "space directions: none (1,0,0) (0,1,0)") + "\n", "damaged"),
        ("a.nrrd", NRRD + "".join(f"key{n}:=value\n" for n in range(300_000)) + "\n", "far longer"),
        ("a.nrrd", NRRD.replace("raw", "gzip") + "\n", "damaged or cut short"),
        ("a.nrrd", "P5\n", "no NRRD"),
    ],
)
def test_a_malformed_header_is_refused_in_words(tmp_path, name, text, match):
    path = tmp_path / name
    path.write_bytes(text.encode() + bytes(range(256)) * 16)
    with pytest.raises(ScanError, match=match):
        read_scan(path, "MR")


def test_a_bomb_unpacks_to_no_more_than_its_header_says(tmp_path):
    import zlib

    path = tmp_path / "a.mha"
    header = MHA + "CompressedData = True\nElementDataFile = LOCAL\n"
    path.write_bytes(header.encode() + zlib.compress(bytes(range(256)) * 16 + bytes(1 << 26), 9))
    assert read_mha(path)[0].shape == (32, 32, 4)


def test_a_voxel_size_that_is_not_given_is_said(tmp_path):
    path = tmp_path / "a.nrrd"
    path.write_bytes(NRRD.replace("spacings: 1 1 1\n", "\n").encode() + bytes(range(256)) * 16)
    assert "no voxel size" in " ".join(read_scan(path, "MR").warnings)
