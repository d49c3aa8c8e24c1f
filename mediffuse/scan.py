"""Read a scan (PNG, JPEG, NIfTI, DICOM), take slices of it, write slices back in its own space."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np

from mediffuse.intensity import guess_png_window, mr_limits, png_ct_to_hu

PLANES = ("axial", "coronal", "sagittal")
MODALITIES = ("CT", "MR")
PICTURES = (".png", ".jpg", ".jpeg")
MAX_VOXELS = 512 * 512 * 1200
"""Bound on the voxels of a scan, checked in the header before any are read."""

_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
_NAMES = {"CT": "a CT", "MR": "an MRI"}


class ScanError(ValueError):
    """A scan that cannot be used. The message tells a user what is wrong and what to do."""


@dataclass(frozen=True)
class Slice:
    """One plane of a scan as it is shown: anterior or superior up, patient's right on the left.

    pixels: float32 (rows, columns), HU for CT, the scan's own units for MR.
    spacing: mm per (row, column). limits: MR values that are black and white (see `mr_limits`).
    """

    pixels: np.ndarray
    spacing: tuple[float, float]
    modality: str
    limits: tuple[float, float] | None = None
    plane: str = "axial"
    index: int = 0


@dataclass(frozen=True)
class Scan:
    """A volume in HU (CT) or its own units (MR).

    voxels: float32 (X, Y, Z), axes turned to run Right, Anterior, Superior as nearly as they do.
    affine: 4x4, voxel indices to world mm (RAS). native_affine/native_shape: as in the file.
    kind: "picture", "nifti" or "dicom". shown: for a picture of a CT, the window it was read with.
    """

    voxels: np.ndarray
    affine: np.ndarray
    modality: str
    kind: str
    native_affine: np.ndarray
    native_shape: tuple[int, ...]
    name: str = "scan"
    shown: str | None = None
    warnings: tuple[str, ...] = field(default=())

    @cached_property
    def limits(self) -> tuple[float, float] | None:
        """MR values that become black and white; a picture is taken as it is scaled."""
        if self.modality == "CT":
            return None
        return (0.0, 255.0) if self.kind == "picture" else mr_limits(self.voxels)

    @property
    def spacing(self) -> np.ndarray:
        """mm per voxel along each axis of `voxels`."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def count(self, plane: str = "axial") -> int:
        """Number of slices in a plane."""
        return self.voxels.shape[_AXIS[plane]]

    def slice(self, plane: str = "axial", index: int | None = None) -> Slice:
        """A slice by its index from inferior/posterior/left; by default the central one.

        Raises ScanError for an index outside the scan.
        """
        index = self.count(plane) // 2 if index is None else index
        if not 0 <= index < self.count(plane):
            raise ScanError(f"There is no {plane} slice {index}: choose 0 to {self.count(plane) - 1}.")
        axis = _AXIS[plane]
        rest = [a for a in range(3) if a != axis]
        pixels = np.ascontiguousarray(_show(np.take(self.voxels, index, axis)))
        spacing = float(self.spacing[rest[1]]), float(self.spacing[rest[0]])
        return Slice(pixels, spacing, self.modality, self.limits, plane, index)

    def check_same_grid(self, other: Scan) -> None:
        """Raise ScanError unless `other` has this scan's grid: shape, and affine within 0.1 mm."""
        if other.voxels.shape != self.voxels.shape:
            raise ScanError(
                f"The two scans differ in size: {_size(self)} and {_size(other)}. "
                "Resample one onto the other's grid first."
            )
        if self.kind == "picture" or other.kind == "picture":
            return
        corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
        corners[:, :3] *= np.array(self.voxels.shape) - 1
        off = np.linalg.norm((corners @ (self.affine - other.affine).T)[:, :3], axis=1).max()
        if off > 0.1:
            raise ScanError(
                f"The two scans do not lie on the same grid: they are up to {off:.1f} mm apart. "
                "Register and resample one onto the other first."
            )

    def slice_to_nifti(self, one: Slice, pixels: np.ndarray) -> nib.Nifti1Image:
        """`pixels` (rows, columns) shown like `one` as a one-slice NIfTI in this scan's place.

        The image has the file's own axes and affine (shifted to the slice), so it overlays it.
        """
        axis = _AXIS[one.plane]
        slab = np.expand_dims(_unshow(pixels), axis).astype(np.float32)
        shift = np.eye(4)
        shift[axis, 3] = one.index
        canonical = nib.Nifti1Image(slab, self.affine @ shift)
        back = nib.orientations.ornt_transform(
            nib.io_orientation(self.affine), nib.io_orientation(self.native_affine)
        )
        image = canonical.as_reoriented(back)
        image.header.set_xyzt_units("mm")
        return image


