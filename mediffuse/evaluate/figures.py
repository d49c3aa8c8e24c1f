"""The figures of a report, by matplotlib. Each function returns a Figure, or None where there is nothing to show."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from mediffuse.dataset import read_pair
from mediffuse.directions import DIRECTION_TITLES, modalities
from mediffuse.evaluate.calibration import FRACTIONS
from mediffuse.evaluate.measure import picture_pair
from mediffuse.evaluate.summary import title_of
from mediffuse.image.contours import contour_hint
from mediffuse.image.display import ERROR_SCALE, error_map
from mediffuse.image.intensity import MR_OUTPUT_LIMITS, decode_ct
from mediffuse.metrics import PAPER_CT_RANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mediffuse.evaluate.experiment import Results

RANKS = ("best", "median", "worst")
_MARKERS = "osD^vP*X<>hp"
_STYLE = {
    "figure.dpi": 110,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "mediffuse",  # the same file for the same figure
}


def _styled(draw):
    """Draw in our style, without a screen."""

    @functools.wraps(draw)
    def wrapped(*args, **kwargs):
        import matplotlib

        matplotlib.use("Agg")
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return wrapped


def _subplots(*args, **kwargs):
    from matplotlib import pyplot

    return pyplot.subplots(*args, layout="constrained", squeeze=False, **kwargs)


def _panels(images: pd.DataFrame) -> list[str]:
    """The directions that there are images of, in the order of tables."""
    return [d for d in DIRECTION_TITLES if (images["direction"] == d).any()]


@_styled
def quality(results: Results, dataset: str, split: str) -> Figure | None:
    """PSNR against SSIM of every image, coloured by the seconds that it took (published figures 5, 6)."""
    from matplotlib.colors import LogNorm

    images = results.images
    images = images[(images["dataset"] == dataset) & (images["split"] == split) & (images["protocol"] == "paper")]
    images = images[np.isfinite(images["psnr"])]
    if images.empty:
        return None
    panels = _panels(images)
    figure, axes = _subplots(1, len(panels), figsize=(4.2 * len(panels) + 0.8, 4.2))
    timed = images[images["speed"] != "none"]
    norm = LogNorm(*(timed["seconds"].quantile([0.02, 0.98]) if len(timed) else (0.01, 1)))
    points = None
    for axis, direction in zip(axes[0], panels, strict=True):
        here = images[images["direction"] == direction]
        for marker, ((model, speed), group) in zip(
            _MARKERS * 5, here.groupby(["model", "speed"], sort=False), strict=False
        ):
            name = title_of(model, speed)
            if speed == "none":
                axis.scatter(group["psnr"], group["ssim"], s=18, marker=marker, c="0.75", label=name, linewidths=0)
            else:
                points = axis.scatter(
                    group["psnr"], group["ssim"], s=26, marker=marker, c=group["seconds"], norm=norm, cmap="viridis",
                    label=name, edgecolors="white", linewidths=0.4,
                )  # fmt: skip
        axis.set(title=DIRECTION_TITLES[direction], xlabel="PSNR (dB)", ylabel="SSIM")
        axis.legend(loc="upper left", fontsize=6.5)
    if points is not None:
        figure.colorbar(points, ax=axes[0].tolist(), label="Seconds per image")
    return figure


@_styled
def losses(results: Results) -> Figure | None:
    """Training loss of all runs in one plot (published figure 7)."""
    if results.losses.empty:
        return None
    figure, axes = _subplots(figsize=(7.5, 3.8))
    axis = axes[0, 0]
    for stage, run in results.losses.groupby("stage", sort=False):
        (line,) = axis.plot(run["step"], run["loss"], alpha=0.25, linewidth=0.8)
        smooth = run["loss"].rolling(max(1, len(run) // 15), min_periods=1, center=True).median()
        axis.plot(run["step"], smooth, color=line.get_color(), label=stage)
    axis.set(xlabel="Step", ylabel="Training loss", yscale="log")
    axis.legend()
    return figure


_SWEPT = {"steps": "Steps", "guidance": "Guidance scale", "thresholds": "Thresholds over the checkpoint's own"}


@_styled
def sweep(results: Results, over: str) -> Figure | None:
    """PSNR and SSIM against the `steps` or the `guidance` scale of diffusion, or the `thresholds` of contours."""
    table = pd.DataFrame(results.sweeps)
    if table.empty:
        return None
    table = table[table["steps"].isna() == (over == "thresholds")]
    if other := {"steps": "guidance", "guidance": "steps"}.get(over):
        table = table[table[other] == results.settings[other]]
    if table[over].nunique() < 2:
        return None
    figure, axes = _subplots(1, 3, figsize=(11, 3.4))
    which = ["direction", "model", "speed"]
    lines = table.sort_values(over).drop_duplicates([*which, over])
    for (direction, model, speed), line in lines.groupby(which, sort=False):
        name = f"{title_of(model, 'none' if speed == 'diffusion' else speed)}: {DIRECTION_TITLES[direction]}"
        for axis, column in zip(axes[0], ("psnr", "ssim", "seconds_per_image"), strict=True):
            axis.plot(line[over], line[column], marker="o", markersize=4, label=name)
    for axis, label in zip(axes[0], ("PSNR (dB)", "SSIM", "Seconds per image"), strict=True):
        axis.set(xlabel=_SWEPT[over], ylabel=label, xscale="log")
        ticks = sorted(table[over].unique())
        axis.set_xticks(ticks, [f"{t:g}" for t in ticks])
        axis.minorticks_off()
    axes[0, 0].legend()
    return figure


@_styled
def uncertainty(results: Results, dataset: str, split: str) -> Figure | None:
    """Calibration of the samples' standard deviation, and sparsification curves."""
    found = [u for u in results.uncertainty if (u["dataset"], u["split"]) == (dataset, split)]
    if not found:
        return None
    figure, axes = _subplots(2, len(found), figsize=(3.7 * len(found), 6.2))
    for (top, bottom), row in zip(axes.T, found, strict=True):
        unit = "HU" if modalities(row["direction"])[1] == "CT" else "grey levels"
        rank = "undefined" if row["spearman"] is None else f"{row['spearman']:.2f}"
        end = max(*row["deviation"], *row["error"])
        top.plot([0, end], [0, end], color="0.7", linestyle=":", label="error = deviation")
        top.plot(row["deviation"], row["error"], marker="o", markersize=4, label=title_of(row["model"]))
        top.set(xlabel=f"Deviation of samples ({unit})", ylabel=f"Mean absolute error ({unit})")
        top.set_title(f"{DIRECTION_TITLES[row['direction']]}\nSpearman {rank}")
        top.legend()
        bottom.plot(FRACTIONS, row["sparsified"], label="most uncertain first")
        bottom.plot(FRACTIONS, row["oracle"], linestyle="--", color="0.5", label="largest error first (oracle)")
        bottom.axhline(row["sparsified"][0], color="0.8", linestyle=":", label="at random")
        bottom.set(xlabel="Share of pixels removed", ylabel=f"Error of the rest ({unit})", ylim=(0, None))
        bottom.legend()
    return figure


