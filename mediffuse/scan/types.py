"""Read a scan (PNG, JPEG, NIfTI, NRRD, MHA, DICOM), take slices of it, write slices back in its own space."""

from __future__ import annotations

import math
import re
import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import cv2
import nibabel as nib
import numpy as np
from PIL import Image
from skimage.measure import label

from mediffuse.intensity import AIR_HU, Letterbox, guess_picture_modality, guess_png_window, mr_limits, png_ct_to_hu

PLANES = ("axial", "coronal", "sagittal")
MODALITIES = ("CT", "MR")
PICTURES = (".png", ".jpg", ".jpeg")
VOLUMES = (".nii", ".nii.gz", ".nrrd", ".mha")
MAX_VOXELS = 512 * 512 * 1200
MAX_PIXELS = 4096 * 4096
"""Bounds on a volume and on a picture, checked in the header before any voxels are read."""

HEAD_SHARE, MIN_FIELD = 0.88, 200.0
"""Share of the field of view that the head's longer side takes in the training data (median), and
the smallest field (mm) that a slice is cropped to: at the vertex a head is small."""

MIN_SIDE = 16
"""Shortest side, in pixels, of a slice that is worth translating."""

_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
_NAMES = {"CT": "a CT", "MR": "an MRI"}


class ScanError(ValueError):
    """A scan that cannot be used. The message tells a user what is wrong and what to do."""


class SeveralSeriesError(ScanError):
    """A folder or zip with more than one DICOM series. choices: title by SeriesInstanceUID."""

    def __init__(self, name: str, choices: dict[str, str]) -> None:
        super().__init__(f"{name} holds {len(choices)} series; choose one: {'; '.join(choices.values())}.")
        self.choices = choices


@dataclass(frozen=True)
class Slice:
    """One plane of a scan as it is shown: anterior or superior up, patient's right on the left.

    pixels: float32 (rows, columns), HU for CT, the scan's own units for MR.
    spacing: mm per (row, column). limits: MR values that are black and white (see `mr_limits`).
    crop: (top, left, height, width) around the head where the field of view is much larger.
    """

    pixels: np.ndarray
    spacing: tuple[float, float]
    modality: str
    limits: tuple[float, float] | None = None
    plane: str = "axial"
    index: int = 0
    crop: tuple[int, int, int, int] | None = None

    @property
    def background(self) -> float:
        """The value of air: -1000 HU, or the MR's black."""
        return AIR_HU if self.modality == "CT" else self.limits[0]

    def letterbox(self, size: int) -> Letterbox:
        """How this slice fits a model image of `size` x `size` pixels."""
        return Letterbox(self.pixels.shape, self.spacing, size, self.crop)


