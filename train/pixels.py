"""Losses of pictures: what the autoencoder, the one-step stage and its sharp variant compare."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm

from train.options import OptionError


@dataclass
class PixelOptions:
    """Weights of the parts of `PixelLoss`."""

    l1_weight: Annotated[float, "of the mean absolute error"] = 1.0
    l2_weight: Annotated[float, "of the mean squared error"] = 2.0
    ssim_weight: Annotated[float, "of 1 - SSIM"] = 0.0
    lpips_weight: Annotated[float, "of LPIPS"] = 0.0
    lpips: Annotated[Path | None, "weights of tools/lpips_weights.py: VGG16's, since AlexNet's judge"] = None
    window_weights: Annotated[list[float], "of the loss of the full, tissue and brain window"] = field(
        default_factory=lambda: [1.5, 0.9, 0.6]
    )


class PixelLoss(torch.nn.Module):
    """L1, L2 and SSIM of pictures (B, 3, S, S) in [-1, 1], weighted by channel; a loss a picture, (B,).

    LPIPS is apart, in `perceptual`: not every picture has it.
    """

    def __init__(self, options) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("weights", weighted_windows(options.window_weights), persistent=False)
        self.network = lpips(options.lpips) if options.lpips_weight else None

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        o, difference = self.options, prediction - target
        loss = (self.weights * (o.l1_weight * difference.abs() + o.l2_weight * difference.square())).mean((1, 2, 3))
        if o.ssim_weight:
            loss = loss + o.ssim_weight * (self.weights * (1 - ssim(prediction, target))).mean((1, 2, 3))
        return loss

    def perceptual(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """`lpips_weight` of LPIPS, (B,)."""
        return self.options.lpips_weight * self.network(prediction.clamp(-1, 1), target)


def lpips(weights: Path | None):
    """The frozen LPIPS network of a file of weights. Raises OptionError if it cannot be used."""
    from mediffuse.lpips import Lpips

    if not weights:
        raise OptionError("--lpips-weight needs --lpips: a file that tools/lpips_weights.py wrote.")
    try:
        return Lpips(weights)
    except (OSError, ValueError) as error:
        raise OptionError(f"--lpips {weights} cannot be used: {error}") from error


class Critic(torch.nn.Module):
    """Patch discriminator (Isola et al., arXiv 1611.07004) of (input, picture), with spectral norm.

    Both (B, 3, S, S) in [-1, 1]; gives a score per patch, (B, 1, S / 8 - 2, S / 8 - 2), high for real ones.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        sizes, layers = [6, width, 2 * width, 4 * width], []
        for before, after in itertools.pairwise(sizes):
            layers += [spectral_norm(torch.nn.Conv2d(before, after, 4, 2, 1)), torch.nn.LeakyReLU(0.2)]
        layers += [spectral_norm(torch.nn.Conv2d(sizes[-1], sizes[-1], 3)), torch.nn.LeakyReLU(0.2)]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Conv2d(sizes[-1], 1, 1))

    def forward(self, source: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.cat([source, picture], 1)).float()

    def loss(self, source: torch.Tensor, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Hinge loss of the critic itself; gives no gradient to `prediction`."""
        real, fake = self(source, target), self(source, prediction.detach())
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def limited(loss: torch.Tensor, adversarial: torch.Tensor, prediction: torch.Tensor, share: float) -> torch.Tensor:
    """`loss` and `adversarial`, the latter scaled so that its gradient at `prediction` is `share` of the former's.

    (Esser et al., arXiv 2012.09841, equation 7, at the pictures.) The value is that of `loss`; only
    `prediction`'s graph gets gradients, so the critic gets none.
    """
    (own,) = torch.autograd.grad(loss, prediction)
    (other,) = torch.autograd.grad(adversarial, prediction)
    gradient = own + other * (share * own.norm() / other.norm().clamp_min(1e-12))
    surrogate = (prediction * gradient.detach()).sum()
    return surrogate + (loss - surrogate).detach()


def weighted_windows(weights: list) -> torch.Tensor:
    """Loss weights of the colour channels, i.e. of the HU windows, as (3, 1, 1) of mean 1."""
    if len(weights) != 3 or not sum(weights):
        raise OptionError(f"window_weights is {weights}, and should be three numbers that are not all 0.")
    values = torch.tensor(weights, dtype=torch.float32)
    return (values / values.mean())[:, None, None]


def random_part(side: int, part: int, generator: torch.Generator) -> tuple[int, int]:
    """(top, left) of a part of `part` pixels or latents of a square of `side`."""
    top, left = torch.randint(0, side - part + 1, (2,), generator=generator).tolist()
    return top, left


def ssim(a: torch.Tensor, b: torch.Tensor, data_range: float = 2.0, size: int = 7) -> torch.Tensor:
    """SSIM map (B, C, H - 6, W - 6) with a uniform window, as protocol "paper" (skimage) computes it."""

    def mean(x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, size, stride=1)

    mean_a, mean_b = mean(a), mean(b)
    sample = size**2 / (size**2 - 1)  # skimage's covariances are unbiased
    var_a, var_b = sample * (mean(a * a) - mean_a**2), sample * (mean(b * b) - mean_b**2)
    covariance = sample * (mean(a * b) - mean_a * mean_b)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
