"""The bundled example scans (assets/examples/README.md says where they come from)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "examples"
CT, T1, CT_PICTURE = FOLDER / "head_ct.nii.gz", FOLDER / "head_t1.nii.gz", FOLDER / "head_ct_brain.png"


@dataclass(frozen=True)
class Example:
    """A bundled example: button text, input file, and the real image of the other modality."""

    title: str
    scan: Path
    truth: Path | None = None


CT_EXAMPLES = [
    Example("Example: head CT, with its real T1", CT, T1),
    Example("Example: CT picture (brain window)", CT_PICTURE),
]
MR_EXAMPLES = [Example("Example: head T1, with its real CT", T1, CT)]
