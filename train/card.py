"""The model card of what a run leaves, as the hub and the page show it."""

from __future__ import annotations

import json
from pathlib import Path

from mediffuse.directions import DIRECTION_TITLES
from mediffuse.files import write_text
from mediffuse.translate import checkpoints

NAME = "README.md"
METRICS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "sharpness": "Sharpness"}
TITLES = {**DIRECTION_TITLES, "mr": "MRI, encoded and decoded", "ct": "CT, encoded and decoded"}


def write(output: Path, data: str, figures: dict[str, float]) -> None:
    """Write a card beside each model in `output`. data: name of the dataset. figures: of a validation, by direction."""
    for details in output.glob(f"*/{checkpoints.DETAILS}"):
        write_text(details.with_name(NAME), text(details.parent, data, figures))


def text(folder: Path, data: str, figures: dict[str, float]) -> str:
    """The card of the model in a folder, from its mediffuse.json and the `figures` of its validation."""
    from huggingface_hub import EvalResult, ModelCardData

    details = json.loads((folder / checkpoints.DETAILS).read_text(encoding="utf-8"))
    title = " and ".join(DIRECTION_TITLES[d] for d in details.get("directions", ())) or "autoencoder of CT and MRI"
    measured = {d: {m: figures[f"{d}_{m}"] for m in METRICS if f"{d}_{m}" in figures} for d in TITLES}
    results = [
        EvalResult(
            task_type="image-to-image",
            task_name=TITLES[direction],
            dataset_type=data,
            dataset_name=data,
            dataset_config=direction,
            dataset_split="val",
            metric_type=metric,
            metric_name=f"{metric.upper()} (paper)",
            metric_value=round(value, 4),
        )
        for direction, found in measured.items()
        for metric, value in found.items()
    ]
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="image-to-image",
        tags=["medical", "ct", "mri", "mediffuse"],
        model_name=f"Mediffuse {folder.name}",
        eval_results=results or None,
    )
    made = details["training"]
    how = f"{made['steps']} steps of {made['batch_size']} samples, {made['seconds']} s on {made['hardware']}"
    lines = [
        f"---\n{metadata.to_yaml()}\n---\n",
        f"# Mediffuse: {title}\n",
        "**Research use only, not for diagnosis.**\n",
        *(f"- {sentence}" for sentence in checkpoints.limits(str(folder))),
        f"- Made by `{made['command']}`: {how}. What came before, if anything: `{checkpoints.DETAILS}`.",
        f"- `{checkpoints.VARIABLE}=FOLDER-OR-HUB-ID python app.py` shows it in the app.\n",
    ]
    if results:
        lines += [
            f"Val split of {data}, central slices, protocol *paper*, by the training's own validation:\n",
            "| | " + " | ".join(METRICS.values()) + " |",
            "| --- " * (len(METRICS) + 1) + "|",
            *(
                f"| {TITLES[d]} | " + " | ".join(f"{found[m]:.3f}" if m in found else "" for m in METRICS) + " |"
                for d, found in measured.items()
                if found
            ),
        ]
    return "\n".join(lines).rstrip() + "\n"
