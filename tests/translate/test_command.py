"""The command line that translates volumes, as a script runs it."""

import json
import locale
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest

from mediffuse.scan import read_scan
from mediffuse.scan.deface import face_mask
from mediffuse.scan.write import write_dicom
from mediffuse.translate.jobs import find_jobs
from tests import tiny
from tests.conftest import ROOT
from tests.serving import python


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("batch"))


@pytest.fixture(scope="module")
def command(checkpoints):
    def run(*arguments, launch=("-m", "mediffuse.translate")) -> subprocess.CompletedProcess:
        return python(*launch, *arguments, "--checkpoint", checkpoints)

    return run


def test_files_folders_and_patterns(command, ct_path, series, tmp_path):
    data = tmp_path / "data"
    (data / "a" / "b").mkdir(parents=True)
    shutil.copy(ct_path, data / "one.nii.gz")
    shutil.copy(ct_path, data / "a" / "b" / "one.nii.gz")
    shutil.copytree(series, data / "a" / "dicom")
    (data / "broken.nii.gz").write_bytes(b"no scan")
    out = tmp_path / "out"
    done = command(data, tmp_path / "none*", "--to", "mri", "--output", out)
    assert done.returncode == 1
    assert "3 translated" in done.stdout
    assert "2 failed" in done.stdout
    assert "broken.nii.gz: failed" in done.stderr
    assert "none*: there is no such file" in done.stderr
    made = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.nii.gz"))
    assert made[:1] == ["a/b/one_synthetic_mri.nii.gz"]
    assert made[-1] == "one_synthetic_mri.nii.gz"
    assert len(made) == 3
    image, given = nib.load(out / "one_synthetic_mri.nii.gz"), nib.load(ct_path)
    assert image.shape == given.shape
    np.testing.assert_allclose(image.affine, given.affine, atol=1e-4)
    assert b"SYNTHETIC, not for diagnosis: MR" in image.header["descrip"].tobytes()
    # What is there is not made again, and what is broken is tried again.
    again = command(data, "--to", "mri", "--output", out)
    assert "0 translated; 3 skipped; 1 failed." in again.stdout
    # What was made otherwise is not taken for what is asked for, nor lost.
    before = (out / "one_synthetic_mri.nii.gz").read_bytes()
    other = command(data / "one.nii.gz", "--to", "mri", "--contrast", "T2", "--output", out)
    assert other.returncode == 1
    assert "differently (settings). Give another --output, or --overwrite" in other.stderr
    assert (out / "one_synthetic_mri.nii.gz").read_bytes() == before
    # What was changed or damaged is made again.
    (out / "one_synthetic_mri.nii.gz").write_bytes(before[:1000])
    shutil.copy(ct_path, data / "a" / "b" / "one.nii.gz")
    again = command(data, "--to", "mri", "--output", out)
    assert "2 translated" in again.stdout
    assert "1 skipped; 1 failed." in again.stdout


def test_patterns_name_results_by_their_folders(ct_path, series, tmp_path):
    for patient in "ab":
        (tmp_path / "cohort" / patient).mkdir(parents=True)
        shutil.copy(ct_path, tmp_path / "cohort" / patient / "ct.nii.gz")
        (tmp_path / "cohort" / patient / "notes.txt").write_text("no scan")
    for pattern in ("*/ct.nii.gz", "**", "*"):
        jobs, problems = find_jobs([str(tmp_path / "cohort" / pattern)], tmp_path / "out", "mri")
        assert sorted(str(j.name) for j in jobs) == ["a/ct", "b/ct"], pattern
        assert not problems
    assert find_jobs([str(tmp_path / "cohort" / "*" / "*.txt")], tmp_path, "mri")[1][0].endswith("matches no scan")
    # The files of one series are one scan; one file by itself is a slice.
    files = sorted(map(str, series.iterdir()))
    for given in (files, [str(series / "*.dcm")], [str(series)]):
        jobs, _ = find_jobs(given, tmp_path / "out", "mri")
        assert [(j.path, j.series is None) for j in jobs] == [(series, False)]
    jobs, _ = find_jobs(files[:1], tmp_path / "out", "mri")
    assert [j.path for j in jobs] == [Path(files[0])]


