from __future__ import annotations

import gzip
import itertools
import struct
import zlib
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from mediffuse.scan import PLANES, Scan, ScanError, read_scan
from mediffuse.scan.types import MAX_VOXELS
from mediffuse.scan.values import looks_like
from tests.conftest import ROOT

DICOM = sorted((ROOT / "tests" / "data" / "dicom").glob("*.dcm"))
EXAMPLE_PNG = ROOT / "assets" / "examples" / "head_ct_brain.png"
AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}


@pytest.fixture(scope="module")
def block(ct) -> np.ndarray:
    """Every other voxel of the example CT: (X, Y, Z), axes to Right, Anterior, Superior."""
    return np.ascontiguousarray(ct.voxels[::2, ::2, 2:])


def rotation(degrees: float, axis: int) -> np.ndarray:
    """4x4, about a world axis."""
    turn, (a, b) = np.eye(4), [i for i in range(3) if i != axis]
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[[a, a, b, b], [a, b, a, b]] = cos, -sin, sin, cos
    return turn


# An oblique head, 2.5 x 2 x 4 mm, somewhere in the scanner.
RAS = rotation(12, 0) @ rotation(-7, 2) @ np.diag([2.5, 2.0, 4.0, 1.0])
RAS[:3, 3] = -80, -95, 40


def stored(voxels: np.ndarray, affine: np.ndarray, order, flips) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its axes in another `order`, some reversed. Written out by hand."""
    to_ras = np.zeros((4, 4))
    to_ras[3, 3] = 1
    for axis, (source, flip) in enumerate(zip(order, flips, strict=True)):
        to_ras[source, axis] = -1 if flip else 1
        to_ras[source, 3] = voxels.shape[source] - 1 if flip else 0
    turned = voxels.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]
    return turned, affine @ to_ras


def shown(voxels: np.ndarray, plane: str, index: int) -> np.ndarray:
    """A slice of RAS `voxels` as a radiologist sees it: top row first, the patient's right on the left."""
    columns = {"sagittal": 1}.get(plane, 0)
    rows = {"axial": 1}.get(plane, 2)
    flat = np.take(voxels, index, AXIS[plane])
    return np.array(
        [[flat[c, r] for c in reversed(range(voxels.shape[columns]))] for r in reversed(range(voxels.shape[rows]))]
    )


def assert_overlays(image: nib.Nifti1Image, source: nib.Nifti1Image, voxels: int) -> None:
    """Every voxel of `image` lies on one of `source` in the world, and has its value."""
    data = np.asarray(image.dataobj)
    assert data.size == voxels
    index = np.argwhere(np.ones(data.shape, bool))
    world = nib.affines.apply_affine(image.affine, index)
    there = nib.affines.apply_affine(np.linalg.inv(source.affine), world)
    np.testing.assert_allclose(there, there.round(), atol=1e-3)
    there = there.round().astype(int)
    assert (there >= 0).all()
    np.testing.assert_allclose(data[tuple(index.T)], np.asarray(source.dataobj)[tuple(there.T)], atol=1e-3)


LAYOUTS = [
    pytest.param(
        order, flips, id="".join("RAS"[o].lower() if f else "RAS"[o] for o, f in zip(order, flips, strict=True))
    )
    for order in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]


