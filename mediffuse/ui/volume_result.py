"""A translated volume: its files and layers, its comparison, and the half of the Volume tab that shows them."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import gradio as gr
import numpy as np
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
from mediffuse.ui import truths, viewer
from mediffuse.ui.asked import AskedVolume
from mediffuse.ui.controls import Values, score_table
from mediffuse.ui.uploads import open_volume
from mediffuse.ui.viewer import Layer
from mediffuse.ui.words import EXPLAINED, MODALITY_TITLES, UNITS, score_row, scores_in_words

_looking = threading.Lock()
"""A face is sought by one visitor at a time: a scan that is shown without it waits in no queue for volumes."""

_ROLES = {"input": "Input", "made": "Synthetic", "truth": "Real"}


@dataclass(frozen=True)
class LayerFile:
    """A NIfTI for the viewer, and what it is."""

    path: str
    layer: Layer


def anatomy_layer(
    scan: Scan,
    voxels: np.ndarray,
    role: str,
    modality: str,
    folder: Path,
    *,
    limits: tuple[float, float] | None = None,
    defaced: bool = False,
) -> LayerFile:
    """Write CT or MR voxels (X, Y, Z) on the grid of `scan` for the viewer. role: input, made or truth; limits: black
    and white of a real MRI."""
    window = CT_VIEWS[BRAIN if role == "input" else SOFT_TISSUE] if modality == "CT" else MR_OUTPUT_LIMITS
    title = f"{_ROLES[role]} {MODALITY_TITLES[modality]}"
    layer = Layer(role, title, modality, UNITS[modality], window, _plain(limits), viewer.PRESETS[modality])
    return _written(scan, voxels, layer, modality, folder / f"{role}.nii.gz", defaced=defaced)


def input_layer(scan: Scan, folder: Path) -> LayerFile:
    """Write a scan for the viewer."""
    return anatomy_layer(scan, scan.voxels, "input", scan.modality, folder, limits=scan.limits)


def map_layer(
    scan: Scan, voxels: np.ndarray, role: str, modality: str, folder: Path, *, defaced: bool = False
) -> LayerFile:
    """Write a map (X, Y, Z) for the viewer, in the units of CT or MR. role: error or spread."""
    title, scale = {
        "error": ("Error (red: too high)", ERROR_SCALE[modality]),
        "spread": ("Uncertainty (SD)", UNCERTAINTY_SCALE[modality]),
    }[role]
    layer = Layer(role, title, modality, UNITS[modality], (-scale if role == "error" else 0.0, scale))
    return _written(scan, voxels, layer, role, folder / f"{role}.nii.gz", defaced=defaced)


def _plain(limits: tuple[float, float] | None) -> tuple[float, float] | None:
    return limits and (float(limits[0]), float(limits[1]))


def _written(scan: Scan, voxels: np.ndarray, layer: Layer, content: str, path: Path, *, defaced: bool) -> LayerFile:
    """Write voxels (X, Y, Z) on the scan's canonical grid. content: as `mark_synthetic` takes it."""
    write_nifti(scan, voxels, content, path, defaced=defaced)
    return LayerFile(str(path), layer)


def known_layers(paths: list[str] | None, about: str | None) -> dict[str, LayerFile]:
    """What the viewer shows now, by role."""
    layers = zip(viewer.described(about), paths or [], strict=False)
    return {layer.role: LayerFile(path, layer) for layer, path in layers}


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
        with _looking:
            return face_mask(scan)
    except ScanError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error


