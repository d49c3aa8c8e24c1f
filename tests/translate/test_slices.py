import copy
import dataclasses
import threading
import time

import numpy as np
import pytest
import torch

from mediffuse.image.contours import Thresholds
from mediffuse.image.intensity import MR_OUTPUT_LIMITS
from mediffuse.scan import Slice
from mediffuse.translate import Settings, Translator, checkpoints, generate
from mediffuse.translate.checkpoints import CheckpointError, Checkpoints
from mediffuse.translate.slices import TurnLock
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def translator(folder):
    return Translator(Checkpoints(str(folder)))


@pytest.fixture
def ct():
    hu = np.full((50, 40), -1000, np.float32)
    hu[10:40, 8:32] = 700
    hu[13:37, 11:29] = 35
    return Slice(hu, (1.0, 1.25), "CT")


@pytest.fixture
def mr(ct):
    return Slice(np.clip(ct.pixels, 0, 900), (1.0, 1.25), "MR", (0.0, 900.0))


@pytest.mark.parametrize("direction", ["ct2mr", "contour2mr"])
def test_fast_gives_a_deterministic_mri_on_the_input_grid(translator, ct, direction):
    first, second = (translator.translate(ct, direction, Settings(seed=s)) for s in (1, 2))
    assert first.pixels.shape == ct.pixels.shape
    assert first.modality == "MR"
    assert MR_OUTPUT_LIMITS[0] <= first.pixels.min() < first.pixels.max() <= MR_OUTPUT_LIMITS[1]
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.deviation is None


@pytest.mark.parametrize("direction", ["ct2mr", "contour2mr"])
def test_fast_is_the_mean_of_a_slice_and_its_mirror_image(translator, ct, direction):
    images = np.random.default_rng(0).random((2, tiny.SIZE, tiny.SIZE, 3), np.float32)
    plain = Settings(mirror=False)
    straight = translator.generate(direction, images, plain)
    turned = translator.generate(direction, images[:, :, ::-1], plain)[:, :, ::-1]
    assert np.abs(straight - turned).max() > 0
    made = translator.generate(direction, images, Settings())
    np.testing.assert_allclose(made, (straight + turned) / 2, atol=1e-5)
    np.testing.assert_allclose(
        translator.generate(direction, images[:, :, ::-1], Settings()), made[:, :, ::-1], atol=1e-5
    )


def test_mri_to_ct_gives_hu(translator, mr):
    made = translator.translate(mr, "mr2ct")
    assert made.modality == "CT"
    assert made.pixels.min() >= -1000
    assert made.pixels.max() <= 2000


def test_the_prompt_reaches_the_model(translator, ct):
    t1, t2 = (translator.translate(ct, "ct2mr", Settings(contrast=c)).pixels for c in ("T1", "T2"))
    assert np.abs(t1 - t2).max() > 0


def test_samples_follow_their_seeds(translator, ct):
    both = translator.translate(ct, "ct2mr", Settings("diffusion", steps=2, seed=5, samples=2))
    assert len(both.samples) == 2
    assert both.deviation.max() > 0
    np.testing.assert_allclose(both.pixels, np.mean(both.samples, axis=0))
    again = translator.translate(ct, "ct2mr", Settings("diffusion", steps=2, seed=6))
    np.testing.assert_allclose(again.pixels, both.samples[1], atol=0.5)


def test_contours_and_their_strength_matter(translator, ct):
    plain = translator.translate(ct, "contour2mr").pixels
    assert np.array_equal(plain, translator.translate(ct, "contour2mr").pixels)
    tiny.strengthen(translator.checkpoints.get("contour2mr").pipeline.controlnet)
    strong = translator.translate(ct, "contour2mr").pixels
    assert not np.array_equal(plain, strong)
    off = translator.translate(ct, "contour2mr", Settings(control=0)).pixels
    np.testing.assert_allclose(off, plain, atol=0.5)
    none = Thresholds(bone=(9000, 9999), tissue=(9000, 9999), brain=(9000, 9999))
    assert not np.array_equal(strong, translator.translate(ct, "contour2mr", thresholds=none).pixels)


def test_steps_are_reported_and_can_stop_the_run(translator, ct):
    seen = []

    def on_step(step, steps, preview):
        seen.append((step, steps, preview().shape))
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        translator.translate(ct, "ct2mr", Settings("diffusion", steps=5), on_step=on_step)
    assert seen == [(1, 5, (64, 64, 3)), (2, 5, (64, 64, 3))]
    assert translator.translate(ct, "ct2mr").pixels.shape == ct.pixels.shape


