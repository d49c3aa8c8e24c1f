"""The real command line of each trainer, a few steps on tiny models."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mediffuse.dataset import DatasetError
from mediffuse.scan import Slice
from mediffuse.translate import Settings, Translator, direct
from mediffuse.translate.checkpoints import Checkpoints
from tests import hub, tiny
from tests.serving import python
from train.options import OptionError
from train.pairs import PairDataset

ROOT = Path(__file__).resolve().parents[1]


def train(script, *arguments) -> str:
    # As `accelerate launch` does for one process, without its own start-up.
    done = python(ROOT / "train" / script, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A prepared data set of two patients, a tiny config, and a trained tiny autoencoder and IP2P."""
    work = tmp_path_factory.mktemp("train")
    examples = ROOT / "assets" / "examples"
    for patient in ("p01", "p02"):
        folder = work / "raw" / patient
        folder.mkdir(parents=True)
        shutil.copy(examples / "head_ct.nii.gz", folder / "ct.nii.gz")
        shutil.copy(examples / "head_t1.nii.gz", folder / "mr.nii.gz")
    data = work / "data"
    train("prepare.py", "--input", work / "raw", "--output", data, "--around", 1, "--size", 64, "--val", 0, "--test", 0)
    shutil.copytree(data / "train", data / "val")
    config = {
        "common": {
            "data": str(data),
            "workers": 0,
            "batch_size": 2,
            "checkpoint_every": 2,
            "keep_checkpoints": 5,
            "validate_images": 1,
            "log_every": 1,
            "warmup": 1,
        },
        "autoencoder": {"output": str(work / "ae"), "autoencoder": tiny.AUTOENCODER, "crop": 32, "steps": 2},
        "ip2p": {
            "output": str(work / "ip2p"),
            "vae_dir": str(work / "ae" / "vae"),
            "unet": tiny.UNET,
            "text_encoder": tiny.TEXT,
            "steps": 4,
        },
        "onestep": {"steps": 4, "keep_share": 0.5},
        "baseline": {"unet": tiny.DIRECT, "ema_decay": 0.5},
        "controlnet": {
            "output": str(work / "controlnet"),
            "base": str(work / "ip2p" / "ip2p"),
            "conditioning_channels": [4, 8, 8, 8],
            "steps": 2,
        },
    }
    (work / "tiny.yaml").write_text(yaml.safe_dump(config))
    train("autoencoder.py", "--config", work / "tiny.yaml")
    train("ip2p.py", "--config", work / "tiny.yaml")
    return work


def weights(folder) -> dict:
    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_autoencoder_latents_are_standardised(work):
    from diffusers import AutoencoderKL

    from mediffuse.dataset import read_image, read_rows
    from train.pairs import to_tensor

    vae = AutoencoderKL.from_pretrained(work / "ae" / "vae")
    folder = work / "data" / "train"
    images = [torch.from_numpy(to_tensor(read_image(folder / r["input_image_file_name"]))) for r in read_rows(folder)]
    with torch.no_grad():
        latents = vae.encode(torch.stack(images)).latent_dist.mode()
    assert latents.mean((0, 2, 3)).abs().max() < 0.05
    assert latents.std().item() == pytest.approx(1, abs=0.1)


def test_the_ceiling_of_a_finished_autoencoder_is_printed(work):
    said = train("autoencoder.py", "--data", work / "data", "--judge-dir", work / "ae" / "vae")
    logged = (work / "ae" / "validation.csv").read_text().splitlines()[-1].split(",")
    printed = float(re.search(r"'mr_psnr': ([\d.]+)", said).group(1))
    assert printed == pytest.approx(float(logged[1]), abs=0.5)


def test_ip2p_logs_checkpoints_and_provenance(work):
    output = work / "ip2p"
    log = (output / "log.csv").read_text().splitlines()
    assert log[0] == "step,loss,rate,seconds"
    assert [line.split(",")[0] for line in log[1:]] == ["1", "2", "3", "4"]
    assert "ct2mr_psnr" in (output / "validation.csv").read_text()
    assert list(output.glob("logs/**/events*"))
    assert sorted(p.name for p in output.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    details = json.loads((output / "ip2p" / "mediffuse.json").read_text())
    assert details["training"]["steps"] == 4
    assert weights(output / "ip2p")["conv_in.weight"].dtype == torch.float16


def test_resume_ends_where_an_unbroken_run_ends(work, tmp_path):
    shutil.copytree(work / "ip2p", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    shutil.rmtree(tmp_path / "run" / "ip2p")
    said = train("ip2p.py", "--config", work / "tiny.yaml", "--output", tmp_path / "run")
    assert "checkpoint-2 at step 2" in said
    unbroken, resumed = weights(work / "ip2p" / "ip2p"), weights(tmp_path / "run" / "ip2p")
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name]), name