def _show(plane: np.ndarray) -> np.ndarray:
    """(first, second) canonical axes to (rows, columns): up is the end of the second axis."""
    return plane[::-1, ::-1].T


def _unshow(pixels: np.ndarray) -> np.ndarray:
    return pixels.T[::-1, ::-1]


def _size(scan: Scan) -> str:
    return " x ".join(str(n) for n in scan.voxels.shape if scan.kind != "picture" or n > 1)


def read_scan(
    path: str | Path, modality: str, shown: str = "auto", *, allow_constant: bool = False
) -> Scan:
    """Read a PNG/JPEG, NIfTI (.nii, .nii.gz; 3D) or single DICOM file.

    modality: "CT" or "MR", what the user says it is; `Scan.warnings` says where it looks
    otherwise. shown: for a picture of a CT, a key of `intensity.PNG_WINDOWS` or "auto".
    Raises ScanError, with a message for the user, for anything that cannot be used.
    """
    path = Path(path)
    if modality not in MODALITIES:
        raise ValueError(f"modality is CT or MR, not {modality!r}")
    if not path.is_file():
        raise ScanError(f"There is no file {path.name}.")
    if path.stat().st_size == 0:
        raise ScanError(f"{path.name} is empty (0 bytes). Was the upload or copy cut short?")
    kind = _kind(path)
    if kind == "picture":
        scan = _read_picture(path, modality, shown)
    else:
        read = _read_nifti if kind == "nifti" else _read_dicom
        voxels, affine, said = read(path)
        scan = _canonical(voxels, affine, modality, kind, path.name)
        if said and said != modality:
            scan = _warn(scan, f"The file says it is {_NAMES[said]}, and this needs {_NAMES[modality]}.")
    if not np.isfinite(scan.voxels).all():
        raise ScanError(f"{path.name} has voxels that are not numbers (NaN or infinite). Export it again.")
    if scan.voxels.min() == scan.voxels.max() and not allow_constant:
        raise ScanError(f"{path.name} is one constant value: there is nothing to see in it.")
    guess = looks_like(scan)
    if guess and guess != modality and not scan.warnings and not allow_constant:
        scan = _warn(
            scan,
            f"This looks like {_NAMES[guess]}, and this needs {_NAMES[modality]}: "
            "the result will mean nothing if it is.",
        )
    return scan


def _warn(scan: Scan, text: str) -> Scan:
    return replace(scan, warnings=(*scan.warnings, text))


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(PICTURES):
        return "picture"
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    with path.open("rb") as file:
        head = file.read(132)
    if name.endswith((".dcm", ".ima")) or head[128:] == b"DICM":
        return "dicom"
    raise ScanError(
        f"{path.name} is not a file type this can read. Use PNG, JPEG, NIfTI (.nii, .nii.gz) or DICOM (.dcm)."
    )


def _check_size(shape, name: str) -> None:
    if min(shape) < 1:
        raise ScanError(f"{name} has a side of zero voxels.")
    if np.prod([float(n) for n in shape]) > MAX_VOXELS:
        raise ScanError(f"{name} says it has {' x '.join(map(str, shape))} voxels; that is too large to read here.")


def _canonical(voxels, affine, modality, kind, name, shown=None) -> Scan:
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise ScanError(f"{name} has no usable position or voxel size in its header. Export it again.")
    ornt = nib.io_orientation(affine)
    turned = nib.apply_orientation(voxels, ornt)
    canonical = affine @ nib.orientations.inv_ornt_aff(ornt, voxels.shape)
    if min(turned.shape[:2]) < 16 and kind != "picture":
        raise ScanError(f"{name} is only {' x '.join(map(str, voxels.shape))} voxels: too small to translate.")
    return Scan(turned, canonical, modality, kind, affine, voxels.shape, name, shown)