@pytest.mark.parametrize(("order", "flips"), LAYOUTS)
def test_every_axis_layout_shows_the_same_picture_and_overlays(tmp_path, block, order, flips):
    voxels, affine = stored(block, RAS, order, flips)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii")
    source = nib.load(tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii", "CT")
    np.testing.assert_allclose(scan.affine, RAS, atol=1e-4)
    for plane in PLANES:
        index = scan.count(plane) // 3
        one = scan.slice(plane, index)
        np.testing.assert_array_equal(one.pixels, shown(block, plane, index))
        image = scan.slice_to_nifti(one, one.pixels)
        assert nib.aff2axcodes(image.affine) == nib.aff2axcodes(affine)
        assert_overlays(image, source, one.pixels.size)


def test_slice_survives_the_file(tmp_path, ct, ct_path):
    one = ct.slice("axial", 7)
    nib.save(ct.slice_to_nifti(one, one.pixels), tmp_path / "slice.nii.gz")
    image = nib.load(tmp_path / "slice.nii.gz")
    assert image.shape == (175, 213, 1)
    assert image.header.get_zooms() == pytest.approx((1.25, 1.25, 4))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert_overlays(image, nib.load(ct_path), one.pixels.size)
    again = read_scan(tmp_path / "slice.nii.gz", "CT")
    np.testing.assert_array_equal(again.slice().pixels, one.pixels)


def test_spacing_follows_the_picture(tmp_path, block):
    """2.5 x 2 x 4 mm along right, anterior, superior; (row, column) of each plane."""
    voxels, affine = stored(block, RAS, (2, 0, 1), (True, False, True))
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii")
    scan = read_scan(tmp_path / "scan.nii", "CT")
    spacing = {plane: scan.slice(plane).spacing for plane in PLANES}
    assert spacing["axial"] == pytest.approx((2.0, 2.5))
    assert spacing["coronal"] == pytest.approx((4.0, 2.5))
    assert spacing["sagittal"] == pytest.approx((4.0, 2.0))


def test_slices_default_to_the_centre_and_end_where_the_scan_does(ct):
    assert ct.slice().index == 10
    assert [ct.count(plane) for plane in PLANES] == [20, 213, 175]
    for index in (-1, 20):
        with pytest.raises(ScanError, match=f"no axial slice {index}: choose 0 to 19"):
            ct.slice("axial", index)


def test_example_reads_without_warnings_in_its_units(ct, mr):
    assert ct.warnings == mr.warnings == ()
    assert ct.kind == "nifti"
    assert ct.limits is None
    assert mr.limits[0] == mr.voxels.min()
    assert mr.slice().limits == mr.limits
    assert np.median(ct.slice().pixels[(ct.slice().pixels > 0) & (ct.slice().pixels < 80)]) == pytest.approx(35, abs=6)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".NII.GZ"])
def test_scale_factors_and_trailing_axes_of_nifti(tmp_path, block, suffix):
    image = nib.Nifti1Image(((block + 1000) / 2).astype(np.int16)[..., None], RAS)
    image.header.set_slope_inter(2, -1000)
    path = tmp_path / "scan.nii"
    nib.save(image, path)
    if suffix != ".nii":
        (tmp_path / f"scan{suffix}").write_bytes(gzip.compress(path.read_bytes(), 1))
    scan = read_scan(tmp_path / f"scan{suffix}", "CT")
    np.testing.assert_allclose(scan.voxels, block, atol=2)


def test_single_coronal_slice_has_one_plane_to_show(tmp_path, block):
    nib.save(nib.Nifti1Image(np.repeat(block[:, 40:41], 2, axis=2), RAS), tmp_path / "coronal.nii")
    scan = read_scan(tmp_path / "coronal.nii", "CT")
    assert scan.slice("coronal", 0).pixels.shape == (36, 88)
    with pytest.raises(ScanError, match="single slice, and not an axial one"):
        scan.slice("axial")


# Pictures


def picture(tmp_path, pixels: np.ndarray, name: str = "slice.png") -> Path:
    path = tmp_path / name
    assert cv2.imwrite(str(path), pixels)
    return path


def test_8_bit_png_of_an_mr_is_shown_as_it_is(tmp_path, mr_pictures):
    scan = read_scan(picture(tmp_path, mr_pictures[10]), "MR")
    one = scan.slice()
    np.testing.assert_array_equal(one.pixels, mr_pictures[10])
    assert (one.spacing, one.limits, scan.kind, scan.shown) == ((1, 1), (0, 255), "picture", None)
    assert scan.count("axial") == 1
    back = np.asarray(scan.slice_to_nifti(one, one.pixels).dataobj)
    np.testing.assert_array_equal(back, scan.voxels)


@pytest.mark.parametrize("how", ["rgb", "rgba", "grey_alpha", "palette"])
def test_grey_in_colour_files(tmp_path, mr_pictures, how):
    grey = mr_pictures[10]
    path = tmp_path / "slice.png"
    mode = {"rgb": "RGB", "rgba": "RGBA", "grey_alpha": "LA", "palette": "P"}[how]
    Image.fromarray(grey).convert(mode).save(path)
    np.testing.assert_array_equal(read_scan(path, "MR").slice().pixels, grey)


def test_jpeg(tmp_path, mr_pictures):
    path = tmp_path / "slice.JPG"
    Image.fromarray(mr_pictures[10]).save(path, quality=95)
    off = read_scan(path, "MR").slice().pixels - mr_pictures[10]
    assert np.abs(off).mean() < 3