def test_folders_of_all_kinds(ct_path, series, tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(ct_path, data / "s.nii.gz")
    nib.save(nib.load(ct_path), data / "s.nii")
    (data / "._s.nii.gz").write_bytes(b"finder")
    shutil.copy(ct_path, data / "s_synthetic_ct.nii.gz")
    for number, file in enumerate(sorted(series.iterdir())):  # a folder for each slice
        (data / "split" / str(number)).mkdir(parents=True)
        shutil.copy(file, data / "split" / str(number) / "IM0001")
    for output in (tmp_path / "out", tmp_path, data / "out"):
        jobs, problems = find_jobs([str(data)], output, "mri")
        names = sorted(str(j.name) for j in jobs)
        assert names[:2] == ["s_nii", "s_nii_gz"]
        assert len(names) == 3
        assert names[2].startswith("split/split_")
        assert not problems
        assert "s_synthetic_ct.nii.gz: left out, for it is synthetic" in capsys.readouterr().err
    (split,) = [j for j in jobs if j.series]
    assert read_scan(split.path, "CT", series=split.series).count() == 20
    assert "output folder" in find_jobs([str(data)], data, "mri")[1][0]


def test_one_bad_file_never_stops_the_rest(command, ct_path, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(ct_path, data / "z.nii.gz")
    header = nib.load(ct_path).header.copy()
    header["pixdim"][1:4] = np.nan
    nib.save(nib.Nifti1Image(np.zeros((32, 32, 4), np.int16), None, header), data / "a.nii.gz")
    (data / "b.nrrd").write_bytes(b"NRRD0005\ntype: nonsense\n\n")
    (data / "c.zip").write_bytes(b"PK\x03\x04" + bytes(500))
    done = command(data, "--to", "mri", "--output", tmp_path / "out")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 translated" in done.stdout
    assert "3 failed" in done.stdout


def test_dicom_out_is_a_series_of_the_same_patient(command, mr, tmp_path):
    folder = tmp_path / "mr"
    before = locale.setlocale(locale.LC_ALL)
    write_dicom(mr, mr.voxels, "MR", folder)
    assert locale.setlocale(locale.LC_ALL) == before
    source = pydicom.dcmread(next(folder.iterdir()))
    out = tmp_path / "out"
    assert "left out, for it is synthetic" in command(folder, "--to", "ct", "--output", out).stderr
    done = command(folder / "*.dcm", "--to", "ct", "--output", out, "--format", "dicom", "--format", "nifti")
    assert done.returncode == 0, done.stderr
    (made,) = [p for p in out.iterdir() if p.is_dir()]
    files = [pydicom.dcmread(p) for p in sorted(made.iterdir())]
    assert len(files) == mr.count()
    first = files[0]
    assert (first.Modality, first.SOPClassUID) == ("CT", "1.2.840.10008.5.1.4.1.1.2")
    assert list(first.ImageType)[:2] == ["DERIVED", "SECONDARY"]
    assert "SYNTHETIC, not for diagnosis" in first.SeriesDescription
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert first[name].value == source[name].value
    assert first.SeriesInstanceUID != source.SeriesInstanceUID
    assert len({f.SOPInstanceUID for f in files}) == len(files)
    # Read back, it lies on the NIfTI to the voxel and has its HU.
    scan = read_scan(made, "CT")
    (nifti,) = out.glob("*.nii.gz")
    other = read_scan(nifti, "CT")
    np.testing.assert_allclose(scan.affine, other.affine, atol=1e-3)
    np.testing.assert_array_equal(scan.voxels, other.voxels)
    assert other.voxels.min() == -1000


def test_options_are_checked_before_anything_is_read(command, ct_path, tmp_path):
    given = (ct_path, "--to", "mri", "--output", tmp_path / "out")
    for options, said in (
        (("--samples", 0), "Samples must be between"),
        (("--uncertainty",), "needs several estimates"),
        (("--batch-size", 0), "at least one slice"),
    ):
        done = command(*given, *options)
        assert done.returncode == 2
        assert said in done.stderr
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_uncertainty_of_mirrored_passes(command, ct_path, tmp_path):
    done = command(ct_path, "--to", "mri", "--output", tmp_path, "--mirror", "--uncertainty")
    assert done.returncode == 0, done.stderr
    spread = nib.load(tmp_path / "head_ct_synthetic_mri_std.nii.gz")
    assert spread.shape == nib.load(ct_path).shape
    assert np.asarray(spread.dataobj).max() > 0


def test_two_processes_share_the_work(command, ct_path, tmp_path):
    for name in "abc":
        shutil.copy(ct_path, tmp_path / f"{name}.nii.gz")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "mediffuse.translate")
    done = command(tmp_path, "--to", "mri", "--output", tmp_path / "out", launch=launch)
    assert done.returncode == 0, done.stderr
    assert "3 translated" in done.stdout
    assert done.stdout.count("translated") == 1
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


def test_a_zip_of_several_series_asks_for_one(command, series, two_series, tmp_path):
    given = (two_series, "--to", "mri", "--output", tmp_path / "out")
    done = command(*given)
    assert done.returncode == 1
    assert "holds 2 series" in done.stderr
    uid = pydicom.dcmread(next(series.iterdir())).SeriesInstanceUID
    assert f"{uid} (Head: CT, 20 slices)" in done.stderr
    done = command(*given, "--series", uid)
    assert done.returncode == 0, done.stderr


def test_a_zip_of_a_ct_and_an_mri_needs_no_choice(command, ct_and_mr, tmp_path):
    done = command(ct_and_mr, "--to", "mri", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "1 translated" in done.stdout


def test_a_series_of_two_echoes_asks_for_one_of_them(series, tmp_path, command):
    for echo in (1, 2):
        for number, path in enumerate(series.iterdir()):
            one = pydicom.dcmread(path)
            one.EchoNumbers, one.EchoTime = echo, str(echo * 10)
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{echo}.{number}"
            (tmp_path / "in").mkdir(exist_ok=True)
            one.save_as(tmp_path / "in" / f"{echo}_{number}")
    given = (tmp_path / "in", "--to", "mri", "--output", tmp_path / "out")
    done = command(*given)
    assert done.returncode == 1
    key = f"{one.SeriesInstanceUID}:2"
    assert f"{key} (Head: CT, echo 2 of 20 ms, 20 slices)" in done.stderr
    assert command(*given, "--series", key).returncode == 0
    (made,) = (tmp_path / "out").glob("*.nii.gz")
    assert made.name.endswith("_2_synthetic_mri.nii.gz")


def test_of_a_patients_folder_only_the_scan_that_is_needed_is_made(command, ct, ct_path, mr_path, tmp_path):
    data = tmp_path / "data" / "1BA001"
    data.mkdir(parents=True)
    shutil.copy(ct_path, data / "ct.nii.gz")
    shutil.copy(mr_path, data / "mr.nii.gz")
    nib.save(nib.Nifti1Image(ct.head_mask().astype(np.uint8), ct.affine), data / "mask.nii.gz")
    done = command(tmp_path / "data", "--to", "mri", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "mr.nii.gz: left out: it looks like an MRI" in done.stderr
    assert "mask.nii.gz: left out: mask.nii.gz is a mask" in done.stderr
    assert "1 translated" in done.stdout
    assert "2 left out; 0 failed" in done.stdout
    assert [p.name for p in (tmp_path / "out" / "1BA001").glob("*.nii.gz")] == ["ct_synthetic_mri.nii.gz"]


def test_files_of_one_name_get_names_by_their_folders(ct_path, tmp_path):
    given = []
    for patient in "ab":
        for session in "12":
            folder = tmp_path / patient / session
            folder.mkdir(parents=True)
            given.append(str(shutil.copy(ct_path, folder / "mr.nii.gz")))
    jobs, _ = find_jobs(given, tmp_path / "out", "ct")  # as the shell expands */*/mr.nii.gz
    assert [str(job.name) for job in jobs] == ["a/1/mr", "a/2/mr", "b/1/mr", "b/2/mr"]
    jobs, _ = find_jobs([given[0], given[2]], tmp_path / "out", "ct")
    assert [str(job.name) for job in jobs] == ["a/1/mr", "b/1/mr"]
    jobs, _ = find_jobs(given[:2], tmp_path / "out", "ct")
    assert [str(job.name) for job in jobs] == ["1/mr", "2/mr"]


def test_files_are_found_by_what_is_in_them(series, ct_path, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "scan").write_bytes(ct_path.read_bytes())
    (data / "notes").write_text("no scan")
    one = pydicom.dcmread(next(series.iterdir()))
    bare = pydicom.Dataset()
    bare.update({element.tag: element for element in one})
    bare.save_as(data / "IM1", implicit_vr=True, little_endian=True, enforce_file_format=False)
    jobs, problems = find_jobs([str(data)], tmp_path / "out", "mri")
    assert not problems
    assert sorted((job.path.name, job.series) for job in jobs) == [("data", one.SeriesInstanceUID), ("scan", None)]


def test_nifti_of_a_real_dicom_series_lies_where_dcm2niix_puts_it(command, tmp_path):
    import dcm2niix

    series = ROOT / "tests" / "data" / "dicom"
    subprocess.run([dcm2niix.bin, "-b", "n", "-o", tmp_path, "-f", "theirs", series], check=True, capture_output=True)
    theirs = nib.as_closest_canonical(nib.load(tmp_path / "theirs.nii"))
    scan = read_scan(series, "CT")
    np.testing.assert_array_equal(scan.voxels, theirs.get_fdata())
    done = command(series, "--to", "mri", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    ours = nib.as_closest_canonical(nib.load(next((tmp_path / "out").glob("*.nii.gz"))))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


def test_dicom_out_is_read_alike_by_dcm2niix(command, ct_path, tmp_path):
    import dcm2niix

    done = command(ct_path, "--to", "mri", "--output", tmp_path / "out", "--format", "nifti", "--format", "dicom")
    assert done.returncode == 0, done.stderr
    folder = next(p for p in (tmp_path / "out").iterdir() if p.is_dir())
    subprocess.run([dcm2niix.bin, "-b", "n", "-o", tmp_path, "-f", "theirs", folder], check=True, capture_output=True)
    theirs = nib.as_closest_canonical(nib.load(tmp_path / "theirs.nii"))
    ours = nib.as_closest_canonical(nib.load(next((tmp_path / "out").glob("*.nii.gz"))))
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
    np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), atol=0.51)


def test_a_face_is_blanked_on_request_and_that_is_said(command, ct, ct_path, tmp_path):
    done = command(ct_path, "--to", "mri", "--format", "nifti", "--format", "dicom", "--deface", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    made = nib.load(tmp_path / "head_ct_synthetic_mri.nii.gz")
    assert made.header["descrip"].tobytes().rstrip(b"\0").endswith(b"defaced")
    face = face_mask(ct)
    voxels = read_scan(tmp_path / "head_ct_synthetic_mri.nii.gz", "MR", allow_constant=True).voxels
    assert face.any()
    assert (voxels[face] == 0).all()
    assert voxels[ct.head_mask() & ~face].mean() > 0
    assert json.loads((tmp_path / "head_ct_synthetic_mri.json").read_text())["defaced"] is True
    one = pydicom.dcmread(next((tmp_path / "head_ct_synthetic_mri_dicom").iterdir()))
    assert one.RecognizableVisualFeatures == "NO"
    # A result whose face is there is another one.
    again = command(ct_path, "--to", "mri", "--output", tmp_path)
    assert again.returncode == 1
    assert "defaced" in again.stderr
