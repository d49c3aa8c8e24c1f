"""Pictures of a slice, as a browser shows them: upright, on black, without a frame, dark around the head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mediffuse.image.ct_picture import SATURATED_SHARE, guess_picture_modality, guess_png_window, png_ct_to_hu
from mediffuse.image.intensity import fillers
from mediffuse.scan.types import MAX_PIXELS, MIN_SIDE, Scan, ScanError, canonical, check_size, from_shown

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")

BRIGHT_GROUND = 0.25
"""Grey, of 1, from which on what surrounds a head is no air."""

TURNED = 0.03
"""How much the bright tail of a head's greys must outweigh the dark one, or be outweighed, to tell an inverted picture
from one on a bright ground. Of 459 slices each of SynthRAD2023's MRI and CT in full range, inverted, 458 and 454 were
turned back; on white, all were put on black; for the rest it was said that it is not certain. In a brain window it is
never: black fat around white bone looks like black bone within white fat."""

INVERTED_AIR = 0.85
"""Grey of the air of an inverted picture at the least."""


FRAME_GREY = 0.03
"""Grey, of 1, from which on an even line at a picture's side is no air."""

LOSSY_LEVELS = 4 / 255
"""How far JPEG takes black and white off: in a narrow window they are air and bone, and what is next to them brain."""

LONG_SIDE, SMALL_HEAD = 1.76, 0.3
"""Longer side of a picture of a head by its shorter one at the most (1.64 in SynthRAD2023's); share of the longer
side that the head takes, below which it is too small to be translated well (0.32 at a vertex there)."""

_TURNS = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}
"""How to turn an image (rows, columns, ...) upright, by the EXIF tag Orientation."""

_ORIENTATION, _JPEG = 0x0112, b"\xff\xd8"
MAX_SCANS, _SCAN_OF_A_JPEG = 64, b"\xff\xda"
"""How often a JPEG may go over its picture (usual are ten times), and what each time begins with."""

_NO_PICTURE = "cannot be read as a picture: it is damaged, cut short, or of another type inside. Export it again."


def read_picture(path: Path, modality: str, shown: str) -> tuple[Scan, str | None]:
    """(the scan, the modality that the picture looks like). shown: as in `read_scan`. Raises ScanError."""
    grey, said = read_grey(path, modality)
    voxels = grey * 255
    if modality == "CT" and grey.max() > grey.min():
        shown = guess_png_window(grey) if shown == "auto" else shown
        voxels = png_ct_to_hu(grey, shown)
    volume = np.ascontiguousarray(from_shown(voxels)[:, :, None])
    scan = replace(canonical(volume, np.eye(4), modality, "picture", path.name), warnings=tuple(said))
    if modality == "CT":
        return replace(scan, shown=shown), guess_picture_modality(grey)
    return replace(scan, limits=(0.0, 255.0)), guess_picture_modality(grey)


def read_grey(path: Path, modality: str) -> tuple[np.ndarray, list[str]]:
    """(grey picture (rows, columns) float32 in [0, 1], what was put right in it or is odd). modality: what it shows.

    Raises ScanError for what is no grey picture.
    """
    image, said = _decoded(path)
    rows, columns = image.shape[:2]
    if min(rows, columns) < MIN_SIDE:
        raise ScanError(f"{path.name} is only {columns} x {rows} pixels: too small to translate.")
    depth = 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max)
    grey = _to_grey(image, path.name).astype(np.float32)
    if image.dtype.kind == "f" or depth > 255:
        grey, found = _to_range(grey)
        said += found
    else:
        grey /= depth
        if modality == "CT" and path.read_bytes()[:2] == _JPEG:
            grey = np.where(grey <= LOSSY_LEVELS, 0, np.where(grey >= 1 - LOSSY_LEVELS, 1, grey)).astype(np.float32)
    for mend in (_unframed, _unbarred, lambda x: _on_dark(x, modality)):
        grey, found = mend(grey)
        said += found
    if min(grey.shape) < MIN_SIDE:
        raise ScanError(f"{path.name} shows next to nothing within its border. Export the slice alone.")
    return np.ascontiguousarray(grey), said + _small_head(grey)