def killed(path: Path, *arguments) -> None:
    """Run a command, and kill it and its children as soon as `path` is there."""
    words = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(words, cwd=ROOT, env=tiny.cpu_environment(), stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 200
        while not path.exists():
            assert process.poll() is None, "it ended before"
            assert time.monotonic() < until
            time.sleep(0.001)
        for one in (*psutil.Process(process.pid).children(recursive=True), process):
            one.kill()


LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]


def train_by_two(work: Path, script: str, output: Path, *arguments) -> None:
    given = ["--config", work / "tiny.yaml", "--checkpoint-every", 1, "--validate-images", 0, "--output", output]
    done = python(*LAUNCH, ROOT / "train" / script, *given, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def losses(output: Path) -> list[float]:
    return [float(row["loss"]) for row in csv.DictReader((output / "log.csv").open())]


@pytest.fixture(scope="module")
def by_two(work) -> Path:
    """A run of train/ip2p.py by two processes."""
    train_by_two(work, "ip2p.py", work / "two")
    details = json.loads((work / "two" / "ip2p" / "mediffuse.json").read_text())["training"]
    assert (details["processes"], details["batch_size"]) == (2, 4)
    return work / "two"


@pytest.mark.parametrize("launch", [[], LAUNCH], ids=["one process", "two processes"])
def test_killed_at_any_step_a_run_ends_where_an_unbroken_one_ends(work, tmp_path, launch, request):
    given = [*launch, ROOT / "train" / "ip2p.py", "--config", work / "tiny.yaml", "--checkpoint-every", 1]
    given += ["--validate-images", 0, "--output"]
    whole = request.getfixturevalue("by_two") if launch else work / "ip2p"
    assert len(losses(whole)) == 4
    broken = tmp_path / "broken"
    killed(broken / ".checkpoint-2", *given, broken)  # while it is written
    if not launch:
        killed(broken / "checkpoint-3", *given, broken)
    done = python(*given, broken)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Resuming from" in done.stdout
    assert not list(broken.glob(".checkpoint-*"))
    unbroken, resumed = weights(whole / "ip2p"), weights(broken / "ip2p")
    for name, value in unbroken.items():
        assert torch.equal(value, resumed[name]), name


def test_sharded_weights_learn_what_whole_ones_do_and_end_in_an_ordinary_pipeline(work, by_two, tmp_path):
    given = ["--shard", "true", "--gradient-checkpointing", "true"]
    train_by_two(work, "ip2p.py", tmp_path, *given)
    assert losses(tmp_path) == pytest.approx(losses(by_two), rel=1e-4)
    made = weights(tmp_path / "ip2p")
    for name, value in weights(by_two / "ip2p").items():
        torch.testing.assert_close(made[name], value, atol=1e-4, rtol=1e-3)
    trained = json.loads((tmp_path / "ip2p" / "mediffuse.json").read_text())["training"]["parameters"]
    for rank in (0, 1):  # half of the weights, of their average and of Adam's two moments
        assert (tmp_path / "checkpoint-4" / f"shard-{rank}.bin").stat().st_size < 1.3 * trained * 4 * 4 / 2
    for step in (3, 4):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    train_by_two(work, "ip2p.py", tmp_path, *given, "--validate-images", 1)  # resumed
    for name, value in weights(tmp_path / "ip2p").items():
        assert torch.equal(made[name], value), name


def test_two_processes_may_have_samples_of_different_kinds(work, tmp_path):
    """Where the one has only samples to denoise, and the other only some to compare in pixels."""
    given = ["--base", work / "ip2p" / "ip2p", "--critic-share", 0.2, "--train-decoder", "true"]
    train_by_two(work, "onestep.py", tmp_path, *given)
    assert np.isfinite(losses(tmp_path)).all()


def test_cached_latents_are_those_of_fresh_samples_and_are_kept(work, tmp_path):
    given = ["--config", work / "tiny.yaml", "--output", tmp_path, "--cache", 6, "--checkpoint-every", 2]
    train("ip2p.py", *given)
    array, made = np.load(tmp_path / "latents.npy"), (tmp_path / "latents.npy").stat().st_mtime_ns
    assert array.shape == (6, 2, 4, 8, 8)
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(work / "ae" / "vae")
    sample = PairDataset(work / "data", "train", ("ct2mr", "mr2ct"))[3]
    with torch.no_grad():
        latents = vae.encode(torch.from_numpy(np.stack([sample["input"], sample["target"]]))).latent_dist.mode()
    np.testing.assert_allclose(array[3], latents.numpy(), atol=0.01)
    assert json.loads((tmp_path / "latents.json").read_text())["prompts"][3] == sample["prompt"]
    train_by_two(work, "ip2p.py", tmp_path / "two", "--cache", 6, "--steps", 1)  # each encodes a share
    np.testing.assert_array_equal(np.load(tmp_path / "two" / "latents.npy"), array)
    same = [json.loads((folder / "latents.json").read_text()) for folder in (tmp_path, tmp_path / "two")]
    assert same[0] == same[1]
    shutil.rmtree(tmp_path / "checkpoint-4")
    first = weights(tmp_path / "ip2p")
    train("ip2p.py", *given)  # resumed, with the latents as they are
    assert (tmp_path / "latents.npy").stat().st_mtime_ns == made
    for name, value in weights(tmp_path / "ip2p").items():
        assert torch.equal(value, first[name]), name
    train("ip2p.py", *given, "--seed", 5, "--overwrite", "true")
    assert not np.array_equal(np.load(tmp_path / "latents.npy"), array)


def test_what_diffusers_own_trainers_can_is_an_option_too(work, tmp_path):
    """Everything at once, with a picture in the tracker and the best model beside the last."""
    given = {
        "gradient_checkpointing": "true",
        "ema_on_cpu": "true",
        "lora_rank": 2,
        "snr_gamma": 5,
        "lr_schedule": "linear",
        "samples": 2,
        "validate_every": 2,
        "validate_pictures": 1,
        "best": "ct2mr_psnr",
        "patience": 5,
        "variant": "fp16",
        "base": tmp_path / "base",
        "output": tmp_path / "out",
    }
    from diffusers import DiffusionPipeline

    DiffusionPipeline.from_pretrained(work / "ip2p" / "ip2p").save_pretrained(tmp_path / "base", variant="fp16")
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    train("ip2p.py", "--config", work / "tiny.yaml", *words)
    for folder in (tmp_path / "out" / "ip2p", tmp_path / "out" / "best" / "ip2p"):
        assert weights(folder).keys() == weights(work / "ip2p" / "ip2p").keys()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = [EventAccumulator(str(path)).Reload() for path in (tmp_path / "out" / "logs").glob("**/events*")]
    assert "ct2mr_pictures" in {tag for event in events for tag in event.Tags()["images"]}
    saved = load_file(tmp_path / "out" / "checkpoint-4" / "trained.safetensors")
    assert not any("vae" in name or "base_layer" in name for name in saved)


def test_a_finished_pipeline_is_pushed_with_its_card_and_runs_from_the_hub(work, tmp_path):
    from huggingface_hub import ModelCard

    output = tmp_path / "out"
    with hub.served() as there:
        environment = there.environment(tmp_path / "home")
        given = ["--config", work / "tiny.yaml", "--steps", 1, "--output", output, "--push-to-hub", "me/heads"]
        done = python("train/ip2p.py", *given, **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [repo["visibility"] for repo in there.created] == ["private"]
        files = {p.relative_to(output / "ip2p").as_posix(): p.read_bytes() for p in (output / "ip2p").rglob("*.*")}
        assert there.repos == {"me/heads": files}
        assert {"README.md", "mediffuse.json", "model_index.json", "unet/config.json"} < files.keys()
        load = "from mediffuse.translate import checkpoints; print(checkpoints.load('me/heads', 'ct2mr'))"
        assert "size=64, one_step=True" in python("-c", load, **environment).stdout
        there.refuses = {"/api/models/me/heads/commit/main", "/api/repos/create"}
        push = f"from pathlib import Path; from train import hub; hub.push(Path({str(output)!r}), 'me/heads')"
        assert f"hf upload me/heads {output / 'ip2p'}" in python("-c", push, **environment).stderr
        done = python("-c", "from train import hub; hub.prepare('me/others')", **environment)
        assert "the hub gives no me/others to write to" in done.stderr
    card = ModelCard(files["README.md"].decode())
    assert card.data.library_name == "diffusers"
    (psnr,) = [r for r in card.data.eval_results if (r.dataset_config, r.metric_type) == ("ct2mr", "psnr")]
    (row,) = csv.DictReader((output / "validation.csv").open())
    assert psnr.metric_value == pytest.approx(float(row["ct2mr_psnr"]), abs=1e-4)
    assert "Trained on heads" in card.text
    assert "Patients of its val split were trained on" in card.text  # it is a copy of the train split


def test_checkpoints_rotate(work, tmp_path):
    train(
        "ip2p.py",
        "--config",
        work / "tiny.yaml",
        "--output",
        tmp_path,
        "--checkpoint-every",
        1,
        "--keep-checkpoints",
        2,
    )
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


@pytest.fixture(scope="module")
def contours(work) -> Path:
    """The pipeline that train/controlnet.py wrote."""
    train("controlnet.py", "--config", work / "tiny.yaml")
    return work / "controlnet" / "controlnet"


def test_controlnet_trains_and_the_app_loads_both(work, contours):
    base = contours
    train("onestep.py", "--config", work / "tiny.yaml", "--base", base, "--output", work / "contours")
    net = load_file(base / "controlnet" / "diffusion_pytorch_model.safetensors")
    assert net["controlnet_mid_block.weight"].abs().max() > 0  # it was zero before training
    given = f"{work / 'ip2p' / 'ip2p'},{work / 'contours' / 'controlnet'}"
    translator = Translator(Checkpoints(given))
    one = Slice(np.random.default_rng(0).normal(0, 300, (40, 40)).astype(np.float32), (1, 1), "CT")
    for direction in ("ct2mr", "contour2mr"):
        assert np.isfinite(translator.translate(one, direction, Settings()).pixels).all()


def test_a_further_stage_keeps_the_record_of_those_before(work, tmp_path):
    base = work / "ip2p" / "ip2p"
    train("onestep.py", "--config", work / "tiny.yaml", "--base", base, "--output", tmp_path)
    details = json.loads((tmp_path / "ip2p" / "mediffuse.json").read_text())
    autoencoder, first = details["earlier"]
    assert autoencoder == json.loads((work / "ae" / "vae" / "mediffuse.json").read_text())["training"]
    assert first == json.loads((base / "mediffuse.json").read_text())["training"]
    assert details["directions"] == ["ct2mr", "mr2ct"]
    stages = (autoencoder, first, details["training"])
    for stage in stages:
        assert stage["seconds"] >= 0
        assert stage["peak_memory_mib"] > 100
    losses = (tmp_path / "ip2p" / "training.csv").read_text().splitlines()
    assert losses[0] == "stage,step,loss"
    wanted = [(stage["stage"], str(n + 1)) for stage in stages for n in range(stage["steps"])]
    assert [tuple(line.split(",")[:2]) for line in losses[1:]] == wanted


@pytest.mark.parametrize("kind", ["ip2p", "controlnet"])
def test_one_step_training_sees_what_the_fast_path_makes(kind):
    from mediffuse.directions import prompt_for
    from mediffuse.image.contours import contour_hint
    from mediffuse.image.intensity import decode_ct
    from mediffuse.translate import generate
    from mediffuse.translate.checkpoints import describe
    from train.denoising import Contours, Ip2p
    from train.onestep import OneStep, OneStepOptions
    from train.pairs import to_tensor

    pipeline, direction = getattr(tiny, kind)(), "ct2mr" if kind == "ip2p" else "contour2mr"
    image = np.random.default_rng(0).random((tiny.SIZE, tiny.SIZE, 3), np.float32)
    fast = generate(describe(pipeline), direction, image[None], Settings(mirror=False))[0]
    options = OneStepOptions()
    objective = OneStep({"ip2p": Ip2p, "controlnet": Contours}[kind](pipeline, options), options)
    tensor = torch.from_numpy(to_tensor(image))[None]
    hint = torch.from_numpy(contour_hint(decode_ct(image)).transpose(2, 0, 1).astype(np.float32) / 255)[None]
    batch = {"input": tensor, "target": tensor, "prompt": [prompt_for(direction)]}
    if kind == "controlnet":
        batch["hint"] = hint
    with torch.no_grad():
        made, target, source = objective.one_step(batch)
        np.testing.assert_allclose(made[0].clamp(-1, 1).numpy().transpose(1, 2, 0) / 2 + 0.5, fast, atol=1e-4)
    assert torch.equal(target, tensor)
    assert torch.equal(source, tensor if kind == "ip2p" else hint * 2 - 1)


def test_one_step_learns_in_pixels():
    from train.denoising import Ip2p
    from train.onestep import OneStep, OneStepOptions

    pipeline, options = tiny.ip2p(), OneStepOptions(keep_share=0.25, ssim_weight=0.2)
    objective = OneStep(Ip2p(pipeline, options), options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # pictures that the frozen decoder can make
        target = pipeline.vae.decode(torch.randn(2, 4, 8, 8, generator=generator)).sample
    batch = {"input": target.flip(3), "target": target, "prompt": ["a", "b"]}
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad], 3e-3)

    def distance() -> float:
        with torch.no_grad():
            made, target, _ = objective.one_step(batch)
            return objective.compare(made, target).mean().item()

    before = distance()
    for _ in range(60):
        optimizer.zero_grad()
        objective(batch, generator).backward()
        optimizer.step()
    assert distance() < 0.5 * before
    assert all(p.grad is None for p in pipeline.vae.parameters())


def test_samples_from_the_mean_start_at_the_fast_prediction(monkeypatch):
    """At the last timestep the noisy latents are the prediction with `mean_noise` on it, and nothing of the truth."""
    from train.denoising import Ip2p
    from train.ip2p import Ip2pOptions

    pipeline = tiny.ip2p()
    options = Ip2pOptions(zero_share=0, terminal_share=1, mean_share=1, mean_noise=[0.2, 0.2])
    objective = Ip2p(pipeline, options)
    batch = {name: torch.rand(3, 3, 64, 64) * 2 - 1 for name in ("input", "target")} | {"prompt": ["a", "b", "c"]}
    seen, predict = [], objective.predict

    def watched(noisy, *rest):
        seen.append(noisy.detach())
        return predict(noisy, *rest)

    monkeypatch.setattr(objective, "predict", watched)
    loss = objective(batch, torch.Generator().manual_seed(0))
    zeros, started = seen
    assert not zeros.any()
    with torch.no_grad():
        prediction = objective.one_step(batch, objective.embed(batch["prompt"]), zeros)
    assert (started - prediction).std().item() == pytest.approx(0.2, rel=0.15)
    loss.backward()
    assert pipeline.unet.conv_in.weight.grad.abs().sum() > 0


def test_the_sharp_variant_is_judged_by_a_critic():
    from mediffuse.lpips import BUNDLED
    from train.denoising import Ip2p
    from train.onestep import OneStep, OneStepOptions

    options = OneStepOptions(sharp=True, lpips_weight=0.1, lpips=BUNDLED, crop=40, critic_share=0.2, critic_ramp=1)
    pipeline = tiny.ip2p()
    objective = OneStep(Ip2p(pipeline, options), options)
    batch = {name: torch.rand(2, 3, 64, 64) * 2 - 1 for name in ("input", "target")} | {"prompt": ["a", "b"]}
    objective(batch, torch.Generator().manual_seed(0)).backward()
    assert all(p.grad is not None for p in objective.critic.parameters())
    assert pipeline.unet.conv_out.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in pipeline.vae.parameters())


