"""Tab Volume: a whole head in, a whole head out, in the same place."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gradio as gr
import nibabel as nib
import numpy as np
import pandas as pd

from mediffuse.compare import compare_volumes
from mediffuse.directions import CONTRASTS, modalities
from mediffuse.image.display import ERROR_SCALE, UNCERTAINTY_SCALE
from mediffuse.image.intensity import AIR_HU, MR_OUTPUT_LIMITS
from mediffuse.scan import PLANES, Scan, ScanError, SeveralSeriesError, read_scan
from mediffuse.scan.resample import registered, resampled
from mediffuse.scan.write import write_dicom, write_nifti
from mediffuse.translate import MAX_SEED, Settings, Translator
from mediffuse.translate.volumes import Passes, VolumeTranslation
from mediffuse.ui import session, viewer
from mediffuse.ui.examples import CT_EXAMPLES, MR_EXAMPLES
from mediffuse.ui.tab import MAE_UNITS, PROTOCOLS, SCORE_HEADERS, WORDS, error_label, spread_label, status
from mediffuse.ui.viewer import Layer

DIRECTIONS = [("CT → MRI", "ct2mr"), ("MRI → CT", "mr2ct")]


def build(translator: Translator) -> None:
    """Lay out the tab and wire its events."""
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            direction = gr.Radio(DIRECTIONS, value="ct2mr", label="Translate", elem_id="volume-direction")
            scan = gr.File(
                label="Scan: NIfTI, NRRD, MHA, or a DICOM series (its files, or a zip)",
                file_count="multiple",
                height=130,
                elem_id="volume-scan",
            )
            with gr.Row():
                examples = [
                    (gr.Button(e.title, size="sm", elem_id=f"volume-example-{i}"), name, e)
                    for i, (name, e) in enumerate((("ct2mr", CT_EXAMPLES[0]), ("mr2ct", MR_EXAMPLES[0])))
                ]
            series = gr.Radio([], label="Series", visible=False, elem_id="volume-series")
            notice = gr.Markdown(visible=False, elem_classes="notice", elem_id="volume-notice")
            contrast = gr.Radio(list(CONTRASTS), value=CONTRASTS[0], label="MRI contrast", elem_id="volume-contrast")
            speed = gr.Radio(
                [("Fast (one step)", "fast"), ("Diffusion (sampling)", "diffusion")], value="fast", label="Speed"
            )
            with gr.Group(visible=False) as diffusion:
                steps = gr.Slider(2, 100, 20, step=1, label="Steps")
                samples = gr.Slider(1, 8, 1, step=1, label="Samples")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            with gr.Accordion("Averaging and uncertainty", open=False):
                planes = gr.CheckboxGroup(
                    list(PLANES), value=["axial"], label="Slices to translate", info="Several planes are averaged."
                )
                mirror = gr.Checkbox(
                    False,
                    label="Mirrored slices as a pass of their own",
                    info="Their spread is an uncertainty. One step averages them in any case.",
                )
            truth = gr.File(
                label="Ground truth: the real other one (optional)",
                file_count="multiple",
                height=130,
                elem_id="volume-truth",
            )
            register = gr.Checkbox(False, label="Register the ground truth rigidly first", elem_id="volume-register")
            dicom = gr.Checkbox(False, label="Also a DICOM series (zip)", elem_id="volume-dicom")
            with gr.Row():
                go = gr.Button("Translate", variant="primary", elem_id="volume-go")
                halt = gr.Button("Stop", variant="stop", elem_id="volume-stop")
        with gr.Column(scale=5, min_width=320):
            said = gr.HTML(elem_id="volume-status")
            viewer.build("volume-viewer")
            scores = gr.Dataframe(
                headers=SCORE_HEADERS, visible=False, label="Mean over slices", elem_id="volume-scores"
            )
            with gr.Row():
                plots = [
                    gr.LinePlot(x="slice", y=y, title=f"{y} by axial slice (paper)", visible=False, height=220)
                    for y in ("PSNR (dB)", "SSIM")
                ]
            files = gr.File(label="Results", file_count="multiple", visible=False, elem_id="volume-files")
            # What the viewer draws: files for their addresses, and what they are.
            layers = gr.File(file_count="multiple", visible="hidden", elem_id="volume-layers")
            about = gr.Textbox(visible="hidden", elem_id="volume-about")
    drawn = [layers, about]
    compared = [scores, *plots]
    private = {"show_progress": "hidden", "api_visibility": "private"}
    heavy = {"show_progress": "hidden", "concurrency_limit": 1, "concurrency_id": "translate"}

    def redraw(event) -> None:
        event.success(None, drawn, js=viewer.show("volume-viewer"), **private)

    loading = {"inputs": [scan, direction, series], "outputs": [series, notice, said, *drawn, files, *compared]}
    for event in (
        scan.upload(lambda: gr.Radio([], value=None, visible=False), outputs=series, **private).success(
            load, **loading, **private
        ),
        series.input(load, **loading, **private),
        direction.input(load, **loading, **private),
    ):
        redraw(event)
    scan.clear(
        lambda: [
            gr.Radio(visible=False),
            gr.Markdown(visible=False),
            "",
            None,
            "[]",
            gr.File(visible=False),
            *_hidden(),
        ],
        outputs=loading["outputs"],
        **private,
    ).success(None, drawn, js=viewer.show("volume-viewer"), **private)
    for button, name, example in examples:
        chosen = button.click(
            lambda n=name, e=example: [n, [str(e.scan)], [str(e.truth)], gr.Radio([], value=None, visible=False)],
            outputs=[direction, scan, truth, series],
            **private,
        )
        redraw(chosen.success(load, **loading, **private))
    inputs = [
        scan,
        direction,
        series,
        contrast,
        speed,
        steps,
        samples,
        seed,
        planes,
        mirror,
        truth,
        register,
        dicom,
    ]
    results = [said, *drawn, files, *compared]

    go.click(lambda: status("Waiting…", 0, 1), outputs=said, queue=False, **private)
    running = go.click(Runner(session.register(translator)).translate, inputs, results, api_name="volume", **heavy)
    redraw(running)
    halt.click(session.stop, cancels=[running], queue=False, api_name="volume_stop").then(
        lambda: status("Stopped."), outputs=said, queue=False, **private
    )
    for event in (truth.upload, truth.clear, register.input):
        redraw(event(attach, [scan, direction, series, truth, register, *drawn], results, **{**private, **heavy}))
    speed.change(lambda s: gr.Group(visible=s == "diffusion"), speed, diffusion, queue=False, **private)
    direction.change(lambda d: gr.Radio(visible=d == "ct2mr"), direction, contrast, queue=False, **private)


def open_volume(paths: list[str] | None, modality: str, series: str | None = None) -> Scan:
    """Read an upload: one file, or the files of a DICOM series. Raises ScanError."""
    if not paths:
        raise ScanError(f"First choose {'a CT' if modality == 'CT' else 'an MRI'}, or click an example.")
    if len(paths) == 1:
        return read_scan(paths[0], modality, series=series)
    with tempfile.TemporaryDirectory(prefix="mediffuse-") as folder:
        for place, path in enumerate(paths):
            shutil.copy(path, Path(folder) / f"{place:05d}_{Path(path).name}")
        return read_scan(folder, modality, series=series)


def _open(paths: list[str] | None, modality: str, series: str | None = None, what: str = "") -> Scan:
    try:
        scan = open_volume(paths, modality, series or None)
    except ScanError as error:
        raise gr.Error(what + str(error), duration=None, print_exception=False) from error
    if scan.kind == "picture":
        raise gr.Error(f"{what}{scan.name} is a picture: use the other tabs for it.", print_exception=False)
    return scan


def load(paths, direction, series) -> Iterator[list]:
    """Show a new scan; where there are several series, ask which."""
    modality = modalities(direction)[0]
    rest = [gr.File(None, visible=False), *_hidden()]
    if not paths:
        yield [gr.skip(), gr.Markdown(visible=False), "", None, "[]", *rest]
        return
    try:
        scan = open_volume(paths, modality, series or None)
    except SeveralSeriesError as error:
        choices = [(title, uid) for uid, title in error.choices.items()]
        asked = gr.Markdown("Choose the series to translate.", visible=True)
        yield [gr.Radio(choices, value=None, visible=True), asked, "", None, "[]", *rest]
        return
    except ScanError as error:
        raise gr.Error(str(error), duration=None, print_exception=False) from error
    with tempfile.TemporaryDirectory() as folder:
        path, layer = _layer(scan, scan.voxels, "input", f"Input {WORDS[modality]}", modality, Path(folder))
        notes = gr.Markdown("\n\n".join(scan.warnings), visible=bool(scan.warnings))
        size = " × ".join(map(str, scan.native_shape))
        mm = " × ".join(f"{v:.3g}" for v in scan.spacing)
        # While the folder is there: gradio copies the file when it takes this.
        yield [gr.skip(), notes, status(f"{size} voxels of {mm} mm."), [path], viewer.describe([layer]), *rest]


def _layer(
    scan: Scan, voxels, role: str, title: str, modality: str, folder: Path, scale: float = 0
) -> tuple[str, Layer]:
    """Write what the viewer shows; (path, what it is)."""
    path = folder / f"{role}.nii.gz"
    write_nifti(scan, voxels, modality if role not in ("error", "spread") else role, path)
    if scale:
        window = (0.0, scale)
    elif modality == "CT":
        window = (0.0, 80.0) if role == "input" else (-160.0, 240.0)
    else:
        window = MR_OUTPUT_LIMITS if role == "made" else viewer.window_of(voxels)
    presets = () if scale else viewer.presets_of(voxels, modality)
    return str(path), Layer(role, title, modality, "HU" if modality == "CT" else "", window, presets)


@dataclass(frozen=True)
class Runner:
    """Runs a registered translator; the parameters of `translate` name the API's."""

    number: int

    def translate(
        self,
        request: gr.Request,
        paths,
        direction,
        series,
        contrast,
        speed,
        steps,
        samples,
        seed,
        planes,
        mirror,
        truth,
        register,
        dicom,
    ) -> Iterator[list]:
        """Translate the volume, saying how far it is; then compare it with the ground truth."""
        source, target = modalities(direction)
        scan = _open(paths, source, series)
        try:
            settings = Settings(speed, int(steps), seed=int(seed or 0), samples=int(samples), contrast=contrast)
            passes = Passes(tuple(planes), bool(mirror))
        except ValueError as error:
            raise gr.Error(str(error) if planes else "Choose at least one plane.", print_exception=False) from error
        skipped = [gr.skip()] * 6
        yield [status("Translating…", 0, 1), *skipped]
        made = None
        try:
            for item in session.stream_volume(self.number, scan, direction, settings, passes, request.session_hash):
                if isinstance(item, VolumeTranslation):
                    made = item
                    break
                done, of = item
                yield [status(f"{done} of {of} slices", done, of), *skipped]
        except gr.Error:
            yield [status("Not translated."), *skipped]
            raise
        if made is None:
            yield [status("Stopped."), *skipped]
            return
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            layers = [
                _layer(scan, scan.voxels, "input", f"Input {WORDS[source]}", source, folder),
                _layer(scan, made.voxels, "made", f"Synthetic {WORDS[target]}", target, folder),
            ]
            stem = scan.name.split(".")[0] or "scan"
            results = [folder / f"{stem}_synthetic_{WORDS[target]}.nii.gz"]
            shutil.copy(layers[1][0], results[0])
            if made.deviation is not None:
                scale = UNCERTAINTY_SCALE[target]
                layers.append(_layer(scan, made.deviation, "spread", spread_label(target), target, folder, scale))
                results.append(folder / f"{stem}_uncertainty.nii.gz")
                shutil.copy(layers[-1][0], results[-1])
            if dicom:
                series_folder = folder / f"{stem}_synthetic_{WORDS[target]}_dicom"
                write_dicom(scan, made.voxels, target, series_folder)
                results.append(Path(shutil.make_archive(str(series_folder), "zip", series_folder)))
            text = f"Done: {made.slices} slices in {made.seconds:.1f} s."
            compared, more, note, refused = _compare(scan, made.voxels, direction, truth, register, folder)
            layers += more
            shown = [str(p) for p in results]
            yield [
                status(" ".join([text, *scan.warnings, *note])),
                [path for path, _ in layers],
                viewer.describe([layer for _, layer in layers]),
                gr.File(shown, visible=True),
                *compared,
            ]
        if refused:
            raise refused


