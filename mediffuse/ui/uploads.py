"""Uploaded files as scans and slices. What is wrong with them becomes a gr.Error, in the visitor's words."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import gradio as gr

from mediffuse.directions import WITH_ARTICLE
from mediffuse.scan import Scan, ScanError, Slice
from mediffuse.scan.guard import read_scan


@functools.lru_cache(maxsize=2)
def _read(path: str, changed: int, modality: str, window: str) -> Scan:
    return read_scan(path, modality, window)


def forget() -> None:
    """Let go of what was read last."""
    _read.cache_clear()


def open_scan(path: str | None, modality: str, window: str = "auto") -> Scan:
    """Read an upload, or what was just read. `window`: which one a picture of a CT shows."""
    if not path:
        raise gr.Error(f"First choose a {modality} scan, or click an example.", duration=10, print_exception=False)
    try:
        return _read(path, Path(path).stat().st_mtime_ns, modality, window)
    except ScanError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def slice_of(scan: Scan, index: float | None) -> Slice:
    """The slice a slider asks for; the central one for -1, which an untouched slider says."""
    try:
        return scan.slice(scan.plane, None if index in (None, -1) else int(index))
    except ScanError as error:
        raise gr.Error(str(error), print_exception=False) from error


def read_volume(paths: list[str] | None, modality: str, series: str | None = None) -> Scan:
    """Read one file, or the files of a DICOM series. Raises ScanError."""
    if not paths:
        raise ScanError(f"First choose {WITH_ARTICLE[modality]}, or click an example.")
    series = series or None
    if len(paths) == 1:
        return read_scan(paths[0], modality, series=series)
    with tempfile.TemporaryDirectory(prefix="mediffuse-") as folder:
        for place, path in enumerate(paths):
            shutil.copy(path, Path(folder) / f"{place:05d}_{Path(path).name}")
        return read_scan(folder, modality, series=series)


def open_volume(paths: list[str] | None, modality: str, series: str | None = None, prefix: str = "") -> Scan:
    """`read_volume`, but for pictures. `prefix` of messages says which upload is meant."""
    try:
        scan = read_volume(paths, modality, series)
    except ScanError as error:
        raise gr.Error(prefix + str(error), duration=None, print_exception=False) from error
    if scan.kind == "picture":
        raise gr.Error(f"{prefix}{scan.name} is a picture: use the other tabs for it.", print_exception=False)
    return scan
