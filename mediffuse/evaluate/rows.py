"""What stands in results.json and images.csv, row by row, with units.

The MAE of protocol "paper" is in grey levels (0..255), that of "synthrad" in HU for a CT and in fractions of the
truth's range for an MRI. A patient's figure is the mean over the patient's images.
"""

from __future__ import annotations

from typing import NotRequired, TypedDict


class ProtocolScores(TypedDict):
    """`metrics.Scores` of an image: psnr in dB, ssim in [-1, 1], mae in the units above."""

    protocol: str
    psnr: float
    ssim: float
    mae: float


class Details(TypedDict, total=False):
    """What PSNR cannot tell of an image: see `metrics.lpips`, `sharpness` and `tissues`, which are of a CT with a body.

    lpips: 0 for equal images. sharpness: 1 for the truth's. dice_bone: in [0, 1]. mae_bone, mae_soft, mae_air: HU.
    """

    lpips: float
    sharpness: float
    dice_bone: float
    mae_bone: float
    mae_soft: float
    mae_air: float


class ScoredImage(ProtocolScores, Details):
    """An image by one protocol, on its own. image: the input's file. seconds: of the prediction."""

    patient: str
    image: str
    seconds: float


class ImageRow(ScoredImage):
    """A line of images.csv. model, speed: of `candidates.Model`. source, plane, contrast: of the dataset's row.

    shift_pixels, flagged: of `registration.Registration`. picture: path of the 8-bit prediction in the output folder.
    """

    dataset: str
    split: str
    direction: str
    model: str
    speed: str
    source: str
    plane: str
    contrast: str
    shift_pixels: float
    flagged: bool
    picture: str


class TrainingFacts(TypedDict, total=False):
    """What a checkpoint tells of its training; None where it does not.

    training_steps, training_seconds: of all stages together. training_peak_memory_mib: of the stage that took most.
    training_hardware, training_data_sha256 (of the train split's metadata.jsonl): of the last stage.
    """

    parameters: int | None
    training_steps: int | None
    training_seconds: float | None
    training_peak_memory_mib: float | None
    training_hardware: str | None
    training_data_sha256: str | None


class ResultRow(TrainingFacts):
    """A model at one speed in one direction, on a split, by one protocol: a line of the tables.

    Of each score and detail that was measured, in its unit: the mean over patients, `<score>_std`, the standard
    deviation over patients (None of one), and `<score>_ci`, the 95 % interval of the mean (None of fewer than three).
    n_flagged: images that look misregistered. seconds_per_image: mean over patients. peak_memory_mib: the largest.
    steps, start, guidance, samples, seed: of `Settings`; None where nothing is sampled. fid: with --fid only.
    """

    dataset: str
    split: str
    direction: str
    model: str
    speed: str
    protocol: str
    n_images: int
    n_patients: int
    n_flagged: int
    psnr: float
    psnr_std: float | None
    psnr_ci: list[float] | None
    ssim: float
    ssim_std: float | None
    ssim_ci: list[float] | None
    mae: float
    mae_std: float | None
    mae_ci: list[float] | None
    seconds_per_image: float
    peak_memory_mib: float
    steps: int | None
    start: str | None
    guidance: float | None
    samples: int | None
    seed: int | None
    fid: NotRequired[float]


class SignedRankTest(TypedDict):
    """Wilcoxon's test between two rows, by their titles `a` and `b`, on the patients that both have.

    metric: "psnr", "ssim" or "mae". difference: median of a - b over patients, in the metric's unit. p: two-sided;
    q: p adjusted for all the tests of a dataset, split and direction.
    """

    dataset: str
    split: str
    direction: str
    protocol: str
    metric: str
    a: str
    b: str
    n_patients: int
    difference: float
    p: float
    q: float


class SweepRow(TypedDict):
    """A model with other settings, on a few images: means over images, by protocol "paper"; psnr in dB.

    thresholds: of contours, over the checkpoint's own. steps, guidance: None in one step, where thresholds change.
    """

    dataset: str
    split: str
    direction: str
    model: str
    speed: str
    steps: int | None
    guidance: float | None
    thresholds: float
    n_images: int
    psnr: float
    ssim: float
    seconds_per_image: float


class UncertaintyRow(TypedDict):
    """`calibration.Calibration`, averaged over the images of a model. spearman: over those that have one, None where
    none has; spearman_std: its standard deviation over images, None of one."""

    dataset: str
    split: str
    direction: str
    model: str
    n_images: int
    spearman: float | None
    spearman_std: float | None
    deviation: list[float]
    error: list[float]
    sparsified: list[float]
    oracle: list[float]


class FlaggedPair(TypedDict):
    """A pair that looks misregistered: `registration.Registration`, and which it is. image: the input's file."""

    dataset: str
    split: str
    image: str
    shift_pixels: float
    mutual_information: list[float]
    flagged: bool


class RunSettings(TypedDict):
    """What was asked for, and where it ran.

    limit: images per direction, split and folder, None for all. unseen: whether the checkpoints saw none of the
    measured patients in training, None where that is not known. versions: by name of the library.
    """

    steps: int
    guidance: float
    image_guidance: float
    seed: int
    samples: int
    plane: str
    contrast: str | None
    source: str | None
    limit: int | None
    command: str
    hardware: str
    versions: dict[str, str]
    unseen: bool | None