def _read_picture(path: Path, modality: str, shown: str) -> Scan:
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise ScanError(f"{path.name} cannot be read as a picture: it is damaged or cut short.")
    _check_size(image.shape[:2], path.name)
    if min(image.shape[:2]) < 16:
        raise ScanError(f"{path.name} is only {image.shape[1]} x {image.shape[0]} pixels: too small to translate.")
    if image.dtype not in (np.uint8, np.uint16):
        raise ScanError(f"{path.name} has {image.dtype} pixels. Save it with 8 or 16 bits.")
    depth = np.iinfo(image.dtype).max
    grey = _to_grey(image, path.name).astype(np.float32) / depth
    if depth > 255 and grey.max() > grey.min():
        # 16-bit exports rarely use the whole range; the display range is what they do use.
        grey = (grey - grey.min()) / (grey.max() - grey.min())
    voxels = grey * 255
    if modality == "CT" and grey.max() > grey.min():
        shown = guess_png_window(grey) if shown == "auto" else shown
        voxels = png_ct_to_hu(grey, shown)
    volume = _unshow(voxels)[:, :, None]
    return _canonical(
        np.ascontiguousarray(volume), np.eye(4), modality, "picture", path.name, shown if modality == "CT" else None
    )


def _to_grey(image: np.ndarray, name: str) -> np.ndarray:
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


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, None]:
    try:
        image = nib.load(path)
        shape = image.shape
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) == 4:
            raise ScanError(f"{path.name} is 4D ({shape[3]} volumes). Save one volume of it as 3D and use that.")
        if len(shape) != 3:
            raise ScanError(f"{path.name} is {len(shape)}D, and a 3D volume is needed. A single slice can come as PNG.")
        _check_size(shape, path.name)
        if image.get_data_dtype().fields is not None:
            raise ScanError(f"{path.name} is a colour volume. Save the scan's own values.")
        voxels = np.asarray(image.dataobj, np.float32).reshape(shape)
    except ScanError:
        raise
    except (EOFError, OSError, ValueError, zlib.error, nib.filebasedimages.ImageFileError, MemoryError) as error:
        raise ScanError(f"{path.name} cannot be read as NIfTI: it is damaged or cut short. Copy it again.") from error
    affine = np.asarray(image.affine, float)
    if not np.isfinite(affine).all():
        raise ScanError(f"{path.name} has no usable position or voxel size in its header. Export it again.")
    return voxels, affine, None


def _read_dicom(path: Path) -> tuple[np.ndarray, np.ndarray, str | None]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        _check_size(reader.GetSize(), path.name)
        if reader.GetNumberOfComponents() != 1:
            raise ScanError(f"{path.name} is a colour DICOM (a screenshot or report). Choose the scan's own images.")
        said = reader.GetMetaData("0008|0060").strip() if reader.HasMetaDataKey("0008|0060") else None
        image = reader.Execute()
    except ScanError:
        raise
    except RuntimeError as error:
        raise ScanError(
            f"{path.name} cannot be read as DICOM: it is damaged, cut short, has no pixel data, "
            "or is compressed in a way that is not supported."
        ) from error
    if image.GetDimension() == 2:
        image = sitk.JoinSeries(image)
    lps_to_ras = np.diag([-1.0, -1.0, 1.0])
    direction = np.array(image.GetDirection()).reshape(3, 3)
    affine = np.eye(4)
    affine[:3, :3] = lps_to_ras @ direction @ np.diag(image.GetSpacing())
    affine[:3, 3] = lps_to_ras @ np.array(image.GetOrigin())
    voxels = sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32)
    return voxels, affine, said if said in MODALITIES else None


def looks_like(scan: Scan) -> str | None:
    """"CT" or "MR" where the values tell, else None.

    A volume in HU has air near -1000. A picture of a CT has a skull much brighter than one flat
    grey inside it; an MRI spreads over the grey scale.
    """
    if scan.kind != "picture":
        low = float(np.percentile(scan.voxels[:: max(1, scan.voxels.shape[0] // 64)], 1))
        if low < -300:
            return "CT"
        return "MR" if scan.voxels.min() >= 0 and scan.modality == "CT" else None
    return None
