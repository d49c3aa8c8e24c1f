"""Several pictures or scans at once, in a slice tab: each is translated as one is, into a table and a zip."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from mediffuse.ui.controls import SLICES, Values, queued
from mediffuse.ui.slice_result import SliceResult
from mediffuse.ui.words import MODALITY_TITLES, status

MOST = 16
"""Files of a batch: so long do others wait."""
HEADERS = ["File", "Slice", "Result"]

Translate = Callable[[str, int, dict, gr.Request], SliceResult]
"""Translates the central slice of a file, one of so many, by the values of a tab's controls. Raises gr.Error."""


class Batch:
    """The controls, closed at first, and their result. line: of the tab, says how it goes."""

    def __init__(self, tab: str, source: str, line: gr.HTML) -> None:
        self.tab, self.line = tab, line
        with gr.Accordion("Several at once", open=False, elem_id=f"{tab}-batch"):
            self.files = gr.File(
                label=f"Up to {MOST} files, each a {MODALITY_TITLES[source]}; of a volume, the central slice is taken",
                file_count="multiple",
                height=120,
                elem_id=f"{tab}-batch-files",
            )
            self.go = gr.Button("Translate all", elem_id=f"{tab}-batch-go")
            self.table = gr.Dataframe(
                headers=HEADERS,
                label="Files",
                interactive=False,
                wrap=True,
                column_widths=["40%", "15%", "45%"],
                visible=False,
                elem_id=f"{tab}-batch-table",
            )
            self.gallery = gr.Gallery(
                label="Synthetic", columns=4, height="auto", visible=False, elem_id=f"{tab}-batch-gallery"
            )
            self.zip = gr.File(label="All of it", interactive=False, visible=False, elem_id=f"{tab}-batch-zip")

    @property
    def outputs(self) -> list[Component]:
        return [self.table, self.gallery, self.zip, self.line]

    def on_run(self, translate: Translate, settings: dict[str, Component], api: str) -> Dependency:
        """Tie the button to it; settings: the tab's controls, by API parameter. The event that runs."""

        def run(request: gr.Request, **values) -> Iterator[Values]:
            """Translate the central slices of several files by the same settings: a table, pictures and a zip."""
            yield from self._run(translate, request, values)

        return self.go.click(
            run,
            inputs_kwargs={"files": self.files, **settings},
            outputs=self.outputs,
            api_name=f"{api}_batch",
            **queued(SLICES, self.line),
        )

    def _run(self, translate: Translate, request: gr.Request, values: dict) -> Iterator[Values]:
        paths = values.pop("files") or []
        if not 0 < len(paths) <= MOST:
            raise gr.Error(f"Choose 1 to {MOST} files.", print_exception=False)
        rows, pictures, view = [], [], values["view"]
        with tempfile.TemporaryDirectory() as folder:
            packed = Path(folder) / f"synthetic_{self.tab}.zip"
            with zipfile.ZipFile(packed, "w") as archive:
                for number, path in enumerate(paths, 1):
                    name = Path(path).name
                    yield {self.line: status(f"{number} of {len(paths)}: {name}", number - 1, len(paths))}
                    try:
                        result = translate(path, len(paths), values, request)
                    except gr.Error as error:
                        rows.append([name, "", str(error.message)])
                        continue
                    for file in map(Path, result.write(Path(folder), view)):
                        archive.write(file, f"{number:02d}_{file.name}")
                    rows.append([name, str(result.source.index), f"Done in {result.translation.seconds:.2f} s"])
                    pictures.append((result.picture_of("made", view), name))
            yield {
                self.table: gr.Dataframe(rows, visible=True),
                self.gallery: gr.Gallery(pictures, visible=bool(pictures)),
                self.zip: gr.File(str(packed) if pictures else None, visible=bool(pictures)),
                self.line: status(f"{len(pictures)} of {len(paths)} translated."),
            }
