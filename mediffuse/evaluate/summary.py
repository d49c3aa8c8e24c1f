"""From scores of images to the rows of a table: means over patients, intervals and tests."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd

from mediffuse.evaluate.rows import ImageRow, ResultRow, ScoredImage, SignedRankTest

METRICS = ("psnr", "ssim", "mae")
OPTIONAL_METRICS = ("lpips", "sharpness", "dice_bone", "mae_bone", "mae_soft", "mae_air")
"""Those of `score.details`; not of every image."""
GROUP = ["dataset", "split", "direction", "model", "speed", "protocol"]
_RESAMPLES = 9999

DIRECT = "direct U-Net"
_NAMES = {"ip2p": "InstructPix2Pix", "controlnet": "ControlNet"}
"""Names of models by folder."""


def title_of(model: str, speed: str = "none") -> str:
    """A row's model as tables and figures name it; its speed where it has the choice."""
    name, comma, rest = model.partition(",")
    title = _NAMES.get(name, name) + comma + rest
    return title if speed == "none" or model.startswith(DIRECT) else f"{title}, {speed}"


def of_patients(images: pd.DataFrame) -> pd.DataFrame:
    """Means over each patient's images, by `GROUP` (those columns that there are) and patient."""
    columns = [*METRICS, *(c for c in (*OPTIONAL_METRICS, "seconds") if c in images)]
    keys = [c for c in GROUP if c in images]
    return images.groupby([*keys, "patient"], sort=False, dropna=False)[columns].mean().reset_index()


def summarise(images: list[ScoredImage] | list[ImageRow] | pd.DataFrame) -> list[ResultRow]:
    """A row per group of `GROUP`: means over patients (of means over each one's images), the
    standard deviation over patients, and a 95 % bootstrap interval of the mean. What else a `ResultRow` has,
    `experiment` adds."""
    images = pd.DataFrame(images)
    keys = [c for c in GROUP if c in images]
    counts = {key: len(group) for key, group in images.groupby(keys, sort=False)}
    rows = []
    for key, group in of_patients(images).groupby(keys, sort=False):
        row = dict(zip(keys, key, strict=True))
        row |= {"n_images": counts[key], "n_patients": len(group)}
        for metric in (*METRICS, *(m for m in OPTIONAL_METRICS if m in group)):
            values = group[metric].to_numpy(float)
            values = values[~np.isnan(values)] if metric in OPTIONAL_METRICS else values
            if not len(values):
                continue
            row[metric] = float(values.mean())
            row[f"{metric}_std"] = float(values.std(ddof=1)) if len(values) > 1 else None
            row[f"{metric}_ci"] = interval(values)
        if "seconds" in group:
            row["seconds_per_image"] = float(group["seconds"].mean())
        rows.append(row)
    return rows


def interval(values: np.ndarray) -> list[float] | None:
    """95 % interval of the mean of `values` (n,): bias-corrected accelerated bootstrap (Efron 1987).

    None for fewer than three values, or infinite ones.
    """
    from scipy.stats import bootstrap

    if len(values) < 3 or not np.isfinite(values).all():
        return None
    if np.ptp(values) == 0:
        return [float(values[0])] * 2
    found = bootstrap((values,), np.mean, n_resamples=_RESAMPLES, rng=np.random.default_rng(0))
    return [float(found.confidence_interval.low), float(found.confidence_interval.high)]


def compare(images: pd.DataFrame) -> list[SignedRankTest]:
    """Wilcoxon's signed-rank test (two-sided) between any two models on the same patients, per metric; q by
    Benjamini and Hochberg (1995)."""
    from scipy.stats import false_discovery_control, wilcoxon

    images = images.assign(row=[title_of(*row) for row in zip(images["model"], images["speed"], strict=True)])
    tests = []
    for (dataset, split, direction), group in images.groupby(["dataset", "split", "direction"], sort=False):
        family = []
        for protocol, scored in group.groupby("protocol", sort=False):
            for metric in METRICS:
                table = scored.groupby(["patient", "row"], sort=False)[metric].mean().unstack()[scored["row"].unique()]
                for a, b in itertools.combinations(table.columns, 2):
                    pair = table[[a, b]].replace([np.inf, -np.inf], np.nan).dropna()
                    if len(pair) < 2:
                        continue
                    difference = pair[a] - pair[b]
                    p = wilcoxon(difference).pvalue if difference.any() else 1.0
                    family.append(
                        {
                            "dataset": dataset,
                            "split": split,
                            "direction": direction,
                            "protocol": protocol,
                            "metric": metric,
                            "a": a,
                            "b": b,
                            "n_patients": len(pair),
                            "difference": float(difference.median()),
                            "p": float(p),
                        }
                    )
        if family:
            for test, q in zip(family, false_discovery_control([t["p"] for t in family]), strict=True):
                test["q"] = float(q)
        tests += family
    return tests


def finite(value):
    """`value` with None for numbers that JSON cannot hold, in nested lists and dicts too."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