def attach(paths, direction, series, truth, register, files, about) -> Iterator[list]:
    """Compare what was made with a ground truth that came, or went, afterwards."""
    known = [Layer(**{**one, "window": tuple(one["window"])}) for one in json.loads(about or "[]")]
    places = {layer.role: path for layer, path in zip(known, files or [], strict=False)}
    if "made" not in places:
        if truth:
            _open(truth, modalities(direction)[1], what="Ground truth: ")
        yield [gr.skip()] * 7
        return
    source, _ = modalities(direction)
    scan = _open(paths, source, series)
    native = nib.load(places["made"])
    made = np.asarray(nib.apply_orientation(np.asarray(native.dataobj, np.float32), nib.io_orientation(native.affine)))
    kept = [(places[k.role], k) for k in known if k.role not in ("truth", "error")]
    with tempfile.TemporaryDirectory() as folder:
        compared, more, note, refused = _compare(scan, made, direction, truth, register, Path(folder))
        layers = [*kept, *more]
        text = status(" ".join(note)) if note else gr.skip()
        yield [
            text,
            [path for path, _ in layers],
            viewer.describe([layer for _, layer in layers]),
            gr.skip(),
            *compared,
        ]
    if refused:
        raise refused


def _compare(scan: Scan, made: np.ndarray, direction: str, paths, register: bool, folder: Path):
    """(table and plots, layers, notes, error to raise once what was made is shown)."""
    target = modalities(direction)[1]
    if not paths:
        return _hidden(), [], [], None
    try:
        truth = _open(paths, target, what="Ground truth: ")
        notes = [f"Ground truth: {w}" for w in truth.warnings]
        truth, more = _onto(scan, truth, register)
        compared = compare_volumes(made, scan, truth)
    except gr.Error as error:
        return _hidden(), [], [], error
    except ScanError as error:
        return _hidden(), [], [], gr.Error(f"Ground truth: {error}", duration=None, print_exception=False)
    layers = [
        _layer(scan, truth.voxels, "truth", f"Real {WORDS[target]}", target, folder),
        _layer(scan, compared.error, "error", error_label(target), target, folder, ERROR_SCALE[target]),
    ]
    by_protocol: dict[str, list] = {}
    for _, scores in compared.slices:
        for one in scores:
            by_protocol.setdefault(one.protocol, []).append(one)
    table = []
    for protocol, ones in by_protocol.items():
        psnr, ssim, mae = (float(np.mean([getattr(o, k) for o in ones])) for k in ("psnr", "ssim", "mae"))
        table.append([PROTOCOLS[protocol], f"{psnr:.2f}", f"{ssim:.3f}", f"{mae:.3g} {MAE_UNITS[target, protocol]}"])
    frame = pd.DataFrame(
        [(index, s.psnr, s.ssim) for index, scores in compared.slices for s in scores if s.protocol == "paper"],
        columns=["slice", "PSNR (dB)", "SSIM"],
    )
    plots = [gr.LinePlot(frame, visible=True), gr.LinePlot(frame, visible=True)]
    if np.isfinite(compared.delta_z):
        unit = "HU" if target == "CT" else "of 255"
        more.append(
            f"Its change from slice to slice is off by {compared.delta_z:.0f} {unit}; the real one changes by "
            f"{compared.delta_z_truth:.0f} (means in the head)."
        )
    return [gr.Dataframe(table, visible=True), *plots], layers, notes + more, None


def _hidden() -> list:
    """Values that hide the table and the plots."""
    return [gr.Dataframe(visible=False), gr.LinePlot(visible=False), gr.LinePlot(visible=False)]


def _onto(scan: Scan, truth: Scan, register: bool) -> tuple[Scan, list[str]]:
    """The ground truth on the scan's grid, registered if asked for, and what was done to it."""
    notes, transform = [], None
    if register:
        transform, moved = registered(truth, scan)
        notes.append(f"The ground truth was moved by {moved:.1f} mm on average to fit.")
    else:
        try:
            scan.check_same_grid(truth)
        except ScanError:
            notes.append("The ground truth was resampled onto the scan's grid.")
        else:
            return truth, notes
    fill = AIR_HU if truth.modality == "CT" else truth.limits[0]
    limits = truth.limits
    voxels = resampled(truth, scan, fill, transform)
    moved = replace(scan, voxels=voxels, modality=truth.modality, name=truth.name, warnings=())
    if limits:
        moved.__dict__["limits"] = limits
    return moved, notes