def test_the_critics_verdict_has_a_share_of_the_gradient():
    from train.pixels import limited

    made = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss, verdict = (made - 1).abs().mean(), (made[:1] * 7).sum()
    total = limited(loss, verdict, made, 0.2)
    assert total.item() == pytest.approx(loss.item())
    total.backward()
    own = torch.full((3, 4, 4), -1 / made.numel())
    torch.testing.assert_close(made.grad[1], own)
    torch.testing.assert_close((made.grad[0] - own).norm(), 0.2 * own.norm() * 2**0.5)  # of both pictures'


def test_a_decoder_learns_alone(work, tmp_path):
    """With the encoder frozen the latents stay, bit for bit, and the decoder changes."""
    from mediffuse.lpips import BUNDLED

    given = ["--train-encoder", "false", "--latent-noise", 0.3, "--lpips-weight", 0.1, "--lpips", BUNDLED]
    given += ["--crop", 48, "--base-dir", work / "ae" / "vae", "--output", tmp_path]
    train("autoencoder.py", "--config", work / "tiny.yaml", *given)
    name = "diffusion_pytorch_model.safetensors"
    before, after = (load_file(folder / "vae" / name) for folder in (work / "ae", tmp_path))
    changed = {k.split(".")[0] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize(
    ("kind", "part", "weight"),
    [("ip2p", "unet", "conv_out.weight"), ("controlnet", "controlnet", "controlnet_mid_block.weight")],
)
def test_sharp_has_a_part_of_its_own_beside_the_pipelines(work, contours, tmp_path, kind, part, weight):
    from mediffuse.lpips import BUNDLED

    given = ["--base", work / kind / kind, "--vae-dir", work / "ae" / "vae", "--sharp", "true", "--steps", 2]
    given += ["--lpips-weight", 0.1, "--lpips", BUNDLED, "--critic-share", 0.2, "--learning-rate", 1e-3]
    train("onestep.py", "--config", work / "tiny.yaml", *given, "--output", tmp_path / "sharp")
    folder = tmp_path / "sharp" / kind
    details = json.loads((folder / "mediffuse.json").read_text())
    assert details["speeds"] == ["fast", "sharp", "diffusion"]
    for kept in {"unet", "text_encoder", "controlnet"} & {path.name for path in folder.iterdir()}:
        name = "model.safetensors" if kept == "text_encoder" else "diffusion_pytorch_model.safetensors"
        before, after = (load_file(root / kept / name) for root in (work / kind / kind, folder))
        assert all(torch.equal(before[k], after[k]) for k in before)
    own, sharp = (load_file(folder / part / f"diffusion_pytorch_model.{n}safetensors") for n in ("", "sharp."))
    assert own.keys() == sharp.keys()
    assert not torch.equal(own[weight], sharp[weight])
    direction = "contour2mr" if kind == "controlnet" else "ct2mr"
    figures = (tmp_path / "sharp" / "validation.csv").read_text().splitlines()[0].split(",")
    assert {f"{direction}_lpips", f"{direction}_sharpness"} <= set(figures)
    checkpoint = Checkpoints(str(tmp_path / "sharp")).get(direction)
    assert torch.equal(checkpoint.sharp.get_parameter(weight).half(), sharp[weight])
    # What goes on from it begins where it ended.
    again = [*given, "--base", folder, "--learning-rate", 0, "--output", tmp_path / "again"]
    train("onestep.py", "--config", work / "tiny.yaml", *again)
    kept = load_file(tmp_path / "again" / kind / part / "diffusion_pytorch_model.sharp.safetensors")
    assert torch.equal(kept[weight], sharp[weight])
    # What it learnt is added to other weights of Fast.
    moved = tmp_path / "moved"
    shutil.copytree(work / kind / kind, moved)
    weights = load_file(moved / part / "diffusion_pytorch_model.safetensors")
    weights[weight] += 1
    save_file(weights, moved / part / "diffusion_pytorch_model.safetensors")
    given = [*given, "--base", moved, "--sharp-from", folder, "--learning-rate", 0]
    train("onestep.py", "--config", work / "tiny.yaml", *given, "--output", tmp_path / "added")
    added = load_file(tmp_path / "added" / kind / part / "diffusion_pytorch_model.sharp.safetensors")
    assert torch.allclose(added[weight], sharp[weight] + 1, atol=2e-3)


def test_onestep_on_another_decoder_goes_on_sampling_from_its_own_prediction(work, tmp_path):
    given = ["--base", work / "ip2p" / "ip2p", "--vae-dir", work / "ae" / "vae", "--output", tmp_path]
    train("onestep.py", "--config", work / "tiny.yaml", *given, "--mean-share", 0.5, "--steps", 2)
    details = json.loads((tmp_path / "ip2p" / "mediffuse.json").read_text())
    assert details["mean_noise"] == pytest.approx(0.2)
    assert len(details["earlier"]) == 2
    assert Checkpoints(str(tmp_path)).get("ct2mr").mean_noise == pytest.approx(0.2)


def test_ssim_of_the_loss_is_that_of_the_tables():
    from skimage.metrics import structural_similarity

    from train.pixels import ssim

    a, b = np.random.default_rng(0).random((2, 40, 50), np.float32)
    b = a + 0.3 * b
    wanted = structural_similarity(a, b, data_range=2.0)
    made = ssim(torch.from_numpy(a)[None, None], torch.from_numpy(b)[None, None]).mean().item()
    assert made == pytest.approx(wanted, abs=1e-5)


def test_one_step_refuses_a_base_of_another_schedule(work, tmp_path):
    shutil.copytree(work / "ip2p" / "ip2p", tmp_path / "base")
    path = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace("v_prediction", "epsilon"))
    done = python("train/onestep.py", "--config", work / "tiny.yaml", "--base", tmp_path / "base")
    assert done.returncode != 0
    assert "another schedule" in done.stderr


