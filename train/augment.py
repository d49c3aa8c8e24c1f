"""Augmentation of registered CT/MR pairs. Images are model images: float32 (S, S, 3) in [0, 1]."""

from __future__ import annotations

import cv2
import numpy as np

from mediffuse.image.ct_picture import png_ct_to_hu
from mediffuse.image.intensity import decode_ct, encode_ct, window


def warp_field(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random affine (rotation, scale, shift, shear, mirror) and elastic map, for `cv2.remap`.

    Mirroring turns both images of a pair alike, so it never swaps sides at inference.
    """
    angle = np.deg2rad(rng.normal(0, 6))
    scale = np.exp(rng.normal(0.05, 0.1, 2) + rng.normal(0, 0.04))
    shear = rng.normal(0, 0.03)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[1, shear], [0, 1]]) @ np.diag(scale)
    if rng.random() < 0.5:
        matrix[:, 0] *= -1
    centre = (size - 1) / 2
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(np.float32) - centre
    field = grid @ matrix.T.astype(np.float32) + centre + rng.normal(0, 0.03 * size, 2).astype(np.float32)
    if rng.random() < 0.7:
        knots = rng.normal(0, 1, (*rng.integers(4, 9, 2), 2)).astype(np.float32)
        bend = cv2.resize(knots, (size, size), interpolation=cv2.INTER_CUBIC)
        field += bend * rng.uniform(0, 0.018) * size
    return field[..., 0].astype(np.float32), field[..., 1].astype(np.float32)


def warp(image: np.ndarray, field: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Resample a model image by `field`; outside is 0, which is air in a CT and black in an MRI."""
    return cv2.remap(image, *field, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=0)


def cut_off(images: list[np.ndarray], rng: np.random.Generator) -> None:
    """Blank one side of all images, in place: heads are cut by the field of view or for privacy."""
    size = images[0].shape[0]
    depth = int(size * rng.uniform(0.05, 0.3))
    part = [np.s_[:depth], np.s_[-depth:], np.s_[:, :depth], np.s_[:, -depth:]][rng.integers(4)]
    for image in images:
        image[part] = 0


def jitter_ct(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scanner differences of a CT input: HU gain and offset, noise, or only a brain window."""
    hu = decode_ct(image)
    body = hu > -900
    hu = np.where(body, hu * rng.normal(1, 0.015) + rng.normal(0, 4), hu)
    if rng.random() < 0.5:
        noise = rng.normal(0, 1, hu.shape).astype(np.float32)
        sigma = rng.uniform(0, 1.2)
        if sigma > 0.3:
            noise = cv2.GaussianBlur(noise, (0, 0), sigma) * (2 * sigma)
        hu = hu + body * noise * rng.uniform(0, 8)
    if rng.random() < 0.12:
        centre, width = rng.normal(40, 4), rng.uniform(75, 100)
        shown = window(hu, (centre - width / 2, centre + width / 2))
        hu = png_ct_to_hu(shown, "brain")
    return encode_ct(hu)


def jitter_mr(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scanner differences of an MR input: brightness, gamma, bias field, noise."""
    size = image.shape[0]
    grey = image[..., 0] * np.exp(rng.normal(0, 0.12))
    if rng.random() < 0.5:
        knots = rng.normal(0, 0.15, (3, 3)).astype(np.float32)
        grey = grey * np.exp(cv2.resize(knots, (size, size), interpolation=cv2.INTER_CUBIC))
    grey = np.clip(grey, 0, 1) ** np.exp(rng.normal(0, 0.15))
    if rng.random() < 0.3:
        grey = grey + rng.normal(0, rng.uniform(0, 0.03), grey.shape)
    return np.repeat(np.clip(grey, 0, 1).astype(np.float32)[..., None], 3, axis=-1)