def test_16_bit_png_keeps_more_than_8_bits(tmp_path, mr_pixels):
    stored_values = mr_pixels.astype(np.uint16)  # 0..1400 of 65535: black if it were taken as it is
    one = read_scan(picture(tmp_path, stored_values), "MR").slice()
    expected = (mr_pixels - mr_pixels.min()) / np.ptp(mr_pixels) * 255
    np.testing.assert_allclose(one.pixels, expected, atol=1e-2)
    assert len(np.unique(one.pixels)) == len(np.unique(stored_values)) > 256


@pytest.mark.parametrize("name", ["full", "bone", "brain"])
def test_picture_of_a_ct_is_read_in_hu(tmp_path, ct_pictures, ct_pixels, name):
    path = picture(tmp_path, ct_pictures[name][10])
    scan = read_scan(path, "CT")
    assert (scan.shown, scan.warnings) == (name, ())
    soft = (ct_pixels > 5) & (ct_pixels < 75)
    assert np.median(np.abs(scan.slice().pixels - ct_pixels)[soft]) < 8
    assert np.median(scan.slice().pixels[ct_pixels < -950]) == pytest.approx(-1000, abs=5)
    assert read_scan(path, "CT", shown="bone").shown == "bone"


def test_bundled_picture_is_the_central_slice(ct_pictures):
    np.testing.assert_array_equal(cv2.imread(str(EXAMPLE_PNG), cv2.IMREAD_UNCHANGED), ct_pictures["brain"][10])
    assert read_scan(EXAMPLE_PNG, "CT").warnings == ()


# What a file is, against what it is said to be


def test_volumes_of_the_other_modality_warn(ct_path, mr_path):
    assert read_scan(mr_path, "CT").warnings[0].startswith("This looks like an MRI, and this needs a CT:")
    assert read_scan(ct_path, "MR").warnings[0].startswith("This looks like a CT, and this needs an MRI:")


def test_looks_like_is_silent_where_it_cannot_tell():
    assert looks_like(np.linspace(-250, 100, 4096).reshape(16, 16, 16)) is None


@pytest.mark.parametrize("name", ["full", "bone", "brain"])
def test_pictures_of_a_ct_given_as_mr_warn(tmp_path, ct_pictures, name):
    for pixels in ct_pictures[name][::3]:
        path = picture(tmp_path, pixels)
        assert "looks like a CT" in read_scan(path, "MR").warnings[0]
        assert read_scan(path, "CT").warnings == ()


def test_pictures_of_an_mr_given_as_ct_warn(tmp_path, mr_pictures):
    warned = 0
    for pixels in mr_pictures:
        path = picture(tmp_path, pixels)
        warned += "looks like an MRI" in " ".join(read_scan(path, "CT").warnings)
        assert read_scan(path, "MR").warnings == ()
    assert warned >= 0.9 * len(mr_pictures)


# Two scans on one grid


def saved(path: Path, voxels: np.ndarray, affine: np.ndarray) -> Scan:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return read_scan(path, "CT")


def test_pairs_on_one_grid_pass_in_any_layout(tmp_path, ct, mr, block):
    ct.check_same_grid(mr)
    one = saved(tmp_path / "a.nii", block, RAS)
    one.check_same_grid(saved(tmp_path / "b.nii", *stored(block, RAS, (1, 2, 0), (True, False, True))))
    nudged = RAS.copy()
    nudged[0, 3] += 0.05
    one.check_same_grid(saved(tmp_path / "c.nii", block, nudged))


def test_pairs_on_other_grids_are_refused(tmp_path, ct, block):
    one = saved(tmp_path / "a.nii", block, RAS)
    with pytest.raises(ScanError, match=r"88 x 107 x 18 and 88 x 107 x 17.*Resample"):
        one.check_same_grid(saved(tmp_path / "b.nii", block[..., 1:], RAS))
    shifted = RAS.copy()
    shifted[2, 3] += 2
    with pytest.raises(ScanError, match=r"up to 2\.0 mm apart"):
        one.check_same_grid(saved(tmp_path / "c.nii", block, shifted))
    with pytest.raises(ScanError, match="mm apart"):
        one.check_same_grid(saved(tmp_path / "d.nii", block, rotation(1, 2) @ RAS))


