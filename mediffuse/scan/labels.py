"""What is drawn on a scan is no scan: masks and label maps, by their values; and what file names say."""

from __future__ import annotations

import re

import numpy as np

_NAMES = {
    "CT": r"ct",
    "MR": r"mri?|t1\w{0,4}|t2\w{0,4}|flair|pd\w?",
    "label": r"mask\w*|seg\w*|labels?|dseg|label_?map|roi\w*|contours?|aseg|aparc",
}
_MOST_LABELS, _SAME_NEIGHBOURS = 300, 0.7


def named(name: str) -> str | None:
    """What a file's name says it is: "CT", "MR" or "label"; None where it says nothing, or several."""
    words = [w for w in re.split(r"[^a-z0-9]+", name.lower()) if w]
    found = {kind for kind, pattern in _NAMES.items() for word in words if re.fullmatch(pattern, word)}
    if "label" in found:
        return "label"
    return found.pop() if len(found) == 1 else None


def is_label_map(voxels: np.ndarray) -> bool:
    """Whether a volume (X, Y, Z) is a mask or label map: whole numbers from 0, few of them, in large patches.

    Most neighbours of a labelled voxel have its label; in a scan, noise makes that rare.
    """
    sample = voxels[:, :, :: max(1, voxels.shape[2] // 32)]
    if sample.min() < 0 or (sample != np.round(sample)).any() or len(np.unique(sample)) > _MOST_LABELS:
        return False
    pairs = same = 0
    for axis in (0, 1):
        first, second = (np.take(sample, np.arange(n, sample.shape[axis] - 1 + n), axis) for n in (0, 1))
        labelled = (first > 0) & (second > 0)
        pairs += np.count_nonzero(labelled)
        same += np.count_nonzero(labelled & (first == second))
    return pairs > 0 and same > _SAME_NEIGHBOURS * pairs
