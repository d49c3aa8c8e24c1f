"""Tab MRI -> CT: InstructPix2Pix, the other way; the output is in HU."""

from __future__ import annotations

from mediffuse.translate import Translator
from mediffuse.ui.examples import MR_EXAMPLES
from mediffuse.ui.tab import Tab


def build(translator: Translator) -> Tab:
    tab = Tab(
        direction="mr2ct",
        api="mri_to_ct",
        translator=translator,
        examples=MR_EXAMPLES,
        default_view="Full range (-1000 to 1000 HU)",
    )
    tab.build()
    return tab
