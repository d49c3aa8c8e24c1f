"""The bundled example, which most tests read: a real head CT and its registered T1."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest

from mediffuse.image.intensity import to_uint8, window
from mediffuse.scan import Scan, read_scan
from mediffuse.scan.write import write_dicom

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "assets" / "examples"
# The same figures on every processor; commands and servers that tests start inherit it.
os.environ.setdefault("MEDIFFUSE_PRECISION", "float32")
WINDOWS = {"full": (-1000, 2000), "bone": (-500, 1500), "brain": (0, 80)}
"""HU limits that the tests render pictures of a CT with, by key of `ct_picture.PNG_WINDOWS`."""


@pytest.fixture(scope="session")
def ct_path() -> Path:
    return EXAMPLES / "head_ct.nii.gz"


@pytest.fixture(scope="session")
def mr_path() -> Path:
    return EXAMPLES / "head_t1.nii.gz"


@pytest.fixture(scope="session")
def ct(ct_path) -> Scan:
    return read_scan(ct_path, "CT")


@pytest.fixture(scope="session")
def mr(mr_path) -> Scan:
    return read_scan(mr_path, "MR")


@pytest.fixture(scope="session")
def ct_pixels(ct) -> np.ndarray:
    """The central axial slice in HU."""
    return ct.slice().pixels


@pytest.fixture(scope="session")
def mr_pixels(mr) -> np.ndarray:
    return mr.slice().pixels


@pytest.fixture(scope="session")
def ct_pictures(ct) -> dict[str, list[np.ndarray]]:
    """Every axial slice as 8-bit grey, by the window it is rendered in."""
    slices = [ct.slice("axial", index).pixels for index in range(ct.count())]
    return {shown: [to_uint8(window(hu, limits)) for hu in slices] for shown, limits in WINDOWS.items()}


@pytest.fixture(scope="session")
def mr_pictures(mr) -> list[np.ndarray]:
    """Every axial slice of the T1 as 8-bit grey."""
    return [to_uint8(window(mr.slice("axial", index).pixels, mr.limits)) for index in range(mr.count())]


@pytest.fixture(scope="session")
def series(ct, tmp_path_factory) -> Path:
    """The example CT as a DICOM series, whose files are named out of order."""
    folder = tmp_path_factory.mktemp("series") / "head"
    write_dicom(ct, ct.voxels, "CT", folder)
    for number, path in enumerate(sorted(folder.iterdir())):
        one = pydicom.dcmread(path)
        one.SeriesDescription = "Head"
        one.save_as(folder / f"{(number * 7) % 20:02d}_{number}.dcm")
        path.unlink()
    return folder


@pytest.fixture(scope="session")
def ct_and_mr(series, mr, tmp_path_factory) -> Path:
    """A zip of that series and of one of the example's T1."""
    return _zip_with(series, mr, "MR", tmp_path_factory.mktemp("zip"))


@pytest.fixture(scope="session")
def two_series(series, ct, tmp_path_factory) -> Path:
    """A zip of that series and of another CT."""
    return _zip_with(series, ct, "CT", tmp_path_factory.mktemp("zip"))


def _zip_with(series: Path, scan: Scan, modality: str, folder: Path) -> Path:
    write_dicom(scan, scan.voxels, modality, folder / "other")
    with zipfile.ZipFile(folder / "both.zip", "w") as archive:
        for part in (series, folder / "other"):
            for path in part.iterdir():
                archive.write(path, f"{part.name}/{path.name}")
    return folder / "both.zip"


def rotation(rng, degrees: float) -> np.ndarray:
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
