"""One visit per tab, as a visitor makes it."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser
TIMEOUT = 90_000


def open_tab(page: Page, title: str) -> None:
    page.get_by_role("tab", name=title, exact=True).click()


def first_example(page: Page, name: str) -> None:
    """Click the example, have it translated, and wait for its comparison."""
    page.click(f"#{name}-example-0")
    expect(page.locator(f"#{name}-status")).to_contain_text("beforehand", timeout=TIMEOUT)
    page.click(f"#{name}-go")
    expect(page.locator(f"#{name}-status")).to_contain_text("Done in", timeout=TIMEOUT)
    expect(page.locator(f"#{name}-scores")).to_contain_text("synthrad", timeout=TIMEOUT)
    for picture in ("input", "made", "truth-picture", "error"):
        expect_picture(page, f"#{name}-{picture} img")


def upload(page: Page, name: str, path: Path) -> None:
    """Give a slice tab a file in place of the one that it has."""
    clear = page.locator(f"#{name}-scan").get_by_label("Clear")
    if clear.count():
        clear.click()
        expect(page.locator(f"#{name}-input img")).to_have_count(0, timeout=TIMEOUT)
    page.locator(f"#{name}-scan input[type=file]").set_input_files(path)


def expect_picture(page: Page, selector: str) -> None:
    page.locator(selector).scroll_into_view_if_needed()
    page.wait_for_function(
        "selector => { const i = document.querySelector(selector); return i && i.complete && i.naturalWidth > 100 }",
        arg=selector,
        timeout=TIMEOUT,
    )


def psnr(page: Page, name: str) -> float:
    text = page.locator(f"#{name}-scores").inner_text()
    return float(re.search(r"whole frame\)\s+([\d.]+)", text).group(1))


def source(page: Page, selector: str) -> str:
    return page.locator(selector).get_attribute("src")


def test_ct_to_mri(page: Page):
    first_example(page, "ct2mr")
    central = psnr(page, "ct2mr")
    expect(page.locator("#ct2mr-files")).to_contain_text("synthetic_MR.nii")
    expect(page.locator("body")).to_contain_text("not for diagnosis")
    # Another slice is translated and compared at once.
    made = source(page, "#ct2mr-made img")
    slider = page.locator("#ct2mr-index input[type=range]")
    slider.focus()
    for _ in range(3):  # faster than a translation: the last one counts
        slider.press("ArrowLeft")
    expect(page.locator("#ct2mr-files")).to_contain_text("axial007", timeout=TIMEOUT)
    assert slider.input_value() == "7"
    expect(page.locator("#ct2mr-made img")).not_to_have_attribute("src", made, timeout=TIMEOUT)
    expect(page.locator("#ct2mr-scores")).not_to_contain_text(f"{central:.2f}", timeout=TIMEOUT)


def test_results_show_the_report(page: Page):
    open_tab(page, "Results")
    report = page.locator("article.report")
    expect(report.get_by_role("heading", name="Summary")).to_be_visible(timeout=TIMEOUT)
    expect(report).to_contain_text("InstructPix2Pix, fast")
    assert report.locator("figure img").count() > 3
    # One scroll, to which the list of contents leads.
    report.get_by_role("link", name="Cost").click()
    expect(report.get_by_role("heading", name="Cost")).to_be_in_viewport()
    assert report.evaluate("article => article.scrollHeight <= article.clientHeight")


def test_contours_follow_a_dragged_threshold(page: Page):
    open_tab(page, "Contours → MRI")
    first_example(page, "contour2mr")
    edges, made = source(page, "#contour2mr-extra img"), source(page, "#contour2mr-made img")
    slider = page.locator("#contour2mr-brain-high input[type=range]")
    slider.focus()
    for _ in range(20):
        slider.press("ArrowRight")
    expect(page.locator("#contour2mr-extra img")).not_to_have_attribute("src", edges, timeout=TIMEOUT)
    assert source(page, "#contour2mr-made img") == made  # the model did not run
    page.click("#contour2mr-go")
    expect(page.locator("#contour2mr-made img")).not_to_have_attribute("src", made, timeout=TIMEOUT)


def test_mri_to_ct_and_the_view_window(page: Page):
    open_tab(page, "MRI → CT")
    first_example(page, "mr2ct")
    score, made = psnr(page, "mr2ct"), source(page, "#mr2ct-made img")
    page.locator("#mr2ct-view input").click()
    page.get_by_role("option", name="Bone (W 2500, L 480)").click()
    expect(page.locator("#mr2ct-made img")).not_to_have_attribute("src", made, timeout=TIMEOUT)
    assert psnr(page, "mr2ct") == score


def test_diffusion_streams_and_stops(page: Page):
    made = source(page, "#ct2mr-made img")
    page.locator("#ct2mr-speed").get_by_text("Diffusion").click()
    page.locator("#ct2mr-steps input[type=number]").fill("100")
    page.click("#ct2mr-go")
    expect(page.locator("#ct2mr-status")).to_contain_text("Step", timeout=TIMEOUT)
    expect(page.locator("#ct2mr-made img")).not_to_have_attribute("src", made, timeout=TIMEOUT)  # a step is shown
    expect(page.locator("#ct2mr-scores")).to_be_hidden()  # those of the last result
    page.click("#ct2mr-stop")
    expect(page.locator("#ct2mr-status")).to_contain_text("Stopped", timeout=TIMEOUT)
    made = source(page, "#ct2mr-made img")
    page.wait_for_timeout(3000)
    expect(page.locator("#ct2mr-status")).to_contain_text("Stopped")
    assert source(page, "#ct2mr-made img") == made  # no later step was shown
    # And it works again.
    page.locator("#ct2mr-speed").get_by_text("Fast").click()
    page.click("#ct2mr-go")
    expect(page.locator("#ct2mr-status")).to_contain_text("Done in", timeout=TIMEOUT)


def test_bad_file_is_explained_and_the_page_lives(page: Page, tmp_path):
    bad = tmp_path / "scan.nii"
    bad.write_bytes(b"not a scan" * 100)
    upload(page, "ct2mr", bad)
    expect(page.get_by_text("cannot be read as NIfTI")).to_be_visible(timeout=TIMEOUT)
    first_example(page, "ct2mr")


def test_phone_width_shows_every_tab(page: Page):
    page.set_viewport_size({"width": 390, "height": 844})
    for title, name in (("Contours → MRI", "contour2mr"), ("MRI → CT", "mr2ct"), ("CT → MRI", "ct2mr")):
        open_tab(page, title)
        expect(page.locator(f"#{name}-go")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_new_scan_inherits_nothing(page: Page):
    first_example(page, "ct2mr")
    made = source(page, "#ct2mr-made img")
    page.locator("#ct2mr-scan button").first.click()  # remove it
    expect(page.locator("#ct2mr-scores")).to_be_hidden(timeout=TIMEOUT)
    page.click("#ct2mr-example-0")
    expect(page.locator("#ct2mr-scores")).to_contain_text("synthrad", timeout=TIMEOUT)
    # The other example has no ground truth: nothing of the first may stay.
    page.click("#ct2mr-example-3")
    expect(page.locator("#ct2mr-files")).to_contain_text("head_ct_brain", timeout=TIMEOUT)
    expect(page.locator("#ct2mr-scores")).to_be_hidden()
    expect(page.locator("#ct2mr-shown")).to_be_visible()
    assert source(page, "#ct2mr-made img") != made


def test_t2_is_made_at_once_when_it_is_chosen(page: Page):
    contrast = page.locator("#ct2mr-contrast")
    page.locator("#ct2mr-scan").get_by_label("Clear").click()
    expect(page.locator("#ct2mr-scores")).to_be_hidden(timeout=TIMEOUT)
    contrast.get_by_label("T2").check()  # before there is a scan: nothing to do, and no error
    expect(page.locator(".toast-body.error")).to_have_count(0)
    contrast.get_by_label("T1").check()
    first_example(page, "ct2mr")
    made = source(page, "#ct2mr-made img")
    contrast.get_by_label("T2").check()
    expect(page.locator("#ct2mr-made img")).not_to_have_attribute("src", made, timeout=TIMEOUT)
