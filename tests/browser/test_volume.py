"""A visit to the Volume tab."""

import re
from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from mediffuse.ui.examples import CT, T1
from tests.browser.test_page import TIMEOUT, open_tab

pytestmark = pytest.mark.browser


def shows(page: Page, layers: str) -> None:
    """Wait until the viewer has drawn these layers."""
    expect(page.locator("#volume-viewer [data-shown]")).to_have_attribute("data-shown", layers, timeout=TIMEOUT)


def drawn(page: Page, layer: int = 0) -> np.ndarray:
    """The axial plane of a layer (H, W, 3), as a visitor sees it."""
    page.wait_for_timeout(300)
    canvas = page.locator("#volume-viewer figure").nth(layer).locator("canvas").first
    return np.asarray(Image.open(BytesIO(canvas.screenshot())).convert("RGB"), float)


def values(page: Page) -> list[float]:
    """What stands above the pictures that are shown."""
    return [float(text.split()[0]) for text in page.locator("#volume-viewer figure:visible .value").all_inner_texts()]


def status(page: Page):
    return page.locator("#volume-status .status")


def is_old(page: Page) -> bool:
    """Whether what was made is greyed out, once its fading has ended, and what was not made is not."""
    page.wait_for_timeout(1500)
    opacity = "figure => Number(getComputedStyle(figure).opacity)"
    figures = page.locator("#volume-viewer figure")
    given, made = (figures.nth(layer).evaluate(opacity) for layer in (0, 1))
    assert given == 1
    return made < 0.5


def clear_scan(page: Page) -> None:
    page.locator("#volume-scan").get_by_label("Clear").click()
    expect(page.locator("#volume-scores")).to_be_hidden(timeout=TIMEOUT)


def truth_of(page: Page, path: Path) -> None:
    """Give another real scan in place of the one that is there."""
    page.locator("#volume-truth").get_by_label("Clear").click()
    expect(page.locator("#volume-scores")).to_be_hidden(timeout=TIMEOUT)
    page.locator("#volume-truth input[type=file]").set_input_files(path)


def test_first_sight_is_a_finished_example(page: Page, address):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
    open_tab(page, "Volume")
    for _ in range(2):
        shows(page, "input+made+truth")
        expect(status(page)).to_contain_text("beforehand")
        expect(page.locator("#volume-words")).to_contain_text("on average")
        expect(page.locator("#volume-scores")).to_contain_text("synthrad")
        expect(page.locator("#volume-files")).to_contain_text("head_ct_synthetic_MRI")
        expect(page.locator("#volume-viewer .here")).to_contain_text("10: PSNR")
        assert drawn(page, 1).mean() > 20
        # It is there too after a look at another tab.
        open_tab(page, "CT → MRI")
        open_tab(page, "Volume")
    assert not asked
    # The other example comes as soon as it is asked for, by its button or by the direction.
    page.locator("#volume-direction").get_by_label("MRI → CT").check()
    expect(page.locator("#volume-viewer figure").nth(1)).to_contain_text("Synthetic CT", timeout=TIMEOUT)
    expect(page.locator("#volume-scan")).to_contain_text("head_t1")
    expect(page.locator("#volume-words")).to_contain_text("air in sinuses and ears")
    page.click("#volume-example-0")
    expect(page.locator("#volume-viewer figure").nth(1)).to_contain_text("Synthetic MRI (T1)", timeout=TIMEOUT)
    expect(status(page)).to_contain_text("beforehand")


def test_another_setting_marks_the_volume_as_old_until_it_is_taken_back(page: Page):
    open_tab(page, "Volume")
    shows(page, "input+made+truth")
    assert not is_old(page)
    contrast = page.locator("#volume-contrast")
    contrast.get_by_label("T2").check()
    expect(status(page)).to_have_class(re.compile("old"), timeout=TIMEOUT)
    assert is_old(page)
    contrast.get_by_label("T1").check()
    expect(status(page)).to_contain_text("beforehand", timeout=TIMEOUT)
    assert not is_old(page)
    # What Fast does not know of changes nothing; a pass more does.
    page.locator("#volume-speed").get_by_text("Diffusion").click()
    expect(status(page)).to_have_class(re.compile("old"), timeout=TIMEOUT)
    page.locator("#volume-speed").get_by_text("Fast").click()
    expect(status(page)).to_contain_text("beforehand", timeout=TIMEOUT)
    # An example that was not made beforehand as it is asked for is translated by itself.
    contrast.get_by_label("T2").check()
    page.click("#volume-example-0")
    expect(status(page)).to_contain_text("slices", timeout=TIMEOUT)
    page.click("#volume-stop")
    expect(status(page)).to_contain_text("Stopped", timeout=TIMEOUT)


