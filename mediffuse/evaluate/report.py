"""Write results: JSON, CSV, Markdown, model cards' metadata, figures and one HTML page."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
from dataclasses import dataclass
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from mediffuse import files
from mediffuse.directions import DIRECTION_TITLES, modalities
from mediffuse.evaluate import figures, summary
from mediffuse.evaluate.registration import WORST_PIXELS
from mediffuse.evaluate.rows import ResultRow, SignedRankTest
from mediffuse.evaluate.summary import DIRECT, title_of
from mediffuse.translate.checkpoints import DETAILS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mediffuse.evaluate.experiment import Results

PUBLISHED = {"ct2mr": (26.81, 0.715, 3.5), "mr2ct": (31.98, 0.833, 3.5), "contour2mr": (8.52, 0.132, 10.95)}
"""PSNR in dB, SSIM and seconds (on an A5000) of the student project that showed the idea. Its split mixed slices
of one patient, so they flatter."""

CAPTIONS = {
    "quality": "PSNR against SSIM of every image (protocol paper), coloured by the time it took; baselines in grey.",
    "grid": "The same slices by every model that makes an MRI. Slices at even ranks of the first model's PSNR.",
    "sheet": "{}: best, median and worst image by PSNR. Error: red too high, blue too low.",
    "uncertainty": "Does the spread of the samples predict the error of their mean? Above: error in tenths of the "
    "body's pixels of rising deviation. Below: error of the rest when pixels are removed. Means over images.",
    "losses": "Training loss of all stages (thin: as logged; thick: running median). Stages differ in their loss "
    "terms: compare shapes, not levels.",
    "sweep": "Quality of {} (protocol paper) and its time against the {}; {} images.",
}


def write(results: Results, output: Path) -> None:
    """Write every file of a report into `output`."""
    files.remove_leftovers(output)
    # What an earlier run with other options left would pass for this one's.
    shutil.rmtree(output / "figures", ignore_errors=True)
    (output / "figures").mkdir(parents=True)
    for path in output.glob("card_*.md"):
        path.unlink()
    content = {
        "rows": results.rows,
        "tests": results.tests,
        "sweeps": results.sweeps,
        "uncertainty": results.uncertainty,
        "flagged": results.flagged,
        "settings": results.settings,
    }
    texts = {
        "results.json": json.dumps(summary.finite(content), indent=2) + "\n",
        "images.csv": results.images.to_csv(index=False),
        "results.md": markdown(results.rows),
        **{
            f"card_{name}.md": text
            for name, text in cards(results.rows, leaks=results.settings["unseen"] is False).items()
        },
        "report.html": html(results, _draw(results, _groups(results.rows), output)),
    }
    for name, text in texts.items():
        files.write_text(output / name, text)


def lay_out_again(output: Path) -> None:
    """Write `report.html` anew from the `results.json` beside it, with the figures that it holds; nothing is measured.

    Raises ValueError if there is no report.
    """
    page, data = (output / name for name in ("report.html", "results.json"))
    if not (page.is_file() and data.is_file()):
        raise ValueError(f"{output} holds no report.html and results.json.")
    text = page.read_text(encoding="utf-8")
    results = SimpleNamespace(
        **json.loads(data.read_text(encoding="utf-8")),
        pictures="left out of this copy" not in text,
        warnings=[unescape(line) for line in re.findall(r'<p class="small">(.*left out.*)</p>', text)],
    )
    groups = _groups(results.rows)
    drawn = [
        Drawn(next((g for g in groups if f"_{'_'.join(g)}" in name), None), name, unescape(caption), image)
        for name, image, caption in re.findall(r'<figure id="(\w+)"><img src="([^"]+)" alt="([^"]*)">', text)
    ]
    files.write_text(page, html(results, drawn))


def markdown(rows: list[ResultRow]) -> str:
    """The rows as a Markdown table; mean ± standard deviation over patients, [95 % interval]."""
    header = (
        "Direction",
        "Model",
        "Split",
        "Protocol",
        "PSNR (dB)",
        "SSIM",
        "MAE",
        "LPIPS",
        "Sharpness",
        "s/image",
        "Patients",
    )
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for r in rows:
        split = r["dataset"] if r["split"] == "wild" else r["split"]
        cells = (
            DIRECTION_TITLES[r["direction"]],
            title_of(r["model"], r["speed"]),
            split,
            r["protocol"],
            cell(r, "psnr", 2),
            cell(r, "ssim", 3),
            mae(r),
            cell(r, "lpips", 3),
            cell(r, "sharpness", 2),
            f"{r['seconds_per_image']:.2f}" if r["speed"] != "none" else "",
            f"{r['n_patients']}" + (f" ({r['n_flagged']} flagged)" if r["n_flagged"] else ""),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(row: ResultRow, metric: str, digits: int) -> str:
    """Mean ± standard deviation [95 % interval] of a metric; empty where it was not measured."""
    if row.get(metric) is None:  # not measured, or infinite in a file
        return ""
    text = f"{row[metric]:.{digits}f}"
    if row[f"{metric}_std"] is not None:
        text += f" ± {row[f'{metric}_std']:.{digits}f}"
    if row[f"{metric}_ci"]:
        low, high = row[f"{metric}_ci"]
        text += f" [{low:.{digits}f}, {high:.{digits}f}]"
    return text


def mae(row: ResultRow) -> str:
    """MAE with its unit, which depends on protocol and modality."""
    if row["protocol"] == "paper":
        return f"{row['mae']:.1f}"
    return f"{row['mae']:.0f} HU" if modalities(row["direction"])[1] == "CT" else f"{row['mae']:.3f}"


LEAK = "**Patients of the measured split were trained on, so the figures flatter.**\n\n"


def cards(rows: list[ResultRow], *, leaks: bool = False) -> dict[str, str]:
    """Per checkpoint, by name: model-index metadata as the hub reads it, and its table, as Markdown.

    leaks: whether measured patients were trained on, which is said then.
    """
    from huggingface_hub import EvalResult, ModelCardData

    made = {}
    measured = [r for r in rows if r["speed"] != "none" and r["split"] != "wild"]
    for name in dict.fromkeys(r["model"].split(",")[0] for r in measured):
        mine = [r for r in measured if r["model"].split(",")[0] == name]
        results = [
            EvalResult(
                task_type="image-to-image",
                task_name=f"{DIRECTION_TITLES[r['direction']]}, {r['speed']}",
                dataset_type=r["dataset"],
                dataset_name=r["dataset"],
                # The hub groups results by this, not by the task's name.
                dataset_config=f"{r['direction']}_{r['speed']}",
                dataset_split=r["split"],
                metric_type=metric,
                metric_name=f"{metric.upper()} ({r['protocol']})",
                metric_value=round(r[metric], 4),
            )
            for r in mine
            if r["model"] == name
            for metric in summary.METRICS
            if r[metric] is not None and math.isfinite(r[metric])
        ]
        directions = {r["direction"] for r in mine}
        table = markdown([r for r in rows if r in mine or (r["speed"] == "none" and r["direction"] in directions)])
        data = ModelCardData(model_name=f"Mediffuse {name}", eval_results=results)
        made[name.replace("/", "_").replace(" ", "_")] = f"---\n{data.to_yaml()}\n---\n\n{LEAK if leaks else ''}{table}"
    return made


def _groups(rows: list[ResultRow]) -> list[tuple[str, str]]:
    """The (dataset, split) that have a section. The train split is one where it is alone, else a column."""
    groups = list(dict.fromkeys((r["dataset"], r["split"]) for r in rows))
    judged = [g for g in groups if g[1] not in {"train", "wild"}]
    return [g for g in groups if g[1] == "wild" or g in judged or not judged]


def html(results: Results, drawn: list[Drawn]) -> str:
    """The report as one HTML page that needs no other file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"direction": DIRECTION_TITLES.get, "cell": cell, "mae": mae, "count": _count, "p": _p}
    groups = _groups(results.rows)
    return environment.get_template("report.html.jinja").render(
        results=results,
        groups=[g for g in groups if g[1] != "wild"],
        wild=[g for g in groups if g[1] == "wild"],
        title_of=title_of,
        table=lambda group, direction, protocol: _table(results.rows, group, direction, protocol),
        other_splits=lambda row: _other_splits(results.rows, row),
        headline=lambda group: headline(results, group),
        tests=lambda group, direction: _tests(results.tests, group, direction),
        directions=[d for d in DIRECTION_TITLES if any(r["direction"] == d for r in results.rows)],
        published=PUBLISHED,
        worst_pixels=WORST_PIXELS,
        details=DETAILS,
        drawn=drawn,
    )