def test_pictures_pair_by_size(tmp_path, ct_pictures):
    one = read_scan(picture(tmp_path, ct_pictures["full"][10]), "CT")
    one.check_same_grid(read_scan(picture(tmp_path, ct_pictures["full"][11], "b.png"), "CT"))
    with pytest.raises(ScanError, match="175 x 213 and 175 x 200"):
        one.check_same_grid(read_scan(picture(tmp_path, ct_pictures["full"][11][:200], "c.png"), "CT"))


# DICOM, judged by pydicom


def edited(tmp_path, **elements) -> Path:
    """The first slice with header elements replaced (or, None, left out)."""
    data = pydicom.dcmread(DICOM[0])
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(tmp_path / "edited.dcm")
    return tmp_path / "edited.dcm"


def assert_agrees_with_pydicom(path: Path) -> None:
    """HU and the place of every pixel in the patient, by the DICOM standard (C.7.6.2.1.1)."""
    data = pydicom.dcmread(path)
    expected = data.pixel_array * float(data.RescaleSlope) + float(data.RescaleIntercept)
    scan = read_scan(path, "CT")
    assert scan.kind == "dicom"
    image = scan.slice_to_nifti(scan.slice(), scan.slice().pixels)
    right, down = np.split(np.array(data.ImageOrientationPatient, float), 2)
    row, column = np.mgrid[: data.Rows, : data.Columns].reshape(2, -1)
    place = np.array(data.ImagePositionPatient, float) + (
        np.outer(column * float(data.PixelSpacing[1]), right) + np.outer(row * float(data.PixelSpacing[0]), down)
    )
    ras = place * [-1, -1, 1]
    index = nib.affines.apply_affine(np.linalg.inv(image.affine), ras)
    np.testing.assert_allclose(index, index.round(), atol=1e-3)
    values = np.asarray(image.dataobj)[tuple(index.round().astype(int).T)]
    np.testing.assert_allclose(values, expected.ravel(), atol=1e-3)


@pytest.mark.parametrize("path", DICOM, ids=lambda path: path.stem)
def test_dicom_agrees_with_pydicom(path):
    assert_agrees_with_pydicom(path)
    data, scan = pydicom.dcmread(path), read_scan(path, "CT")
    # Lying on the back, rows run to the left and columns to the back: shown as it is stored.
    np.testing.assert_array_equal(scan.slice().pixels, data.pixel_array - 1024.0)
    assert scan.warnings == ()
    assert scan.slice().spacing == (1, 1)


