"""A translated slice: what is kept of it, and the half of a tab that shows it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr
import nibabel as nib
import numpy as np
from gradio.components import Component
from gradio.processing_utils import save_pil_to_cache
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mediffuse.compare import Comparison, compare, matching_slice
from mediffuse.directions import modalities
from mediffuse.image.display import SLICE_VIEWS, error_map, label, picture, uncertainty_map
from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.scan import Scan, ScanError, Slice
from mediffuse.scan.formats import stem_of
from mediffuse.scan.write import SYNTHETIC_NOTE, mark_synthetic
from mediffuse.translate import Translation
from mediffuse.ui import truths
from mediffuse.ui.asked import AskedSlice
from mediffuse.ui.controls import Values, score_table
from mediffuse.ui.uploads import open_scan
from mediffuse.ui.words import (
    EXPLAINED,
    MODALITY_TITLES,
    PAIRS,
    score_row,
    scores_in_words,
)


@dataclass(frozen=True)
class SliceResult:
    """A finished translation with what is needed to show and compare it again.

    path, window, series: the upload, which window it shows if it is a picture of a CT, which of its volumes is meant.
    recipe: `AskedSlice.recipe` of what it was made by. truth_contrast: of a real MRI, None where it is not known.
    bundled: whether a bundled checkpoint made it. beforehand: whether it is one of `ready`.
    """

    direction: str
    path: str
    window: str
    source: Slice
    translation: Translation
    truth: Slice | None = None
    comparison: Comparison | None = None
    series: str | None = None
    recipe: tuple = ()
    truth_contrast: str | None = None
    bundled: bool = False
    beforehand: bool = False

    @property
    def target(self) -> str:
        """The modality that was made."""
        return self.translation.modality

    def scan(self) -> Scan:
        return open_scan(self.path, self.source.modality, self.window, self.series)

    def is_of(self, asked: AskedSlice) -> bool:
        """Whether this is what is asked for."""
        place = asked.scan, asked.shown, asked.series or None
        same = place == (self.path, self.window, self.series or None)
        moved = asked.index not in (None, -1) and int(asked.index) != self.source.index
        return same and not moved and asked.recipe(self.translation.settings.seed) == self.recipe

    def with_truth(self, path: str | None, contrast: str = "auto") -> SliceResult:
        """This with the real image of its slice and the comparison, or without if `path` is empty.

        contrast: of a real MRI, as in `AskedSlice`. One of another contrast, or of an unknown one, is not compared.
        """
        if not path:
            return replace(self, truth=None, comparison=None, truth_contrast=None)
        truth_scan = open_scan(path, self.target)
        try:
            truth = matching_slice(self.scan(), self.source, truth_scan)
            shown = replace(self, truth=truth, comparison=None, truth_contrast=None)
            if self.target == "MR":
                known = truths.contrast(truth_scan, contrast)
                shown = replace(shown, truth_contrast=known)
                if known != self.translation.settings.contrast:
                    return shown
            ct = truth if self.target == "CT" else self.source
            return replace(shown, comparison=compare(self.translation.pixels, truth, ct))
        except ScanError as error:
            raise gr.Error(f"Ground truth: {error}", duration=None, print_exception=False) from error

    def warnings(self, truth_path: str | None) -> list[str]:
        """What is odd about the scan and its ground truth, in sentences."""
        found = [f"Scan: {warning}" for warning in self.scan().warnings]
        if truth_path and self.truth is not None:
            found += [f"Ground truth: {warning}" for warning in open_scan(truth_path, self.target).warnings]
        if self.truth is not None and self.comparison is None:
            found.append(truths.not_scored(self.truth_contrast, self.translation.settings.contrast))
        return found

    def title(self, role: str) -> str:
        """What a picture shows, for its caption. role: input, made or truth."""
        modality = {"input": self.source.modality, "made": self.target, "truth": self.target}[role]
        text = f"{_ROLES[role]} {MODALITY_TITLES[modality]}"
        if role == "input":
            return text
        contrast = self.translation.settings.contrast if role == "made" else self.truth_contrast
        return truths.titled(text, modality, contrast)

    def picture_of(self, role: str, view: str) -> np.ndarray | None:
        """A picture (H, W, 3), CT in the window `view`; None where there is none.

        role: input, made, truth, error, spread (the uncertainty), or right: the made one as in `synthetic_picture`.
        """
        source, translation = self.source, self.translation
        how = source.spacing, source.sides
        if role in ("input", "truth"):
            shown = source if role == "input" else self.truth
            return None if shown is None else slice_picture(shown, view)
        if role == "error":
            return self.comparison and error_map(self.comparison.error, self.target, *how)
        if role == "spread":
            return None if translation.deviation is None else uncertainty_map(translation.deviation, self.target, *how)
        return synthetic_picture(translation.pixels, source, self.target, view, right=role == "right")

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

    def in_words(self) -> str:
        """How good it is, in a sentence; empty without a comparison."""
        if self.comparison is None:
            return ""
        return scores_in_words(
            self.comparison.scores, self.comparison.tissues, self.direction, self.target, bundled=self.bundled
        )

    def name(self, what: str) -> str:
        """Begins the names of its files."""
        return f"{stem_of(self.scan().name)[:50] or 'scan'}_{self.source.plane}{self.source.index:03d}_{what}"

    def write(self, folder: Path, view: str) -> list[str]:
        """Write the made slice as PNG and, where the input has a place in space, as NIfTI; the paths."""
        scan, source = self.scan(), self.source
        name = self.name(f"synthetic_{self.target}")
        info = PngInfo()
        info.add_text("Description", SYNTHETIC_NOTE)
        png = folder / f"{name}.png"
        Image.fromarray(self.picture_of("made", view)).save(png, pnginfo=info)
        paths = [str(png)]
        if scan.kind != "picture":
            volume = mark_synthetic(scan.slice_to_nifti(source, self.translation.pixels), self.target)
            nifti = folder / f"{name}.nii.gz"
            nib.save(volume, nifti)
            paths.append(str(nifti))
        return paths


_ROLES = {"input": "Input", "made": "Synthetic", "truth": "Real"}
_FILES = {"input": "input_{source}", "made": "synthetic_{target}", "truth": "real_{target}", "error": "error_{target}"}
_FILES |= {"right": _FILES["made"], "spread": "uncertainty_{target}", "contours": "contours"}


def file_name(result: SliceResult, role: str) -> str:
    """What a picture is called when it is downloaded, without an ending."""
    return result.name(_FILES[role].format(source=result.source.modality, target=result.target))


def _on_each_other(pair: str) -> tuple[str, str]:
    """Roles of the two pictures of a pair, left and right."""
    left, right = PAIRS[pair]
    return left, "right" if right == "made" else right


def slice_picture(real: Slice, view: str) -> np.ndarray:
    """A slice of a scan as a picture (H, W, 3): a CT in the window `view`, an MRI within its own limits."""
    limits = SLICE_VIEWS[view] if real.modality == "CT" else real.limits
    return picture(real.pixels, limits, real.spacing, sides=real.sides)


def synthetic_picture(
    pixels: np.ndarray, source: Slice, modality: str, view: str, *, right: bool = False
) -> np.ndarray:
    """What was made of `source`, (rows, columns) in HU or MR units, as a picture (H, W, 3) that says SYNTHETIC.

    right: in its right half, which is seen when another lies on the left one.
    """
    limits = SLICE_VIEWS[view] if modality == "CT" else MR_OUTPUT_LIMITS
    return label(picture(pixels, limits, source.spacing, sides=source.sides), right=right)


@dataclass(frozen=True)
class Shown:
    """What a panel shows from the start: paths of pictures by role, and the texts and files beside them."""

    titles: dict[str, str]
    pictures: dict[str, str]
    rows: list[list[str]]
    words: str
    files: list[str]


class SlicePanel:
    """The components of a tab that show a result. contours: a picture that only the contour tab has.

    below: builds what stands below the pictures. shown: what they show from the start.
    """

    def __init__(
        self, direction: str, default_view: str, shown: Shown | None, below: Callable[[], None] | None = None
    ) -> None:
        self.direction = direction
        self.titles = dict(zip(("input", "made"), (MODALITY_TITLES[m] for m in modalities(direction)), strict=True))
        self.shown = shown or Shown({}, {}, [], "", [])
        self.contours: gr.Image | None = None
        with gr.Column(scale=5, min_width=320, elem_classes="shown"):
            self._pictures()
            if below:
                below()
            self._menus(default_view)
            self._comparison()
            self._downloads()
            self._kept()

    def _pictures(self) -> None:
        with gr.Row(elem_classes="pictures"):
            self.input = self._image(f"Input {self.titles['input']}", "input")
            if self.direction == "contour2mr":
                self.contours = self._image("Contours", "contours", elem="extra")
            self.made = self._image(f"Synthetic {self.titles['made']}", "made")
            self.truth = self._image(f"Real {self.titles['made']}", "truth", elem="truth-picture", hidden=True)

    def _menus(self, default_view: str) -> None:
        with gr.Row():
            self.view = gr.Dropdown(
                list(SLICE_VIEWS),
                value=default_view,
                label="CT is shown in window",
                min_width=280,
                elem_id=f"{self.direction}-view",
            )
            self.pair = gr.Radio(
                [(self._pair_title(pair), pair) for pair in PAIRS],
                value=next(iter(PAIRS)),
                label="Lay on each other",
                min_width=280,
                elem_id=f"{self.direction}-pair",
            )

    def _pair_title(self, pair: str) -> str:
        source, target = self.titles.values()
        titles = {"input": f"{source}", "made": f"synthetic {target}", "truth": f"real {target}"}
        return " | ".join(titles[role] for role in PAIRS[pair])

    def _comparison(self) -> None:
        pictures = self.shown.pictures
        words = self.shown.words
        with gr.Accordion(words, open=False, visible=bool(words), elem_id=f"{self.direction}-words") as self.words:
            gr.Markdown(EXPLAINED)
        with gr.Row(elem_classes="compared"):
            self.slider = gr.ImageSlider(
                (pictures["input"], pictures["right"]) if pictures else None,
                label=self._pair_title(next(iter(PAIRS))),
                format="png",
                interactive=False,
                visible=bool(pictures),
                elem_id=f"{self.direction}-slider",
            )
            self.error = self._image("Error: synthetic − real", "error", hidden=True)
            self.spread = self._image("Uncertainty (SD)", "spread", hidden=True)
        self.scores = score_table(self.direction, "Synthetic against ground truth", self.shown.rows)
        self.gallery = gr.Gallery(
            label="Samples",
            format="png",
            columns=4,
            height="auto",
            object_fit="contain",
            visible=False,
            elem_id=f"{self.direction}-gallery",
        )

    def _kept(self) -> None:
        self.earlier = gr.Gallery(
            label="Made in this visit, the last one first",
            columns=6,
            fit_columns=False,
            height="auto",
            object_fit="contain",
            interactive=False,
            visible="hidden",
            elem_id=f"{self.direction}-earlier",
        )

    def _downloads(self) -> None:
        self.files = gr.File(
            self.shown.files or None,
            label="Download (PNG; NIfTI in the input's space)",
            file_count="multiple",
            interactive=False,
            elem_id=f"{self.direction}-files",
        )

    def _image(self, label: str, role: str, *, elem: str | None = None, hidden: bool = False) -> gr.Image:
        value = self.shown.pictures.get(role)
        return gr.Image(
            value,
            label=self.shown.titles.get(role, label),
            format="png",
            interactive=False,
            visible=value is not None or not hidden,
            buttons=["download", "fullscreen"],
            min_width=150,
            elem_id=f"{self.direction}-{elem or role}",
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

    @property
    def outputs(self) -> list[Component]:
        """`pictures`, and what is for the page alone."""
        return [*self.pictures, self.words]

    def keep(self, image: np.ndarray | None, name: str) -> str | None:
        """The path of a picture (H, W, 3), written under the name that a download has."""
        if image is None:
            return None
        return save_pil_to_cache(Image.fromarray(image), self.input.GRADIO_CACHE, name=name, format="png")

    def show(self, result: SliceResult, view: str, pair: str) -> Values:
        """Values that show a result, CT in the window `view`, two of its pictures on each other."""
        roles = ("input", "made", "truth", "error", "spread", "right")
        kept = {role: self.keep(result.picture_of(role, view), file_name(result, role)) for role in roles}
        samples = result.sample_pictures(view)
        if samples:
            name = file_name(result, "made")
            samples = [(self.keep(image, f"{name}_{text.replace(' ', '')}"), text) for image, text in samples]
        pair = pair if all(kept[role] for role in PAIRS[pair]) else next(iter(PAIRS))
        return {
            self.input: kept["input"],
            self.made: gr.Image(kept["made"], label=result.title("made")),
            self.truth: gr.Image(kept["truth"], label=result.title("truth"), visible=kept["truth"] is not None),
            self.slider: gr.ImageSlider(
                tuple(kept[role] for role in _on_each_other(pair)), label=self._pair_title(pair), visible=True
            ),
            self.error: gr.Image(kept["error"], visible=kept["error"] is not None),
            self.spread: gr.Image(kept["spread"], visible=kept["spread"] is not None),
            self.gallery: gr.Gallery(samples, visible=samples is not None),
            self.scores: gr.Dataframe(result.score_rows(), visible=result.comparison is not None),
            self.words: gr.Accordion(label=result.in_words(), visible=result.comparison is not None),
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
            self.words: gr.Accordion(visible=False),
            self.files: None,
        }
