"""A translated slice: what is kept of it, and the half of a tab that shows it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr
import nibabel as nib
import numpy as np
from gradio.components import Component
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mediffuse.compare import Comparison, compare, matching_slice
from mediffuse.directions import modalities
from mediffuse.image.display import CT_VIEWS, error_map, picture, uncertainty_map
from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.scan import Scan, ScanError, Slice
from mediffuse.scan.formats import stem_of
from mediffuse.scan.write import SYNTHETIC_NOTE, mark_synthetic
from mediffuse.translate import Translation
from mediffuse.ui.controls import Values, score_table
from mediffuse.ui.uploads import open_scan
from mediffuse.ui.words import MODALITY_TITLES, error_label, score_row, spread_label


@dataclass(frozen=True)
class SliceResult:
    """A finished translation with what is needed to show and compare it again.

    path, window, series: the upload, which window it shows if it is a picture of a CT, which of its volumes is meant.
    """

    direction: str
    path: str
    window: str
    source: Slice
    translation: Translation
    truth: Slice | None = None
    comparison: Comparison | None = None
    series: str | None = None

    @property
    def target(self) -> str:
        """The modality that was made."""
        return self.translation.modality

    def scan(self) -> Scan:
        return open_scan(self.path, self.source.modality, self.window, self.series)

    def with_truth(self, path: str | None) -> SliceResult:
        """This with the real image of its slice and the comparison, or without if `path` is empty."""
        if not path:
            return replace(self, truth=None, comparison=None)
        truth_scan = open_scan(path, self.target)
        try:
            truth = matching_slice(self.scan(), self.source, truth_scan)
            ct = truth if self.target == "CT" else self.source
            return replace(self, truth=truth, comparison=compare(self.translation.pixels, truth, ct))
        except ScanError as error:
            raise gr.Error(f"Ground truth: {error}", duration=None, print_exception=False) from error

    def warnings(self, truth_path: str | None) -> list[str]:
        """What is odd about the scan and its ground truth, in sentences."""
        found = [f"Scan: {warning}" for warning in self.scan().warnings]
        if truth_path and self.truth is not None:
            found += [f"Ground truth: {warning}" for warning in open_scan(truth_path, self.target).warnings]
        return found

    def made_picture(self, view: str) -> np.ndarray:
        """What was made, as a picture (H, W, 3), CT in the window `view`."""
        return synthetic_picture(self.translation.pixels, self.source, self.target, view)

    def error_picture(self) -> np.ndarray | None:
        """The error map (H, W, 3); None without a comparison."""
        if self.comparison is None:
            return None
        return error_map(self.comparison.error, self.target, self.source.spacing)

    def spread_picture(self) -> np.ndarray | None:
        """The uncertainty map (H, W, 3); None for one sample."""
        if self.translation.deviation is None:
            return None
        return uncertainty_map(self.translation.deviation, self.target, self.source.spacing)

    def sample_pictures(self, view: str) -> list[tuple[np.ndarray, str]] | None:
        """Each sample with its caption; None if there is one only."""
        samples, seed = self.translation.samples, self.translation.settings.seed
        if len(samples) < 2:
            return None
        return [
            (synthetic_picture(pixels, self.source, self.target, view), f"seed {seed + place}")
            for place, pixels in enumerate(samples)
        ]

    def score_rows(self) -> list[list[str]]:
        return [score_row(scores, self.target) for scores in self.comparison.scores] if self.comparison else []

    def write(self, folder: Path, view: str) -> list[str]:
        """Write the made slice as PNG and, where the input has a place in space, as NIfTI; the paths."""
        scan, source = self.scan(), self.source
        name = f"{stem_of(scan.name) or 'scan'}_{source.plane}{source.index:03d}_synthetic_{self.target}"
        info = PngInfo()
        info.add_text("Description", SYNTHETIC_NOTE)
        png = folder / f"{name}.png"
        Image.fromarray(self.made_picture(view)).save(png, pnginfo=info)
        paths = [str(png)]
        if scan.kind != "picture":
            volume = mark_synthetic(scan.slice_to_nifti(source, self.translation.pixels), self.target)
            nifti = folder / f"{name}.nii.gz"
            nib.save(volume, nifti)
            paths.append(str(nifti))
        return paths


def slice_picture(real: Slice, view: str) -> np.ndarray:
    """A slice of a scan as a picture (H, W, 3): a CT in the window `view`, an MRI within its own limits."""
    limits = CT_VIEWS[view] if real.modality == "CT" else real.limits
    return picture(real.pixels, limits, real.spacing)


def synthetic_picture(pixels: np.ndarray, source: Slice, modality: str, view: str) -> np.ndarray:
    """What was made of `source`, (rows, columns) in HU or MR units, as a picture (H, W, 3) that says SYNTHETIC."""
    limits = CT_VIEWS[view] if modality == "CT" else MR_OUTPUT_LIMITS
    return picture(pixels, limits, source.spacing, synthetic=True)


class SlicePanel:
    """The components of a tab that show a result. contours: a picture that only the contour tab has."""

    def __init__(self, direction: str, default_view: str) -> None:
        self.direction = direction
        self.titles = [MODALITY_TITLES[modality] for modality in modalities(direction)]
        self.contours: gr.Image | None = None
        with gr.Column(scale=5, min_width=320):
            self.status = gr.HTML(elem_id=f"{direction}-status")
            self._pictures()
            self._comparison()
            self._downloads(default_view)

    def _pictures(self) -> None:
        source, target = self.titles
        with gr.Row():
            self.input = self._image(f"Input {source}", "input")
            if self.direction == "contour2mr":
                self.contours = self._image("Contours", "extra")
            self.made = self._image(f"Synthetic {target}", "made")
            self.truth = self._image(f"Real {target}", "truth-picture", visible=False)

    def _comparison(self) -> None:
        source, target = self.titles
        modality = modalities(self.direction)[1]
        self.scores = score_table(self.direction, "Synthetic against ground truth")
        with gr.Row():
            self.slider = gr.ImageSlider(
                label=f"{source} | synthetic {target}",
                format="png",
                interactive=False,
                visible=False,
                elem_id=f"{self.direction}-slider",
            )
            self.error = self._image(error_label(modality), "error", visible=False)
            self.spread = self._image(spread_label(modality), "spread", visible=False)
        self.gallery = gr.Gallery(
            label="Samples",
            format="png",
            columns=4,
            height="auto",
            visible=False,
            elem_id=f"{self.direction}-gallery",
        )

    def _downloads(self, default_view: str) -> None:
        with gr.Row():
            self.view = gr.Dropdown(
                list(CT_VIEWS), value=default_view, label="CT is shown in window", elem_id=f"{self.direction}-view"
            )
            self.files = gr.File(
                label="Download (PNG; NIfTI in the input's space)",
                file_count="multiple",
                interactive=False,
                height=150,
                elem_id=f"{self.direction}-files",
            )

    def _image(self, label: str, name: str, visible: bool = True) -> gr.Image:
        return gr.Image(
            label=label,
            format="png",
            interactive=False,
            visible=visible,
            buttons=["download", "fullscreen"],
            min_width=200,
            elem_id=f"{self.direction}-{name}",
        )

    @property
    def pictures(self) -> list[Component]:
        """What `show` fills, in the order of the API."""
        return [
            self.input,
            self.made,
            self.truth,
            self.slider,
            self.error,
            self.spread,
            self.gallery,
            self.scores,
        ]

    def show(self, result: SliceResult, view: str) -> Values:
        """Values that show a result, CT in the window `view`."""
        source, made = slice_picture(result.source, view), result.made_picture(view)
        truth = slice_picture(result.truth, view) if result.truth else None
        error, spread, samples = result.error_picture(), result.spread_picture(), result.sample_pictures(view)
        return {
            self.input: source,
            self.made: made,
            self.truth: gr.Image(truth, visible=truth is not None),
            self.slider: gr.ImageSlider((source, made), visible=True),
            self.error: gr.Image(error, visible=error is not None),
            self.spread: gr.Image(spread, visible=spread is not None),
            self.gallery: gr.Gallery(samples, visible=samples is not None),
            self.scores: gr.Dataframe(result.score_rows(), visible=result.comparison is not None),
        }

    def empty(self) -> Values:
        """Values that leave the input picture alone."""
        return {
            self.made: None,
            self.truth: gr.Image(None, visible=False),
            self.slider: gr.ImageSlider(None, visible=False),
            self.error: gr.Image(None, visible=False),
            self.spread: gr.Image(None, visible=False),
            self.gallery: gr.Gallery(None, visible=False),
            self.scores: gr.Dataframe([], visible=False),
            self.files: None,
        }
