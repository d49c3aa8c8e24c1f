"""train/stages.py from raw scans to the bundle, by the stages of mini_gpu.yaml with tiny networks."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from mediffuse.scan import Slice
from mediffuse.translate import Settings, Translator
from mediffuse.translate.checkpoints import Checkpoints
from tests import tiny
from tests.serving import python

ROOT = Path(__file__).resolve().parents[1]


def stages(*arguments) -> subprocess.CompletedProcess:
    return python("train/stages.py", *arguments)


@pytest.fixture
def config(tmp_path) -> Path:
    """mini_gpu.yaml for tiny networks and few steps, in a folder of its own."""
    text = (ROOT / "train" / "configs" / "mini_gpu.yaml").read_text()
    text = text.replace("runs/mini_gpu", str(tmp_path / "runs")).replace("data/mini", str(tmp_path / "data"))
    config = yaml.safe_load(text.replace("data/lpips/vgg.safetensors", "assets/lpips/alex.safetensors"))
    config["common"] |= {"workers": 0, "steps": 2, "warmup": 1, "validate_images": 1, "largest_mib": 0.2}
    config["autoencoder"] |= {"autoencoder": tiny.AUTOENCODER, "crop": 64}
    config["ip2p"] |= {"unet": tiny.UNET, "text_encoder": tiny.TEXT, "cache": 8}
    config["controlnet"] |= {"conditioning_channels": [4, 8, 8, 8]}
    config["stages"]["decoder"] |= {"crop": 32}
    for name in ("autoencoder", "ip2p", "onestep", "controlnet"):
        config[name] |= {"batch_size": 4, "warmup": 1}
    config["prepare"] = {"size": 64, "plane": ["axial"], "around": 1, "val": 0.5, "test": 0}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def test_one_command_from_scans_to_the_bundle_goes_on_where_it_was_cut(config, tmp_path):
    for patient in ("p01", "p02"):  # one of them goes to val
        folder = tmp_path / "raw" / patient
        folder.mkdir(parents=True)
        shutil.copy(ROOT / "assets" / "examples" / "head_ct.nii.gz", folder / "ct.nii.gz")
        shutil.copy(ROOT / "assets" / "examples" / "head_t1.nii.gz", folder / "mr.nii.gz")
    options = yaml.safe_load(config.read_text())
    # Its base is missing, so the last stage fails.
    cut = json.loads(json.dumps(options))
    cut["stages"]["contours"]["base"] = str(tmp_path / "none")
    config.write_text(yaml.safe_dump(cut, sort_keys=False))
    done = stages("--config", config, "--input", tmp_path / "raw")
    assert done.returncode != 0
    assert "train/onestep.py failed. Started again, this command goes on with it." in done.stderr
    runs = tmp_path / "runs"
    names = ["autoencoder", "decoder", "ip2p", "pixels", "sharp", "controlnet"]
    assert sorted(path.parent.name for path in runs.glob("*/finished.json")) == sorted(names)

    # As if the stage before it had been cut, too.
    (runs / "controlnet" / "finished.json").unlink()
    config.write_text(yaml.safe_dump(options, sort_keys=False))
    done = stages("--config", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pixels has finished in" in done.stdout
    assert "Resuming from" in done.stdout
    assert done.stdout.count("train/controlnet.py") == 1

    bundle = runs / "bundle"
    sizes = {path: path.stat().st_size for path in bundle.rglob("*.safetensors")}
    assert len(list((bundle / "ip2p" / "unet").glob("*.safetensors"))) > 2
    assert max(sizes.values()) < 0.2 * 2**20
    details = json.loads((bundle / "ip2p" / "mediffuse.json").read_text())
    assert details["speeds"] == ["fast", "sharp", "diffusion"]
    assert [stage["stage"].rsplit("/", 1)[-1] for stage in details["earlier"]] == [
        "autoencoder",
        "decoder",
        "ip2p",
        "pixels",
    ]
    translator = Translator(Checkpoints(str(bundle)))
    one = Slice(np.random.default_rng(0).normal(0, 300, (40, 40)).astype(np.float32), (1, 1), "CT")
    for direction in ("ct2mr", "contour2mr"):
        for speed in ("fast", "sharp", "diffusion"):
            made = translator.translate(one, direction, Settings(speed=speed, steps=2))
            assert np.isfinite(made.pixels).all()


def test_what_is_missing_is_told_before_anything_is_trained(config):
    done = stages("--config", config)
    assert done.returncode != 0
    assert "give --input" in done.stderr
    config.write_text(config.read_text().replace("alex.safetensors", "none.safetensors"))
    done = stages("--config", config)
    assert done.returncode != 0
    assert "tools/lpips_weights.py" in done.stderr
