"""Which images make a volume, and which volume is meant: series that hold several, and multi-frame files."""

import copy

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from mediffuse.scan import ScanError, SeveralSeriesError, read_scan
from mediffuse.scan.write import write_dicom

ENHANCED = {"CT": "1.2.840.10008.5.1.4.1.1.2.1", "MR": "1.2.840.10008.5.1.4.1.1.4.1"}


@pytest.fixture(scope="session")
def slices(ct, mr, tmp_path_factory):
    """The example's DICOM slices by modality, from below, as a scanner says them."""
    made = {}
    for modality, scan in (("CT", ct), ("MR", mr)):
        folder = tmp_path_factory.mktemp("slices") / modality
        write_dicom(scan, scan.voxels, modality, folder)
        made[modality] = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
        for one in made[modality]:
            one.ImageType = ["ORIGINAL", "PRIMARY", *(["AXIAL"] if modality == "CT" else ["M", "ND"])]
            one.SeriesDescription = "head"
    return made


def copies(images, folder, change=None, prefix="a"):
    """Files of `images` in `folder`, each a new instance after `change(number, image)`; those it gives False for are
    left out."""
    folder.mkdir(exist_ok=True)
    for number, image in enumerate(images):
        one = copy.deepcopy(image)
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if change is None or change(number, one) is not False:
            one.save_as(folder / f"{prefix}{(number * 7) % len(images):03d}", enforce_file_format=True)
    return folder


