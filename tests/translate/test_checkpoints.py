import shutil

import pytest
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionInstructPix2PixPipeline

from mediffuse.directions import DIRECTIONS
from mediffuse.translate.checkpoints import BUNDLED, VARIABLE, CheckpointError, Checkpoints, load, locate, write_sums
from tests import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_all(tmp_path_factory.mktemp("tiny"))


def test_default_is_bundled(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert locate("ct2mr") == locate("mr2ct") == str(BUNDLED / "ip2p")
    assert locate("contour2mr") == str(BUNDLED / "controlnet")


def test_a_folder_of_both(folder, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(folder))
    assert locate("mr2ct") == str(folder / "ip2p")
    assert locate("contour2mr") == str(folder / "controlnet")


def test_one_per_direction_and_hub_ids(folder):
    given = f"ct2mr=someone/ct2mr, {folder / 'ip2p'}, controlnet=someone/contours"
    assert locate("ct2mr", given) == "someone/ct2mr"
    assert locate("mr2ct", given) == str(folder / "ip2p")
    assert locate("contour2mr", given) == "someone/contours"


def test_a_single_pipeline_serves_its_directions_only(folder):
    given = str(folder / "ip2p")
    assert locate("ct2mr", given) == given
    with pytest.raises(CheckpointError, match="no checkpoint for this direction"):
        locate("contour2mr", given)


def test_missing_folder_names_itself(tmp_path):
    with pytest.raises(CheckpointError, match=r"\(nothing\)"):
        locate("ct2mr", str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("cut", "cannot be loaded"),
        ("removed", "cannot be loaded"),
        ("not json", "cannot be loaded"),
        ("no numbers", "weights that are no numbers"),
        ("one byte", "unet/diffusion_pytorch_model.safetensors is not the file it should be"),
    ],
)
def test_damaged_checkpoint_is_named_and_the_other_works(folder, tmp_path, damage, said):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "ip2p" / "unet" / "diffusion_pytorch_model.safetensors"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:1000])
    elif damage == "removed":
        weights.unlink()
    elif damage == "no numbers":
        weights.write_bytes(content[:-1000] + b"\xff" * 1000)
    elif damage == "one byte":
        write_sums(broken / "ip2p")
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        (broken / "ip2p" / "unet" / "config.json").write_text("{")
    checkpoints = Checkpoints(str(broken))
    with pytest.raises(CheckpointError, match=said) as caught:
        checkpoints.get("ct2mr")
    assert str(tmp_path) not in str(caught.value)
    assert checkpoints.get("contour2mr").size == tiny.SIZE
    # Repaired on disk, it loads without a restart.
    shutil.copytree(folder / "ip2p", broken / "ip2p", dirs_exist_ok=True)
    assert checkpoints.get("ct2mr").one_step


def test_the_wrong_kind_is_refused(folder):
    with pytest.raises(CheckpointError, match="this tab needs"):
        load(str(folder / "controlnet"), "ct2mr")


def test_both_directions_share_one_model(folder):
    checkpoints = Checkpoints(str(folder))
    assert checkpoints.get("ct2mr") is checkpoints.get("mr2ct")


def test_stock_pipelines_load_the_folders(folder):
    assert StableDiffusionInstructPix2PixPipeline.from_pretrained(folder / "ip2p").unet.config.in_channels == 8
    assert StableDiffusionControlNetPipeline.from_pretrained(folder / "controlnet").unet.config.in_channels == 4


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bundled_checkpoints_load_and_are_small(direction):
    checkpoint = Checkpoints(str(BUNDLED)).get(direction)
    assert checkpoint.one_step
    assert checkpoint.size == 256
    sizes = [path.stat().st_size for path in BUNDLED.rglob("*") if path.is_file()]
    assert max(sizes) <= 45 * 2**20
    assert sum(sizes) <= 96 * 2**20
