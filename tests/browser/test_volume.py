"""A visit to the Volume tab."""

from io import BytesIO

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


def drawn(page: Page) -> np.ndarray:
    """The viewer's canvas (H, W, 3), as a visitor sees it."""
    page.wait_for_timeout(500)
    return np.asarray(Image.open(BytesIO(page.locator("#volume-viewer canvas").screenshot())).convert("RGB"), float)


def test_a_head_goes_in_and_comes_out_in_its_place(page: Page, tmp_path):
    open_tab(page, "Volume")
    page.click("#volume-example-0")
    shows(page, "input")
    expect(page.locator("#volume-status")).to_contain_text("voxels of")
    expect(page.locator("#volume-viewer .readout")).to_contain_text("HU", timeout=TIMEOUT)
    soft = drawn(page)
    page.select_option("#volume-viewer .preset", label="Bone (W 2500, L 480)")
    assert drawn(page).mean() < soft.mean() - 3  # the brain is grey there, not spread from black to white
    page.click("#volume-go")
    expect(page.locator("#volume-status")).to_contain_text("Done: 20 slices", timeout=TIMEOUT)
    shows(page, "made")
    expect(page.locator("#volume-scores")).to_contain_text("synthrad")
    plain = drawn(page)
    page.select_option("#volume-viewer .preset", label="25 to 99.9 %")
    assert abs(drawn(page).mean() - plain.mean()) > 3
    page.select_option("#volume-viewer .preset", label="As given")
    page.select_option("#volume-viewer .over", "input")
    shows(page, "made+input")
    page.select_option("#volume-viewer .over", "error")
    shows(page, "made+error")
    coloured = drawn(page)
    assert np.ptp(coloured, axis=2).mean() > np.ptp(plain, axis=2).mean() + 2
    with page.expect_download() as download:
        page.locator("#volume-files a").first.click()
    download.value.save_as(tmp_path / "made.nii.gz")
    made, given = nib.load(tmp_path / "made.nii.gz"), nib.load(CT)
    assert made.shape == given.shape
    np.testing.assert_allclose(made.affine, given.affine, atol=1e-4)
    assert "SYNTHETIC" in str(made.header["descrip"])
    # Without its ground truth, the result stays and the comparison goes.
    page.locator("#volume-truth").get_by_label("Clear").click()
    expect(page.locator("#volume-scores")).to_be_hidden(timeout=TIMEOUT)
    shows(page, "made")
    page.locator("#volume-truth input[type=file]").set_input_files(T1)
    expect(page.locator("#volume-scores")).to_contain_text("synthrad", timeout=TIMEOUT)


def test_a_series_is_chosen_from_a_zip(page: Page, two_series):
    open_tab(page, "Volume")
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
    page.locator("#volume-scan input[type=file]").set_input_files(bad)
    expect(page.locator(".toast-body.error")).to_be_visible(timeout=TIMEOUT)
    page.click("#volume-example-1")
    shows(page, "input")
    page.click("#volume-go")
    expect(page.locator("#volume-status")).to_contain_text("slices", timeout=TIMEOUT)
    page.click("#volume-stop")
    expect(page.locator("#volume-status")).to_contain_text("Stopped", timeout=TIMEOUT)