def test_the_contrast_of_a_real_mri_is_asked_for_and_nothing_scored_across(page: Page, tmp_path):
    open_tab(page, "Volume")
    shows(page, "input+made+truth")
    nib.save(nib.load(T1), tmp_path / "scan.nii.gz")
    truth_of(page, tmp_path / "scan.nii.gz")
    expect(status(page)).to_contain_text("T1 or a T2", timeout=TIMEOUT)
    expect(page.locator("#volume-viewer figure").nth(2)).to_contain_text("Real MRI (contrast not known)")
    for what in ("#volume-scores", "#volume-words", "#volume-viewer .curve"):
        expect(page.locator(what)).to_be_hidden()
    told = page.locator("#volume-truth-contrast")
    told.get_by_label("T1").check()
    expect(page.locator("#volume-scores")).to_contain_text("synthrad", timeout=TIMEOUT)
    expect(page.locator("#volume-viewer .curve")).to_be_visible()
    told.get_by_label("T2").check()
    expect(status(page)).to_contain_text("not scored", timeout=TIMEOUT)
    expect(page.locator("#volume-viewer figure").nth(2)).to_contain_text("Real MRI (T2)")
    expect(page.locator("#volume-scores")).to_be_hidden()


def test_a_volume_of_the_wrong_modality_is_said_and_turned(page: Page, tmp_path):
    open_tab(page, "Volume")
    shows(page, "input+made+truth")
    nib.save(nib.load(T1), tmp_path / "mine.nii.gz")
    clear_scan(page)
    page.locator("#volume-scan input[type=file]").set_input_files(tmp_path / "mine.nii.gz")
    expect(page.locator("#volume-notice")).to_contain_text("looks like an MRI", timeout=TIMEOUT)
    expect(status(page)).to_contain_text("seems to be no CT")
    shows(page, "input")
    page.get_by_role("button", name="Translate it MRI → CT").click()
    expect(page.locator("#volume-turn")).to_be_hidden(timeout=TIMEOUT)
    expect(page.locator("#volume-viewer figure")).to_contain_text("Input MRI")
    expect(page.locator("#volume-direction").get_by_label("MRI → CT")).to_be_checked()
    expect(page.locator("#volume-truth")).to_contain_text("Real CT")
    expect(page.locator("#volume-truth")).not_to_contain_text("head_t1")  # the example's


def test_a_head_goes_in_and_comes_out_in_its_place(page: Page, tmp_path):
    open_tab(page, "Volume")
    page.click("#volume-go")
    expect(page.locator("#volume-status")).to_contain_text("Done: 20 slices", timeout=TIMEOUT)
    shows(page, "input+made+truth")
    expect(page.locator("#volume-scores")).to_contain_text("synthrad")
    # Windows: one for the CT, one for both MRIs.
    ct, mri, real = (drawn(page, layer) for layer in range(3))
    page.select_option("#volume-viewer select.CT", label="Bone (W 2500, L 480)")
    assert drawn(page).mean() < ct.mean() - 3  # the brain is grey there, not spread from black to white
    page.select_option("#volume-viewer select.MR", label="Dark tissue (0 to 110)")
    assert drawn(page, 1).mean() > mri.mean() + 3
    assert drawn(page, 2).mean() > real.mean() + 3
    page.select_option("#volume-viewer select.MR", index=1)
    # The values are those of the files, an MRI's on the scale of 0 to 255, and the error is their difference.
    page.locator("#volume-viewer .choices input[value=error]").check()
    shows(page, "input+made+truth+error")
    box = page.locator("#volume-viewer canvas").first.bounding_box()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"])
    expect(page.locator("#volume-viewer .readout")).to_contain_text("Under the pointer")
    here = values(page)
    image = nib.load(CT)
    x, y = (int(n * share) for n, share in zip(image.shape, (1 - 0.4, 1 - 0.6), strict=False))
    near = np.asarray(nib.as_closest_canonical(image).dataobj)[x - 1 : x + 2, y - 1 : y + 2, 10]
    assert near.min() - 1 <= here[0] <= near.max() + 1
    assert here[3] == pytest.approx(here[1] - here[2], abs=1)
    coloured = drawn(page, 3)
    assert np.ptp(coloured, axis=2).mean() > np.ptp(mri, axis=2).mean() + 2
    with page.expect_download() as download:
        page.locator("#volume-files a").first.click()
    download.value.save_as(tmp_path / "made.nii.gz")
    made, given = nib.load(tmp_path / "made.nii.gz"), nib.load(CT)
    assert made.shape == given.shape
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-4)
    assert "SYNTHETIC" in str(made.header["descrip"])
    # Without its ground truth, the result stays and the comparison goes.
    truth_of(page, T1)
    expect(page.locator("#volume-scores")).to_contain_text("synthrad", timeout=TIMEOUT)


