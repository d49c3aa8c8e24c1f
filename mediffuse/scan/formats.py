"""What kind of scan a file is; the formats that nibabel reads."""

from __future__ import annotations

import contextlib
import gzip
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from mediffuse.scan.headers import ENDINGS as DICOM_ENDINGS
from mediffuse.scan.headers import begins_dicom
from mediffuse.scan.types import ScanError, check_size

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")
_NIFTI = (".nii.gz", ".nii")
DATA_OF = {".raw": "an .mhd or .nhdr", ".zraw": "an .mhd", ".img": "a .hdr"}
"""Files that hold voxels alone, and what says how they are to be read."""

_BY_NAME = {
    **dict.fromkeys(PICTURES, "picture"),
    **dict.fromkeys(_NIFTI, "nifti"),
    **dict.fromkeys((".nrrd", ".nhdr"), "nrrd"),
    **dict.fromkeys((".mha", ".mhd"), "mha"),
    **dict.fromkeys((".mgz", ".mgh"), "mgh"),
    **dict.fromkeys((".hdr", ".img"), "pair"),
    **dict.fromkeys(DICOM_ENDINGS, "dicom"),
    ".zip": "zip",
}


def stem_of(name: str) -> str:
    """A scan's name without the end that tells its format: "a.b.nii.gz" is "a.b"."""
    end = next((e for e in _BY_NAME if name.lower().endswith(e)), "")
    return name[: len(name) - len(end)]


def kind_of(path: Path) -> str:
    """ "picture", "nifti", "pair" (NIfTI or Analyze in two files), "mgh", "nrrd", "mha", "dicom" or "zip".

    Told by its first bytes or, where those are damaged, by its name. Raises ScanError for other files.
    """
    kind = _kind(path)
    if kind:
        return kind
    if path.suffix.lower() in DATA_OF:
        raise ScanError(
            f"{path.name} holds voxels without saying how they lie. "
            f"Give {DATA_OF[path.suffix.lower()]} with it, in one folder or zip."
        )
    raise ScanError(
        f"{path.name} is not a file type this can read. Use PNG, JPEG, TIFF, BMP, WebP, GIF, "
        "NIfTI (.nii, .nii.gz, .hdr with .img), NRRD, MetaImage, MGZ or DICOM (a file, or a folder or zip of a series)."
    )


def may_be_volume(path: Path) -> bool:
    """Whether a file in a folder is a volume that is no DICOM, or its header; zips only where they are called so."""
    kind = _kind(path)
    if kind == "zip":
        return path.suffix.lower() == ".zip"
    return kind in ("nifti", "mgh", "nrrd", "mha") or (kind == "pair" and path == _pair_of(path)[0])


_PICTURE_STARTS = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_NIFTI_SIZES = {s.to_bytes(4, order): start for s, start in ((348, 344), (540, 4)) for order in ("little", "big")}
"""First bytes of NIfTI-1 and -2, and where their next ones stand."""


def _kind(path: Path) -> str | None:
    """As `kind_of`; None for other files."""
    by_name = (kind for end, kind in _BY_NAME.items() if path.name.lower().endswith(end))
    return _kind_by_content(path) or next(by_name, None)


