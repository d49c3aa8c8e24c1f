"""What kind of scan a file is; pictures and NIfTI."""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from PIL import Image

from mediffuse.image.ct_picture import guess_picture_modality, guess_png_window, png_ct_to_hu
from mediffuse.scan.dicom import ENDINGS as DICOM_ENDINGS
from mediffuse.scan.dicom import is_dicom
from mediffuse.scan.types import MAX_PIXELS, MIN_SIDE, Scan, ScanError, canonical, check_size, from_shown

PICTURES = (".png", ".jpg", ".jpeg")
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
        f"{path.name} is not a file type this can read. Use PNG, JPEG, NIfTI (.nii, .nii.gz), NRRD, MHA or DICOM "
        "(.dcm, or a zip of a series)."
    )


def read_picture(path: Path, modality: str, shown: str) -> tuple[Scan, str | None]:
    """(the scan, the modality that the picture looks like). shown: as in `read_scan`. Raises ScanError."""
    rows, columns = _picture_size(path)
    check_size((rows, columns), path.name, MAX_PIXELS)
    if min(rows, columns) < MIN_SIDE:
        raise ScanError(f"{path.name} is only {columns} x {rows} pixels: too small to translate.")
    content = path.read_bytes()
    if content.count(_SCAN_OF_A_JPEG) > MAX_SCANS and content.startswith(b"\xff\xd8"):
        raise ScanError(f"{path.name} builds its picture up in more steps than can be read here. Save it as PNG.")
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ScanError(f"{path.name} {_NO_PICTURE}")
    depth = np.iinfo(image.dtype).max
    grey = _to_grey(image, path.name).astype(np.float32) / depth
    if depth > 255 and grey.max() > grey.min():
        # 16-bit exports rarely use the whole range; the display range is what they do use.
        grey = (grey - grey.min()) / (grey.max() - grey.min())
    voxels = grey * 255
    if modality == "CT" and grey.max() > grey.min():
        shown = guess_png_window(grey) if shown == "auto" else shown
        voxels = png_ct_to_hu(grey, shown)
    volume = np.ascontiguousarray(from_shown(voxels)[:, :, None])
    scan = canonical(volume, np.eye(4), modality, "picture", path.name)
    return replace(scan, shown=shown if modality == "CT" else None), guess_picture_modality(grey)


MAX_SCANS, _SCAN_OF_A_JPEG = 64, b"\xff\xda"
"""How often a JPEG may go over its picture (usual are ten times), and what each time begins with."""

_NO_PICTURE = "cannot be read as a picture: it is damaged, cut short, or neither PNG nor JPEG inside. Export it again."


def _picture_size(path: Path) -> tuple[int, int]:
    """(rows, columns) by the header alone: the decoder would fill the memory that a forged one asks for."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            return image.height, image.width
    except Image.DecompressionBombError as error:
        raise ScanError(f"{path.name} is too large a picture to read here.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ScanError(f"{path.name} {_NO_PICTURE}") from error


def _to_grey(image: np.ndarray, name: str) -> np.ndarray:
    """A picture of 1 to 4 channels as grey (H, W), in its own range. Raises ScanError for one with colours."""
    if image.ndim == 2:
        return image
    if image.shape[2] == 2:
        return image[..., 0]
    colours = image[..., :3].astype(np.int32)
    spread = (colours.max(-1) - colours.min(-1)) / np.iinfo(image.dtype).max
    if (spread > 0.1).mean() > 0.02:
        raise ScanError(
            f"{name} is a colour picture. Scans are grey: export the slice itself, without overlays or colour maps."
        )
    return colours.mean(-1)


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
    return voxels, np.asarray(image.affine, float), [] if placed else [_NO_PLACE]


_NO_PLACE = (
    "Its header gives no position (qform and sform are unset): which side is left was guessed. "
    "Export it with its geometry."
)
