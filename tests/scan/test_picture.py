"""Pictures as a browser shows them: the same slice, however it was saved."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from mediffuse.scan import read_scan

TURNS = {
    2: ImageOps.mirror,
    3: lambda image: image.rotate(180),
    4: ImageOps.flip,
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.rotate(90, expand=True),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.rotate(-90, expand=True),
}


@pytest.fixture(scope="module")
def pictures(ct_pictures, mr_pictures) -> dict[str, np.ndarray]:
    """The central slice, 8-bit grey (H, W)."""
    return {"CT": ct_pictures["full"][10], "MR": mr_pictures[10]}


@pytest.fixture(scope="module")
def outside(ct_pixels) -> np.ndarray:
    """What surrounds the head in the central slice."""
    labels, _ = cv2.connectedComponents((ct_pixels <= -300).astype(np.uint8))[::-1]
    return labels == labels[0, 0]


def pixels(path, modality: str) -> np.ndarray:
    return read_scan(path, modality).slice().pixels


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("name", ["slice.jpg", "slice.png", "slice.tif", "slice.webp"])
def test_upright_by_the_orientation_tag(tmp_path, pictures, turn, name):
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"slice.jpg": {"quality": 97}, "slice.webp": {"lossless": True}}.get(name, {})
    TURNS[turn](Image.fromarray(pictures["MR"])).save(tmp_path / name, exif=exif, **options)
    off = np.abs(pixels(tmp_path / name, "MR") - pictures["MR"].astype(float))
    assert off.mean() < (1 if name == "slice.jpg" else 1e-9)


@pytest.mark.parametrize("name", ["slice.tif", "slice.tiff", "slice.bmp", "slice.gif", "slice.webp"])
def test_other_types(tmp_path, pictures, name):
    Image.fromarray(pictures["MR"]).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    np.testing.assert_array_equal(pixels(tmp_path / name, "MR"), pictures["MR"])
    assert read_scan(tmp_path / name, "MR").warnings == ()


@pytest.mark.parametrize("how", ["RGBA", "LA", "palette"])
def test_transparent_pixels_are_black(tmp_path, pictures, outside, how):
    grey = np.where(outside, 255, np.clip(pictures["CT"], 1, 254)).astype(np.uint8)
    alpha = np.where(outside, 0, 255).astype(np.uint8)
    if how == "palette":
        Image.fromarray(grey).convert("P").save(tmp_path / "slice.png", transparency=255)
    else:
        layers = [grey] * (3 if how == "RGBA" else 1)
        Image.fromarray(np.dstack([*layers, alpha]), how).save(tmp_path / "slice.png")
    scan = read_scan(tmp_path / "slice.png", "CT")
    assert (scan.shown, scan.warnings) == ("full", ())
    assert (scan.slice().pixels[outside] == -1000).all()


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_inverted_picture_is_turned_back(tmp_path, pictures, modality):
    for name, grey in (("a.png", pictures[modality]), ("b.png", 255 - pictures[modality])):
        Image.fromarray(grey).save(tmp_path / name)
    scan = read_scan(tmp_path / "b.png", modality)
    assert "inverted" in scan.warnings[0]
    assert np.abs(scan.slice().pixels - pixels(tmp_path / "a.png", modality)).mean() < 7


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("ground", [255, 128])
def test_a_bright_ground_is_made_black(tmp_path, pictures, outside, modality, ground):
    Image.fromarray(np.where(outside, ground, pictures[modality]).astype(np.uint8)).save(tmp_path / "slice.png")
    scan = read_scan(tmp_path / "slice.png", modality)
    assert "it was made black" in scan.warnings[0]
    assert np.mean(scan.slice().pixels[outside] == scan.background) > 0.99


def test_what_is_not_certain_of_a_bright_ground_is_said(tmp_path, ct_pictures):
    Image.fromarray(255 - ct_pictures["brain"][10]).save(tmp_path / "slice.png")
    assert "if the picture is inverted" in " ".join(read_scan(tmp_path / "slice.png", "CT").warnings)


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("grey", [60, 255])
def test_the_frame_of_a_screenshot_is_cut_off(tmp_path, pictures, modality, grey):
    Image.fromarray(pictures[modality]).save(tmp_path / "a.png")
    Image.fromarray(np.pad(pictures[modality], ((30, 50), (100, 80)), constant_values=grey)).save(tmp_path / "b.png")
    scan = read_scan(tmp_path / "b.png", modality)
    np.testing.assert_array_equal(scan.slice().pixels, pixels(tmp_path / "a.png", modality))
    assert scan.warnings == ("Its border was cut off: 355 x 293 pixels became 175 x 213.",)


def test_black_bars_are_cut_off(tmp_path, pictures):
    Image.fromarray(np.pad(pictures["MR"], ((0, 0), (200, 200)))).save(tmp_path / "slice.png")
    scan = read_scan(tmp_path / "slice.png", "MR")
    assert np.count_nonzero(scan.slice().pixels > 20) == np.count_nonzero(pictures["MR"] > 20)
    assert scan.warnings == ("Its bars were cut off: 575 x 213 pixels became 213 x 213.",)


@pytest.mark.parametrize("value", [63536, 65535])
def test_padding_and_errors_in_16_bits(tmp_path, mr_pixels, outside, value):
    raw = mr_pixels.astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), raw)
    padded, hot = np.where(outside, value, raw).astype(np.uint16), raw.copy()
    hot[100, 100] = value
    for name, image, said in (("b.png", padded, f"padding ({value})"), ("c.png", hot, "1 of its pixels")):
        cv2.imwrite(str(tmp_path / name), image)
        scan = read_scan(tmp_path / name, "MR")
        assert said in scan.warnings[0]
        assert np.abs(scan.slice().pixels - pixels(tmp_path / "a.png", "MR"))[~outside].mean() < 4


@pytest.mark.parametrize("name", ["slice.tif", "slice.gif"])
def test_the_first_of_several_pictures_is_read(tmp_path, pictures, name):
    first, second = (Image.fromarray(pictures[m]) for m in ("MR", "CT"))
    first.save(tmp_path / name, save_all=True, append_images=[second, first])
    scan = read_scan(tmp_path / name, "MR")
    np.testing.assert_array_equal(scan.slice().pixels, pictures["MR"])
    assert scan.warnings == (f"{name} holds 3 pictures, and the first was read. A volume comes as NIfTI or DICOM.",)


def test_jpeg_keeps_the_air_of_a_brain_window(tmp_path, ct_pictures, ct_pixels):
    Image.fromarray(ct_pictures["brain"][10]).save(tmp_path / "slice.jpg", quality=90)
    hu = pixels(tmp_path / "slice.jpg", "CT")
    assert (hu[ct_pixels < -900] == -1000).mean() > 0.99
