"""LPIPS (Zhang et al., arXiv 1801.03924): a learned distance between pictures, 0 for equal ones.

AlexNet's weights are bundled, for judging; VGG16's, for a loss, are made by tools/lpips_weights.py, as
the authors advise: what is trained on one network's features is judged by another's.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

BUNDLED = Path(__file__).resolve().parents[1] / "assets" / "lpips" / "alex.safetensors"

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
# (stride, padding, max pooling before it as (window, stride) or None) of each convolution; where a
# feature map is compared.
_LAYERS = {
    "alex": ([(4, 2, None), (1, 2, (3, 2)), (1, 1, (3, 2)), (1, 1, None), (1, 1, None)], (0, 1, 2, 3, 4)),
    "vgg": ([(1, 1, (2, 2) if i in {2, 4, 7, 10} else None) for i in range(13)], (1, 3, 6, 9, 12)),
}


class Lpips(torch.nn.Module):
    """Distance (B,) of two batches of pictures (B, 3, H, W) in [-1, 1], at least 32 pixels a side.

    `weights`: a safetensors file of tools/lpips_weights.py. Raises OSError if it is missing, ValueError
    if it is something else.
    """

    def __init__(self, weights: Path = BUNDLED) -> None:
        super().__init__()
        state = load_file(weights)
        kind = {5: "alex", 13: "vgg"}.get(sum(name.endswith(".bias") for name in state))
        if kind is None:
            raise ValueError(f"{weights} holds no LPIPS weights: make them with tools/lpips_weights.py.")
        self.layers, self.compared = _LAYERS[kind]
        for name, value in state.items():
            self.register_buffer(name.replace(".", "_"), value.float(), persistent=False)
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None], persistent=False)

    def features(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of unit length per pixel, (B, C, h, w) each."""
        x, found = (images - self.shift) / self.scale, []
        for i, (stride, padding, pooled) in enumerate(self.layers):
            if pooled:
                x = F.max_pool2d(x, *pooled)
            weight, bias = getattr(self, f"conv{i}_weight"), getattr(self, f"conv{i}_bias")
            x = F.relu(F.conv2d(x, weight, bias, stride, padding))
            if i in self.compared:
                length = x.float().square().sum(1, keepdim=True).add(1e-12).sqrt()
                found.append(x.float() / (length + 1e-10))
        return found

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        distance = torch.zeros(len(images), device=images.device)
        for i, (a, b) in enumerate(zip(self.features(images), self.features(others), strict=True)):
            distance = distance + F.conv2d((a - b).square(), getattr(self, f"head{i}_weight")).mean((1, 2, 3))
        return distance


@functools.cache
def bundled() -> Lpips:
    """The bundled AlexNet, loaded once."""
    return Lpips().eval()