def write_results(
    scan: Scan, made: VolumeTranslation, asked: AskedVolume, folder: Path
) -> tuple[list[LayerFile], list[str]]:
    """Write what was made: (layers for the viewer, files to download)."""
    about = {"defaced": asked.deface}
    layers = [
        input_layer(scan, folder),
        _titled(anatomy_layer(scan, made.voxels, "made", made.modality, folder, **about), made.settings.contrast),
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

    scores: the means over slices, by protocol; tissues: as in `compare.Comparison`. by_slice: (axial slice, PSNR, SSIM)
    by protocol "paper". refused: why it could not be made, to be raised once the rest is shown.
    """

    scores: list[Scores] = field(default_factory=list)
    tissues: dict[str, float] = field(default_factory=dict)
    by_slice: list[tuple[int, float, float]] = field(default_factory=list)
    layers: list[LayerFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    refused: gr.Error | None = None


@dataclass(frozen=True)
class Made:
    """What is known of a made volume wherever it is shown. recipe: `AskedVolume.recipe` of what it was made by.

    contrast: of a synthetic MRI. done: that it is done, in a sentence; notes: what else there is to say.
    """

    recipe: str
    contrast: str
    done: str
    notes: list[str] = field(default_factory=list)

    @property
    def said(self) -> str:
        return " ".join([self.done, *self.notes])


def made_of(about: str | None) -> Made | None:
    """What is shown now, if it is a translation. about: `VolumeShown.about`."""
    found = json.loads(about).get("made") if about else None
    return found and Made(**found)


def compare(
    scan: Scan, made: np.ndarray, contrast: str, asked: AskedVolume, folder: Path, face: np.ndarray | None
) -> Compared:
    """Compare a made volume with the ground truth asked for, if any.

    contrast: of a made MRI. face: what is blanked in all three alike.
    """
    target = modalities(asked.direction)[1]
    if not asked.truth:
        return Compared()
    try:
        truth = open_volume(asked.truth, target, prefix="Ground truth: ")
        notes = [f"Ground truth: {warning}" for warning in truth.warnings]
        real = truths.contrast(truth, asked.truth_contrast)
        truth, done = _onto(scan, truth, asked.register)
        truth = defaced(truth, face)
        layer = anatomy_layer(scan, truth.voxels, "truth", target, folder, limits=truth.limits)
        layer = _titled(layer, real)
        notes += done
        if target == "MR" and real != contrast:
            return Compared(layers=[layer], notes=[*notes, truths.not_scored(real, contrast)])
        comparison = compare_volumes(made, scan, truth)
    except gr.Error as error:
        return Compared(refused=error)
    except ScanError as error:
        return Compared(refused=gr.Error(f"Ground truth: {error}", duration=None, print_exception=False))
    layers = [layer, map_layer(scan, comparison.error, "error", target, folder, defaced=asked.deface)]
    return Compared(means(comparison), comparison.tissues, _by_slice(comparison), layers, notes)


def _titled(file: LayerFile, contrast: str | None) -> LayerFile:
    title = truths.titled(file.layer.title, file.layer.modality, contrast)
    return replace(file, layer=replace(file.layer, title=title))


def means(comparison: VolumeComparison) -> list[Scores]:
    """The scores' means over slices, by protocol."""
    by_protocol: dict[str, list[Scores]] = {}
    for _, slice_scores in comparison.slices:
        for scores in slice_scores:
            by_protocol.setdefault(scores.protocol, []).append(scores)
    return [
        Scores(protocol, *(float(np.mean([getattr(s, name) for s in found])) for name in ("psnr", "ssim", "mae")))
        for protocol, found in by_protocol.items()
    ]


def _by_slice(comparison: VolumeComparison) -> list[tuple[int, float, float]]:
    return [
        (index, scores.psnr, scores.ssim)
        for index, slice_scores in comparison.slices
        for scores in slice_scores
        if scores.protocol == "paper"
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


@dataclass(frozen=True)
class VolumeShown:
    """What the panel shows: paths of layers and, as JSON, what they are (`viewer.describe`, with `Made` as "made"); the
    scores as rows and in words; paths of files to download."""

    layers: list[str] = field(default_factory=list)
    about: str = ""
    rows: list[list[str]] = field(default_factory=list)
    words: str = ""
    files: list[str] = field(default_factory=list)


def scored(scores: list[Scores], tissues: dict[str, float], direction: str) -> dict:
    """The fields of `VolumeShown` that tell how good it is."""
    target = modalities(direction)[1]
    # What is usual was measured in central slices, so it says nothing of a whole head.
    words = scores_in_words(scores, tissues, direction, target, bundled=False)
    return {"rows": [score_row(one, target) for one in scores], "words": words}


def shown(
    scan: Scan,
    layers: list[LayerFile],
    direction: str,
    compared: Compared = Compared(),
    made: Made | None = None,
    *,
    wanted: bool = False,
) -> VolumeShown:
    """What shows `layers`, and those of a comparison, on the grid of `scan`.

    wanted: whether the page is to have it translated, which the text `about` then tells.
    """
    layers = [*layers, *compared.layers]
    more = {"made": asdict(replace(made, notes=[*made.notes, *compared.notes]))} if made else {"wanted": wanted}
    about = viewer.describe([each.layer for each in layers], scan, compared.by_slice, **more)
    return VolumeShown([each.path for each in layers], about, **scored(compared.scores, compared.tissues, direction))


class VolumePanel:
    """The components of the Volume tab that show a result. opening: what they show from the start."""

    def __init__(self, opening: VolumeShown) -> None:
        with gr.Column(scale=5, min_width=300, elem_classes="shown"):
            self.viewer = viewer.build("volume-viewer")
            with gr.Accordion(
                opening.words, open=False, visible=bool(opening.words), elem_id="volume-words"
            ) as self.words:
                gr.Markdown(EXPLAINED)
            self.scores = score_table("volume", "Mean over slices", opening.rows)
            self.files = gr.File(
                opening.files or None,
                label="Download (NIfTI in the input's space)",
                file_count="multiple",
                interactive=False,
                visible=bool(opening.files),
                elem_id="volume-files",
            )
            # What the viewer draws: files for their addresses, and what they are.
            self.layers = gr.File(
                opening.layers or None,
                label="NIfTI of each layer",
                file_count="multiple",
                visible="hidden",
                elem_id="volume-layers",
            )
            self.about = gr.Textbox(
                opening.about, label="Layers and scores by slice (JSON)", visible="hidden", elem_id="volume-about"
            )

    @property
    def drawn(self) -> list[Component]:
        """What the viewer draws."""
        return [self.layers, self.about]

    @property
    def outputs(self) -> list[Component]:
        """All of it; last what is for the page alone."""
        return [*self.drawn, self.files, self.scores, self.words]

    def show(self, what: VolumeShown) -> Values:
        """Values that show it; without files, those of the last result stay."""
        return {
            self.layers: what.layers,
            self.about: what.about,
            self.scores: gr.Dataframe(what.rows, visible=bool(what.rows)),
            self.words: gr.Accordion(label=what.words, visible=bool(what.words)),
            **({self.files: gr.File(what.files, visible=True)} if what.files else {}),
        }

    def empty(self) -> Values:
        """Values that take a result away."""
        return {
            self.layers: None,
            self.about: "",
            self.files: gr.File(None, visible=False),
            self.scores: gr.Dataframe([], visible=False),
            self.words: gr.Accordion(visible=False),
        }
