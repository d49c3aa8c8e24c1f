"""What scripts and agents are told of the page's endpoints, and how they are answered: with values, where the page gets
updates of its components."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from html import unescape

import gradio as gr
from gradio.blocks import BlockFunction
from gradio.components import Component

_DIRECTIONS = {
    "ct_to_mri": "a slice of a head CT to a synthetic MRI (T1 or T2)",
    "contours_to_mri": "the outlines in a slice of a head CT to a synthetic T1 MRI",
    "mri_to_ct": "a slice of a head MRI to a synthetic CT in HU",
}
_STOP = "End this session's runs after their current step."
ENDPOINTS = {
    "volume": "Translate a whole head, CT to MRI or MRI to CT, slice by slice, on its own grid; with a real scan of "
    "the other modality, score it too. Research use only.",
    "volume_stop": _STOP,
    "contours_preview": "Draw the outlines that Canny's thresholds give; the model does not run.",
    **{
        f"{name}{action}": text
        for name, what in _DIRECTIONS.items()
        for action, text in (
            ("", f"Translate {what}; with a real image of the other modality, score it too. Research use only."),
            ("_preview", f"Show what would be translated, without the model, before: translate {what}."),
            ("_batch", f"For several files, translate {what}, by the same settings: a table, pictures and a zip."),
            ("_stop", _STOP),
        )
    },
}
"""What each endpoint does, by name: over the API and as a tool of MCP."""

PARAMETERS = {
    "scan": "The scan to translate: a picture (PNG, JPEG, ...), a NIfTI, NRRD, MetaImage or DICOM file, or a zip.",
    "paths": "The volume to translate: one file (NIfTI, NRRD, MetaImage, MGZ, zip), or all files of a DICOM series.",
    "files": "Several scans, as `scan`; of a volume, the central slice is taken.",
    "index": "The axial slice, counted from below, from 0; -1 is the central one.",
    "shown": "Which HU window a picture of a CT shows; auto guesses it.",
    "view": "The window in which a CT is shown in the pictures that come back.",
    "pair": "Which two pictures are laid on each other.",
    "speed": "fast (one step, closest to a real scan, smooth), sharp (one step, may invent detail; where the model "
    "knows it) or diffusion (sampled, may invent detail).",
    "steps": "Steps of diffusion.",
    "samples": "Samples of diffusion; from 2 on their mean and an uncertainty map come back.",
    "guidance": "Classifier-free guidance scale of diffusion; 1 is off.",
    "image_guidance": "Guidance scale of the image, with guidance above 1.",
    "seed": "Seed of diffusion.",
    "random": "Whether to draw the seed; the one used comes back.",
    "truth": "The real scan of the other modality on the same grid, to compare with; may be left out.",
    "truth_contrast": "Contrast of a real MRI: T1, T2, other, or auto for what its file tells.",
    "contrast": "Contrast of the MRI that is made.",
    "start": "Where diffusion starts: mean (the fast translation) or noise.",
    "series": "Which volume of a zip or file is meant, where it holds several: a SeriesInstanceUID or a file's name.",
    "direction": "ct2mr or mr2ct.",
    "planes": "The planes that are translated: axial, coronal, sagittal; several are averaged.",
    "mirror": "Whether mirrored slices are a pass of their own.",
    "register": "Whether the real scan is registered rigidly onto the input first.",
    "dicom": "Whether a DICOM series (zip) is written too.",
    "deface": "Whether face and ears are blanked in all that comes back.",
    "mode": "Contours of three HU windows (windows) or of one (single).",
    **{
        f"{window}_{end}": f"Canny's {end} threshold in the {title} window."
        for window, title in (("bone", "bone"), ("tissue", "soft-tissue"), ("brain", "brain"))
        for end in ("low", "high")
    },
}
"""By name; the same name means the same everywhere."""

REQUIRED = ("scan", "paths", "files")
DEFAULTS = {"index": -1, "shown": "auto", "series": "", "truth": None, "truth_contrast": "auto"}
"""Of what may be left out, also where a tab opens on an example of its own."""

by_script: ContextVar[bool] = ContextVar("by_script", default=False)
"""Whether a script asks, and not the page."""


def describe(functions: Iterable[BlockFunction]) -> None:
    """Give the public ones among a page's functions their description, and tools of MCP the names of the endpoints.

    Raises KeyError for one that has no description.
    """
    for function in functions:
        if function.fn and function.api_visibility == "public":
            function.api_description = ENDPOINTS[function.api_name]
            function.fn = _named(function.fn, function.api_name)


def _named(handler: Callable, name: str) -> Callable:
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def named(*args, **kwargs):
            yield from handler(*args, **kwargs)
    else:

        @functools.wraps(handler)
        def named(*args, **kwargs):
            return handler(*args, **kwargs)

    named.__name__ = name
    return named


def described(info: dict) -> dict:
    """`Blocks.get_api_info` with what is known of the parameters."""
    for endpoint in info["named_endpoints"].values():
        for parameter in endpoint["parameters"]:
            name = parameter["parameter_name"]
            text = PARAMETERS.get(name, "")
            parameter["type"] = {**parameter["type"], "description": text}
            parameter["python_type"] = {**parameter["python_type"], "description": text}
            if name in REQUIRED:
                parameter |= {"parameter_has_default": False, "parameter_default": None}
            elif name in DEFAULTS:
                parameter |= {"parameter_has_default": True, "parameter_default": DEFAULTS[name]}
    return info


def plain(values: list, components: list[Component]) -> list:
    """Outputs without what only the page needs: of an update of a component its value, None where it has none, and of
    HTML the words."""
    return [_plain(value, component) for value, component in zip(values, components, strict=True)]


def _plain(value: object, component: Component) -> object:
    if isinstance(value, dict) and value.get("__type__") == "update":
        value = value.get("value")
    if isinstance(component, gr.HTML) and isinstance(value, str):
        return unescape(re.sub(r"<[^>]*>", " ", value)).strip()
    return value