def _decoded(path: Path) -> tuple[np.ndarray, list[str]]:
    """(pixels (rows, columns[, channels]) upright, in their own depth; what to say). Raises ScanError.

    The header is checked first: a decoder would fill the memory that a forged one asks for.
    """
    said = []
    try:
        with Image.open(path, formats=FORMATS) as picture:
            check_size((picture.height, picture.width), path.name, MAX_PIXELS)
            content = path.read_bytes()
            if content.startswith(_JPEG) and content.count(_SCAN_OF_A_JPEG) > MAX_SCANS:
                raise ScanError(
                    f"{path.name} builds its picture up in more steps than can be read here. Save it as PNG."
                )
            frames = getattr(picture, "n_frames", 1)
            if frames > 1:
                said.append(
                    f"{path.name} holds {frames} pictures, and the first was read. A volume comes as NIfTI or DICOM."
                )
            turn = 1 if picture.format == "TIFF" else picture.getexif().get(_ORIENTATION, 1)  # OpenCV turns TIFF
            if picture.format in ("PNG", "TIFF"):  # of which Pillow loses 16 bits with colours, or the orientation
                image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
                if image is None:
                    raise ScanError(f"{path.name} {_NO_PICTURE}")
                image = image[..., [2, 1, 0, 3][: image.shape[2]]] if image.ndim == 3 else image
            else:
                picture.load()
                image = np.asarray(_plain(picture))
    except Image.DecompressionBombError as error:
        raise ScanError(f"{path.name} is too large a picture to read here.") from error
    except ScanError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, KeyError) as error:
        raise ScanError(f"{path.name} {_NO_PICTURE}") from error
    if turn in _TURNS:
        image = _TURNS[turn](image)
    return image, said


def _plain(picture: Image.Image) -> Image.Image:
    """A picture with a channel for each of its colours, and alpha where it is transparent."""
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode in ("P", "PA"):
        return picture.convert("RGBA" if "transparency" in picture.info or picture.mode == "PA" else "RGB")
    return picture if picture.mode in ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I", "F") else picture.convert("RGB")


def _to_grey(image: np.ndarray, name: str) -> np.ndarray:
    """A picture of 1 to 4 channels as grey (H, W) on black, in its own range. Raises ScanError for one with colours."""
    if image.ndim == 2:
        return image
    alpha = image[..., -1] / np.iinfo(image.dtype).max if image.shape[2] in (2, 4) else 1.0
    if image.shape[2] == 2:
        return image[..., 0] * alpha
    colours = image[..., :3].astype(np.int32)
    spread = (colours.max(-1) - colours.min(-1)) * alpha / np.iinfo(image.dtype).max
    if (spread > 0.1).mean() > 0.02:
        raise ScanError(
            f"{name} is a colour picture. Scans are grey: export the slice itself, without overlays or colour maps."
        )
    return colours.mean(-1) * alpha


def _to_range(grey: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """A picture of more than 8 bits by the range that it uses, which is rarely all; without padding and outliers."""
    grey = np.where(np.isfinite(grey), grey, np.nanmin(np.where(np.isfinite(grey), grey, np.nan)))
    low, high, said = float(grey.min()), float(grey.max()), []
    for value in fillers(grey):
        rest = grey[grey != value]
        if rest.size < 0.01 * grey.size:
            continue
        dark, bright = np.percentile(rest, (0.5, 99.5))
        if value > bright + 0.5 * (bright - dark) or value < dark - 0.5 * (bright - dark):
            grey = np.where(grey == value, dark, grey)
            low, high = float(grey.min()), float(grey.max())
            said.append(f"Its padding ({value:g}) was made black.")
    dark, bright = np.percentile(grey, (0.5, 99.5))
    if bright > dark:
        usual = grey[(grey >= dark - 0.5 * (bright - dark)) & (grey <= bright + 5 * (bright - dark))]
        if usual.size < grey.size:
            low, high = float(usual.min()), float(usual.max())
            said.append(f"{grey.size - usual.size} of its pixels are far from all others: they were cut off.")
    if high <= low:
        return np.zeros_like(grey, np.float32), said
    return np.clip((grey - low) / (high - low), 0, 1).astype(np.float32), said


def _unframed(grey: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """A picture without the even, bright frame or bars of a screenshot around a darker one."""
    edges = {"top": 0, "left": 0, "bottom": grey.shape[0], "right": grey.shape[1]}
    frame: list[float] = []

    def cut(side: str, line: np.ndarray, step: int) -> bool:
        """Whether a line of a side belongs to the frame; the side is moved by `step` if so."""
        value = float(np.median(line))
        if value < FRAME_GREY or (np.abs(line - value) < 0.02).mean() < 0.98:
            return False
        frame.append(value)
        edges[side] += step
        return True

    def inner() -> np.ndarray:
        return grey[edges["top"] : edges["bottom"], edges["left"] : edges["right"]]

    while min(inner().shape) > MIN_SIDE and (
        cut("top", inner()[0], 1)
        or cut("bottom", inner()[-1], -1)
        or cut("left", inner()[:, 0], 1)
        or cut("right", inner()[:, -1], -1)
    ):
        pass
    found = inner()
    # A head on a bright ground, without a frame, has that ground at what would be its edges, too.
    if not frame or np.median(_edge(found)) >= np.median(frame):
        return grey, []
    if (np.abs(_edge(found) - np.median(frame)) > 0.1).mean() < 0.6:
        return grey, []
    return found, [f"Its border was cut off: {_size(grey)} pixels became {_size(found)}."]


def _edge(grey: np.ndarray) -> np.ndarray:
    """The outermost pixels of a picture."""
    return np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])


