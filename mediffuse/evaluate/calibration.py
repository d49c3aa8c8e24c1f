"""Does the spread of a model's samples predict its error?"""

from __future__ import annotations

from typing import TypedDict

import numpy as np

FRACTIONS = np.linspace(0, 0.95, 20)
"""Shares of the body's pixels that the sparsification curves leave out."""
_BINS = 10
CURVES = ("deviation", "error", "sparsified", "oracle")
"""The fields of `Calibration` that are curves."""


class Calibration(TypedDict):
    """How the standard deviation of samples goes with the error of their mean, in HU or MR output units.

    spearman: rank correlation of the two; None where either is constant. deviation, error: means in ten equally
    filled bins of rising deviation. sparsified, oracle: mean error of what is left after removing `FRACTIONS` of the
    pixels, the most uncertain first, or those of the largest error first (Ilg et al., 2018).
    """

    spearman: float | None
    deviation: list[float]
    error: list[float]
    sparsified: list[float]
    oracle: list[float]


def calibration(samples: np.ndarray, truth: np.ndarray, body: np.ndarray) -> Calibration:
    """Compare the standard deviation of samples with the absolute error of their mean, pixel by pixel.

    samples: (N, H, W), N >= 2, and truth (H, W), in HU or MR output units; body: bool (H, W), the
    pixels that count. Raises ValueError for one sample or an empty body.
    """
    from scipy.stats import spearmanr

    if len(samples) < 2:
        raise ValueError("One sample has no standard deviation: give two or more.")
    if not body.any():
        raise ValueError("The body mask is empty.")
    error = np.abs(samples.mean(axis=0) - truth)[body].astype(float)
    deviation = samples.std(axis=0, ddof=1)[body].astype(float)
    varies = np.ptp(error) > 0 and np.ptp(deviation) > 0
    order = np.argsort(deviation, kind="stable")
    kept = [max(1, round(len(order) * (1 - fraction))) for fraction in FRACTIONS]
    best = np.sort(error)
    bins = np.array_split(order, min(_BINS, len(order)))
    return Calibration(
        spearman=float(spearmanr(deviation, error).statistic) if varies else None,
        deviation=[float(deviation[b].mean()) for b in bins],
        error=[float(error[b].mean()) for b in bins],
        sparsified=[float(error[order[:n]].mean()) for n in kept],
        oracle=[float(best[:n].mean()) for n in kept],
    )
