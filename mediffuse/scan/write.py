"""Write translated volumes: NIfTI, and DICOM series that say what they are."""

from __future__ import annotations

import locale
import os
import shutil
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np

from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.scan import Scan, ScanError
from mediffuse.scan.dicom import KEPT_TAGS

SYNTHETIC_NOTE = "SYNTHETIC, not for diagnosis"
UNITS = {"CT": "HU", "MR": f"arbitrary {MR_OUTPUT_LIMITS[0]:.0f}-{MR_OUTPUT_LIMITS[1]:.0f}"}
_SOP_CLASSES = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}


def mark_synthetic(image: nib.Nifti1Image, modality: str) -> nib.Nifti1Image:
    """Say in a NIfTI's header what it is and in which units; returns it."""
    units = f" ({UNITS[modality]})" if modality in UNITS else ""
    image.header["descrip"] = f"SYNTHETIC {modality}{units}, not for diagnosis".encode()[:79]
    return image


def write_nifti(scan: Scan, voxels: np.ndarray, modality: str, path: Path) -> None:
    """Write `voxels` on `scan`'s canonical grid (X, Y, Z) with the scan's own axes, shape and affine.

    A CT is written as int16 HU, an MR (and anything that is no CT) as float32. The file appears when
    it is complete.
    """
    image = scan.to_nifti(np.round(voxels).astype(np.int16) if modality == "CT" else voxels.astype(np.float32))
    # Beside the target, so that the last step is a rename.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        part = Path(folder) / path.name
        nib.save(mark_synthetic(image, modality), part)
        part.replace(path)


def write_dicom(scan: Scan, voxels: np.ndarray, modality: str, folder: Path) -> None:
    """Write `voxels` on `scan`'s canonical grid as a DICOM series, one file per axial slice.

    New series and instance UIDs, image type DERIVED\\SECONDARY, `SYNTHETIC_NOTE` in the series
    description; patient, study and frame of reference are the source's where it was a DICOM.
    The folder appears when it is complete. Raises ScanError for sheared rows and columns, which DICOM
    cannot hold.
    """
    import SimpleITK as sitk

    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ scan.affine
    # DICOM's rows run to the left and its columns to the back, as canonical axes turned round do.
    columns, rows, _ = scan.voxels.shape
    spacing, now = scan.spacing, time.strftime("%Y%m%d %H%M%S").split()
    across, down = -lps[:3, 0] / spacing[0], -lps[:3, 1] / spacing[1]
    if abs(across @ down) > 1e-3:
        raise ScanError(f"{scan.name} has sheared axes, which DICOM cannot hold: write NIfTI.")
    study, series, frame = _uid(), _uid(), _uid()
    tags = {
        "0008|0005": "ISO_IR 192",
        "0010|0010": "Unknown",
        "0010|0020": scan.name[:64],
        "0020|000d": study,
        "0020|0052": frame,
        "0008|0020": now[0],
        "0008|0030": now[1],
        **{tag: value for tag, value in scan.tags.items() if tag in KEPT_TAGS and value},
        "0008|0008": "DERIVED\\SECONDARY\\AXIAL",
        "0008|0016": _SOP_CLASSES[modality],
        "0008|0021": now[0],
        "0008|0031": now[1],
        "0008|0060": modality,
        "0008|0070": "Mediffuse",
        "0008|103e": f"Synthetic {modality}: {SYNTHETIC_NOTE}"[:64],
        "0008|2111": f"{SYNTHETIC_NOTE}. {UNITS[modality]}",
        "0018|0050": f"{spacing[2]:.6g}",
        "0020|000e": series,
        "0020|0011": "9001",
        "0020|0037": "\\".join(f"{v + 0.0:.8g}" for v in (*across, *down)),  # + 0.0: no "-0",
    }
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    before = locale.setlocale(locale.LC_ALL)
    try:
        for number in range(voxels.shape[2]):
            pixels = np.round(voxels[::-1, ::-1, number].T).astype(np.int16)
            image = sitk.GetImageFromArray(np.ascontiguousarray(pixels)[None])
            image.SetSpacing([float(mm) for mm in spacing])
            position = lps @ [columns - 1, rows - 1, number, 1]
            image.SetOrigin(position[:3].tolist())
            place = {
                "0008|0018": f"{series}.{number + 1}",
                "0020|0013": str(number + 1),
                "0020|0032": "\\".join(f"{v:.8g}" for v in position[:3]),
            }
            for tag, value in {**tags, **place}.items():
                image.SetMetaData(tag, value)
            writer.SetFileName(str(partial / f"{number + 1:04d}.dcm"))
            writer.Execute(image)
        # A temporary folder is its owner's alone; the umask cannot be read without being set.
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o777 & ~mask)
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
    finally:
        # The writer leaves the whole process in the locale "C", where text files are ASCII.
        locale.setlocale(locale.LC_ALL, before)
        shutil.rmtree(partial, ignore_errors=True)


def _uid() -> str:
    """A new DICOM UID (PS3.5 B.2: 2.25 and a UUID)."""
    import uuid

    return f"2.25.{uuid.uuid4().int}"
