"""Zips and DICOM files that are not what they should be: an error in words, and nothing left behind."""

import io
import tempfile
import zipfile

import pydicom
import pytest

from mediffuse import series as series_module
from mediffuse.scan import ScanError, read_scan


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder for temporary files, which must be empty again afterwards."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert not list(folder.iterdir())


def zipped(path, **files: bytes):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_a_zip_bomb_is_refused_before_it_is_unpacked(temporary, tmp_path, monkeypatch):
    monkeypatch.setattr(series_module, "MAX_UNPACKED", 1 << 20)
    bomb = zipped(tmp_path / "bomb.zip", a=bytes(2 << 20))
    with pytest.raises(ScanError, match="unpacks to more than can be read"):
        read_scan(bomb, "CT")


def test_a_zip_that_lies_about_its_size_is_stopped(temporary, tmp_path, monkeypatch):
    monkeypatch.setattr(series_module, "MAX_UNPACKED", 1 << 20)
    liar = zipped(tmp_path / "liar.zip", a=bytes(2 << 20)).read_bytes()
    true, said = (2 << 20).to_bytes(4, "little"), (1 << 10).to_bytes(4, "little")
    (tmp_path / "liar.zip").write_bytes(liar.replace(true, said))
    with pytest.raises(ScanError, match="unpack"):
        read_scan(tmp_path / "liar.zip", "CT")


def test_names_in_a_zip_are_no_paths(temporary, tmp_path, ct_path):
    content = ct_path.read_bytes()
    for name in ("../../outside.nii.gz", "/tmp/outside-mediffuse.nii.gz", "a\\..\\..\\outside.nii.gz"):
        path = zipped(tmp_path / "climbs.zip", **{name: content})
        assert read_scan(path, "CT").count() == 20
    assert not list(tmp_path.parent.glob("outside*"))
    assert not list(tmp_path.glob("outside*"))


@pytest.mark.parametrize("content", [b"PK\x03\x04 cut short", b"PK"])
def test_a_damaged_zip(temporary, tmp_path, content):
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(ScanError, match="cannot be unpacked"):
        read_scan(tmp_path / "bad.zip", "CT")


def test_a_zip_in_a_zip_and_an_empty_one(temporary, tmp_path):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("a", b"b")
    for files in ({"inner.zip": inner.getvalue()}, {}):
        with pytest.raises(ScanError, match="holds no DICOM series"):
            read_scan(zipped(tmp_path / "odd.zip", **files), "CT")


def one_of(series):
    return pydicom.dcmread(min(series.iterdir()))


def test_no_pixel_data(series, tmp_path):
    dataset = one_of(series)
    del dataset.PixelData
    dataset.save_as(tmp_path / "empty.dcm")
    with pytest.raises(ScanError, match="no pixel data, or is compressed"):
        read_scan(tmp_path / "empty.dcm", "CT")


def test_a_compression_that_cannot_be_read(series, tmp_path):
    dataset = one_of(series)
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x0a" + bytes(100)])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(tmp_path / "film.dcm")
    with pytest.raises(ScanError, match="no pixel data, or is compressed"):
        read_scan(tmp_path / "film.dcm", "CT")


def test_a_dicom_cut_short_and_one_that_claims_to_be_huge(series, tmp_path):
    whole = min(series.iterdir()).read_bytes()
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ScanError, match="no pixel data, or is compressed"):
        read_scan(tmp_path / "cut.dcm", "CT")
    dataset = one_of(series)
    dataset.Rows = dataset.Columns = 65_535
    dataset.NumberOfFrames = 30
    dataset.save_as(tmp_path / "huge.dcm")
    with pytest.raises(ScanError, match="too large"):
        read_scan(tmp_path / "huge.dcm", "CT")