def _kind_by_content(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            head = file.read(1024)
        packed = head[:2] == b"\x1f\x8b"
        if packed:
            head = zlib.decompressobj(wbits=31).decompress(head, 1024)
    except (OSError, zlib.error):
        return None
    if head[:4] in _NIFTI_SIZES:
        magic = head[_NIFTI_SIZES[head[:4]] :][:3]
        if magic in (b"n+1", b"n+2"):
            return "nifti"
        return "pair" if magic in (b"ni1", b"ni2") or path.name.lower().endswith(".hdr") else None
    if head[:4] == b"\0\0\0\1" and path.name.lower().endswith((".mgz", ".mgh")):
        return "mgh"
    if head[:2] == b"PK":
        return "zip"
    kind = None
    if head[128:132] == b"DICM":  # its preamble may be the head of a TIFF
        kind = "dicom"
    elif head.startswith(_PICTURE_STARTS) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        kind = "picture"
    elif head.startswith(b"NRRD000"):
        kind = "nrrd"
    elif re.match(rb"\s*(ObjectType|NDims)\s*=", head):
        kind = "mha"
    elif begins_dicom(head):
        kind = "dicom"
    return "zip" if kind and packed else kind  # one file, packed by gzip


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
    """(voxels float32 (X, Y, Z), affine to RAS mm, warnings) of a NIfTI, Analyze or MGH file, packed or not, whatever
    its name says. Of two files either is given. Raises ScanError."""
    try:
        with contextlib.ExitStack() as files:
            image = _opened(path, files)
            shape = image.shape
            while len(shape) > 3 and shape[-1] == 1:
                shape = shape[:-1]
            if len(shape) == 4:
                raise ScanError(f"{path.name} is 4D ({shape[3]} volumes). Save one volume of it as 3D and use that.")
            if len(shape) != 3:
                raise ScanError(
                    f"{path.name} is {len(shape)}D, and a 3D volume is needed. A single slice can come as PNG."
                )
            check_size(shape, path.name)
            if image.get_data_dtype().kind not in "iuf":
                raise ScanError(f"{path.name} is a colour or complex volume. Save the scan's own values.")
            voxels = np.asarray(image.dataobj, np.float32).reshape(shape)
    except ScanError:
        raise
    except _NIFTI_ERRORS as error:
        raise ScanError(f"{path.name} cannot be read as NIfTI: it is damaged or cut short. Copy it again.") from error
    stated = int(image.header["xyzt_units"]) & 7 if isinstance(image.header, nib.Nifti1Header) else 2
    affine, warnings = in_millimetres(np.asarray(image.affine, float), shape, stated)
    return voxels, affine, warnings if _is_placed(image) else [*warnings, _NO_PLACE]


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


def _opened(path: Path, files: contextlib.ExitStack):
    """The nibabel image in a file, or in the pair that it belongs to; nothing but its header is read yet."""

    def holder(part: Path) -> nib.FileHolder:
        with part.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        return nib.FileHolder(fileobj=files.enter_context(gzip.open(part) if packed else part.open("rb")))

    kind = kind_of(path)
    if kind == "mgh":
        return nib.MGHImage.from_file_map({"image": holder(path)})
    header, data = _pair_of(path) if kind == "pair" else (path, path)
    for part in (header, data):
        if not part.is_file():
            raise ScanError(f"{path.name} is one of two files, and {part.name} is not beside it. Zip both.")
    head = holder(header)
    start = head.fileobj.read(540)
    head.fileobj.seek(0)
    single = (nib.Nifti1Image, nib.Nifti2Image)
    for image in single if kind == "nifti" else (nib.Nifti1Pair, nib.Nifti2Pair, nib.Spm2AnalyzeImage):
        if image.header_class.may_contain_header(start):
            return image.from_file_map({"image": head} if kind == "nifti" else {"header": head, "image": holder(data)})
    raise nib.filebasedimages.ImageFileError("no header")


def _pair_of(path: Path) -> tuple[Path, Path]:
    """(header, voxels) of the two files that one of them belongs to; they need not be there."""
    name = path.name
    packed = name[-3:] if name.lower().endswith(".gz") else ""
    stem = name[: len(name) - len(packed)]
    stem = stem[:-4] if stem.lower().endswith((".hdr", ".img")) else stem
    beside = {p.name.lower(): p for p in path.parent.iterdir() if p.is_file() and not p.is_symlink()}

    def part(end: str) -> Path:
        if name.lower().endswith((end, end + ".gz")):
            return path
        ends = [f"{stem}{end}{gz}".lower() for gz in ("", ".gz")]
        return next((beside[e] for e in ends if e in beside), path.with_name(f"{stem}{end}"))

    return part(".hdr"), part(".img")


def _is_placed(image) -> bool:
    """Whether the header of a nibabel image says where in the world it lies."""
    header = image.header
    if isinstance(image, nib.MGHImage):
        return bool(header["goodRASFlag"])
    return isinstance(header, nib.Nifti1Header) and bool(header["qform_code"] or header["sform_code"])


_WITHOUT_MEANING = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
"""What a header may hold that says it has no position."""


def place_of(path: Path) -> dict:
    """How a NIfTI says where it lies, for what is made of it; empty for other files, and damaged ones.

    codes: of qform and sform. qform: (4, 4) as lists, or None. units: of length, by NIfTI's number. spacing: along the
    first axis, in those. qfac, fields: what a header holds all the same that says it has no position.
    """
    try:
        with contextlib.ExitStack() as files:
            image = _opened(path, files)
            header = image.header
            if not isinstance(header, nib.Nifti1Header):
                return {}
            qform = header.get_qform(coded=True)[0]
            codes = [int(header["qform_code"]), int(header["sform_code"])]
            units = int(header["xyzt_units"]) & 7
            fields = {} if any(codes) else {name: header[name].tolist() for name in _WITHOUT_MEANING}
            place = {"codes": codes, "qform": None if qform is None else qform.tolist(), "units": units}
            spacing = float(np.linalg.norm(image.affine[:3, 0]))
            return {**place, "spacing": spacing, "fields": fields, "qfac": float(header["pixdim"][0])}
    except (ScanError, *_NIFTI_ERRORS):
        return {}


_NO_PLACE = (
    "Its header gives no position (qform and sform are unset): which side is left was guessed. "
    "Export it with its geometry."
)
