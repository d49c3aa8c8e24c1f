"""Write translated volumes: NIfTI, and DICOM series that say what they are."""

from __future__ import annotations

import locale
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np

from mediffuse.files import complete
from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.scan.dicom import KEPT_TAGS
from mediffuse.scan.types import Scan, ScanError

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
    import SimpleITK as sitk

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    # DICOM's rows run to the left and its columns to the back, as canonical axes turned round do.
    columns, rows, count = scan.voxels.shape
    across, down = -lps[:3, 0] / scan.spacing[0], -lps[:3, 1] / scan.spacing[1]
    if abs(across @ down) > 1e-3:
        raise ScanError(f"{scan.name} has sheared axes, which DICOM cannot hold: write NIfTI.")
    series = _uid()
    tags = {
        **_series_tags(scan, modality, defaced=defaced),
        "0020|000e": series,  # series instance UID
        "0020|0037": "\\".join(f"{v + 0.0:.8g}" for v in (*across, *down)),  # image orientation; + 0.0: no "-0"
    }
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    with complete(folder) as partial, _locale_kept():
        partial.mkdir()
        for number in range(count):
            pixels = np.round(voxels[::-1, ::-1, number].T).astype(np.int16)
            image = sitk.GetImageFromArray(np.ascontiguousarray(pixels)[None])
            image.SetSpacing([float(mm) for mm in scan.spacing])
            position = lps @ [columns - 1, rows - 1, number, 1]
            image.SetOrigin(position[:3].tolist())
            own = {
                "0008|0018": f"{series}.{number + 1}",  # SOP instance UID
                "0020|0013": str(number + 1),  # instance number
                "0020|0032": "\\".join(f"{v:.8g}" for v in position[:3]),  # image position
            }
            for tag, value in {**tags, **own}.items():
                image.SetMetaData(tag, value)
            writer.SetFileName(str(partial / f"{number + 1:04d}.dcm"))
            writer.Execute(image)


def _series_tags(scan: Scan, modality: str, *, defaced: bool) -> dict[str, str]:
    """What all images of a derived series say: of the scan's patient and study where those are known."""
    date, clock = time.strftime("%Y%m%d %H%M%S").split()
    return {
        "0008|0005": "ISO_IR 192",  # character set: UTF-8
        "0010|0010": "Unknown",  # patient's name
        "0010|0020": scan.name[:64],  # patient ID
        "0020|000d": _uid(),  # study instance UID
        "0020|0052": _uid(),  # frame of reference UID
        "0008|0020": date,  # study date
        "0008|0030": clock,  # study time
        **{tag: value for tag, value in scan.tags.items() if tag in KEPT_TAGS and value},
        "0008|0008": "DERIVED\\SECONDARY\\AXIAL",  # image type
        "0008|0016": _SOP_CLASSES[modality],
        "0008|0021": date,  # series date
        "0008|0031": clock,  # series time
        "0008|0060": modality,
        "0008|0070": "Mediffuse",  # manufacturer
        "0008|103e": f"Synthetic {modality}: {SYNTHETIC_NOTE}"[:64],  # series description
        "0008|2111": f"{SYNTHETIC_NOTE}. {UNITS[modality]}{_DEFACED if defaced else ''}",  # derivation description
        **({"0028|0302": "NO"} if defaced else {}),  # recognizable visual features
        "0018|0050": f"{scan.spacing[2]:.6g}",  # slice thickness
        "0020|0011": "9001",  # series number
    }


@contextmanager
def _locale_kept() -> Iterator[None]:
    """SimpleITK's writer leaves the whole process in the locale "C", where text files are ASCII: not after this."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


def _uid() -> str:
    """A new DICOM UID (PS3.5 B.2: 2.25 and a UUID)."""
    import uuid

    return f"2.25.{uuid.uuid4().int}"