def test_direct_unet_learns_and_is_evaluated(work, tmp_path):
    given = ["--config", work / "tiny.yaml", "--output", tmp_path, "--steps", 40, "--learning-rate", 0.01]
    train("baseline.py", *given)
    loss = [float(line.split(",")[1]) for line in (tmp_path / "log.csv").read_text().splitlines()[1:]]
    assert np.mean(loss[-5:]) < 0.6 * np.mean(loss[:5])
    model = direct.load(str(tmp_path / "direct"))
    image = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    made = direct.predict(model, image, "translate CT scan image to T1 MRI scan image")
    assert made.shape == image.shape
    assert 0 <= made.min() <= made.max() <= 1
    # The label says which translation is wanted.
    assert not np.array_equal(made, direct.predict(model, image, "translate T1 MRI scan image to CT scan image"))


def test_direct_unet_takes_contours_alone(work, tmp_path):
    given = ["--config", work / "tiny.yaml", "--output", tmp_path, "--steps", 1]
    train("baseline.py", *given, "--directions", "[contour2mr]")
    assert direct.is_direct(tmp_path / "direct")
    done = python("train/baseline.py", *given, "--directions", "[contour2mr, ct2mr]")
    assert done.returncode != 0
    assert "train it alone" in done.stderr


def test_fine_tunes_a_stable_diffusion_with_a_wider_conv_in(work, tmp_path):
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    vae, text, tokenizer, unet = tiny.parts(image_conditioned=False)
    StableDiffusionPipeline(
        vae, text, tokenizer, unet, PNDMScheduler(), None, None, requires_safety_checker=False
    ).save_pretrained(tmp_path / "sd")
    given = ["--base", tmp_path / "sd", "--output", tmp_path / "out", "--steps", 1, "--learning-rate", 0]
    train("ip2p.py", "--config", work / "tiny.yaml", *given)
    wide = weights(tmp_path / "out" / "ip2p")["conv_in.weight"].float()
    torch.testing.assert_close(wide[:, :4], unet.conv_in.weight.data, atol=1e-3, rtol=1e-2)
    assert wide[:, 4:].abs().max() == 0