@pytest.mark.parametrize(
    "orientation",
    [
        pytest.param([1, 0, 0, 0, 1, 0], id="axial"),
        pytest.param([-1, 0, 0, 0, -1, 0], id="prone"),
        pytest.param([0, 1, 0, 1, 0, 0], id="transposed"),
        pytest.param([0.9659258, 0.2588190, 0, -0.2500000, 0.9330127, 0.2588190], id="oblique"),
    ],
)
def test_oblique_anisotropic_rescaled_dicom_agrees_with_pydicom(tmp_path, orientation):
    path = edited(
        tmp_path,
        ImageOrientationPatient=orientation,
        ImagePositionPatient=[-120.5, -80.25, 33],
        PixelSpacing=[0.5, 0.75],
        RescaleSlope=2,
        PixelData=(pydicom.dcmread(DICOM[0]).pixel_array // 2).tobytes(),
    )
    assert_agrees_with_pydicom(path)
    assert sorted(read_scan(path, "CT").slice().spacing) == pytest.approx([0.5, 0.75])


def test_neighbouring_dicom_slices_lie_one_spacing_apart():
    places = [read_scan(path, "CT").affine[:3, 3] for path in DICOM]
    np.testing.assert_allclose(np.diff(places, axis=0), [[0, 0, 1]] * 2, atol=1e-6)


def test_dicom_needs_no_suffix(tmp_path):
    path = tmp_path / "IM000001"
    path.write_bytes(DICOM[0].read_bytes())
    assert read_scan(path, "CT").kind == "dicom"


def test_dicom_header_says_what_it_is(tmp_path):
    path = edited(tmp_path, Modality="MR")
    assert read_scan(path, "CT").warnings[0].startswith("The file says it is an MRI, and this needs a CT:")
    assert read_scan(path, "MR").warnings == (), "the header is believed, whatever the values look like"


# What cannot be used


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def forged_png(side: int) -> bytes:
    """A PNG of a few bytes whose header claims `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


def nifti(voxels: np.ndarray, affine=RAS, **header) -> bytes:
    image = nib.Nifti1Image(voxels, affine)
    raw = bytearray(image.to_bytes())
    for offset, layout, values in header.values():
        struct.pack_into(layout, raw, offset, *values)
    return bytes(raw)


CUBE = np.arange(20 * 20 * 20, dtype=np.int16).reshape(20, 20, 20)
NAN = np.full(CUBE.shape, np.nan, np.float32)
GRADIENT = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def dims(*sides: int) -> tuple:
    """The header's dim field."""
    return 40, "<8h", (len(sides), *sides, *[1] * (7 - len(sides)))


PHOTO = np.stack([GRADIENT, GRADIENT.T, 255 - GRADIENT], axis=-1)
BAD = {
    "empty.png": (b"", r"is empty \(0 bytes\)"),
    "empty.nii.gz": (b"", r"is empty \(0 bytes\)"),
    "empty.dcm": (b"", r"is empty \(0 bytes\)"),
    "notes.txt": (b"hello", "not a file type this can read.*NIfTI"),
    "archive.zip": (b"PK\x03\x04" + bytes(200), "cannot be unpacked"),
    "cut.png": (EXAMPLE_PNG.read_bytes()[:6000], "cannot be read as a picture"),
    "text.png": (b"hello", "cannot be read as a picture"),
    "huge.png": (forged_png(30_000), "too large"),
    "large.png": (forged_png(5_000), "5000 x 5000.*too large"),
    "zero.png": (forged_png(0), "cannot be read as a picture"),
    "small.png": (png(GRADIENT[:8]), "only 64 x 8 pixels"),
    "constant.png": (png(np.full((64, 64), 9, np.uint8)), "one constant value"),
    "photo.png": (png(PHOTO), "colour picture"),
    "cut.jpg": (cv2.imencode(".jpg", GRADIENT)[1].tobytes()[:400], "cannot be read as a picture"),
    "photo.jpg": (cv2.imencode(".jpg", PHOTO)[1].tobytes(), "colour picture"),
    "text.nii": (b"hello" * 100, "cannot be read as NIfTI"),
    "cut.nii": (nifti(CUBE)[:9000], "cannot be read as NIfTI"),
    "cut.nii.gz": (gzip.compress(nifti(CUBE))[:9000], "cannot be read as NIfTI"),
    "headless.nii.gz": (gzip.compress(nifti(CUBE))[:100], "cannot be read as NIfTI"),
    "huge.nii.gz": (gzip.compress(nifti(CUBE, dim=dims(30_000, 30_000, 30_000))), "30000 x 30000 x 30000.*too large"),
    "claims.nii": (nifti(CUBE, dim=dims(200, 200, 200)), "cannot be read as NIfTI"),
    "offset.nii": (nifti(CUBE, vox_offset=(108, "<f", (1e30,))), "cannot be read as NIfTI"),
    "negative.nii": (nifti(CUBE, dim=dims(-20, 20, 20)), "NIfTI|zero voxels"),
    "zero.nii": (nifti(CUBE, dim=dims(20, 20, 0)), "side of zero voxels"),
    "series.nii": (nifti(np.stack([CUBE] * 3, axis=-1)), r"4D \(3 volumes\)"),
    "field.nii": (nifti(np.stack([CUBE] * 3, axis=-1)[:, :, :, None]), "5D"),
    "flat.nii": (nifti(CUBE[0]), "2D.*PNG"),
    "thin.nii": (nifti(CUBE[:8, :8]), "only 8 x 8 x 20 voxels"),
    "nan.nii": (nifti(NAN), "not numbers"),
    "infinite.nii": (nifti(np.where(CUBE == 77, 5, np.inf)), "not numbers"),
    "constant.nii": (nifti(CUBE * 0 + 5), "one constant value"),
    "complex.nii": (nifti(CUBE.astype(np.complex64)), "colour or complex"),
    "colour.nii": (nifti(np.zeros((20, 20, 20), [("R", "u1"), ("G", "u1"), ("B", "u1")])), "colour or complex"),
    "nowhere.nii": (nifti(CUBE, srow_z=(312, "<4f", (0, 0, 0, 0))), "no usable position or voxel size"),
    "nan_affine.nii": (nifti(CUBE, srow_x=(280, "<f", (np.nan,))), "no usable position or voxel size"),
    "cut.dcm": (DICOM[0].read_bytes()[:100_000], "cannot be read as DICOM"),
    "headless.dcm": (DICOM[0].read_bytes()[:600], "cannot be read as DICOM"),
    "text.dcm": (b"hello" * 100, "cannot be read as DICOM"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_bad_file_is_refused_in_words_for_a_user(tmp_path, name, modality):
    content, message = BAD[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ScanError, match=message) as caught:
        read_scan(path, modality)
    text = str(caught.value)
    assert text.startswith(name)
    assert text.endswith((".", "?"))
    assert str(tmp_path) not in text


def test_colour_dicom_is_refused(tmp_path):
    data = pydicom.dcmread(DICOM[0])
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = bytes(512 * 512 * 3)
    data.save_as(tmp_path / "colour.dcm")
    with pytest.raises(ScanError, match="colour DICOM"):
        read_scan(tmp_path / "colour.dcm", "CT")


def test_report_without_pixels_is_refused(tmp_path):
    with pytest.raises(ScanError, match=r"cannot be read as DICOM.*no pixel data"):
        read_scan(edited(tmp_path, PixelData=None), "CT")


def test_missing_file(tmp_path):
    with pytest.raises(ScanError, match=r"There is no file scan\.nii"):
        read_scan(tmp_path / "scan.nii", "CT")


def test_unknown_modality_is_the_callers_mistake(ct_path):
    with pytest.raises(ValueError, match="CT or MR, not 'PET'") as caught:
        read_scan(ct_path, "PET")
    assert not isinstance(caught.value, ScanError)


def test_constant_mask_may_be_allowed(tmp_path):
    (tmp_path / "mask.nii").write_bytes(nifti(CUBE * 0 + 1))
    assert read_scan(tmp_path / "mask.nii", "MR", allow_constant=True).voxels.max() == 1


def test_size_is_bounded_before_voxels_are_read(tmp_path):
    """A few kilobytes whose header claims one slice more than is read."""
    sides = 512, 512, MAX_VOXELS // 512**2 + 1
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(nifti(CUBE, dim=dims(*sides)) + bytes(10_000)))
    with pytest.raises(ScanError, match="too large"):
        read_scan(tmp_path / "bomb.nii.gz", "CT")


def test_damaged_headers_never_end_in_anything_but_scan_error(tmp_path):
    """A byte or three of a small NIfTI's header replaced, 300 times."""
    rng = np.random.default_rng(0)
    whole, path = nifti(CUBE), tmp_path / "fuzz.nii"
    outcomes = set()
    for _ in range(300):
        raw = bytearray(whole)
        for place in rng.integers(0, 352, rng.integers(1, 4)):
            raw[place] = rng.integers(0, 256)
        path.write_bytes(raw)
        try:
            outcomes.add(read_scan(path, "CT").kind)
        except ScanError:
            outcomes.add("refused")
    assert outcomes == {"nifti", "refused"}


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_large_field_of_view_is_cropped_to_the_head(ct, tmp_path, plane):
    """The same head in a field of view twice as wide gives about the same model image."""
    assert ct.slice(plane).crop is None
    pad = [(120, 80), (60, 140), (30, 30)]
    voxels = np.pad(ct.voxels, pad, constant_values=-1000)
    voxels[:, 20:24, :] = 300  # a table, not touching the head
    affine = ct.affine.copy()
    affine[:3, 3] -= affine[:3, :3] @ [p[0] for p in pad]
    path = tmp_path / "wide.nii.gz"
    nib.save(nib.Nifti1Image(voxels, affine), path)
    wide = read_scan(path, "CT")
    index = ct.count(plane) // 2 + {"sagittal": 120, "coronal": 60, "axial": 30}[plane]
    one = wide.slice(plane, index)
    box = one.letterbox(256)
    assert one.crop is not None
    head = one.pixels > 500
    head &= one.pixels != 300
    inside = np.zeros(one.pixels.shape, bool)
    inside[box.part] = True
    assert inside[head].all()
    height, width = one.crop[2] * one.spacing[0], one.crop[3] * one.spacing[1]
    assert max(height, width) <= 1.35 * max(
        n * mm for n, mm in zip(ct.slice(plane).pixels.shape, one.spacing, strict=True)
    )
    restored = box.restore(box.fit(one.pixels, -1000), -1000)
    assert restored.shape == one.pixels.shape
    assert (restored[~inside] == -1000).all()
    assert np.abs(restored - one.pixels)[inside].mean() < 40
