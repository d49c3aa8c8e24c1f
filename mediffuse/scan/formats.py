"""What kind of scan a file is; NIfTI."""

from __future__ import annotations

import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from mediffuse.scan.dicom import ENDINGS as DICOM_ENDINGS
from mediffuse.scan.dicom import is_dicom
from mediffuse.scan.types import ScanError, check_size

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_NIFTI = (".nii.gz", ".nii")
VOLUMES = (*_NIFTI, ".nrrd", ".mha")


def stem_of(name: str) -> str:
    """A scan's name without the end that tells its format: "a.b.nii.gz" is "a.b"."""
    end = next((e for e in (*VOLUMES, *PICTURES, *DICOM_ENDINGS, ".zip") if name.lower().endswith(e)), "")
    return name[: len(name) - len(end)]


def kind_of(path: Path) -> str:
    """ "picture", "nifti", "nrrd", "mha", "dicom" or "zip", by name and first bytes. Raises ScanError for others."""
    name = path.name.lower()
    for kind, endings in (("picture", PICTURES), ("nifti", _NIFTI), ("nrrd", (".nrrd",)), ("mha", (".mha",))):
        if name.endswith(endings):
            return kind
    if is_dicom(path):
        return "dicom"
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return "zip"
    raise ScanError(
        f"{path.name} is not a file type this can read. Use PNG, JPEG, TIFF, BMP, WebP, GIF, NIfTI (.nii, .nii.gz), "
        "NRRD, MHA or DICOM (.dcm, or a zip of a series)."
    )


_NIFTI_ERRORS = (
    EOFError,
    MemoryError,
    OSError,
    OverflowError,
    ValueError,
    zlib.error,
    nib.filebasedimages.ImageFileError,
    nib.spatialimages.HeaderDataError,
)


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(voxels float32 (X, Y, Z), affine to RAS mm, warnings) of a NIfTI file. Raises ScanError."""
    try:
        image = nib.load(path)
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) == 4:
            raise ScanError(f"{path.name} is 4D ({shape[3]} volumes). Save one volume of it as 3D and use that.")
        if len(shape) != 3:
            raise ScanError(f"{path.name} is {len(shape)}D, and a 3D volume is needed. A single slice can come as PNG.")
        check_size(shape, path.name)
        if image.get_data_dtype().kind not in "iuf":
            raise ScanError(f"{path.name} is a colour or complex volume. Save the scan's own values.")
        voxels = np.asarray(image.dataobj, np.float32).reshape(shape)
    except ScanError:
        raise
    except _NIFTI_ERRORS as error:
        raise ScanError(f"{path.name} cannot be read as NIfTI: it is damaged or cut short. Copy it again.") from error
    placed = any(int(image.header.get(code, 1)) for code in ("qform_code", "sform_code"))
    affine, warnings = in_millimetres(
        np.asarray(image.affine, float), shape, int(image.header.get("xyzt_units", 2)) & 7
    )
    return voxels, affine, warnings if placed else [*warnings, _NO_PLACE]


_UNITS = {1: ("metres", 1e3), 2: ("mm", 1.0), 3: ("micrometres", 1e-3)}
"""Name and mm of the units of length that a header states by number."""

PLAUSIBLE_MM = (30.0, 1500.0)
"""What the longest side of a scan's field of view is, in mm."""


def in_millimetres(affine: np.ndarray, shape: tuple[int, ...], stated: int) -> tuple[np.ndarray, list[str]]:
    """`affine` (4, 4) in mm, and what to say of its units. stated: the header's number of them."""
    name, scale = _UNITS.get(stated, _UNITS[2])
    longest = float((np.linalg.norm(affine[:3, :3], axis=0) * shape).max())
    likely = [unit for unit in _UNITS.values() if PLAUSIBLE_MM[0] <= longest * unit[1] <= PLAUSIBLE_MM[1]]
    if (name, scale) in likely or not likely:
        said = [f"Its sizes are in {name}, as its header says; the result is in mm."] if scale != 1 else []
    else:
        said = [f"Its header says that it is {longest * scale:.3g} mm long: its sizes were taken for {likely[0][0]}."]
        scale = likely[0][1]
    return np.diag([scale, scale, scale, 1.0]) @ affine, said


_NO_PLACE = (
    "Its header gives no position (qform and sform are unset): which side is left was guessed. "
    "Export it with its geometry."
)