def _table(rows: list[ResultRow], group: tuple, direction: str, protocol: str) -> list[ResultRow]:
    wanted = (*group, direction, protocol)
    return [r for r in rows if (r["dataset"], r["split"], r["direction"], r["protocol"]) == wanted]


def _other_splits(rows: list[ResultRow], row: ResultRow) -> dict[str, ResultRow]:
    """The same model's rows on the dataset's other splits, by split."""
    same = ("dataset", "direction", "model", "speed", "protocol")
    return {r["split"]: r for r in rows if r["split"] != row["split"] and all(r[k] == row[k] for k in same)}


def _tests(tests: list[SignedRankTest], group: tuple, direction: str) -> list[dict[str, str | SignedRankTest]]:
    """Per pair of models: their titles `a` and `b`, and the tests by protocol "paper" by metric."""
    pairs: dict[tuple, dict] = {}
    for t in tests:
        if (t["dataset"], t["split"], t["direction"], t["protocol"]) == (*group, direction, "paper"):
            pairs.setdefault((t["a"], t["b"]), {})[t["metric"]] = t
    return [{"a": a, "b": b, **found} for (a, b), found in pairs.items()]


def headline(results: Results, group: tuple) -> list[str]:
    """Sentences that say what the table says, per direction: the best model, against the mean image,
    the direct U-Net and the published figure."""
    sentences = []
    for direction in DIRECTION_TITLES:
        rows = _table(results.rows, group, direction, "paper")
        ours = [r for r in rows if r["speed"] != "none" and not r["model"].startswith(DIRECT)]
        if not ours:
            continue
        best = max(ours, key=lambda r: r["psnr"])
        text = f"{DIRECTION_TITLES[direction]}: best is {title_of(best['model'], best['speed'])}, "
        text += f"{best['psnr']:.2f} dB and SSIM {best['ssim']:.3f} over {best['n_patients']} patients"
        for other in ("mean image", DIRECT):
            row = next((r for r in rows if r["model"] == other), None)
            if row is None or row["psnr"] == best["psnr"]:
                continue
            gap = best["psnr"] - row["psnr"]
            text += f"; {abs(gap):.2f} dB {'above' if gap > 0 else 'below'} the {other}"
            text += _significance(results, group, direction, best, row)
        psnr, ssim, _ = PUBLISHED[direction]
        side = "above" if best["psnr"] > psnr else "below"
        text += f". That is {side} the published {psnr:.2f} dB / {ssim:.3f}, whose split mixed slices of one patient."
        sentences.append(text)
    return sentences


