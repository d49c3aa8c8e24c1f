"""Train the direct U-Net (L1 in pixels), the baseline of every results table.

    accelerate launch train/baseline.py --config train/configs/mini.yaml

Same data, augmentation and loop as the diffusion models. Writes a UNet2DModel that
mediffuse.translate.direct and `from_pretrained` load.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.evaluate.predict import direct_predictor
from mediffuse.translate import direct
from train import networks
from train.loop import Run, write_details
from train.options import Count, OptionError, Options, parse_options, run_as_command
from train.pairs import training_pairs
from train.pixels import weighted_windows
from train.validate import validate

Direction = Literal["ct2mr", "mr2ct", "contour2mr"]


@dataclass
class BaselineOptions(Options):
    directions: Annotated[list[Direction], "what is translated; contour2mr alone"] = field(
        default_factory=lambda: ["ct2mr", "mr2ct"]
    )
    unet: Annotated[dict, "UNet2DModel's config"] = field(default_factory=dict)
    patch: Annotated[int, "pixels a side that are folded into channels", Count] = 8
    window_weights: Annotated[list[float], "of the loss of the full, tissue and brain window"] = field(
        default_factory=lambda: [1.0, 1.0, 1.0]
    )


class Regression(torch.nn.Module):
    """Mean absolute error of the predicted model image."""

    def __init__(self, unet, options: BaselineOptions) -> None:
        super().__init__()
        self.unet = unet
        self.register_buffer("weights", weighted_windows(options.window_weights), persistent=False)

    def forward(self, batch: dict, generator: torch.Generator) -> torch.Tensor:
        """The loss () of a batch of train.pairs."""
        source = batch["hint"] * 2 - 1 if "hint" in batch else batch["input"]
        labels = torch.tensor([direct.LABELS[p] for p in batch["prompt"]], device=source.device)
        prediction = direct.forward(self.unet, source, labels).float()
        return (self.weights * (prediction - batch["target"]).abs()).mean()


def main(argv: list[str] | None = None) -> None:
    options = parse_options(BaselineOptions, "baseline", argv, __doc__)
    if "contour2mr" in options.directions and len(options.directions) > 1:
        raise OptionError("contour2mr has another input (edges): train it alone, --directions '[contour2mr]'.")
    dataset = training_pairs(options, options.directions)
    torch.manual_seed(options.seed)
    with networks.told("unet"):
        unet = direct.build(options.unet, options.patch)
    wanted = options.patch * unet.config.sample_size
    if dataset.side != wanted:
        raise OptionError(
            f"the pictures are {dataset.side} pixels a side, and patch times the unet's sample_size is {wanted}."
        )
    run = Run(options, Regression(unet, options))

    def save(output: Path) -> None:
        copy.deepcopy(unet).half().save_pretrained(output / "direct")
        write_details(output / "direct", run, directions=options.directions)

    def judge() -> dict:
        unet.eval()
        figures = validate(
            lambda direction: direct_predictor(unet, direction, mirror=False), options, options.directions
        )
        unet.train()
        return figures

    run.fit(dataset, judge, save)


if __name__ == "__main__":
    run_as_command(main)