@dataclass(frozen=True)
class Scan:
    """A volume in HU (CT) or its own units (MR).

    voxels: float32 (X, Y, Z), axes turned to run Right, Anterior, Superior as nearly as they do.
    affine: 4x4, voxel indices to world mm (RAS). native_affine/native_shape: as in the file.
    kind: "picture", "nifti", "itk" (NRRD, MHA) or "dicom". shown: for a picture of a CT, the window it was read with.
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
    tags: dict[str, str] = field(default_factory=dict)  # of a DICOM: `series.known_tags`

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

    @property
    def plane(self) -> str:
        """The plane to show: axial, or the one that a single slice lies in."""
        return next((plane for plane in PLANES if self.count(plane) == 1), "axial")

    def count(self, plane: str = "axial") -> int:
        """Number of slices in a plane."""
        return self.voxels.shape[_AXIS[plane]]

    def slice(self, plane: str = "axial", index: int | None = None) -> Slice:
        """A slice by its index from inferior/posterior/left; by default the central one.

        Raises ScanError for an index outside the scan, or a plane that a single slice does not show.
        """
        index = self.count(plane) // 2 if index is None else index
        if not 0 <= index < self.count(plane):
            raise ScanError(f"There is no {plane} slice {index}: choose 0 to {self.count(plane) - 1}.")
        axis = _AXIS[plane]
        rest = [a for a in range(3) if a != axis]
        pixels = np.ascontiguousarray(_show(np.take(self.voxels, index, axis)))
        if min(pixels.shape) < 2:
            raise ScanError(f"{self.name} is a single slice, and not an {plane} one: choose another plane.")
        spacing = float(self.spacing[rest[1]]), float(self.spacing[rest[0]])
        crop = self._crop(*rest, pixels.shape)
        return Slice(pixels, spacing, self.modality, self.limits, plane, index, crop)

    def _crop(self, across: int, up: int, shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
        """Where the head lies in a slice (rows run down the `up` axis, columns down `across`), or
        None where it fills the field of view about as it does in the training data."""
        if self.head is None:
            return None
        (low, high), spacing = self.head, self.spacing
        axes = (up, across)
        extent = [(high[a] - low[a]) * spacing[a] for a in axes]
        side = max(max(extent) / HEAD_SHARE, MIN_FIELD)
        if side > 0.75 * max(n * spacing[a] for n, a in zip(shape, axes, strict=True)):
            return None
        starts, lengths = [], []
        for count, axis in zip(shape, axes, strict=True):
            length = min(count, round(side / spacing[axis]))
            # Rows and columns run from the end of their axis.
            centre = count - (low[axis] + high[axis]) / 2
            starts.append(int(np.clip(round(centre - length / 2), 0, count - length)))
            lengths.append(length)
        return (*starts, *lengths)

    @cached_property
    def head(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Voxel bounds (low, high), each (3,), of the largest solid region: the head without the
        table. None for a picture, which has no mm, and where there is none."""
        if self.kind == "picture":
            return None
        step = tuple(max(1, round(4 / mm)) for mm in self.spacing)
        some = self.voxels[tuple(slice(None, None, s) for s in step)]
        solid = some > (-300 if self.modality == "CT" else self.limits[0] + 0.1 * (self.limits[1] - self.limits[0]))
        labels = label(solid, connectivity=1)
        if not labels.any():
            return None
        found = np.argwhere(labels == np.bincount(labels.ravel())[1:].argmax() + 1)
        return found.min(0) * step, (found.max(0) + 1) * step

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

    def only(self, plane: str, index: int) -> Scan:
        """This scan cut down to one slice, in its place."""
        axis = _AXIS[plane]
        shift = np.eye(4)
        shift[axis, 3] = index
        return replace(self, voxels=np.take(self.voxels, [index], axis), affine=self.affine @ shift)

    def slice_to_nifti(self, one: Slice, pixels: np.ndarray) -> nib.Nifti1Image:
        """`pixels` (rows, columns) shown like `one` as a one-slice NIfTI in this scan's place.

        The image has the file's own axes and affine (shifted to the slice), so it overlays it.
        """
        axis = _AXIS[one.plane]
        slab = np.expand_dims(_unshow(pixels), axis).astype(np.float32)
        shift = np.eye(4)
        shift[axis, 3] = one.index
        return self._to_native(slab, self.affine @ shift)

    def to_nifti(self, voxels: np.ndarray) -> nib.Nifti1Image:
        """`voxels` (X, Y, Z) on this scan's canonical grid as a NIfTI with the file's own axes and affine."""
        return self._to_native(voxels, self.affine)

    def _to_native(self, voxels: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
        canonical = nib.Nifti1Image(voxels, affine)
        back = nib.orientations.ornt_transform(nib.io_orientation(self.affine), nib.io_orientation(self.native_affine))
        image = canonical.as_reoriented(back)
        image.header.set_xyzt_units("mm")
        return image

    @staticmethod
    def shown_in(voxels: np.ndarray, one: Slice) -> np.ndarray:
        """The part of `voxels` (X, Y, Z) that `one` shows, turned as it is shown: a view, to be written to."""
        where = [np.s_[:]] * 3
        where[_AXIS[one.plane]] = one.index
        return _show(voxels[tuple(where)])


def _show(plane: np.ndarray) -> np.ndarray:
    """(first, second) canonical axes to (rows, columns): up is the end of the second axis."""
    return plane[::-1, ::-1].T


def _unshow(pixels: np.ndarray) -> np.ndarray:
    return pixels.T[::-1, ::-1]


def _size(scan: Scan) -> str:
    return " x ".join(str(n) for n in scan.voxels.shape if scan.kind != "picture" or n > 1)


def read_scan(
    path: str | Path, modality: str, shown: str = "auto", *, series: str | None = None, allow_constant: bool = False
) -> Scan:
    """Read a PNG/JPEG, NIfTI (.nii, .nii.gz), NRRD, MHA, or DICOM: a file, a folder or a zip of a series.

    modality: "CT" or "MR", what the user says it is; `Scan.warnings` says where it looks
    otherwise. shown: for a picture of a CT, a key of `intensity.PNG_WINDOWS` or "auto".
    series: the SeriesInstanceUID to read where there are several.
    Raises ScanError, with a message for the user, for anything that cannot be used, and
    SeveralSeriesError where `series` must be given.
    """
    path = Path(path)
    if modality not in MODALITIES:
        raise ValueError(f"modality is CT or MR, not {modality!r}")
    if path.is_dir():
        return _read_folder(path, path.name, modality, shown, series)
    if not path.is_file():
        raise ScanError(f"There is no file {path.name}.")
    if path.stat().st_size == 0:
        raise ScanError(f"{path.name} is empty (0 bytes). Was the upload or copy cut short?")
    kind, said, tags = _kind(path), None, {}
    if kind == "zip":
        from mediffuse.series import unpacked

        with unpacked(path) as folder:
            return _read_folder(folder, path.name, modality, shown, series)
    if kind == "picture":
        scan, guess = _read_picture(path, modality, shown)
        return _checked(scan, modality, None, (), allow_constant, guess)
    if kind == "dicom":
        from mediffuse.series import known_tags, read_file

        voxels, affine, said = read_file(path)
        tags = known_tags(path)
    else:
        voxels, affine = (_read_nifti if kind == "nifti" else _read_itk)(path)
    scan = replace(_canonical(voxels, affine, modality, kind, path.name), tags=tags)
    return _checked(scan, modality, said if said in MODALITIES else None, (), allow_constant)


def _checked(
    scan: Scan,
    modality: str,
    said: str | None,
    warnings: tuple[str, ...],
    allow_constant: bool = False,
    guess: str | None = None,
) -> Scan:
    """`scan` with its warnings; `said` is the modality that the file names. Raises ScanError."""
    if not np.isfinite(scan.voxels).all():
        raise ScanError(f"{scan.name} has voxels that are not numbers (NaN or infinite). Export it again.")
    if scan.voxels.min() == scan.voxels.max() and not allow_constant:
        raise ScanError(f"{scan.name} is one constant value: there is nothing to see in it.")
    if scan.kind != "picture" and not allow_constant:
        guess = said or looks_like(scan.voxels)
    if guess and guess != modality and not allow_constant:
        sure = "The file says it is" if said else "This looks like"
        text = f"{sure} {_NAMES[guess]}, and this needs {_NAMES[modality]}: the result will mean nothing if it is."
        warnings = (text, *warnings)
    elif not allow_constant:
        from mediffuse.plausibility import oddities

        warnings = (*warnings, *oddities(scan))
    return replace(scan, warnings=warnings)


def _kind(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(PICTURES):
        return "picture"
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith((".nrrd", ".mha")):
        return "itk"
    with path.open("rb") as file:
        head = file.read(132)
    if name.endswith((".dcm", ".ima")) or head[128:] == b"DICM":
        return "dicom"
    if head.startswith(b"PK"):
        return "zip"
    raise ScanError(
        f"{path.name} is not a file type this can read. Use PNG, JPEG, NIfTI (.nii, .nii.gz), NRRD, MHA or DICOM "
        "(.dcm, or a zip of a series)."
    )


def check_size(shape, name: str, most: int = MAX_VOXELS) -> None:
    """Raise ScanError for a volume or picture that a header claims, and that cannot be read."""
    if min(shape) < 1:
        raise ScanError(f"{name} has a side of zero voxels. Export it again.")
    if math.prod(int(n) for n in shape) > most:
        raise ScanError(
            f"{name} says it is {' x '.join(map(str, shape))} in size; that is too large to read here. "
            "Crop or resample it first."
        )


def _canonical(voxels, affine, modality, kind, name, shown=None) -> Scan:
    usable = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    ornt = nib.io_orientation(affine) if usable else None
    if ornt is None or np.isnan(ornt).any():
        raise ScanError(f"{name} has no usable position or voxel size in its header. Export it again.")
    turned = nib.apply_orientation(voxels, ornt)
    canonical = affine @ nib.orientations.inv_ornt_aff(ornt, voxels.shape)
    if sorted(turned.shape)[1] < MIN_SIDE:
        raise ScanError(f"{name} is only {' x '.join(map(str, voxels.shape))} voxels: too small to translate.")
    return Scan(turned, canonical, modality, kind, affine, voxels.shape, name, shown)


def _read_picture(path: Path, modality: str, shown: str) -> tuple[Scan, str | None]:
    """The scan, and the modality that the picture looks like."""
    rows, columns = _picture_size(path)
    check_size((rows, columns), path.name, MAX_PIXELS)
    if min(rows, columns) < MIN_SIDE:
        raise ScanError(f"{path.name} is only {columns} x {rows} pixels: too small to translate.")
    image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
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
    volume = np.ascontiguousarray(_unshow(voxels)[:, :, None])
    shown = shown if modality == "CT" else None
    return _canonical(volume, np.eye(4), modality, "picture", path.name, shown), guess_picture_modality(grey)


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


def _read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
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
    return voxels, np.asarray(image.affine, float)


def _read_itk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and affine of an NRRD or MetaImage file."""
    import SimpleITK as sitk

    from mediffuse.series import from_sitk

    with path.open("rb") as file:
        header = file.read(1 << 16)
    # A header may name another file of this machine as its voxels.
    local = re.search(rb"^ElementDataFile\s*=\s*LOCAL\s*$", header, re.MULTILINE | re.IGNORECASE)
    detached = re.search(rb"^data ?file:", header.split(b"\n\n")[0].split(b"\r\n\r\n")[0], re.MULTILINE | re.IGNORECASE)
    if detached or (path.suffix.lower() == ".mha" and not local):
        raise ScanError(f"{path.name} is a header whose voxels are in another file. Save it as one file.")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        if reader.GetDimension() != 3 or reader.GetNumberOfComponents() != 1:
            raise ScanError(f"{path.name} is no 3D volume of single values. Save one volume of it and use that.")
        check_size(reader.GetSize(), path.name)
        return from_sitk(reader.Execute())
    except ScanError:
        raise
    except RuntimeError as error:
        raise ScanError(f"{path.name} cannot be read: it is damaged or cut short. Copy it again.") from error


def _read_folder(folder: Path, name: str, modality: str, shown: str, series: str | None) -> Scan:
    """The one volume in a folder: a DICOM series, or a file that `read_scan` reads."""
    from mediffuse.series import find_series, known_tags, read_series

    found = find_series(folder)
    found = [s for s in found if s.usable] or found
    if series:
        found = [s for s in found if s.uid == series]
        if not found:
            raise ScanError(f"{name} has no series {series}.")
    if len(found) > 1:
        raise SeveralSeriesError(name, {s.uid: s.title for s in found})
    if found:
        voxels, affine, said, warnings = read_series(found[0], name)
        scan = replace(_canonical(voxels, affine, modality, "dicom", name), tags=known_tags(found[0].files[0]))
        return _checked(scan, modality, said if said in MODALITIES else None, tuple(warnings))
    files = (p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    others = [p for p in files if p.name.lower().endswith((*VOLUMES, *PICTURES))]
    if len(others) != 1:
        raise ScanError(f"{name} holds no DICOM series{f', but {len(others)} other scans' if others else ''}.")
    return read_scan(others[0], modality, shown)


def looks_like(voxels: np.ndarray) -> str | None:
    """Guess whether a volume (X, Y, Z) is "CT" or "MR", or None. A CT in HU has air near -1000."""
    if np.percentile(voxels[:: max(1, voxels.shape[0] // 64)], 1) < -300:
        return "CT"
    return "MR" if voxels.min() > -200 else None