def _size(grey: np.ndarray) -> str:
    return f"{grey.shape[1]} x {grey.shape[0]}"


def _unbarred(grey: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """A picture that is much longer than a head, without what is black on either side."""
    if max(grey.shape) <= LONG_SIDE * min(grey.shape):
        return grey, []
    axis = int(np.argmax(grey.shape))
    ground = float(np.median(_edge(grey)))
    shown = np.flatnonzero((np.abs(grey - ground) > 0.05).any(axis=1 - axis))
    length = max(min(grey.shape), shown[-1] + 1 - shown[0] if shown.size else 0)
    if not shown.size or length >= 0.9 * max(grey.shape):
        return grey, []
    start = int(np.clip((shown[0] + shown[-1] + 1 - length) // 2, 0, grey.shape[axis] - length))
    inner = np.take(grey, np.arange(start, start + length), axis)
    return inner, [f"Its bars were cut off: {_size(grey)} pixels became {_size(inner)}."]


def _on_dark(grey: np.ndarray, modality: str) -> tuple[np.ndarray, list[str]]:
    """A picture with black around the head: turned back where it is inverted, on black where its ground is bright."""
    border = _edge(grey)
    ground = float(np.median(border))
    if ground < BRIGHT_GROUND or (np.abs(border - ground) < 0.05).mean() < 0.6:
        return grey, []
    outside, head = _ground_and_head(grey, ground)
    # The air of an inverted picture is white.
    turned = ground > INVERTED_AIR and _is_inverted(grey, outside, head, modality)
    if turned is None:
        said = (
            "What surrounds the head is bright: if the picture is inverted, the result means nothing. Use one on black."
        )
    elif turned:
        grey, said = np.float32(ground) - grey, "The picture is inverted (bright air): it was turned back."
        grey = np.clip(grey, 0, 1)
    else:
        said = "What surrounds the head is bright: it was made black."
    return (grey if turned or turned is None else np.where(outside, np.float32(0), grey)), [said]


def _ground_and_head(grey: np.ndarray, ground: float) -> tuple[np.ndarray, np.ndarray]:
    """(what has the grey of the `ground` and reaches the border, the head within), each bool (H, W)."""
    from scipy import ndimage

    labels, _ = ndimage.label(np.abs(grey - ground) < 0.08)
    at_border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    outside = np.isin(labels, at_border[at_border > 0])
    labels, count = ndimage.label(ndimage.binary_opening(~outside, iterations=2))
    head = labels == np.bincount(labels.ravel())[1:].argmax() + 1 if count else np.zeros_like(outside)
    return outside, ndimage.binary_fill_holes(head)


def _is_inverted(grey: np.ndarray, outside: np.ndarray, head: np.ndarray, modality: str) -> bool | None:
    """Whether a picture with a bright ground is inverted; None where that is not certain."""
    from scipy import ndimage

    inside = grey[ndimage.distance_transform_edt(head) > 4]
    if inside.size < 400:
        return None
    dark, darker, median, brighter, bright = np.percentile(inside, (2, 3, 50, 97, 98))
    if modality == "MR":
        # Bone and the air within a head are dark.
        tails = -(bright + dark - 1)
        return None if abs(tails) < TURNED else bool(tails < 0)
    if ((grey[head] < 0.02) | (grey[head] > 0.98)).mean() > SATURATED_SHARE:
        return None  # a brain window: black fat around white bone, or black bone within white fat
    # Whichever way it is read, the brain of a full range or bone window is flat.
    readings = grey[outside].max(initial=0) - grey, np.where(outside, 0, grey)
    if any(guess_picture_modality(reading) != "CT" for reading in readings):
        return None
    # Bone is far brighter than the commonest tissue, and hardly anything far darker.
    tails = (brighter - median) - (median - darker)
    return None if abs(tails) < TURNED else bool(tails < 0)


def _small_head(grey: np.ndarray) -> list[str]:
    """What to say of a picture in which the head is small."""
    shown = grey > max(0.1, float(np.median(grey[0])) + 0.05)
    within = [np.flatnonzero(shown.mean(axis=a) > 0.02) for a in (0, 1)]
    share = max((w[-1] + 1 - w[0]) / max(grey.shape) for w in within) if all(w.size for w in within) else 1.0
    if share >= SMALL_HEAD:
        return []
    return [
        f"The head takes {100 * share:.0f} % of the picture's side: cut the picture to the head for a better result."
    ]
