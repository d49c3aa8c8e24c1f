"""Files are told by what is in them, not by their names; and of several scans the one that is needed is taken."""

import gzip
import io
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet

from mediffuse.scan import ScanError, SeveralSeriesError, archive, read_scan
from mediffuse.scan.labels import is_label_map, named
from mediffuse.scan.types import LabelMapError
from mediffuse.scan.write import write_nifti


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return path


def in_all_ways(tmp_path: Path, files: dict[str, bytes]):
    """The same files in a folder, in a zip, and in a folder of a zip in a zip."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    flat = zipped(tmp_path / "flat.zip", files)
    deep = zipped(tmp_path / "inner.zip", {f"a/b.c/{name}": content for name, content in files.items()})
    return folder, flat, zipped(tmp_path / "deep.zip", {"x/inner.zip": deep.read_bytes()})


@pytest.fixture(scope="module")
def plain(ct_path):
    return gzip.decompress(ct_path.read_bytes())


@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz", "head.dcm", "head"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_nifti_under_any_name(tmp_path, ct, plain, name, packed):
    path = tmp_path / name
    path.write_bytes(gzip.compress(plain, 1) if packed else plain)
    scan = read_scan(path, "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)
    np.testing.assert_allclose(scan.affine, ct.affine)


def bare(image: Dataset, path: Path) -> None:
    """Without preamble and file meta, implicit little endian: as old archives keep it."""
    one = Dataset()
    one.update({element.tag: element for element in image})
    one.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)


def test_dicom_without_preamble_and_suffix(series, ct, tmp_path):
    files = {}
    for number, path in enumerate(sorted(series.iterdir())):
        bare(pydicom.dcmread(path), tmp_path / "one")
        files[f"IM{number:03d}"] = (tmp_path / "one").read_bytes()
    assert read_scan(tmp_path / "one", "CT").kind == "dicom"
    for given in in_all_ways(tmp_path, files):
        scan = read_scan(given, "CT")
        np.testing.assert_array_equal(scan.voxels, ct.voxels)
        assert scan.name == given.name


@pytest.mark.parametrize("name", ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"])
def test_every_encoding_of_one_image_is_the_same(name):
    image = pydicom.dcmread(get_testdata_file("MR_small.dcm"))
    scan = read_scan(get_testdata_file(f"MR_small_{name}.dcm"), "MR")
    np.testing.assert_array_equal(scan.slice().pixels, image.pixel_array)


def test_deflated_and_lossless_jpeg(series, ct, tmp_path):
    import SimpleITK as sitk

    path = min(series.iterdir())
    one = pydicom.dcmread(path)
    image = sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkInt16)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor("JPEG")
    writer.SetFileName(str(tmp_path / "jpeg.dcm"))
    writer.Execute(image)
    assert "Lossless" in pydicom.dcmread(tmp_path / "jpeg.dcm").file_meta.TransferSyntaxUID.name
    one.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    one.save_as(tmp_path / "deflated.dcm")
    for name in ("jpeg.dcm", "deflated.dcm"):
        np.testing.assert_array_equal(read_scan(tmp_path / name, "CT").slice().pixels, one.pixel_array)


def test_a_deflated_bomb_is_not_inflated(series, tmp_path, monkeypatch):
    from mediffuse.scan import headers

    one = pydicom.dcmread(min(series.iterdir()))
    one.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    one.ImageComments = "0" * 10_000
    one.add_new(0x00091010, "OB", bytes(1 << 22))
    one.save_as(tmp_path / "bomb.dcm")
    monkeypatch.setattr(headers, "MAX_HEADER", 1 << 20)
    with pytest.raises(ScanError, match="cannot be read as DICOM"):
        read_scan(tmp_path / "bomb.dcm", "CT")


def disc_of(files, folder):
    disc = FileSet()
    for path in files:
        one = pydicom.dcmread(path)
        one.StudyID = "1"
        disc.add(one)
    disc.write(folder)


def test_a_disc_is_read_by_its_list(series, ct, tmp_path):
    disc_of(series.iterdir(), tmp_path / "disc")
    for given in (tmp_path / "disc" / "DICOMDIR", tmp_path / "disc"):
        np.testing.assert_array_equal(read_scan(given, "CT").voxels, ct.voxels)
    (tmp_path / "alone").mkdir()
    alone = tmp_path / "alone" / "DICOMDIR"
    alone.write_bytes((tmp_path / "disc" / "DICOMDIR").read_bytes())
    with pytest.raises(ScanError, match="Give the whole folder"):
        read_scan(alone, "CT")


def test_a_list_leads_to_no_other_folder(series, tmp_path):
    disc_of([min(series.iterdir())], tmp_path / "disc")
    path = tmp_path / "disc" / "DICOMDIR"
    listed = pydicom.dcmread(path)
    (tmp_path / "outside").write_bytes(min(series.iterdir()).read_bytes())
    for record in listed.DirectoryRecordSequence:
        if "ReferencedFileID" in record:
            record.ReferencedFileID = ["..", "outside"]
    listed.save_as(path)
    with pytest.raises(ScanError, match="none beside it can be found"):
        read_scan(path, "CT")


def test_formats_in_two_files(tmp_path, ct, ct_path):
    import SimpleITK as sitk

    image = nib.load(ct_path)
    nib.save(nib.Nifti1Pair(np.asarray(image.dataobj), image.affine), tmp_path / "n.hdr")
    written = sitk.ReadImage(str(ct_path))
    sitk.WriteImage(written, str(tmp_path / "m.mhd"))
    sitk.WriteImage(written, str(tmp_path / "z.mhd"), True)
    sitk.WriteImage(written, str(tmp_path / "r.nhdr"))
    for number, (header, data) in enumerate(
        (("n.hdr", "n.img"), ("m.mhd", "m.raw"), ("z.mhd", "z.zraw"), ("r.nhdr", "r.raw"))
    ):
        files = {name: (tmp_path / name).read_bytes() for name in (header, data)}
        (tmp_path / str(number)).mkdir()
        ways = in_all_ways(tmp_path / str(number), files)
        for given in (*ways, ways[0] / header):
            scan = read_scan(given, "CT")
            np.testing.assert_array_equal(scan.voxels, ct.voxels)
            np.testing.assert_allclose(scan.affine, ct.affine, atol=1e-4)
        for name in (header, data):
            alone = tmp_path / str(number) / name
            alone.write_bytes(files[name])
            with pytest.raises(ScanError, match=r"beside it|Give a") as caught:
                read_scan(alone, "CT")
            assert "damaged" not in str(caught.value)
            alone.unlink()


@pytest.mark.parametrize("named_file", ["../outside.raw", "/etc/hostname", "a/b.raw", "..", "LIST", "s%03d.raw 1 20 1"])
def test_a_header_names_no_file_elsewhere(tmp_path, named_file):
    (tmp_path / "outside.raw").write_bytes(bytes(32**3))
    folder = tmp_path / "here"
    folder.mkdir()
    mhd = (
        f"ObjectType = Image\nNDims = 3\nDimSize = 32 32 32\nElementType = MET_UCHAR\nElementDataFile = {named_file}\n"
    )
    nhdr = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 32 32 32\nencoding: raw\ndata file: {named_file}\n"
    for name, text in (("a.mhd", mhd), ("a.nhdr", nhdr)):
        (folder / name).write_text(text)
        with pytest.raises(ScanError, match=r"several files, or in another folder|not beside it"):
            read_scan(folder / name, "CT")


def test_mgz(tmp_path, mr):
    nib.save(nib.MGHImage(mr.voxels, mr.affine), tmp_path / "T1.mgz")
    scan = read_scan(tmp_path / "T1.mgz", "MR")
    np.testing.assert_array_equal(scan.voxels, mr.voxels)
    np.testing.assert_allclose(scan.affine, mr.affine, atol=1e-4)


def test_zips_in_zips_are_bounded(tmp_path, monkeypatch):
    content = zipped(tmp_path / "0.zip", {"a": bytes(1 << 16)}).read_bytes()
    monkeypatch.setattr(archive, "MAX_UNPACKED", 1 << 18)
    many = zipped(tmp_path / "many.zip", {f"{n}.zip": content for n in range(5)})
    with pytest.raises(ScanError, match="unpacks to more"):
        read_scan(many, "CT")
    for _ in range(6):
        inner = io.BytesIO()
        with zipfile.ZipFile(inner, "w") as made:
            made.writestr("inner.zip", content)
        content = inner.getvalue()
    with pytest.raises(ScanError, match="holds no DICOM series"):
        read_scan(zipped(tmp_path / "deep.zip", {"b.zip": content}), "CT")


# The header's own words for where it lies


def test_an_unplaced_nifti_stays_unplaced(tmp_path, ct_path):
    image = nib.Nifti1Image(np.asarray(nib.load(ct_path).dataobj), None)
    image.header.set_zooms((1.25, 1.25, 4))
    image.header["xyzt_units"] = 0
    nib.save(image, tmp_path / "ct.nii.gz")
    scan = read_scan(tmp_path / "ct.nii.gz", "CT")
    assert "gives no position" in scan.warnings[0]
    write_nifti(scan, scan.voxels, "CT", tmp_path / "made.nii.gz")
    given, made = (nib.load(tmp_path / name).header for name in ("ct.nii.gz", "made.nii.gz"))
    for field in ("qform_code", "sform_code", "pixdim", "xyzt_units", "quatern_b", "qoffset_x", "srow_x"):
        np.testing.assert_array_equal(made[field], given[field])


@pytest.mark.parametrize("codes", [(1, 0), (0, 2), (1, 4), (3, 1)])
def test_qform_and_sform_are_handed_on(tmp_path, ct, ct_path, codes):
    qform = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.1, 0, 0) @ ct.native_affine[:3, :3], [3, 4, 5])
    image = nib.Nifti1Image(np.asarray(nib.load(ct_path).dataobj), None)
    image.header.set_zooms((1.25, 1.25, 4))
    image.set_qform(qform if codes[0] else None, codes[0])
    image.set_sform(ct.native_affine if codes[1] else None, codes[1])
    nib.save(image, tmp_path / "ct.nii")
    scan = read_scan(tmp_path / "ct.nii", "CT")
    write_nifti(scan, scan.voxels, "CT", tmp_path / "made.nii")
    given, made = (nib.load(tmp_path / name) for name in ("ct.nii", "made.nii"))
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-4)
    for form in ("get_qform", "get_sform"):
        (here, code), (there, there_code) = (getattr(i, form)(coded=True) for i in (made, given))
        assert code == there_code
        if there is not None:
            np.testing.assert_allclose(here, there, atol=1e-4)


# Several scans


def test_names_say_what_a_file_is():
    said = {
        "ct.nii.gz": "CT",
        "p1_mr.nii": "MR",
        "sub-01_T1w.nii.gz": "MR",
        "mask.nii.gz": "label",
        "cbct.nii.gz": None,
    }
    said |= {"ct_seg.nii": "label", "mr_to_ct.nii": None, "scan.nii": None, "aparc+aseg.mgz": "label"}
    assert {name: named(name) for name in said} == said


def test_label_maps_are_known_by_their_values(ct, mr):
    labels = np.digitize(ct.voxels, [-500, 0, 50, 300]).astype(np.float32)
    assert is_label_map((ct.voxels > -300).astype(np.float32))
    assert is_label_map(labels)
    for scan in (ct, mr):
        assert not is_label_map(scan.voxels)
        assert not is_label_map(np.round(255 * (scan.voxels - scan.voxels.min()) / np.ptp(scan.voxels)))
        assert not is_label_map(np.clip(np.round(scan.voxels), 0, 80))


def test_the_folder_of_a_synthrad_patient(tmp_path, ct, mr, ct_path, mr_path):
    mask = nib.Nifti1Image(ct.head_mask().astype(np.uint8), ct.affine).to_bytes()
    files = {"ct.nii.gz": ct_path.read_bytes(), "mr.nii.gz": mr_path.read_bytes(), "mask.nii.gz": gzip.compress(mask)}
    # As they are called; and by what is in them, under names that say nothing.
    for place, names in enumerate(
        (files, dict(zip(("a.nii.gz", "b.nii.gz", "c.nii.gz"), files.values(), strict=True)))
    ):
        (tmp_path / str(place)).mkdir()
        for given in in_all_ways(tmp_path / str(place), names):
            np.testing.assert_array_equal(read_scan(given, "CT").voxels, ct.voxels)
            np.testing.assert_array_equal(read_scan(given, "MR").voxels, mr.voxels)
    alone = tmp_path / "mask.nii.gz"
    alone.write_bytes(files["mask.nii.gz"])
    with pytest.raises(LabelMapError, match=r"mask\.nii\.gz is a mask or label map"):
        read_scan(alone, "CT")
    assert read_scan(alone, "MR", allow_constant=True).voxels.max() == 1


def test_files_of_one_modality_are_chosen_by_name(tmp_path, ct_path, ct):
    given = zipped(tmp_path / "two.zip", {"p1/ct.nii.gz": ct_path.read_bytes(), "p2/ct.nii.gz": ct_path.read_bytes()})
    with pytest.raises(SeveralSeriesError) as caught:
        read_scan(given, "CT")
    assert [*caught.value.choices] == ["p1/ct.nii.gz", "p2/ct.nii.gz"]
    np.testing.assert_array_equal(read_scan(given, "CT", series="p2/ct.nii.gz").voxels, ct.voxels)
    with pytest.raises(ScanError, match=r"no series p3.*It has p1/ct\.nii\.gz"):
        read_scan(given, "CT", series="p3")


def test_a_zip_of_a_ct_and_an_mri_gives_each_to_who_needs_it(ct_and_mr, ct, mr):
    np.testing.assert_array_equal(read_scan(ct_and_mr, "CT").voxels, ct.voxels)
    np.testing.assert_array_equal(read_scan(ct_and_mr, "MR").voxels, mr.voxels)


@pytest.mark.parametrize("name", ["liver_1frame.dcm", "rtstruct.dcm"])
def test_what_is_drawn_on_a_scan_is_no_scan(series, ct, tmp_path, name):
    path = Path(get_testdata_file(name))
    with pytest.raises(ScanError, match="no scan, but drawn"):
        read_scan(path, "CT")
    for one in (*series.iterdir(), path):
        (tmp_path / one.name).write_bytes(one.read_bytes())
    np.testing.assert_array_equal(read_scan(tmp_path, "CT").voxels, ct.voxels)
