"""Directions of translation: their names, titles, modalities, and the instructions that name them to the models."""

from __future__ import annotations

DIRECTION_TITLES = {"ct2mr": "CT → MRI", "mr2ct": "MRI → CT", "contour2mr": "CT contours → MRI"}
DIRECTIONS = tuple(DIRECTION_TITLES)
CONTRASTS = ("T1", "T2")
DIRECTION_TO = {"mri": "ct2mr", "ct": "mr2ct"}
"""The direction that makes an MRI or a CT of the other: what a command line's --to means."""

ANATOMIES = {
    "head": "heads",
    "head-neck": "heads with necks and shoulders",
    "thorax": "thoraces",
    "abdomen": "abdomens",
    "pelvis": "pelves",
}
"""Parts of the body that a dataset can hold, and a model know; several of each in a sentence."""

WITH_ARTICLE = {"CT": "a CT", "MR": "an MRI"}
"""The modalities in a sentence."""


def prompt_for(direction: str, contrast: str = "T1", anatomy: str = "head") -> str:
    """The instruction for a direction, an MR contrast and a part of the body, as the models were trained on it."""
    if direction not in DIRECTIONS:
        raise ValueError(f"Unknown direction {direction!r}: choose one of {', '.join(DIRECTIONS)}.")
    if contrast not in CONTRASTS:
        raise ValueError(f"Unknown MR contrast {contrast!r}: choose one of {', '.join(CONTRASTS)}.")
    if anatomy not in ANATOMIES:
        raise ValueError(f"Unknown anatomy {anatomy!r}: choose one of {', '.join(ANATOMIES)}.")
    of = "" if anatomy == "head" else f"{anatomy.replace('-', ' and ')} "  # the first models knew nothing else
    mr = f"{contrast} MRI scan image"
    return {
        "ct2mr": f"translate {of}CT scan image to {mr}",
        "mr2ct": f"translate {of}{mr} to CT scan image",
        "contour2mr": f"translate {of}CT contours to {mr}",
    }[direction]


def modalities(direction: str) -> tuple[str, str]:
    """(input, output) modality of a direction, "CT" or "MR"."""
    return ("MR", "CT") if direction == "mr2ct" else ("CT", "MR")