def _pictures(results: Results, row) -> dict[str, np.ndarray]:
    """Of an `ImageRow` as a named tuple: input, made and truth, 8-bit grey (S, S), and the error map, RGB (H, W, 3)."""
    pairs = results.truths[row.dataset, row.split, row.direction]
    source = next(r for r in pairs.rows if r["input_image_file_name"] == row.image)
    given, truth = picture_pair(pairs, source)
    if row.direction == "contour2mr":
        ct, _, _ = read_pair(pairs.folder, source)
        given = contour_hint(decode_ct(ct)).max(axis=-1)
    made = cv2.imread(str(results.output / row.picture), cv2.IMREAD_GRAYSCALE)
    output = modalities(row.direction)[1]
    low, high = PAPER_CT_RANGE if output == "CT" else MR_OUTPUT_LIMITS
    error = (made.astype(np.float32) - truth) / 255 * (high - low)
    # error_map enlarges and labels pictures for the page.
    return {"input": given, "made": made, "truth": truth, "error": error_map(error, output)}


def _paint(axis, image: np.ndarray, title: str = "", label: str = "") -> None:
    """Draw an 8-bit picture, grey (H, W) or RGB (H, W, 3)."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontweight="normal", fontsize=8.5)
    if label:
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8.5)


@_styled
def sheet(results: Results, dataset: str, split: str, direction: str, model: str, speed: str) -> Figure | None:
    """Best, median and worst image of a model by PSNR, with error maps (published figures 9 to 11)."""
    images = results.images
    chosen = images[
        (images["dataset"] == dataset)
        & (images["split"] == split)
        & (images["direction"] == direction)
        & (images["model"] == model)
        & (images["speed"] == speed)
        & (images["protocol"] == "paper")
    ].sort_values("psnr", ascending=False, kind="stable")
    if chosen.empty:
        return None
    places = dict(zip(RANKS, (0, len(chosen) // 2, len(chosen) - 1), strict=True))
    if len(chosen) < 3:
        places = {"only" if len(chosen) == 1 else RANKS[2 * i]: i for i in range(len(chosen))}
    names = [("input", "Input"), ("made", "Synthetic"), ("truth", "Truth")]
    unit = "HU" if modalities(direction)[1] == "CT" else "of 255"
    names.append(("error", f"Error ±{ERROR_SCALE[modalities(direction)[1]]:.0f} {unit}"))
    figure, axes = _subplots(len(places), 4, figsize=(8.8, 2.1 * len(places) + 0.3))
    for number, (line, (rank, place)) in enumerate(zip(axes, places.items(), strict=True)):
        row = next(chosen.iloc[[place]].itertuples())
        pictures = _pictures(results, row)
        for axis, (key, title) in zip(line, names, strict=True):
            label = f"{rank}\n{row.psnr:.2f} dB\nSSIM {row.ssim:.3f}" if key == "input" else ""
            _paint(axis, pictures[key], title if number == 0 else "", label)
    return figure


@_styled
def grid(results: Results, dataset: str, split: str, count: int = 3) -> Figure | None:
    """The same slices by every MRI-making model, between input and truth (published figure 8)."""
    images = results.images
    images = images[(images["dataset"] == dataset) & (images["split"] == split) & (images["protocol"] == "paper")]
    images = images[images["direction"].isin(["ct2mr", "contour2mr"]) & (images["speed"] != "none")]
    models = list(images.groupby(["direction", "model", "speed"], sort=False).groups)
    if len(models) < 2:
        return None
    models.sort(key=lambda m: not m[1].startswith("zero-shot"))
    # Slices at even ranks of the first model, so that none is chosen by eye.
    ranked = images[(images["direction"] == models[0][0]) & (images["model"] == models[0][1])]
    ranked = ranked[ranked["speed"] == models[0][2]].sort_values("psnr", kind="stable")["image"].tolist()
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)) + 2)[1:-1].round().astype(int)
    chosen = [ranked[i] for i in dict.fromkeys(places)]
    figure, axes = _subplots(len(chosen), len(models) + 2, figsize=(1.75 * (len(models) + 2), 1.95 * len(chosen) + 0.3))
    for number, (line, image) in enumerate(zip(axes, chosen, strict=True)):
        first = number == 0
        for axis, (direction, model, speed) in zip(line[1:-1], models, strict=True):
            mine = images[(images["direction"] == direction) & (images["model"] == model) & (images["speed"] == speed)]
            rows = list(mine[mine["image"] == image].itertuples())
            if not rows:
                axis.axis("off")
                continue
            pictures = _pictures(results, rows[0])
            title = title_of(model, speed).replace(", ", "\n")
            _paint(axis, pictures["made"], title if first else "")
            axis.set_xlabel(f"{rows[0].psnr:.1f} dB", fontsize=7.5)
            _paint(line[0], pictures["input"], "CT" if first else "")
            _paint(line[-1], pictures["truth"], "Truth" if first else "")
    return figure
