"""Slice to square, and back to the native grid."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Letterbox:
    """Fits a slice into a square model image without distortion, and back to the native grid.

    `shape`: native (rows, columns); `spacing`: mm per (row, column); `size`: side of the square;
    `crop`: (top, left, height, width) of the part that is used, by default all.
    The longer side in mm fills the square, so anisotropic pixels become isotropic.
    """

    shape: tuple[int, int]
    spacing: tuple[float, float] = (1.0, 1.0)
    size: int = 256
    crop: tuple[int, int, int, int] | None = None

    @property
    def part(self) -> tuple[slice, slice]:
        """The used part of the native grid."""
        top, left, height, width = self.crop or (0, 0, *self.shape)
        return np.s_[top : top + height, left : left + width]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(top, left, height, width) of that part inside the square, in pixels."""
        sides = self.crop[2:] if self.crop else self.shape
        extent = [n * mm for n, mm in zip(sides, self.spacing, strict=True)]
        scale = self.size / max(extent)
        height, width = (max(1, min(self.size, round(e * scale))) for e in extent)
        return (self.size - height) // 2, (self.size - width) // 2, height, width

    def fit(self, pixels: np.ndarray, fill: float) -> np.ndarray:
        """(rows, columns[, C]) to (size, size[, C]); the margin is set to `fill`."""
        top, left, height, width = self.box
        out = np.full((self.size, self.size, *pixels.shape[2:]), fill, np.float32)
        out[top : top + height, left : left + width] = resize(pixels[self.part], (height, width))
        return out

    def restore(self, image: np.ndarray, fill: float = 0.0) -> np.ndarray:
        """(size, size[, C]) back to (rows, columns[, C]); what was cropped away is set to `fill`."""
        top, left, height, width = self.box
        out = np.full((*self.shape, *image.shape[2:]), fill, np.float32)
        sides = out[self.part].shape[:2]
        out[self.part] = resize(image[top : top + height, left : left + width], sides)
        return out


def resize(pixels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(rows, columns[, C]) to `shape` (rows, columns), float32: by area where it shrinks, else linearly."""
    if pixels.shape[:2] == tuple(shape):
        return np.asarray(pixels, np.float32)
    shrinks = shape[0] * shape[1] < pixels.shape[0] * pixels.shape[1]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(pixels, np.float32), shape[::-1], interpolation=how)