def test_epsilon_trains_and_is_judged_by_sampling(work, tmp_path):
    given = ["--config", work / "tiny.yaml", "--output", tmp_path, "--steps", 1, "--prediction", "epsilon"]
    train("ip2p.py", *given, "--zero-share", 0, "--validate-speed", "diffusion")
    assert "ct2mr_psnr" in (tmp_path / "validation.csv").read_text()
    scheduler = json.loads((tmp_path / "ip2p" / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("epsilon", False)
    done = python("train/ip2p.py", *given)
    assert done.returncode != 0
    assert "no fast path" in done.stderr


def test_one_window_is_trained_and_judged_alike(work):
    from mediffuse.image.intensity import encode_ct
    from train.pairs import single_window
    from train.validate import of_single_window

    dataset = PairDataset(work / "data", "train", ("ct2mr",), ct_windows=1)
    channels = dataset[3]["input"]
    np.testing.assert_array_equal(channels[0], channels[2])
    hu = np.random.default_rng(0).uniform(-1000, 2000, (8, 8)).astype(np.float32)
    image = encode_ct(hu)
    copied = of_single_window(lambda source, row: single_window(image)[None])
    np.testing.assert_allclose(copied(image, {"direction": "mr2ct"})[0], image, atol=1e-3)


def test_ablations_run_and_make_their_table(work, tmp_path):
    config = {
        "common": {"config": str(work / "tiny.yaml")},
        "groups": [
            {
                "title": "Text encoder",
                "script": "ip2p.py",
                "options": {"steps": 1},
                "arms": {"trained": {}, "frozen": {"train_text_encoder": False}},
            },
            {"title": "Never run", "script": "ip2p.py", "options": {}, "arms": {"x": {}}},
        ],
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(config))
    given = ["--config", tmp_path / "a.yaml", "--only", "text", "--runs", tmp_path, "--output", tmp_path / "a.md"]
    train("ablations.py", *given)
    text = (tmp_path / "a.md").read_text()
    assert re.search(r"\| frozen \| [\d.]+ / [-\d.]+ \| [\d.]+ / [-\d.]+ \|", text)
    assert "train/ip2p.py" in text
    assert "Never run" not in text


def test_two_processes_learn_what_one_learns_of_the_same_samples(work, tmp_path):
    given = ["--config", work / "tiny.yaml", "--steps", 3, "--validate-images", 0, "--learning-rate", 0.01]
    for name, launch, size in (("one", [], 4), ("two", LAUNCH, 2)):
        own = ["--output", tmp_path / name, "--batch-size", size]
        done = python(*launch, ROOT / "train" / "baseline.py", *given, *own)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (losses(tmp_path / name) for name in ("one", "two"))
    assert one == pytest.approx(two, rel=1e-4)
    assert one[0] != one[2]


def test_training_without_augmentation_goes_past_one_epoch(work):
    dataset = PairDataset(work / "data", "train", ("ct2mr",), augmented=False)
    assert dataset[10_000]["input"].shape == (3, 64, 64)


def test_full_precision_where_the_processor_has_no_bfloat16(work, tmp_path, monkeypatch):
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    given = ("--config", work / "tiny.yaml", "--mixed-precision", "bf16", "--steps", 1, "--output", tmp_path / "ae")
    assert "full precision" in train("autoencoder.py", *given)


def test_clear_error_without_data(tmp_path):
    for script in ("autoencoder.py", "ip2p.py"):
        done = python(f"train/{script}", "--data", tmp_path / "none", "--output", tmp_path / "out")
        assert done.returncode != 0
        assert "Run train/prepare.py first" in done.stderr


def test_what_does_not_fit_is_told_before_anything_is_trained(work, tmp_path):
    from train import autoencoder, baseline, controlnet, ip2p, onestep

    cases = [
        (ip2p, ["--unet", "{sample_size: 16}"], "64 pixels a side, and the model is for 128"),
        (ip2p, ["--unet", "{sample_sizes: 16}"], "the option unet"),
        (ip2p, ["--base", tmp_path / "none"], "--base .* cannot be loaded"),
        (onestep, ["--base", work / "ip2p" / "ip2p", "--crop", 65], "crop is 65"),
        (onestep, ["--base", work / "ip2p" / "ip2p", "--window-weights", "[1, 2]"], "three numbers"),
        (controlnet, ["--base", work / "ae"], "--base .* cannot be loaded"),
        (autoencoder, ["--crop", 100], "crop is 100"),
        (autoencoder, ["--crop", 36], "a multiple of 8"),
        (baseline, ["--patch", 4], "64 pixels a side, and patch times"),
        (baseline, ["--weights", "{axial: 0}"], "no pairs to train on"),
    ]
    for trainer, given, sentence in cases:
        words = ["--config", work / "tiny.yaml", "--output", tmp_path / "out", *given]
        with pytest.raises((OptionError, DatasetError), match=sentence):
            trainer.main([str(word) for word in words])
    shutil.copytree(work / "data" / "train", tmp_path / "data" / "train")
    for trainer in (autoencoder, baseline, ip2p):
        words = ["--config", work / "tiny.yaml", "--output", tmp_path / "out", "--data", tmp_path / "data"]
        with pytest.raises(DatasetError, match="to validate on"):
            trainer.main([str(word) for word in words])
    assert not (tmp_path / "out").exists()


def test_clear_error_without_autoencoder(work, tmp_path):
    done = python("train/ip2p.py", "--config", work / "tiny.yaml", "--vae-dir", tmp_path, "--output", tmp_path / "out")
    assert done.returncode != 0
    assert "--vae-dir or --base" in done.stderr


def test_samples_depend_on_seed_and_number_alone(work):
    one, two = (PairDataset(work / "data", "train", ("ct2mr", "mr2ct"), seed=4) for _ in range(2))
    np.testing.assert_array_equal(one[5]["input"], two[5]["input"])
    assert not np.array_equal(one[5]["input"], one[6]["input"])
    assert one[5]["input"].shape == (3, 64, 64)
    assert -1 <= one[5]["input"].min() <= one[5]["input"].max() <= 1