def darker(_, one):
    one.PixelData = (np.frombuffer(one.PixelData, "<i2") // 2).astype("<i2").tobytes()


def test_the_magnitude_is_taken_from_magnitude_and_phase(slices, mr, tmp_path):
    rng = np.random.default_rng(0)

    def phase(_, one):
        one.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND"]
        one.PixelData = rng.integers(0, 4096, one.Rows * one.Columns).astype("<i2").tobytes()

    for order in ("ab", "ba"):
        folder = copies(slices["MR"], tmp_path / order, prefix=order[0])
        copies(slices["MR"], folder, phase, prefix=order[1])
        scan = read_scan(folder, "MR")
        np.testing.assert_array_equal(scan.voxels, mr.voxels)
        assert scan.warnings == ("20 images of this series were left out: phase.",)


@pytest.mark.parametrize(
    ("change", "titles"),
    [
        ({"EchoTime": ("5", "80"), "EchoNumbers": (1, 2)}, ("echo 1 of 5 ms", "echo 2 of 80 ms")),
        ({"ImageType": (["DERIVED", "PRIMARY", "W"], ["DERIVED", "PRIMARY", "F"])}, ("water", "fat")),
        ({"AcquisitionNumber": (1, 2)}, ("acquisition 1", "acquisition 2")),
        ({"TemporalPositionIdentifier": (1, 2)}, ("time 1", "time 2")),
        ({"InversionTime": ("700", "2500")}, ("700 ms", "2500 ms")),
        ({"InstanceNumber": (None, None)}, ("MR, 20 slices", "MR, 20 slices")),  # nothing but what they show
    ],
)
def test_what_is_not_certain_is_asked_for_and_never_mixed(slices, mr, tmp_path, change, titles):
    folder = tmp_path / "both"
    for part in (0, 1):

        def say(number, one, part=part):
            for keyword, values in change.items():
                if values[part] is not None:
                    setattr(one, keyword, values[part])
            if part:
                darker(number, one)

        copies(slices["MR"], folder, say, prefix="ab"[part])
    with pytest.raises(SeveralSeriesError) as caught:
        read_scan(folder, "MR")
    choices = caught.value.choices
    uid = slices["MR"][0].SeriesInstanceUID
    assert [*choices] == [f"{uid}:1", f"{uid}:2"]
    for key, title in zip(choices, titles, strict=True):
        assert title in choices[key]
        assert key in str(caught.value)
    first, second = (read_scan(folder, "MR", series=key).voxels for key in choices)
    np.testing.assert_array_equal(first, mr.voxels)
    np.testing.assert_array_equal(second, mr.voxels // 2)


def test_the_complete_one_of_two_acquisitions_is_taken(slices, ct, tmp_path):
    folder = copies(slices["CT"], tmp_path / "both", lambda _, one: setattr(one, "AcquisitionNumber", 2))

    def aborted(number, one):
        one.AcquisitionNumber = 1
        darker(number, one)
        return number < 7

    scan = read_scan(copies(slices["CT"], folder, aborted, prefix="b"), "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)
    assert "7 images of this series were left out: an incomplete acquisition" in scan.warnings[0]


def test_an_acquisition_for_each_slice_or_block_is_one_volume(slices, ct, tmp_path):
    for name, number_of in (("slice", lambda n: n), ("block", lambda n: n // 5), ("interleaved", lambda n: n % 2)):

        def say(number, one, number_of=number_of):
            one.AcquisitionNumber = number_of(number)
            one.SliceThickness = "4"

        scan = read_scan(copies(slices["CT"], tmp_path / name, say), "CT")
        np.testing.assert_array_equal(scan.voxels, ct.voxels)
        assert not scan.warnings


def test_acquisitions_between_each_other_are_not_one_volume(slices, tmp_path):
    """Two runs, of which one lies half a slice higher: as if it were one of thin slices."""
    folder = copies(slices["CT"], tmp_path / "both", lambda _, one: setattr(one, "AcquisitionNumber", 1))

    def higher(_, one):
        one.AcquisitionNumber = 2
        x, y, z = map(float, one.ImagePositionPatient)
        one.ImagePositionPatient = [x, y, z + 2]

    with pytest.raises(SeveralSeriesError, match="acquisition 2"):
        read_scan(copies(slices["CT"], folder, higher, prefix="b"), "CT")


def test_a_projection_and_a_map_are_left_out(slices, mr, tmp_path):
    folder = copies(slices["MR"], tmp_path / "both")

    def derived(number, one):
        one.ImageType = ["DERIVED", "PRIMARY", "PROJECTION IMAGE" if number < 10 else "ADC"]

    scan = read_scan(copies(slices["MR"], folder, derived, prefix="b"), "MR")
    np.testing.assert_array_equal(scan.voxels, mr.voxels)
    assert "10 projections (MIP); 10 derived from the others" in scan.warnings[0]


def test_unknown_geometry_is_said(slices, ct, tmp_path):
    def unplaced(_, one):
        del one.PixelSpacing, one.ImagePositionPatient, one.ImageOrientationPatient

    scan = read_scan(copies(slices["CT"], tmp_path / "unplaced", unplaced), "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)
    np.testing.assert_allclose(scan.spacing, [1, 1, 4])
    for said in ("no pixel spacing: 1 mm", "no orientation", "no position: slices were put by number, 4 mm"):
        assert any(said in warning for warning in scan.warnings)


def test_slices_that_are_shifted_sideways_are_said(slices, tmp_path):
    def shift(number, one):
        x, y, z = map(float, one.ImagePositionPatient)
        one.ImagePositionPatient = [x + 5 * (number == 10), y, z]

    scan = read_scan(copies(slices["CT"], tmp_path / "shifted", shift), "CT")
    assert any("shifted against each other by up to 5 mm" in warning for warning in scan.warnings)


def test_an_inverted_mri_is_turned_round(slices, mr, tmp_path):
    def invert(_, one):
        one.PhotometricInterpretation = "MONOCHROME1"
        one.PixelData = (int(mr.voxels.max()) - np.frombuffer(one.PixelData, "<i2")).astype("<i2").tobytes()

    scan = read_scan(copies(slices["MR"], tmp_path / "inverted", invert), "MR")
    np.testing.assert_array_equal(scan.voxels, mr.voxels - mr.voxels.min())
    assert "inverted" in scan.warnings[0]


# Many frames in one file


def group(**sequences):
    """A functional group: a sequence of one item for each name."""
    item = Dataset()
    for name, values in sequences.items():
        inner = Dataset()
        for keyword, value in values.items():
            setattr(inner, keyword, value)
        setattr(item, name, [inner])
    return item


def enhanced(images, path, modality, own=lambda number: {}, **shared):
    """A multi-frame file of `images`, of which frame `number` has the groups `own(number)` beside its position."""
    first = images[0]
    one = copy.deepcopy(first)
    one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = ENHANCED[modality]
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    measures = {"PixelSpacing": first.PixelSpacing, "SliceThickness": "4"}
    one.SharedFunctionalGroupsSequence = [
        group(
            PixelMeasuresSequence=measures,
            PlaneOrientationSequence={"ImageOrientationPatient": first.ImageOrientationPatient},
            **shared,
        )
    ]
    one.PerFrameFunctionalGroupsSequence = [
        group(PlanePositionSequence={"ImagePositionPatient": image.ImagePositionPatient}, **own(number))
        for number, image in enumerate(images)
    ]
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(one, keyword)
    one.NumberOfFrames = len(images)
    one.PixelData = b"".join(image.PixelData for image in images)
    one.save_as(path, enforce_file_format=True)
    return path


def test_frames_lie_where_each_says(slices, ct, tmp_path):
    images = slices["CT"]
    order = np.random.default_rng(5).permutation(20)
    stacks = [*range(0, 20, 3), *range(1, 20, 3), *range(2, 20, 3)]
    for numbers in (order, stacks):
        path = enhanced(
            [images[n] for n in numbers],
            tmp_path / "frames.dcm",
            "CT",
            lambda n: {"FrameContentSequence": {"StackID": str(n % 3), "FrameAcquisitionNumber": n}},
        )
        scan = read_scan(path, "CT")
        np.testing.assert_array_equal(scan.voxels, ct.voxels)
        np.testing.assert_allclose(scan.affine, ct.affine, atol=1e-4)
        assert not scan.warnings


def test_frames_have_slopes_of_their_own(slices, mr, tmp_path):
    slopes = np.linspace(0.5, 2, 20)
    images = []
    for image, slope in zip(slices["MR"], slopes, strict=True):
        one = copy.deepcopy(image)
        one.PixelData = np.round(np.frombuffer(image.PixelData, "<i2") / slope).astype("<i2").tobytes()
        images.append(one)
    path = enhanced(
        images,
        tmp_path / "slopes.dcm",
        "MR",
        lambda n: {"PixelValueTransformationSequence": {"RescaleSlope": str(slopes[n]), "RescaleIntercept": "3"}},
    )
    np.testing.assert_allclose(read_scan(path, "MR").voxels, mr.voxels + 3, atol=1.01)


def test_missing_and_uneven_frames_are_as_missing_and_uneven_slices(slices, ct, tmp_path):
    images = slices["CT"]
    path = enhanced([images[n] for n in range(20) if n not in (7, 8)], tmp_path / "gap.dcm", "CT")
    scan = read_scan(path, "CT")
    np.testing.assert_allclose(scan.affine, ct.affine, atol=1e-4)
    np.testing.assert_allclose(scan.voxels[:, :, 7], (2 * ct.voxels[:, :, 6] + ct.voxels[:, :, 9]) / 3, atol=1e-3)
    assert scan.warnings == ("2 of 20 slices are missing; they were interpolated from their neighbours.",)


def test_frames_of_several_kinds_in_one_file(slices, mr, tmp_path):
    """Magnitude and phase by the frames' types; two points in time by their indices."""
    images = slices["MR"] + slices["MR"]

    def kind(number):
        component = "MAGNITUDE" if number < 20 else "PHASE"
        return {
            "MRImageFrameTypeSequence": {
                "FrameType": ["ORIGINAL", "PRIMARY", "T1", "NONE"],
                "ComplexImageComponent": component,
            }
        }

    scan = read_scan(enhanced(images, tmp_path / "phase.dcm", "MR", kind), "MR")
    np.testing.assert_array_equal(scan.voxels, mr.voxels)
    assert "20 images of this series were left out: phase" in scan.warnings[0]
    path = enhanced(
        images,
        tmp_path / "times.dcm",
        "MR",
        lambda n: {"FrameContentSequence": {"TemporalPositionIndex": n // 20 + 1, "StackID": "1"}},
    )
    with pytest.raises(SeveralSeriesError, match="time 2, 20 slices") as caught:
        read_scan(path, "MR")
    np.testing.assert_array_equal(read_scan(path, "MR", series=[*caught.value.choices][1]).voxels, mr.voxels)


def test_frames_of_several_files_are_not_mixed(slices, ct, tmp_path):
    """Even where they say one series and one instance; a copy of a file is none of its own."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name, numbers in (("all.dcm", range(20)), ("copy.dcm", range(20)), ("upper.dcm", range(19, 0, -1))):
        enhanced([slices["CT"][n] for n in numbers], folder / name, "CT")
    scan = read_scan(folder, "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)
    assert "19 images of this series were left out: an incomplete acquisition" in scan.warnings[0]


def test_a_file_of_frames_without_groups_says_what_is_assumed(slices, ct, tmp_path):
    one = copy.deepcopy(slices["CT"][0])
    one.NumberOfFrames = 20
    one.PixelData = b"".join(image.PixelData for image in slices["CT"])
    one.save_as(tmp_path / "row.dcm", enforce_file_format=True)
    scan = read_scan(tmp_path / "row.dcm", "CT")
    np.testing.assert_array_equal(scan.voxels, ct.voxels)
    np.testing.assert_allclose(scan.affine, ct.affine, atol=1e-4)
    assert "one position for all its slices" in scan.warnings[0]


def test_more_frames_than_can_be_read_are_refused_by_the_header(slices, tmp_path):
    one = copy.deepcopy(slices["CT"][0])
    one.NumberOfFrames = 30_000
    one.save_as(tmp_path / "many.dcm")
    with pytest.raises(ScanError, match="says it has 30000 images"):
        read_scan(tmp_path / "many.dcm", "CT")


def test_a_mosaic_is_refused_in_words(slices, tmp_path):
    folder = copies(
        slices["MR"], tmp_path / "m", lambda _, one: setattr(one, "ImageType", ["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    )
    with pytest.raises(ScanError, match="a mosaic"):
        read_scan(folder, "MR")
