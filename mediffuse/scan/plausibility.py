"""What about a scan is unlike the heads that the models know: said, never forbidden."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mediffuse.image.intensity import BONE_HU

if TYPE_CHECKING:
    from mediffuse.scan.types import Scan

HEAD_WIDTH_MM = (100.0, 235.0)
"""Left to right. Adult heads with ears are 140 to 200 mm wide; shoulders are over 350."""

BONE_SHARE = (0.09, 0.45)
"""Share of bone in a head. Measured on four head CTs: 0.14 to 0.18; two legs: 0.07."""

METAL_HU, METAL_ML = 3000.0, 0.1
"""Enamel, the densest tissue, stays below 3000 HU; a head with dental metal has 8 ml above."""

T2_ECHO_MS = 60.0
"""Spin echoes later than this are T2-weighted (T1: below 30 ms)."""

BODY_PART, AGENT, ECHO = "BodyPartExamined", "ContrastBolusAgent", "EchoTime"
TAGS = (BODY_PART, AGENT, ECHO)
_HEADS = ("HEAD", "BRAIN", "SKULL", "CRANI", "FACE", "SINUS", "ORBIT")


def oddities(scan: Scan) -> list[str]:
    """Sentences for the user about body part, metal, contrast agent and MR contrast; empty if all is usual.

    Of pictures nothing is known. A modality other than asked for is `Scan.warnings`' own.
    """
    if scan.kind == "picture":
        return []
    found = [_body_part(scan)]
    if scan.modality == "CT":
        millilitres = np.count_nonzero(scan.voxels > METAL_HU) * float(np.prod(scan.spacing)) / 1000
        if millilitres > METAL_ML:
            found.append(
                f"There is metal in it ({millilitres:.1f} ml over {METAL_HU:.0f} HU): what lies around it is a guess."
            )
    agent = scan.tags.get(AGENT, "")
    if agent and agent.upper() not in ("NO", "NONE"):
        found.append(f"A contrast agent was given ({agent}): the models may take it for something else.")
    echo = _number(scan.tags.get(ECHO))
    if scan.modality == "MR" and echo and echo > T2_ECHO_MS:
        found.append(f"This MRI is T2-weighted (echo time {echo:.0f} ms): MRI to CT has learnt mostly from T1.")
    return [text for text in found if text]


def _body_part(scan: Scan) -> str | None:
    part = scan.tags.get(BODY_PART, "").upper()
    if part and not any(name in part for name in _HEADS):
        return f"The file says it shows {part}: the models know heads only."
    if scan.head is None:
        return None
    low, high = scan.head
    width = float((high - low)[0] * scan.spacing[0])
    if width > HEAD_WIDTH_MM[1]:
        return f"This looks like more than a head ({width:.0f} mm wide): the models know heads only."
    if width < HEAD_WIDTH_MM[0] and scan.count("axial") > 1 and min(scan.voxels.shape[:2]) > 1:
        return f"This looks like no head, or a part of one ({width:.0f} mm wide): the models know whole heads only."
    if scan.modality == "CT" and min((high - low) * scan.spacing) > 60:
        inside = scan.voxels[tuple(np.s_[a:b:2] for a, b in zip(low, high, strict=True))]
        solid = inside > scan.tissue
        share = np.count_nonzero(inside > BONE_HU) / max(1, np.count_nonzero(solid))
        if not BONE_SHARE[0] < share < BONE_SHARE[1]:
            return f"This looks like no head ({100 * share:.0f} % bone): the models know heads only."
    return None


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
