"""Tab CT -> MRI: InstructPix2Pix."""

from __future__ import annotations

from mediffuse.directions import CONTRASTS
from mediffuse.translate import Translator
from mediffuse.ui.examples import CT_EXAMPLES
from mediffuse.ui.tab import Tab


def build(translator: Translator) -> Tab:
    tab = Tab(
        direction="ct2mr",
        api="ct_to_mri",
        translator=translator,
        examples=CT_EXAMPLES,
        default_view="Brain (W 80, L 40)",
        contrasts=CONTRASTS,
    )
    tab.build()
    return tab
