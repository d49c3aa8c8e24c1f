"""A scan and a slice of it: geometry, and no file is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import nibabel as nib
import numpy as np

from mediffuse.image.intensity import background
from mediffuse.image.letterbox import Letterbox
from mediffuse.scan.head import head_bounds, head_mask, tissue_from

PLANES = ("axial", "coronal", "sagittal")
MODALITIES = ("CT", "MR")
MAX_VOXELS = 512 * 512 * 1200
MAX_PIXELS = 4096 * 4096
"""Bounds on a volume and on a picture, checked in the header before any voxels are read."""

HEAD_SHARE, MIN_FIELD = 0.88, 200.0
"""Share of the field of view that the head's longer side takes in the training data (median), and
the smallest field (mm) that a slice is cropped to: at the vertex a head is small."""

MIN_MM, MAX_MM = 1e-3, 1e5
"""No voxel of a scan is smaller or larger, and none lies further from the origin."""

MAX_SIDE = 32767
"""Most voxels along an axis: a NIfTI, as which results are written, has 16 bits for them."""

MIN_SIDE = 16
"""Shortest side, in pixels, of a slice that is worth translating."""

_AXIS = {"sagittal": 0, "coronal": 1, "axial": 2}
_SIDES = {"sagittal": "AP", "coronal": "RL", "axial": "RL"}


class ScanError(ValueError):
    """A scan that cannot be used. The message tells a user what is wrong and what to do."""


class SeveralSeriesError(ScanError):
    """A folder, zip or file with more than one volume that may be meant.

    choices: title by what `read_scan` takes as `series`: a SeriesInstanceUID, with a number where it has several
    volumes, or the name of a file.
    """

    def __init__(self, name: str, choices: dict[str, str]) -> None:
        listed = "; ".join(f"{key} ({title})" if title else key for key, title in choices.items())
        super().__init__(
            f"{name} holds {len(choices)} series; choose one (--series, or series= over the API): {listed}."
        )
        self.choices = choices


class LabelMapError(ScanError):
    """A mask or label map where a scan is needed."""


@dataclass(frozen=True)
class Slice:
    """One plane of a scan as it is shown: anterior or superior up, patient's right on the left.

    pixels: float32 (rows, columns), HU for CT, the scan's own units for MR.
    spacing: mm per (row, column). limits: MR values that are black and white (see `mr_limits`).
    crop: (top, left, height, width) around the head where the field of view is much larger.
    sides: of the patient at the left and right of what is shown, such as "RL"; "" where they are not known.
    """

    pixels: np.ndarray
    spacing: tuple[float, float]
    modality: str
    limits: tuple[float, float] | None = None
    plane: str = "axial"
    index: int = 0
    crop: tuple[int, int, int, int] | None = None
    sides: str = ""

    @property
    def background(self) -> float:
        """The value of air: -1000 HU, or the MR's black."""
        return background(self.modality, self.limits)

    def letterbox(self, size: int) -> Letterbox:
        """How this slice fits a model image of `size` x `size` pixels."""
        return Letterbox(self.pixels.shape, self.spacing, size, self.crop)


