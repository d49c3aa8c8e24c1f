"""The bundled example scans (assets/examples/README.md says where they come from)."""

from __future__ import annotations

from pathlib import Path

from mediffuse.ui.tab import Example

FOLDER = Path(__file__).resolve().parents[2] / "assets" / "examples"
CT, T1, CT_PICTURE = FOLDER / "head_ct.nii.gz", FOLDER / "head_t1.nii.gz", FOLDER / "head_ct_brain.png"

CT_EXAMPLES = [
    Example("Example: head CT, with its real T1", CT, T1),
    Example("Example: CT picture (brain window)", CT_PICTURE),
]
MR_EXAMPLES = [Example("Example: head T1, with its real CT", T1, CT)]
