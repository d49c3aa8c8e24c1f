"""DICOM series and other volumes, read where they lie; and those that are not what they should be: an error
in words, and nothing left behind."""

import io
import tempfile
import zipfile

import nibabel as nib
import numpy as np
import pydicom
import pytest

from mediffuse.scan import ScanError, archive, dicom, read_scan
from mediffuse.scan.write import write_dicom


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
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1 << 20)
    bomb = zipped(tmp_path / "bomb.zip", a=bytes(2 << 20))
    with pytest.raises(ScanError, match="unpacks to more than can be read"):
        read_scan(bomb, "CT")


def test_a_zip_that_lies_about_its_size_is_stopped(temporary, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1 << 20)
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


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_damaged_inside(temporary, tmp_path, ct_path, method):
    content = nib.load(ct_path).get_fdata().astype(np.int16).tobytes()
    with zipfile.ZipFile(tmp_path / "bad.zip", "w", method) as archive:
        archive.writestr("a.nii", content)
    whole = (tmp_path / "bad.zip").read_bytes()
    for place in (60, 5_000, len(whole) // 2):
        (tmp_path / "bad.zip").write_bytes(whole[:place] + bytes(64) + whole[place + 64 :])
        with pytest.raises(ScanError, match="cannot be unpacked"):
            read_scan(tmp_path / "bad.zip", "CT")


def test_what_macos_adds_to_a_zip_is_left_out(temporary, tmp_path, ct_path):
    path = zipped(tmp_path / "mac.zip", **{"head.nii.gz": ct_path.read_bytes(), "__MACOSX/._head.nii.gz": b"finder"})
    assert read_scan(path, "CT").name == "head.nii.gz"


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


def rewritten(series, folder, change):
    """The series' files in `folder`, in their order along the head, after `change(number, header)`;
    those for which it gives False are left out."""
    folder.mkdir()
    files = sorted((pydicom.dcmread(p) for p in series.iterdir()), key=lambda d: float(d.ImagePositionPatient[2]))
    for number, one in enumerate(files):
        if change(number, one) is not False:
            one.save_as(folder / f"{(number * 7) % len(files):02d}.dcm")
    return folder


def test_files_in_any_order_make_the_volume_they_came_from(series, ct):
    scan = read_scan(series, "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)
    np.testing.assert_allclose(scan.affine, ct.affine, atol=1e-4)
    assert not scan.warnings


def test_a_tilted_gantry_is_a_shear_to_the_voxel(series, ct, tmp_path):
    def tilt(number, one):
        x, y, z = map(float, one.ImagePositionPatient)
        one.ImagePositionPatient = [x, y + number * 4 * np.tan(np.deg2rad(15)), z]

    scan = read_scan(rewritten(series, tmp_path / "tilted", tilt), "CT")
    shear = np.eye(4)
    shear[1, 2] = -np.tan(np.deg2rad(15))
    start = ct.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(scan.affine[:3, :3], (shear @ ct.affine)[:3, :3], atol=1e-3)
    np.testing.assert_allclose(scan.affine @ [0, 0, 0, 1], start, atol=1e-3)
    np.testing.assert_array_equal(scan.voxels, ct.voxels)


def test_missing_slices_are_interpolated_and_said(series, ct, tmp_path):
    scan = read_scan(rewritten(series, tmp_path / "gap", lambda number, _: number not in (7, 8)), "CT")
    assert scan.count() == ct.count()
    np.testing.assert_allclose(scan.affine, ct.affine, atol=1e-4)
    between = (2 * ct.voxels[:, :, 6] + ct.voxels[:, :, 9]) / 3
    np.testing.assert_allclose(scan.voxels[:, :, 7], between, atol=1e-3)
    assert any("2 of 20 slices are missing" in w for w in scan.warnings)


def test_uneven_slices_lie_where_they_were(series, ct, tmp_path):
    # Every slice below the tenth, every other one above.
    scan = read_scan(rewritten(series, tmp_path / "uneven", lambda number, _: number < 10 or number % 2 == 0), "CT")
    assert scan.count() == 19
    np.testing.assert_allclose(scan.affine, ct.affine, atol=1e-4)
    kept = [*range(10), 10, 12, 14, 16, 18]
    np.testing.assert_allclose(scan.voxels[:, :, kept], ct.voxels[:, :, kept], atol=1e-3)

    def bent(number, one):
        x, y, z = map(float, one.ImagePositionPatient)
        one.ImagePositionPatient = [x, y, z + max(0, number - 12) * 1.7]

    scan = read_scan(rewritten(series, tmp_path / "bent", bent), "CT")
    assert any("unevenly spaced (4 to 5.7 mm)" in w for w in scan.warnings)
    top = ct.affine @ [0, 0, 19, 1] + [0, 0, 7 * 1.7, 0]
    np.testing.assert_allclose(scan.affine @ [0, 0, scan.count() - 1, 1], top, atol=1e-3)
    np.testing.assert_allclose(scan.voxels[:, :, -1], ct.voxels[:, :, 19], atol=1e-3)


def test_a_few_slices_of_many_are_refused(series, tmp_path):
    with pytest.raises(ScanError, match="has only 4 of 20 slices"):
        read_scan(rewritten(series, tmp_path / "few", lambda number, _: number in (0, 1, 2, 19)), "CT")


def test_localisers_and_screenshots_are_left_out(series, ct, tmp_path):
    folder = rewritten(series, tmp_path / "study", lambda *_: None)
    for number in range(3):
        extra = pydicom.dcmread(folder / "00.dcm")
        extra.SOPInstanceUID = extra.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        if number == 0:  # of the same series, by its image type
            extra.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        elif number == 1:  # of the same series, by its orientation
            extra.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        else:  # a series of its own
            extra.SeriesInstanceUID, extra.Modality = pydicom.uid.generate_uid(), "OT"
        extra.save_as(folder / f"extra{number}.dcm")
    scan = read_scan(folder, "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)
    assert any("2 images of this series were left out" in w for w in scan.warnings)


def test_a_ct_stored_inverted_is_refused(series, tmp_path):
    def invert(_, one):
        one.PhotometricInterpretation = "MONOCHROME1"

    with pytest.raises(ScanError, match="MONOCHROME1"):
        read_scan(rewritten(series, tmp_path / "inverted", invert), "CT")


def test_what_slices_claim_is_added_up_before_they_are_read(series, tmp_path, monkeypatch):
    monkeypatch.setattr("mediffuse.scan.types.MAX_VOXELS", 1)
    monkeypatch.setattr(dicom, "stored_values", None)  # would be called to read
    monkeypatch.setattr(dicom.check_size, "__defaults__", (1,))
    with pytest.raises(ScanError, match="too large"):
        read_scan(series, "CT")


@pytest.mark.parametrize(
    ("charset", "name", "stored"),
    [
        ("ISO_IR 100", "Müller^Jörg", "Müller^Jörg".encode("latin-1")),
        ("ISO_IR 144", "Иванов", "Иванов".encode("iso8859_5")),
        (None, "Müller^Jörg", "Müller^Jörg".encode("latin-1")),
        ("ISO_IR 192", "Müller^Jörg", "Müller^Jörg".encode()),
    ],
)
def test_names_in_other_character_sets_go_on_to_the_output(series, tmp_path, charset, name, stored):
    def rename(_, one):
        if charset:
            one.SpecificCharacterSet = charset
        else:
            del one.SpecificCharacterSet
        one.PatientName = stored
        one.SeriesDescription = "plain"

    scan = read_scan(rewritten(series, tmp_path / "named", rename), "CT")
    assert scan.tags["PatientName"] == name
    write_dicom(scan, scan.voxels, "CT", tmp_path / "out")
    assert pydicom.dcmread(next((tmp_path / "out").iterdir())).PatientName == name


def test_empty_identifiers_are_made_anew_and_the_folder_is_for_all(series, tmp_path):
    def empty(_, one):
        one.StudyInstanceUID = one.FrameOfReferenceUID = one.StudyDate = ""

    scan = read_scan(rewritten(series, tmp_path / "empty", empty), "CT")
    write_dicom(scan, scan.voxels, "CT", tmp_path / "out")
    made = pydicom.dcmread(next((tmp_path / "out").iterdir()))
    assert made.StudyInstanceUID
    assert made.FrameOfReferenceUID
    assert made.StudyDate
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (tmp_path / "out").stat().st_mode == plain.stat().st_mode


def test_slices_given_twice_are_taken_once(series, ct, tmp_path):
    folder = rewritten(series, tmp_path / "twice", lambda *_: None)
    again = pydicom.dcmread(folder / "00.dcm")
    again.SOPInstanceUID = again.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    again.save_as(folder / "again.dcm")
    scan = read_scan(folder, "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)
    assert any("1 slices lie where another" in w for w in scan.warnings)


def test_an_enhanced_multi_frame_ct(series, ct, tmp_path):
    from pydicom.dataset import Dataset

    frames, places = [], []
    rewritten(series, tmp_path / "frames", lambda _, one: frames.append(one))
    one = frames[0]
    for frame in frames:
        place = Dataset()
        place.ImagePositionPatient = frame.ImagePositionPatient
        group = Dataset()
        group.PlanePositionSequence = [place]
        places.append(group)
    measures, orientation, rescale, shared = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = one.PixelSpacing
    measures.SliceThickness = measures.SpacingBetweenSlices = 4
    orientation.ImageOrientationPatient = one.ImageOrientationPatient
    rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = "-1024", "1", "HU"
    shared.PixelMeasuresSequence = [measures]
    shared.PlaneOrientationSequence = [orientation]
    shared.PixelValueTransformationSequence = [rescale]
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        if tag in one:
            delattr(one, tag)
    one.SharedFunctionalGroupsSequence, one.PerFrameFunctionalGroupsSequence = [shared], places
    one.NumberOfFrames = len(frames)
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"  # Enhanced CT
    hu = np.stack([ct.voxels[::-1, ::-1, z].T for z in range(ct.count())])
    one.PixelData = (np.round(hu) + 1024).astype(np.int16).tobytes()
    one.save_as(tmp_path / "enhanced.dcm")
    scan = read_scan(tmp_path / "enhanced.dcm", "CT")
    np.testing.assert_allclose(scan.affine, ct.affine, atol=1e-3)
    np.testing.assert_allclose(scan.voxels, ct.voxels, atol=0.5)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_nrrd_and_mha_lie_where_their_headers_say(ct, tmp_path, suffix):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(ct.voxels.T))
    image.SetSpacing([1.25, 1.25, 4.0])
    turn = nib.eulerangles.euler2mat(0.1, -0.05, 0.08)
    image.SetDirection(turn.ravel().tolist())
    image.SetOrigin([12.5, -80.0, 33.0])
    sitk.WriteImage(image, str(tmp_path / f"head{suffix}"))
    scan = read_scan(tmp_path / f"head{suffix}", "CT")
    # A corner of the file's grid in its own world (LPS) and in the scan's (RAS).
    corner = np.array(image.TransformIndexToPhysicalPoint([174, 0, 0])) * [-1, -1, 1]
    found = np.linalg.inv(scan.affine) @ [*corner, 1]
    there = np.round(found).astype(int)[:3]
    np.testing.assert_allclose(found[:3], there, atol=1e-3)
    assert scan.voxels[tuple(there)] == ct.voxels[174, 0, 0]
    assert sorted(scan.voxels.shape) == sorted(ct.voxels.shape)


def test_one_slice_far_from_the_others_is_no_volume(series, tmp_path):
    def far(number, data):
        if number == 19:
            data.ImagePositionPatient[2] += 1e6
        return True

    with pytest.raises(ScanError, match=r"mm apart, and most"):
        read_scan(rewritten(series, tmp_path / "far", far), "CT")