@dataclass(frozen=True)
class Scan:
    """A volume in HU (CT) or its own units (MR).

    voxels: float32 (X, Y, Z), axes turned to run Right, Anterior, Superior as nearly as they do.
    affine: 4x4, voxel indices to world mm (RAS). native_affine/native_shape: as in the file.
    kind: as `formats.kind_of` tells it. shown: for a picture of a CT, the window it was read with.
    limits: MR values that are black and white, those of the whole scan also where this is a part of it; None for CT.
    wrong: those of `warnings` which say that it is not what it should be, so that nothing can be learnt from it.
    tags: of a DICOM, what `headers.known_tags` reads. place: of a NIfTI, what `formats.place_of` reads.
    looks: "CT" or "MR", what the file says it is or else its values look like; None where neither tells.
    """

    voxels: np.ndarray
    affine: np.ndarray
    modality: str
    kind: str
    native_affine: np.ndarray
    native_shape: tuple[int, ...]
    name: str = "scan"
    shown: str | None = None
    warnings: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    tags: dict[str, str] = field(default_factory=dict)
    limits: tuple[float, float] | None = None
    place: dict = field(default_factory=dict)
    looks: str | None = None

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
        pixels = np.ascontiguousarray(as_shown(np.moveaxis(self.voxels, axis, 0)[index]))
        if min(pixels.shape) < 2:
            raise ScanError(f"{self.name} is a single slice, and not an {plane} one: choose another plane.")
        spacing = float(self.spacing[rest[1]]), float(self.spacing[rest[0]])
        crop = self._crop(*rest, pixels.shape)
        sides = "" if self.kind == "picture" else _SIDES[plane]
        return Slice(pixels, spacing, self.modality, self.limits, plane, index, crop, sides)

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

    @property
    def background(self) -> float:
        """The value of air: -1000 HU, or the MR's black."""
        return background(self.modality, self.limits)

    @property
    def tissue(self) -> float:
        """The value from which on a voxel is tissue and not air."""
        return tissue_from(self.modality, self.limits)

    @cached_property
    def head(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Voxel bounds (low, high), each (3,), of the head; None for a picture, which has no mm, and where
        there is no head."""
        return None if self.kind == "picture" else head_bounds(self.voxels, self.spacing, self.tissue)

    def head_mask(self) -> np.ndarray:
        """Where the head is, bool (X, Y, Z), with its holes filled."""
        return head_mask(self.voxels, self.spacing, self.tissue)

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

    def slice_to_nifti(self, place: Slice, pixels: np.ndarray) -> nib.Nifti1Image:
        """`pixels` (rows, columns), turned as the slice `place` is, as a one-slice NIfTI in that slice's place.

        The image has the file's own axes and affine (shifted to the slice), so it overlays it.
        """
        axis = _AXIS[place.plane]
        slab = np.expand_dims(from_shown(pixels), axis).astype(np.float32)
        shift = np.eye(4)
        shift[axis, 3] = place.index
        return self._to_native(slab, self.affine @ shift)

    def to_nifti(self, voxels: np.ndarray) -> nib.Nifti1Image:
        """`voxels` (X, Y, Z) on this scan's canonical grid as a NIfTI with the file's own axes and affine."""
        return self._to_native(voxels, self.affine)

    def _to_native(self, voxels: np.ndarray, affine: np.ndarray) -> nib.Nifti1Image:
        """`voxels` (X, Y, Z) on canonical axes, with their own `affine`, turned to the file's axes."""
        canonical = nib.Nifti1Image(voxels, affine)
        back = nib.orientations.ornt_transform(nib.io_orientation(self.affine), nib.io_orientation(self.native_affine))
        image = canonical.as_reoriented(back)
        image.header.set_xyzt_units("mm")
        if self.kind == "dicom":
            image.set_sform(image.affine, 1)
            cosines = image.affine[:3, :3] / nib.affines.voxel_sizes(image.affine)
            if np.allclose(cosines.T @ cosines, np.eye(3), atol=1e-4):  # a qform cannot hold a shear
                image.set_qform(image.affine, 1)
        return self._placed(image) if self.place else image

    def _placed(self, image: nib.Nifti1Image) -> nib.Nifti1Image:
        """`image`, on the native grid or a part of it, with the codes, qform and units of the file it was made of."""
        (qcode, scode), qform = self.place["codes"], self.place["qform"]
        shift = np.linalg.inv(self.native_affine) @ image.affine
        if not (qcode or scode):
            # Where the header said nothing a reader has to guess, and guesses the same again; of a part it could not.
            if image.shape == tuple(self.native_shape):
                image.set_sform(None, 0)
                image.set_qform(None, 0)
                image.header["pixdim"][0] = self.place["qfac"]
                for name, value in self.place["fields"].items():
                    image.header[name] = value
                for row in ("srow_x", "srow_y", "srow_z"):
                    image.header[row] = 0
        else:
            image.set_sform(image.affine if scode else None, scode)
            to_mm = np.linalg.norm(self.native_affine[:3, 0]) / self.place["spacing"]
            image.set_qform(np.diag([to_mm] * 3 + [1]) @ np.array(qform) @ shift if qcode else None, qcode)
        if self.place["units"] == 0:
            image.header["xyzt_units"] = 0
        return image

    @staticmethod
    def shown_in(voxels: np.ndarray, place: Slice) -> np.ndarray:
        """The part of `voxels` (X, Y, Z) that the slice `place` shows, turned as that is: a view, to be written to."""
        index = [np.s_[:]] * 3
        index[_AXIS[place.plane]] = place.index
        return as_shown(voxels[tuple(index)])


def as_shown(plane: np.ndarray) -> np.ndarray:
    """(first, second) canonical axes to (rows, columns): up is the end of the second axis."""
    return plane[::-1, ::-1].T


def from_shown(pixels: np.ndarray) -> np.ndarray:
    """(rows, columns) to (first, second) canonical axes: the inverse of `as_shown`."""
    return pixels.T[::-1, ::-1]


def _size(scan: Scan) -> str:
    return " x ".join(str(n) for n in scan.voxels.shape if scan.kind != "picture" or n > 1)


def check_size(shape, name: str, most: int = MAX_VOXELS) -> None:
    """Raise ScanError for a volume or picture that a header claims, and that cannot be read or written."""
    if min(shape) < 1:
        raise ScanError(f"{name} has a side of zero voxels. Export it again.")
    if math.prod(int(n) for n in shape) > most or max(shape) > MAX_SIDE:
        raise ScanError(
            f"{name} says it is {' x '.join(map(str, shape))} in size; that is too large to read here. "
            "Crop or resample it first."
        )


def canonical(voxels: np.ndarray, affine: np.ndarray, modality: str, kind: str, name: str) -> Scan:
    """A scan of `voxels` as they are in a file, with their axes turned to run Right, Anterior, Superior.

    Its MR limits are still to be found. Raises ScanError for an affine that is no position, and for a volume
    too small to show a slice.
    """
    usable = np.isfinite(affine).all() and np.abs(affine).max() < MAX_MM
    usable = usable and np.linalg.norm(affine[:3, :3], axis=0).min() >= MIN_MM
    usable = usable and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    ornt = nib.io_orientation(affine) if usable else None
    if ornt is None or np.isnan(ornt).any():
        raise ScanError(f"{name} has no usable position or voxel size in its header. Export it again.")
    turned = nib.apply_orientation(voxels, ornt)
    turned_affine = affine @ nib.orientations.inv_ornt_aff(ornt, voxels.shape)
    if sorted(turned.shape)[1] < MIN_SIDE:
        raise ScanError(f"{name} is only {' x '.join(map(str, voxels.shape))} voxels: too small to translate.")
    return Scan(turned, turned_affine, modality, kind, affine, voxels.shape, name)