def _significance(results: Results, group: tuple, direction: str, row: ResultRow, other: ResultRow) -> str:
    names = {title_of(r["model"], r["speed"]) for r in (row, other)}
    wanted = (*group, direction, "paper", "psnr")
    for t in results.tests:
        same = (t["dataset"], t["split"], t["direction"], t["protocol"], t["metric"]) == wanted
        if same and {t["a"], t["b"]} == names:
            return f" (adjusted p {_p(t['q'])})"
    return ""


@dataclass(frozen=True)
class Drawn:
    """A figure on the page. group: (dataset, split), None for one of all. image: a data URI."""

    group: tuple[str, str] | None
    name: str
    caption: str
    image: str


def _draw(results: Results, groups: list[tuple], output: Path) -> list[Drawn]:
    """Draw and save every figure."""
    drawn = []

    def add(group: tuple | None, name: str, figure: Figure | None, caption: str) -> None:
        if figure is not None:
            name = re.sub(r"\W+", "_", name)
            drawn.append(Drawn(group, name, caption, _save(figure, output, name)))

    for group in groups:
        tag = "_".join(group)
        add(group, f"quality_{tag}", figures.quality(results, *group), CAPTIONS["quality"])
        # Pictures of data may be shown only where the data may be passed on; of --wild that is the user's to say.
        if results.pictures or group[1] == "wild":
            add(group, f"grid_{tag}", figures.grid(results, *group), CAPTIONS["grid"])
            for r in results.rows:
                if (r["dataset"], r["split"], r["protocol"]) == (*group, "paper") and r["speed"] != "none":
                    title = f"{DIRECTION_TITLES[r['direction']]}, {title_of(r['model'], r['speed'])}"
                    name = f"sheet_{tag}_{r['direction']}_{r['model']}_{r['speed']}"
                    figure = figures.sheet(results, *group, r["direction"], r["model"], r["speed"])
                    add(group, name, figure, CAPTIONS["sheet"].format(title))
        add(group, f"uncertainty_{tag}", figures.uncertainty(results, *group), CAPTIONS["uncertainty"])
    add(None, "losses", figures.losses(results), CAPTIONS["losses"])
    for over, what in (
        ("steps", ("diffusion", "number of steps")),
        ("guidance", ("diffusion", "guidance scale")),
        ("thresholds", ("MRI from contours", "Canny thresholds")),
    ):
        count = results.sweeps[0]["n_images"] if results.sweeps else 0
        add(None, f"sweep_{over}", figures.sweep(results, over), CAPTIONS["sweep"].format(*what, count))
    return drawn


def _save(figure: Figure, output: Path, name: str) -> str:
    """Save a figure as PNG and SVG; for the page, a smaller WebP as a data URI."""
    from matplotlib import pyplot

    # Without a date, so that the same results give the same file.
    for end, options in ((".png", {"dpi": 150}), (".svg", {"metadata": {"Date": None}})):
        with files.complete(output / "figures" / f"{name}{end}") as part:
            figure.savefig(part, **options)
    page = io.BytesIO()
    figure.savefig(page, format="webp", dpi=110, pil_kwargs={"quality": 88})
    pyplot.close(figure)
    return "data:image/webp;base64," + base64.b64encode(page.getvalue()).decode()


def _count(value: float | None) -> str:
    """A large number for people: 13.5 M, 2,400; a dash where it is unknown."""
    if value is None:
        return "–"
    return f"{value / 1e6:.1f} M" if value >= 1e6 else f"{value:,.0f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
