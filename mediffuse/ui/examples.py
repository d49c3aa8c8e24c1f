"""The bundled example scans (assets/examples/README.md says where they come from)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "examples"
CT, T1 = FOLDER / "head_ct.nii.gz", FOLDER / "head_t1.nii.gz"
CT_PICTURE, T1_PICTURE = FOLDER / "head_ct_brain.png", FOLDER / "head_t1.png"


@dataclass(frozen=True)
class Example:
    """A bundled example: button text, input file and slice, and the real image of the other modality."""

    title: str
    scan: Path
    truth: Path | None = None
    index: int = 10


CT_EXAMPLES = [
    Example("Ventricles", CT, T1),
    Example("Lesion, real", CT, T1, 3),
    Example("Near the top", CT, T1, 16),
    Example("Picture, brain window", CT_PICTURE, index=0),
]
MR_EXAMPLES = [
    Example("Ventricles", T1, CT),
    Example("Lesion, real", T1, CT, 3),
    Example("Near the top", T1, CT, 16),
    Example("Picture", T1_PICTURE, index=0),
]
VOLUME_EXAMPLES = {
    "ct2mr": Example("Head CT, with its real T1", CT, T1),
    "mr2ct": Example("Head T1, with its real CT", T1, CT),
}
"""By the directions of the Volume tab."""
