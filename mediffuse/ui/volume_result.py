"""A translated volume: its files and layers, its comparison, and the half of the Volume tab that shows them."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
from gradio.components import Component

from mediffuse.compare import VolumeComparison, compare_volumes
from mediffuse.directions import modalities
from mediffuse.image.display import BRAIN, CT_VIEWS, ERROR_SCALE, SOFT_TISSUE, UNCERTAINTY_SCALE
from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.metrics import Scores
from mediffuse.scan import Scan, ScanError
from mediffuse.scan.deface import defaced, face_mask
from mediffuse.scan.formats import stem_of
from mediffuse.scan.guard import read_scan
from mediffuse.scan.resample import registered, resampled
from mediffuse.scan.write import write_dicom, write_nifti
from mediffuse.translate.volumes import VolumeTranslation
from mediffuse.ui import viewer
from mediffuse.ui.asked import AskedVolume
from mediffuse.ui.controls import Values, score_table
from mediffuse.ui.uploads import open_volume
from mediffuse.ui.viewer import Layer
from mediffuse.ui.words import MODALITY_TITLES, UNITS, error_label, score_row, spread_label

PLOTTED = {"psnr": "PSNR (dB)", "ssim": "SSIM"}
"""Titles of the scores that are plotted by slice, by field of `Scores`."""


_ROLES = {"input": "Input", "made": "Synthetic", "truth": "Real"}


@dataclass(frozen=True)
class LayerFile:
    """A NIfTI for the viewer, and what it is."""

    path: str
    layer: Layer


def anatomy_layer(
    scan: Scan, voxels: np.ndarray, role: str, modality: str, folder: Path, *, defaced: bool = False
) -> LayerFile:
    """Write CT or MR voxels (X, Y, Z) for the viewer. role: input, made or truth."""
    if modality == "CT":
        window = CT_VIEWS[BRAIN if role == "input" else SOFT_TISSUE]
    else:
        window = MR_OUTPUT_LIMITS if role == "made" else viewer.window_of(voxels)
    title = f"{_ROLES[role]} {MODALITY_TITLES[modality]}"
    layer = Layer(role, title, modality, _unit(modality), window, viewer.presets_of(voxels, modality))
    return _written(scan, voxels, layer, modality, folder / f"{role}.nii.gz", defaced=defaced)


def map_layer(
    scan: Scan, voxels: np.ndarray, role: str, modality: str, folder: Path, *, defaced: bool = False
) -> LayerFile:
    """Write a map (X, Y, Z) for the viewer, in the units of CT or MR. role: error or spread."""
    title, scale = {
        "error": (error_label(modality), ERROR_SCALE[modality]),
        "spread": (spread_label(modality), UNCERTAINTY_SCALE[modality]),
    }[role]
    layer = Layer(role, title, modality, _unit(modality), (0.0, scale))
    return _written(scan, voxels, layer, role, folder / f"{role}.nii.gz", defaced=defaced)


def _unit(modality: str) -> str:
    return "HU" if modality == "CT" else ""


def _written(scan: Scan, voxels: np.ndarray, layer: Layer, content: str, path: Path, *, defaced: bool) -> LayerFile:
    """Write voxels (X, Y, Z) on the scan's canonical grid. content: as `mark_synthetic` takes it."""
    write_nifti(scan, voxels, content, path, defaced=defaced)
    return LayerFile(str(path), layer)


def known_layers(paths: list[str] | None, about: str | None) -> dict[str, LayerFile]:
    """What the viewer shows now, by role."""
    layers = [Layer(**{**fields, "window": tuple(fields["window"])}) for fields in json.loads(about or "[]")]
    return {layer.role: LayerFile(path, layer) for layer, path in zip(layers, paths or [], strict=False)}


def voxels_of(path: str, scan: Scan, modality: str) -> np.ndarray:
    """The voxels (X, Y, Z) of a layer of `modality` on the canonical grid of `scan`.

    The page hands back what it was given, but a script may hand back anything: raises ScanError.
    """
    layer = read_scan(path, modality, allow_constant=True)
    scan.check_same_grid(layer)
    return layer.voxels


def face_of(scan: Scan, asked: AskedVolume) -> np.ndarray | None:
    """Where the scan's face is, bool (X, Y, Z), if it is to be blanked. Raises gr.Error where it is not found."""
    if not asked.deface:
        return None
    try:
        return face_mask(scan)
    except ScanError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def write_results(
    scan: Scan, made: VolumeTranslation, asked: AskedVolume, folder: Path
) -> tuple[list[LayerFile], list[str]]:
    """Write what was made: (layers for the viewer, files to download)."""
    about = {"defaced": asked.deface}
    layers = [
        anatomy_layer(scan, scan.voxels, "input", scan.modality, folder),
        anatomy_layer(scan, made.voxels, "made", made.modality, folder, **about),
    ]
    stem = stem_of(scan.name) or "scan"
    title = f"{stem}_synthetic_{MODALITY_TITLES[made.modality]}"
    files = [shutil.copy(layers[-1].path, folder / f"{title}.nii.gz")]
    if made.deviation is not None:
        layers.append(map_layer(scan, made.deviation, "spread", made.modality, folder, **about))
        files.append(shutil.copy(layers[-1].path, folder / f"{stem}_uncertainty.nii.gz"))
    if asked.dicom:
        series = folder / f"{title}_dicom"
        write_dicom(scan, made.voxels, made.modality, series, **about)
        files.append(shutil.make_archive(str(series), "zip", series))
    return layers, [str(path) for path in files]


