"""Write translated volumes: NIfTI, and DICOM series that say what they are."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np

from mediffuse.files import complete
from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.scan.headers import KEPT
from mediffuse.scan.types import Scan, ScanError

if TYPE_CHECKING:
    from pydicom import Dataset

SYNTHETIC_NOTE = "SYNTHETIC, not for diagnosis"
"""What everything that is made here says of itself."""

UNITS = {"CT": "HU", "MR": f"arbitrary {MR_OUTPUT_LIMITS[0]:.0f}-{MR_OUTPUT_LIMITS[1]:.0f}"}
_DEFACED = "; defaced"
_SOP_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}


def mark_synthetic(image: nib.Nifti1Image, modality: str, *, defaced: bool = False) -> nib.Nifti1Image:
    """Say in a NIfTI's header what it is and in which units, and whether its face was blanked; returns it.

    modality: "CT" or "MR", or what a map shows ("error", "deviation").
    """
    units = f" in {UNITS[modality]}" if modality in UNITS else ""
    image.header["descrip"] = f"{SYNTHETIC_NOTE}: {modality}{units}{_DEFACED if defaced else ''}".encode()[:79]
    return image


def write_nifti(scan: Scan, voxels: np.ndarray, modality: str, path: Path, *, defaced: bool = False) -> None:
    """Write `voxels` on `scan`'s canonical grid (X, Y, Z) with the scan's own axes, shape and affine.

    A CT is written as int16 HU, an MR (and anything that is no CT) as float32. The file appears when
    it is complete.
    """
    image = scan.to_nifti(np.round(voxels).astype(np.int16) if modality == "CT" else voxels.astype(np.float32))
    with complete(path) as part:
        nib.save(mark_synthetic(image, modality, defaced=defaced), part)


def write_dicom(scan: Scan, voxels: np.ndarray, modality: str, folder: Path, *, defaced: bool = False) -> None:
    """Write `voxels` on `scan`'s canonical grid as a DICOM series, one file per axial slice.

    New series and instance UIDs, image type DERIVED\\SECONDARY, `SYNTHETIC_NOTE` in the series
    description; patient, study and frame of reference are the source's where it was a DICOM.
    The folder appears when it is complete. Raises ScanError for sheared rows and columns, which DICOM
    cannot hold.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    # DICOM's rows run to the left and its columns to the back, as canonical axes turned round do.
    columns, rows, count = scan.voxels.shape
    across, down = -lps[:3, 0] / scan.spacing[0], -lps[:3, 1] / scan.spacing[1]
    if abs(across @ down) > 1e-3:
        raise ScanError(f"{scan.name} has sheared axes, which DICOM cannot hold: write NIfTI.")
    with complete(folder) as partial:
        partial.mkdir()
        image = _image(scan, modality, defaced=defaced)
        series = image.SeriesInstanceUID
        image.Rows, image.Columns = rows, columns
        image.PixelSpacing = [_decimal(scan.spacing[1]), _decimal(scan.spacing[0])]
        image.ImageOrientationPatient = [_decimal(v) for v in (*across, *down)]
        for number in range(count):
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
            image.InstanceNumber = number + 1
            image.ImagePositionPatient = [_decimal(v) for v in (lps @ [columns - 1, rows - 1, number, 1])[:3]]
            pixels = np.round(voxels[::-1, ::-1, number].T).astype("<i2")
            image.PixelData = np.ascontiguousarray(pixels).tobytes()
            image.save_as(partial / f"{number + 1:04d}.dcm", enforce_file_format=True)


def _decimal(value: float) -> str:
    """A number as DICOM's decimal string, without a minus before zero."""
    return f"{value + 0.0:.8g}"


def _image(scan: Scan, modality: str, *, defaced: bool) -> Dataset:
    """What all images of a derived series say: of the scan's patient and study where those are known."""
    from pydicom import Dataset, config
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    date, clock = time.strftime("%Y%m%d %H%M%S").split()
    said = {
        "SpecificCharacterSet": "ISO_IR 192",  # UTF-8
        "PatientName": "Unknown",
        "PatientID": scan.name[:64],
        "PatientBirthDate": "",
        "PatientSex": "",
        "ReferringPhysicianName": "",
        "AccessionNumber": "",
        "StudyID": "",
        "StudyInstanceUID": generate_uid(None),
        "FrameOfReferenceUID": generate_uid(None),
        "StudyDate": date,
        "StudyTime": clock,
        **{keyword: value for keyword, value in scan.tags.items() if keyword in KEPT and value},
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "SOPClassUID": _SOP_CLASSES[modality],
        "SeriesInstanceUID": generate_uid(None),
        "SeriesDate": date,
        "SeriesTime": clock,
        "Modality": modality,
        "Manufacturer": "Mediffuse",
        "SeriesDescription": f"Synthetic {modality}: {SYNTHETIC_NOTE}"[:64],
        "DerivationDescription": f"{SYNTHETIC_NOTE}. {UNITS[modality]}{_DEFACED if defaced else ''}",
        **({"RecognizableVisualFeatures": "NO"} if defaced else {}),
        "SliceThickness": f"{scan.spacing[2]:.6g}",
        "SeriesNumber": 9001,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
    }
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = said["SOPClassUID"]
    with config.disable_value_validation():  # the patient and study are handed on as they came
        for keyword, value in said.items():
            setattr(image, keyword, value)
    if modality == "CT":
        image.RescaleType = "HU"
    return image
