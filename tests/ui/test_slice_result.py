"""What is kept of a result: whether it is of what is asked, and what it is compared with."""

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from mediffuse.image.contours import Thresholds
from mediffuse.metrics import Scores
from mediffuse.scan.plausibility import contrast_of
from mediffuse.translate import Translation
from mediffuse.ui.asked import AskedContours, AskedSlice
from mediffuse.ui.examples import CT, T1
from mediffuse.ui.slice_result import SliceResult, file_name
from mediffuse.ui.uploads import open_scan
from mediffuse.ui.words import scores_in_words, usual

NEVER_MOVES = {"steps": 9, "samples": 3, "guidance": 2.0, "start": "noise", "seed": 4, "image_guidance": 1.5}
MOVES = {"contrast": "T2", "speed": "diffusion"}


def result_of(asked: AskedSlice, direction: str = "ct2mr") -> SliceResult:
    """Grey, as if it had been made of the example's central slice."""
    source, target = ("MR", "CT") if direction == "mr2ct" else ("CT", "MR")
    place = open_scan(asked.scan, source).slice()
    grey = np.full(place.pixels.shape, 100, np.float32)
    made = Translation(grey, (grey,), None, target, 1.0, asked.settings())
    return SliceResult(direction, asked.scan, asked.shown, place, made, recipe=asked.recipe(), series=asked.series)


def test_a_result_is_of_what_decides_it_and_of_nothing_else():
    asked = AskedSlice(scan=str(CT))
    fast = result_of(asked)
    assert fast.is_of(asked)
    assert fast.is_of(replace(asked, index=10, view="Bone (W 2500, L 480)", truth=str(T1), pair="made-truth"))
    assert fast.is_of(replace(asked, **NEVER_MOVES))  # Fast knows none of them
    for name, value in {**MOVES, "index": 3, "shown": "bone", "series": "1", "scan": str(T1)}.items():
        assert not fast.is_of(replace(asked, **{name: value})), name
    sampled = replace(asked, speed="diffusion")
    drawn = result_of(sampled)
    for name, value in NEVER_MOVES.items():
        unguided = name == "image_guidance"  # counts with guidance only
        assert drawn.is_of(replace(sampled, **{name: value})) == unguided, name
    assert drawn.is_of(replace(sampled, random=True))
    contours = AskedContours(scan=str(CT))
    assert result_of(contours).is_of(contours)
    assert not result_of(contours).is_of(replace(contours, brain_low=60))
    assert not result_of(contours).is_of(replace(contours, mode="single"))
    assert contours.thresholds() == Thresholds()


@pytest.mark.parametrize(
    ("name", "tags", "contrast"),
    [
        ("head_t1.nii.gz", {}, "T1"),
        ("sub-01_T2w.nii.gz", {}, "T2"),
        ("T2_FLAIR.nii", {}, "other"),
        ("t2star.nii", {}, "other"),
        ("t1_on_t2.nii", {}, None),
        ("at10.nii", {}, None),
        ("scan.nii", {"EchoTime": "95"}, "T2"),
        ("scan.nii", {"EchoTime": "12"}, None),  # T1, proton density or a gradient echo
        ("t1.nii", {"EchoTime": "95"}, "T1"),
    ],
)
def test_a_contrast_is_known_by_name_or_echo_time(mr, name, tags, contrast):
    assert contrast_of(replace(mr, name=name, tags=tags)) == contrast


def test_nothing_is_scored_across_contrasts(tmp_path):
    untold = tmp_path / "scan.nii.gz"
    nib.save(nib.load(T1), untold)
    t1, t2 = (result_of(AskedSlice(scan=str(CT), contrast=contrast)) for contrast in ("T1", "T2"))
    told = t1.with_truth(str(T1))
    assert told.comparison
    assert (told.title("made"), told.title("truth")) == ("Synthetic MRI (T1)", "Real MRI (T1)")
    assert not told.warnings(str(T1))
    for result, path, contrast, said in (
        (t2, T1, "auto", "not scored"),
        (t1, T1, "T2", "not scored"),
        (t1, T1, "other", "another contrast"),
        (t1, untold, "auto", "T1 or a T2"),
    ):
        shown = result.with_truth(str(path), contrast)
        assert shown.truth is not None
        assert shown.comparison is None
        assert any(said in text for text in shown.warnings(str(path)))
        assert shown.in_words() == ""
    assert t1.with_truth(str(untold), "T1").comparison
    assert t1.with_truth(str(untold)).title("truth") == "Real MRI (contrast not known)"


def test_a_synthetic_ct_is_compared_with_any_ct_and_by_tissue():
    result = result_of(AskedSlice(scan=str(T1)), "mr2ct").with_truth(str(CT))
    assert {"mae_bone", "mae_soft", "dice_bone"} <= set(result.comparison.tissues)
    assert "soft tissue" in result.in_words()
    assert result.title("truth") == "Real CT"
    assert file_name(result, "made") == "head_t1_axial010_synthetic_CT"


def test_scores_are_put_into_words():
    one = Scores("synthrad", 17.86, 0.599, 0.0922)
    plain = scores_in_words([one], {}, "ct2mr", "MR", bundled=False)
    assert plain.startswith(
        "Against the real MRI, a pixel in the head is off by 9% of its range on average; PSNR 17.9 dB"
    )
    assert "usual" not in plain
    expected = usual("ct2mr", "synthrad")
    assert f"(usual: {expected['psnr']:.1f} dB)" in scores_in_words([one], {}, "ct2mr", "MR", bundled=True)
    assert scores_in_words([], {}, "ct2mr", "MR", bundled=True) == ""
    nothing = {"mae_bone": float("nan"), "dice_bone": float("nan")}
    assert "bone" not in scores_in_words([one], nothing, "mr2ct", "CT", bundled=False)
