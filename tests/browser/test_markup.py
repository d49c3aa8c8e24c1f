"""Names and texts of files are shown as they are, and never become elements of the page."""

import shutil
import zipfile

import pydicom
import pytest
from playwright.sync_api import Page, expect

from mediffuse.ui.examples import CT
from tests.browser.test_page import TIMEOUT, open_tab, upload
from tests.browser.test_volume import clear_scan

pytestmark = pytest.mark.browser
MARKUP = "<img src=x class=injected onerror=alert(1)>"


def nothing_injected(page: Page) -> None:
    page.wait_for_timeout(500)
    assert page.locator(".injected").count() == 0


def test_the_name_of_a_file_is_no_markup(page: Page, tmp_path):
    good, bad = tmp_path / f"{MARKUP}.nii.gz", tmp_path / f"{MARKUP} bad.nii.gz"
    shutil.copy(CT, good)
    bad.write_bytes(CT.read_bytes()[:50_000])
    upload(page, "ct2mr", bad)
    expect(page.locator(".toast-body.error")).to_be_visible(timeout=TIMEOUT)
    nothing_injected(page)
    upload(page, "ct2mr", good)
    expect(page.locator("#ct2mr-status")).to_contain_text("Done in", timeout=TIMEOUT)
    nothing_injected(page)
    open_tab(page, "Volume")
    clear_scan(page)
    page.locator("#volume-scan input[type=file]").set_input_files(good)
    expect(page.locator("#volume-status")).to_contain_text("voxels of", timeout=TIMEOUT)
    nothing_injected(page)


def test_the_texts_of_a_dicom_series_are_no_markup(page: Page, two_series, tmp_path):
    with zipfile.ZipFile(two_series) as archive:
        archive.extractall(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        for path in sorted((tmp_path / "in").rglob("*.dcm")):
            part = pydicom.dcmread(path)
            part.SeriesDescription = part.PatientName = part.ProtocolName = MARKUP
            part.save_as(path)
            archive.write(path, f"{path.parent.name}/{path.name}")
    open_tab(page, "Volume")
    clear_scan(page)
    page.locator("#volume-scan input[type=file]").set_input_files(tmp_path / "both.zip")
    choice = page.locator("#volume-series")
    expect(choice).to_be_visible(timeout=TIMEOUT)
    nothing_injected(page)
    choice.locator("input").click()
    expect(page.get_by_role("option").first).to_contain_text("<img")
    page.get_by_role("option").first.click()
    expect(page.locator("#volume-status")).to_contain_text("voxels of", timeout=TIMEOUT)
    nothing_injected(page)