def test_the_viewer_by_keyboard_mouse_and_slider(page: Page):
    open_tab(page, "Volume")
    shows(page, "input+made+truth")
    viewer, slider = page.locator("#volume-viewer"), page.locator("#volume-viewer .slice")
    plane, here = viewer.locator("canvas").first, viewer.locator(".here")
    plane.focus()
    before = drawn(page)
    page.keyboard.press("PageUp")
    expect(here).to_have_text(re.compile("11: PSNR [0-9.]+ dB, SSIM 0[.][0-9]+"))
    assert slider.input_value() == "11"
    assert np.abs(drawn(page) - before).mean() > 1
    where = viewer.locator(".readout").inner_text()
    page.keyboard.press("ArrowLeft")
    expect(viewer.locator(".readout")).not_to_have_text(where)
    page.keyboard.press("+")
    assert float(viewer.locator(".zoom").input_value()) > 1
    slider.focus()
    page.keyboard.press("ArrowLeft")
    expect(here).to_contain_text("10:")
    # A click on the curve jumps there.
    curve = viewer.locator(".curve")
    curve.click(position={"x": 1, "y": 20})
    expect(here).to_contain_text("0:")
    # The crosshair can be switched off; it leaves the middle free.
    with_cross = drawn(page)
    viewer.locator(".cross").uncheck()
    assert np.abs(drawn(page) - with_cross).max() > 50
    # The full screen holds all of it, and larger.
    width = plane.bounding_box()["width"]
    viewer.get_by_role("button", name="Full screen").click()
    page.wait_for_function("() => document.fullscreenElement?.matches('.viewer')")
    page.wait_for_timeout(300)
    assert plane.bounding_box()["width"] > 1.2 * width
    expect(slider).to_be_in_viewport()
    viewer.get_by_role("button", name="Full screen").click()
    page.wait_for_function("() => !document.fullscreenElement")
    # A drag makes a window of its own.
    viewer.get_by_label("window", exact=True).check()
    box = plane.bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 50, steps=4)
    page.mouse.up()
    chosen = viewer.locator("select.CT").evaluate("select => select.selectedOptions[0].text")
    assert re.fullmatch(r"Width (\d+), level 40", chosen)
    assert int(re.search(r"\d+", chosen)[0]) > 80


def test_a_series_is_chosen_from_a_zip(page: Page, two_series):
    open_tab(page, "Volume")
    clear_scan(page)
    page.locator("#volume-scan input[type=file]").set_input_files(two_series)
    choice = page.locator("#volume-series")
    expect(choice).to_be_visible(timeout=TIMEOUT)
    page.click("#volume-go")
    expect(page.locator(".toast-body.error")).to_be_visible(timeout=TIMEOUT)
    choice.locator("input").click()
    page.get_by_role("option").first.click()
    shows(page, "input")


def test_a_bad_volume_is_explained_and_the_tab_lives(page: Page, tmp_path):
    open_tab(page, "Volume")
    bad = tmp_path / "cut.nii.gz"
    bad.write_bytes(CT.read_bytes()[:50_000])
    clear_scan(page)
    page.locator("#volume-scan input[type=file]").set_input_files(bad)
    expect(page.locator(".toast-body.error")).to_be_visible(timeout=TIMEOUT)
    page.click("#volume-example-1")
    shows(page, "input+made+truth")
    page.click("#volume-go")
    expect(page.locator("#volume-status")).to_contain_text("slices", timeout=TIMEOUT)
    page.click("#volume-stop")
    expect(page.locator("#volume-status")).to_contain_text("Stopped", timeout=TIMEOUT)