def test_a_batch_equals_its_images(translator):
    checkpoint = translator.checkpoints.get("ct2mr")
    images = np.random.default_rng(0).random((2, 64, 64, 3)).astype(np.float32)
    both = generate(checkpoint, "ct2mr", images, Settings())
    one = generate(checkpoint, "ct2mr", images[1:], Settings())
    np.testing.assert_allclose(both[1], one[0], atol=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"speed": "slow"}, {"start": "end"}, {"steps": 0}, {"guidance": 0.5}, {"samples": 0}, {"seed": -1}]
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=r"must be between|Speed is|Start is"):
        Settings(**wrong)


def test_one_step_is_refused_to_a_model_not_trained_for_it(ct):
    pipeline = tiny.ip2p()
    pipeline.scheduler.register_to_config(prediction_type="epsilon")
    with pytest.raises(CheckpointError, match="Choose Diffusion"):
        generate(checkpoints.describe(pipeline), "ct2mr", np.zeros((1, 64, 64, 3), np.float32), Settings())


@pytest.mark.parametrize(("direction", "part"), [("ct2mr", "unet"), ("contour2mr", "controlnet")])
def test_sharp_is_another_step_of_a_model_that_knows_it(translator, ct, direction, part):
    with pytest.raises(CheckpointError, match="no sharp variant"):
        translator.translate(ct, direction, Settings("sharp"))
    known = translator.checkpoints.get(direction)
    own = getattr(known.pipeline, part)
    knowing = dataclasses.replace(known, sharp=copy.deepcopy(own))
    with torch.no_grad():
        for parameter in knowing.sharp.parameters():
            parameter.add_(0.05)
    images = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    sharp, again = (generate(knowing, direction, images, Settings("sharp", seed=s)) for s in (1, 2))
    np.testing.assert_array_equal(sharp, again)
    assert np.abs(sharp - generate(knowing, direction, images, Settings(mirror=False))).max() > 0
    assert getattr(known.pipeline, part) is own


@pytest.mark.parametrize("mean_noise", [None, 0.2])
@pytest.mark.parametrize("direction", ["ct2mr", "contour2mr"])
def test_diffusion_starts_near_the_fast_translation(translator, direction, mean_noise):
    checkpoint = dataclasses.replace(translator.checkpoints.get(direction), mean_noise=mean_noise)
    scheduler = checkpoint.pipeline.scheduler
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    settings = Settings("diffusion", steps=1, samples=2, seed=3)
    made = generate(checkpoint, direction, images, settings)
    assert made.shape == (4, 64, 64, 3)
    assert checkpoint.pipeline.scheduler is scheduler
    # Sample by sample of each image, and from the same noise as alone.
    alone = generate(checkpoint, direction, images[1:], dataclasses.replace(settings, samples=1, seed=4))
    np.testing.assert_allclose(made[3], alone[0], atol=1e-4)
    noise = generate(checkpoint, direction, images, dataclasses.replace(settings, start="noise"))
    assert np.abs(made - noise).max() > 0


def test_a_late_start_keeps_the_trained_noise_levels(translator):
    from mediffuse.translate.slices import LATE_START, _late_start

    scheduler = translator.checkpoints.get("ct2mr").pipeline.scheduler
    mean, noise = torch.ones(1, 4, 8, 8), torch.full((1, 4, 8, 8), 2.0)
    start = _late_start(scheduler, mean, noise, 4)
    kept = scheduler.alphas_cumprod[LATE_START]
    torch.testing.assert_close(start.scheduler.alphas_cumprod, scheduler.alphas_cumprod[: LATE_START + 1])
    torch.testing.assert_close(start.latents, kept.sqrt() * mean + (1 - kept).sqrt() * noise)
    start.scheduler.set_timesteps(start.steps)
    assert start.scheduler.timesteps[0] == LATE_START


def test_bfloat16_changes_a_picture_by_little(translator, ct, monkeypatch):
    full = translator.translate(ct, "ct2mr").pixels
    monkeypatch.setenv("MEDIFFUSE_PRECISION", "bfloat16")
    half = translator.translate(ct, "ct2mr").pixels
    assert 0 < np.abs(full - half).mean() < 3
    monkeypatch.setenv("MEDIFFUSE_PRECISION", "int8")
    with pytest.raises(ValueError, match="MEDIFFUSE_PRECISION is auto, float32, bfloat16"):
        translator.translate(ct, "ct2mr")


def test_who_waits_gets_the_turn_before_who_takes_it_again():
    lock, order = TurnLock(), []

    def wait(name: str) -> None:
        with lock:
            order.append(name)

    threads = [threading.Thread(target=wait, args=(name,)) for name in "abc"]
    with lock:
        for place, thread in enumerate(threads, 2):
            thread.start()
            while len(lock._line) < place:
                time.sleep(0.001)
        order.append("first")
    with lock:
        order.append("again")
    for thread in threads:
        thread.join()
    assert order == ["first", "a", "b", "c", "again"]


def test_a_failure_gives_the_turn_back():
    lock = TurnLock()
    with pytest.raises(KeyboardInterrupt), lock:
        raise KeyboardInterrupt
    with lock:
        pass