@dataclass(frozen=True)
class Compared:
    """A comparison with a ground truth as it is shown; empty without one.

    refused: why it could not be made, to be raised once the rest is shown.
    """

    rows: list[list[str]] = field(default_factory=list)
    by_slice: pd.DataFrame | None = None
    layers: list[LayerFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: gr.Error | None = None


def compare(scan: Scan, made: np.ndarray, asked: AskedVolume, folder: Path, face: np.ndarray | None) -> Compared:
    """Compare a made volume with the ground truth asked for, if any. face: what is blanked in all three alike."""
    target = modalities(asked.direction)[1]
    if not asked.truth:
        return Compared()
    try:
        truth = open_volume(asked.truth, target, prefix="Ground truth: ")
        notes = [f"Ground truth: {warning}" for warning in truth.warnings]
        truth, done = _onto(scan, truth, asked.register)
        truth = defaced(truth, face)
        comparison = compare_volumes(made, scan, truth)
    except gr.Error as error:
        return Compared(refused=error)
    except ScanError as error:
        return Compared(refused=gr.Error(f"Ground truth: {error}", duration=None, print_exception=False))
    layers = [
        anatomy_layer(scan, truth.voxels, "truth", target, folder),
        map_layer(scan, comparison.error, "error", target, folder, defaced=asked.deface),
    ]
    notes += [*done, *_flicker(comparison, target)]
    return Compared(_mean_rows(comparison, target), _by_slice(comparison), layers, notes)


def _mean_rows(comparison: VolumeComparison, modality: str) -> list[list[str]]:
    by_protocol: dict[str, list[Scores]] = {}
    for _, slice_scores in comparison.slices:
        for scores in slice_scores:
            by_protocol.setdefault(scores.protocol, []).append(scores)
    means = [
        Scores(protocol, *(float(np.mean([getattr(s, name) for s in found])) for name in ("psnr", "ssim", "mae")))
        for protocol, found in by_protocol.items()
    ]
    return [score_row(mean, modality) for mean in means]


def _by_slice(comparison: VolumeComparison) -> pd.DataFrame:
    rows = [
        (index, *(getattr(scores, name) for name in PLOTTED))
        for index, slice_scores in comparison.slices
        for scores in slice_scores
        if scores.protocol == "paper"
    ]
    return pd.DataFrame(rows, columns=["slice", *PLOTTED.values()])


def _flicker(comparison: VolumeComparison, modality: str) -> list[str]:
    if not np.isfinite(comparison.delta_z):
        return []
    off, real = (f"{change:.0f}" for change in (comparison.delta_z, comparison.delta_z_truth))
    unit = UNITS[modality]
    return [
        f"Its change from slice to slice is off by {off} {unit}; the real one changes by {real} (means in the head)."
    ]


def _onto(scan: Scan, truth: Scan, register: bool) -> tuple[Scan, list[str]]:
    """The ground truth on the scan's grid, registered if asked for, and what was done to it."""
    notes, transform = [], None
    if register:
        transform, moved_mm = registered(truth, scan)
        notes.append(f"The ground truth was moved by {moved_mm:.1f} mm on average to fit.")
    else:
        try:
            scan.check_same_grid(truth)
        except ScanError:
            notes.append("The ground truth was resampled onto the scan's grid.")
        else:
            return truth, notes
    voxels = resampled(truth, scan, truth.background, transform)
    moved = replace(scan, voxels=voxels, modality=truth.modality, limits=truth.limits, name=truth.name, warnings=())
    return moved, notes


class VolumePanel:
    """The components of the Volume tab that show a result."""

    def __init__(self) -> None:
        with gr.Column(scale=5, min_width=320):
            self.status = gr.HTML(elem_id="volume-status")
            viewer.build("volume-viewer")
            self.scores = score_table("volume", "Mean over slices")
            with gr.Row():
                self.plots = [
                    gr.LinePlot(x="slice", y=title, title=f"{title} by axial slice (paper)", visible=False, height=220)
                    for title in PLOTTED.values()
                ]
            self.files = gr.File(label="Results", file_count="multiple", visible=False, elem_id="volume-files")
            # What the viewer draws: files for their addresses, and what they are.
            self.layers = gr.File(file_count="multiple", visible="hidden", elem_id="volume-layers")
            self.about = gr.Textbox(visible="hidden", elem_id="volume-about")

    @property
    def drawn(self) -> list[Component]:
        """What the viewer draws."""
        return [self.layers, self.about]

    @property
    def outputs(self) -> list[Component]:
        """All of it, in the order of the API."""
        return [self.status, *self.drawn, self.files, self.scores, *self.plots]

    def draw(self, layers: list[LayerFile]) -> Values:
        """Values for the viewer."""
        return {
            self.layers: [each.path for each in layers] or None,
            self.about: viewer.describe([each.layer for each in layers]),
        }

    def compare(self, compared: Compared) -> Values:
        """Values for the table and the plots."""
        if compared.by_slice is None:
            return {self.scores: gr.Dataframe(visible=False), **dict.fromkeys(self.plots, gr.LinePlot(visible=False))}
        return {
            self.scores: gr.Dataframe(compared.rows, visible=True),
            **{plot: gr.LinePlot(compared.by_slice, visible=True) for plot in self.plots},
        }

    def empty(self) -> Values:
        """Values that take a result away."""
        return {**self.draw([]), self.files: gr.File(None, visible=False), **self.compare(Compared())}
