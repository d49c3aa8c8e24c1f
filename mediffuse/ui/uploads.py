"""Uploaded files as scans and slices. What is wrong with them becomes a gr.Error, in the visitor's words."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import gradio as gr

from mediffuse.directions import WITH_ARTICLE
from mediffuse.scan import Scan, ScanError, SeveralSeriesError, Slice
from mediffuse.scan.archive import free_place
from mediffuse.scan.guard import read_scan

_anatomies: tuple[str, ...] = ("head",)


def expect(anatomies: tuple[str, ...]) -> None:
    """Say which parts of the body the models know: a scan of another is warned of."""
    global _anatomies  # noqa: PLW0603
    _anatomies = anatomies


@functools.lru_cache(maxsize=2)
def _read(path: str, changed: int, modality: str, window: str, series: str | None) -> Scan:
    return read_scan(path, modality, window, series=series, anatomies=_anatomies)


def forget() -> None:
    """Let go of what was read last."""
    _read.cache_clear()


def several_in(path: str, modality: str, series: str | None = None) -> SeveralSeriesError | None:
    """The choice between the volumes of an upload where `series` leaves one. What else is wrong is `open_scan`'s."""
    try:
        _read(path, _changed(path), modality, "auto", series or None)
    except SeveralSeriesError as error:
        return error
    except ScanError:
        pass
    return None


def open_scan(path: str | None, modality: str, window: str = "auto", series: str | None = None) -> Scan:
    """Read an upload, or what was just read. `window`: which one a picture of a CT shows."""
    if not path:
        raise gr.Error(f"First choose a {modality} scan, or click an example.", duration=10, print_exception=False)
    try:
        return _read(path, _changed(path), modality, window, series or None)
    except ScanError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def _changed(path: str) -> int:
    """When a file was changed (ns); 0 where it is not there, which reading it says."""
    try:
        return Path(path).stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def slice_of(scan: Scan, index: float | None) -> Slice:
    """The slice a slider asks for; the central one for -1, which an untouched slider says."""
    try:
        return scan.slice(scan.plane, None if index in (None, -1) else int(index))
    except ScanError as error:
        raise gr.Error(str(error), print_exception=False) from error


def read_volume(paths: list[str] | None, modality: str, series: str | None = None) -> Scan:
    """Read one file, or the files of a DICOM series or of another scan in parts. Raises ScanError."""
    if not paths:
        raise ScanError(f"First choose {WITH_ARTICLE[modality]}, or click an example.")
    series = series or None
    if len(paths) == 1:
        return read_scan(paths[0], modality, series=series, anatomies=_anatomies)
    with tempfile.TemporaryDirectory(prefix="mediffuse-") as folder:
        # Messages, and results, are called after what the visitor chose.
        upload = Path(folder) / f"{Path(paths[0]).name[:60]} and {len(paths) - 1} more"
        upload.mkdir()
        for path in paths:
            shutil.copy(path, free_place(upload, Path(path).name))
        return read_scan(upload, modality, series=series, anatomies=_anatomies)


def open_volume(paths: list[str] | None, modality: str, series: str | None = None, prefix: str = "") -> Scan:
    """`read_volume`, but for pictures. `prefix` of messages says which upload is meant."""
    try:
        scan = read_volume(paths, modality, series)
    except ScanError as error:
        raise gr.Error(prefix + str(error), duration=None, print_exception=False) from error
    if scan.kind == "picture":
        raise gr.Error(f"{prefix}{scan.name} is a picture: use the other tabs for it.", print_exception=False)
    return scan
