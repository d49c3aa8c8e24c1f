"""Image quality by two named protocols (see each function). PSNR in dB, SSIM in [-1, 1].

Beside them, since PSNR rewards blur: LPIPS and sharpness; and for a CT what each tissue says.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mediffuse.image.intensity import BONE_HU, TISSUE_HU, to_uint8, window

PAPER_CT_RANGE = (-1000.0, 1000.0)
SYNTHRAD_CT_RANGE = (-1024.0, 3000.0)
SYNTHRAD_MR_PERCENTILES = (0.5, 99.5)
_SSIM_WINDOW = 7
_LPIPS_PIXELS = 32


@dataclass(frozen=True)
class Scores:
    """`mae` is in HU where the CT is compared in HU, in grey levels (0..255) by protocol "paper",
    and in fractions of the range for MR by protocol "synthrad"."""

    protocol: str
    psnr: float
    ssim: float
    mae: float

    def as_dict(self) -> dict:
        return asdict(self)


def ct_to_grey(hu: np.ndarray) -> np.ndarray:
    """HU to the 8-bit grey of protocol "paper": clip(HU, -1000, 1000) scaled to 0..255."""
    low, high = PAPER_CT_RANGE
    return np.round((np.clip(hu, low, high) - low) / (high - low) * 255).astype(np.uint8)


def to_grey(pixels: np.ndarray, modality: str, limits: tuple[float, float] | None = None) -> np.ndarray:
    """HU or MR (H, W) to the 8-bit grey of protocol "paper"; MR `limits` become 0 and 255."""
    return ct_to_grey(pixels) if modality == "CT" else to_uint8(window(pixels, limits))


def by_both_protocols(
    truth: np.ndarray, made: np.ndarray, mask: np.ndarray, modality: str, limits=None
) -> tuple[Scores, ...]:
    """Scores by both protocols of HU or MR (H, W); "synthrad" is left out where the body `mask` is empty.

    `limits` are the MR values that are black and white by protocol "paper".
    """
    scores = [paper(*(to_grey(x, modality, limits) for x in (truth, made)))]
    if mask.any():
        scores.append((synthrad_ct if modality == "CT" else synthrad_mr)(truth, made, mask))
    return tuple(scores)


def paper(truth: np.ndarray, made: np.ndarray) -> Scores:
    """The published project's protocol on 8-bit images (H, W), whole frame.

    `data_range` is max - min of this truth; skimage's PSNR and SSIM (7x7 uniform window). A
    perfect copy has infinite PSNR. Raises ValueError on other shapes or dtypes, images under 7
    pixels, or a constant truth.
    """
    _check(truth, made)
    if truth.dtype != np.uint8 or made.dtype != np.uint8:
        raise ValueError("Protocol 'paper' compares 8-bit images.")
    data_range = float(truth.max()) - float(truth.min())
    if data_range == 0:
        raise ValueError("The ground truth is a constant image: PSNR and SSIM are undefined.")
    return Scores(
        "paper",
        _psnr(truth, made, data_range),
        float(structural_similarity(truth, made, data_range=data_range, win_size=_SSIM_WINDOW)),
        float(np.abs(truth.astype(np.float64) - made).mean()),
    )


def synthrad_ct(truth: np.ndarray, made: np.ndarray, mask: np.ndarray) -> Scores:
    """SynthRAD2023's official metrics on HU (H, W), inside the body `mask` (H, W, bool).

    MAE in HU, unclipped; PSNR and SSIM on HU clipped to [-1024, 3000] and counted from there, range
    4024, with the outside of the mask at -1024 and the SSIM map averaged over the mask without a
    3-pixel border (Thummerer et al., Med. Phys. 2023; the challenge's ImageMetrics, which takes
    volumes and so a 7x7x7 window). Raises ValueError on other shapes or an empty mask.
    """
    return _synthrad(truth, made, mask, SYNTHRAD_CT_RANGE)


def synthrad_mr(truth: np.ndarray, made: np.ndarray, mask: np.ndarray) -> Scores:
    """`synthrad_ct` for MR: the truth's in-mask 0.5 and 99.5 percentiles become 0 and 1 in both
    images; range 1; MAE, unclipped as in CT, in fractions of that range.

    `made` must be in the units of `truth`. Raises ValueError for a truth constant inside the mask.
    """
    _check(truth, made, mask)
    low, high = np.percentile(truth[mask.astype(bool)], SYNTHRAD_MR_PERCENTILES)
    if high <= low:
        raise ValueError("The ground truth is constant inside the mask.")
    scaled = [(np.asarray(x, np.float64) - low) / (high - low) for x in (truth, made)]
    return _synthrad(*scaled, mask, (0.0, 1.0))


def _synthrad(truth: np.ndarray, made: np.ndarray, mask: np.ndarray, limits: tuple[float, float]) -> Scores:
    """Scores of (H, W) in units of which `limits` are the range, inside the body `mask` (H, W, bool)."""
    _check(truth, made, mask)
    mask = mask.astype(bool)
    inner = (slice(_SSIM_WINDOW // 2, -(_SSIM_WINDOW // 2)),) * 2
    if not mask[inner].any():
        raise ValueError("The body mask lies in the border of the image only, where SSIM is undefined.")
    low, high = limits
    truth, made = (np.asarray(x, np.float64) for x in (truth, made))
    mae = float(np.abs(truth - made)[mask].mean())
    # From zero upwards: SSIM compares means, so it depends on where zero is.
    truth, made = (np.where(mask, np.clip(x, low, high) - low, 0) for x in (truth, made))
    _, ssim_map = structural_similarity(truth, made, data_range=high - low, win_size=_SSIM_WINDOW, full=True)
    ssim = float(ssim_map[inner][mask[inner]].mean())
    return Scores("synthrad", _psnr(truth[mask], made[mask], high - low), ssim, mae)


def _psnr(truth, made, data_range) -> float:
    if np.array_equal(truth, made):
        return float("inf")
    return float(peak_signal_noise_ratio(truth, made, data_range=data_range))


def _check(truth, made, mask=None) -> None:
    shapes = {x.shape for x in (truth, made, mask) if x is not None}
    if len(shapes) != 1:
        raise ValueError(f"Images of different shapes cannot be compared: {sorted(shapes)}.")
    if truth.ndim != 2 or min(truth.shape) < _SSIM_WINDOW:
        raise ValueError(f"SSIM needs a 2D image of at least 7x7 pixels, not {truth.shape}.")
    if mask is not None and not mask.any():
        raise ValueError("The body mask is empty.")


def lpips(truth: np.ndarray, made: np.ndarray) -> float:
    """LPIPS (Zhang et al., arXiv 1801.03924; AlexNet) of 8-bit images (H, W), whole frame; 0 for equal ones.

    Images under 32 pixels are too small for the network: ValueError.
    """
    import torch

    from mediffuse.lpips import bundled

    _check(truth, made)
    if min(truth.shape) < _LPIPS_PIXELS:
        raise ValueError(f"LPIPS needs an image of at least {_LPIPS_PIXELS}x{_LPIPS_PIXELS} pixels, not {truth.shape}.")
    images = torch.from_numpy(np.stack([truth, made]).astype(np.float32) / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
    with torch.inference_mode():
        return float(bundled()(images[:1], images[1:])[0])


def sharpness(truth: np.ndarray, made: np.ndarray) -> float:
    """Mean gradient magnitude of 8-bit `made` (H, W) over that of `truth`: under 1 is blurred."""

    def gradient(image: np.ndarray) -> float:
        return float(np.hypot(*np.gradient(image.astype(np.float64))).mean())

    _check(truth, made)
    own = gradient(truth)
    return gradient(made) / own if own else float("nan")


def tissues(truth: np.ndarray, made: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """How a made CT agrees with the truth, tissue by tissue: HU (H, W), inside the body `mask`.

    dice_bone: Dice overlap of what is over `BONE_HU` in each. mae_bone, mae_soft, mae_air: mean absolute
    error in HU where the truth is bone, between, and under `TISSUE_HU`. NaN where there is none.
    """
    _check(truth, made, mask)
    mask = mask.astype(bool)
    bone, made_bone = (mask & (x > BONE_HU) for x in (truth, made))
    air = mask & (truth < TISSUE_HU)
    error = np.abs(np.asarray(truth, np.float64) - made)
    together = bone.sum() + made_bone.sum()
    return {
        "dice_bone": float(2 * (bone & made_bone).sum() / together) if together else float("nan"),
        **{
            f"mae_{name}": float(error[part].mean()) if part.any() else float("nan")
            for name, part in (("bone", bone), ("soft", mask & ~bone & ~air), ("air", air))
        },
    }


def air_share(truth: np.ndarray, mask: np.ndarray) -> float:
    """The share of a CT's body `mask` (H, W, bool) that is air, in sinuses and ears: what mae_air is the mean of."""
    return float((truth[mask] < TISSUE_HU).mean())


def body_mask(hu: np.ndarray) -> np.ndarray:
    """Rough body mask of a CT slice: the largest region above `TISSUE_HU` with its holes filled.

    Input HU (H, W), output bool (H, W). For scans that come without the challenge's mask.
    """
    from scipy import ndimage

    labels, count = ndimage.label(ndimage.binary_opening(hu > TISSUE_HU, iterations=2))
    if count == 0:
        return np.zeros(hu.shape, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(labels == sizes.argmax())
