"""What a visitor sees before doing anything, and that nothing old, wrong or of another contrast passes for a result."""

import asyncio
import re

import nibabel as nib
import numpy as np
import pytest
from playwright.sync_api import Page, expect

from mediffuse.ui.examples import CT, T1
from tests import serving, tiny
from tests.browser.test_page import TIMEOUT, expect_picture, open_tab, source, upload
from tools.load import Busy, Visitor, volume_values

pytestmark = pytest.mark.browser
TABS = {"CT → MRI": "ct2mr", "Contours → MRI": "contour2mr", "MRI → CT": "mr2ct"}


def status(page: Page, name: str = "ct2mr"):
    return page.locator(f"#{name}-status .status")


def is_old(page: Page, name: str = "ct2mr") -> bool:
    """Whether what is shown is greyed out, once its fading has ended."""
    page.wait_for_timeout(2000)
    shown = page.locator(f"#{name}-made").evaluate("picture => getComputedStyle(picture).opacity")
    return float(shown) < 0.5


def test_first_sight_is_a_finished_example(page: Page):
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
    for title, name in TABS.items():
        open_tab(page, title)
        for picture in ("input", "made", "truth-picture", "error"):
            expect_picture(page, f"#{name}-{picture} img")
        expect(page.locator(f"#{name}-words")).to_contain_text("on average")
        expect(page.locator(f"#{name}-scores")).to_contain_text("synthrad")
        expect(page.locator(f"#{name}-files")).to_contain_text("synthetic")
        assert page.locator(f"#tab-{name} .thumbnail img").count() >= 4
        expect(page.locator(f"#{name}-stop")).to_be_hidden()  # nothing runs
    assert not asked


def test_the_other_examples_are_shown_at_once_and_made_again_when_asked(page: Page):
    made = source(page, "#ct2mr-made img")
    page.click("#ct2mr-example-1")
    expect(page.locator("#ct2mr-made img")).not_to_have_attribute("src", made, timeout=TIMEOUT)
    expect(status(page)).to_contain_text("beforehand")
    expect(page.locator("#ct2mr-files")).to_contain_text("axial003")
    beforehand = page.locator("#ct2mr-scores").inner_text()
    page.click("#ct2mr-go")
    expect(status(page)).to_contain_text("Done in", timeout=TIMEOUT)
    shown, again = (np.array(re.findall(r"\d+\.\d+", text), float) for text in (beforehand, _scores(page)))
    np.testing.assert_allclose(shown, again, rtol=0.01)


def _scores(page: Page) -> str:
    return page.locator("#ct2mr-scores").inner_text()


def test_another_setting_marks_the_result_as_old_until_it_is_taken_back(page: Page):
    page.locator("#ct2mr-speed").get_by_text("Diffusion").click()
    expect(status(page)).to_have_class(re.compile("old"), timeout=TIMEOUT)
    assert is_old(page)
    page.click("#ct2mr-go")
    expect(status(page)).to_contain_text("seed 0", timeout=TIMEOUT)
    assert not is_old(page)
    expect(page.locator("#ct2mr-earlier")).to_contain_text("diffusion, T1, axial 10, seed 0")
    expect(page.locator("#ct2mr-spread img")).to_be_visible()  # several samples are what it is for
    guidance = page.locator("#ct2mr-guidance input[type=number]")
    guidance.fill("3")
    expect(status(page)).to_have_class(re.compile("old"), timeout=TIMEOUT)
    guidance.fill("1")
    expect(status(page)).to_contain_text("seed 0", timeout=TIMEOUT)
    assert not is_old(page)


def test_what_was_asked_for_before_the_settings_changed_is_old_when_it_comes(page: Page):
    page.locator("#ct2mr-speed").get_by_text("Diffusion").click()
    page.locator("#ct2mr-steps input[type=number]").fill("12")
    page.click("#ct2mr-go")
    expect(status(page)).to_contain_text("Step", timeout=TIMEOUT)
    page.locator("#ct2mr-guidance input[type=number]").fill("3")
    expect(page.locator("#ct2mr-earlier")).to_contain_text("seed 0", timeout=TIMEOUT)
    expect(status(page)).to_contain_text("other settings", timeout=TIMEOUT)


def test_a_threshold_marks_as_old_and_is_remade_when_it_is_let_go_of(page: Page):
    open_tab(page, "Contours → MRI")
    made = source(page, "#contour2mr-made img")
    slider = page.locator("#contour2mr-brain-low input[type=range]")
    slider.focus()
    for _ in range(30):  # above the high one, which is at 110
        slider.press("ArrowRight")
    expect(status(page, "contour2mr")).to_have_class(re.compile("old"), timeout=TIMEOUT)
    assert source(page, "#contour2mr-made img") == made
    slider.dispatch_event("pointerup")
    expect(page.locator("#contour2mr-made img")).not_to_have_attribute("src", made, timeout=TIMEOUT)
    expect(status(page, "contour2mr")).to_contain_text("Done in", timeout=TIMEOUT)
    low, high = (page.locator(f"#contour2mr-brain-{end} input[type=range]").input_value() for end in ("low", "high"))
    assert float(low) == 110 < float(high)
    assert not is_old(page, "contour2mr")


def test_contrasts_are_told_and_not_scored_across(page: Page, tmp_path):
    page.locator("#ct2mr-contrast").get_by_label("T2").check()
    expect(page.locator("#ct2mr-made")).to_contain_text("Synthetic MRI (T2)", timeout=TIMEOUT)
    expect(page.locator("#ct2mr-truth-picture")).to_contain_text("Real MRI (T1)")
    expect(status(page)).to_contain_text("not scored", timeout=TIMEOUT)
    for what in ("scores", "error", "words"):
        expect(page.locator(f"#ct2mr-{what}")).to_be_hidden()
    # One that does not tell is asked for.
    page.locator("#ct2mr-contrast").get_by_label("T1").check()
    expect(page.locator("#ct2mr-scores")).to_be_visible(timeout=TIMEOUT)
    nib.save(nib.load(T1), tmp_path / "scan.nii.gz")
    page.locator("#ct2mr-truth").get_by_label("Clear").click()
    expect(page.locator("#ct2mr-scores")).to_be_hidden(timeout=TIMEOUT)
    page.locator("#ct2mr-truth input[type=file]").set_input_files(tmp_path / "scan.nii.gz")
    expect(status(page)).to_contain_text("T1 or a T2", timeout=TIMEOUT)
    expect(page.locator("#ct2mr-scores")).to_be_hidden()
    page.locator("#ct2mr-truth-contrast").get_by_label("T1").check()
    expect(page.locator("#ct2mr-scores")).to_contain_text("synthrad", timeout=TIMEOUT)


def test_a_scan_of_the_wrong_modality_is_not_translated_but_opened_in_the_other_tab(page: Page):
    upload(page, "ct2mr", T1)
    expect(page.locator("#ct2mr-notice")).to_contain_text("looks like an MRI", timeout=TIMEOUT)
    expect(status(page)).to_contain_text("Not translated", timeout=TIMEOUT)
    expect(page.locator("#ct2mr-made img")).to_have_count(0)
    page.click("#ct2mr-elsewhere")
    expect(page.locator("#mr2ct-go")).to_be_visible()
    expect(status(page, "mr2ct")).to_contain_text("Done in", timeout=TIMEOUT)
    expect(page.locator("#mr2ct-scan")).to_contain_text("head_t1")
    # Who says that it is one has it translated all the same.
    open_tab(page, "CT → MRI")
    page.click("#ct2mr-go")
    expect(status(page)).to_contain_text("Done in", timeout=TIMEOUT)


def test_an_address_opens_a_tab_and_is_that_of_the_open_one(page: Page, address):
    page.goto(f"{address}?tab=mr2ct")
    expect(page.locator("#mr2ct-go")).to_be_visible()
    open_tab(page, "Results")
    expect(page.get_by_role("heading", name="Summary")).to_be_visible(timeout=TIMEOUT)
    assert page.url.endswith("tab=results")
    page.reload()
    expect(page.get_by_role("heading", name="Summary")).to_be_visible(timeout=TIMEOUT)
    page.goto(f"{address}?tab=<b>no</b>")
    expect(page.locator("#ct2mr-go")).to_be_visible()


def test_any_two_pictures_lie_on_each_other(page: Page):
    slider = page.locator("#ct2mr-slider")
    before = slider.locator("img").first.get_attribute("src")
    page.locator("#ct2mr-pair").get_by_label("synthetic MRI | real MRI").check()
    expect(slider.locator("img").first).not_to_have_attribute("src", before, timeout=TIMEOUT)
    expect(slider).to_contain_text("synthetic MRI | real MRI")
    names = {image.get_attribute("src").rsplit("/", 1)[-1] for image in slider.locator("img").all()}
    assert names == {"head_ct_axial010_synthetic_MR.png", "head_ct_axial010_real_MR.png"}


def test_the_bar_stays_in_view_and_what_waits_can_be_stopped(page: Page):
    page.locator("#ct2mr-speed").get_by_text("Diffusion").click()
    page.locator("#ct2mr-steps input[type=number]").fill("100")
    page.evaluate("window.scrollTo(0, 600)")
    expect(page.locator("#ct2mr-go")).to_be_in_viewport()
    page.click("#ct2mr-go")
    expect(status(page)).to_contain_text("left", timeout=TIMEOUT)
    expect(page.locator("#ct2mr-stop")).to_be_in_viewport()
    page.click("#ct2mr-stop")
    expect(status(page)).to_contain_text("unfinished", timeout=TIMEOUT)
    expect(page.locator("#ct2mr-stop")).to_be_hidden()
    expect(page.locator("#ct2mr-made img")).to_be_visible()


def test_an_error_ends_the_wait(page: Page, tmp_path):
    page.locator("#ct2mr-scan").get_by_label("Clear").click()
    expect(page.locator("#ct2mr-scores")).to_be_hidden(timeout=TIMEOUT)
    page.click("#ct2mr-go")
    expect(page.locator(".toast-body.error")).to_be_visible(timeout=TIMEOUT)
    expect(status(page)).to_contain_text("Not translated", timeout=TIMEOUT)
    expect(page.locator("#ct2mr-stop")).to_be_hidden()
    page.click("#ct2mr-example-0")
    expect(page.locator("#ct2mr-scores")).to_contain_text("synthrad", timeout=TIMEOUT)


def test_a_full_queue_ends_the_wait(browser, tmp_path):
    """Of one volume that is translated, one that waits, and a visitor for whom there is no room."""

    async def begin(address: str, functions: dict[str, int]) -> tuple[str, str]:
        async with Visitor(address, functions) as visitor:
            values = volume_values(await visitor.upload(CT), speed="diffusion", steps=100)
            while True:
                try:
                    return visitor.session, await visitor.join("volume", values)
                except Busy:  # the one before has not begun yet
                    await asyncio.sleep(0.1)

    async def stop(address: str, functions: dict[str, int], session: str, event: str) -> None:
        async with Visitor(address, functions, session) as visitor:
            await visitor.cancel("volume", event)

    with serving.served(tiny.save_all(tmp_path), queue=1) as demo:
        page = browser.new_page()
        page.goto(demo.local_url)
        page.locator("#ct2mr-scan input[type=file]").set_input_files(CT)
        expect(status(page)).to_contain_text("Done in", timeout=TIMEOUT)
        functions = {fn.api_name: number for number, fn in demo.fns.items() if fn.api_name}
        server = demo.local_url.rstrip("/"), functions
        others = [serving.in_a_loop(begin(*server)) for _ in range(2)]
        page.click("#ct2mr-go")
        expect(page.locator(".toast-body.error")).to_be_visible(timeout=TIMEOUT)
        expect(status(page)).to_contain_text("Not translated", timeout=TIMEOUT)
        expect(page.locator("#ct2mr-stop")).to_be_hidden()
        page.close()
        for other in others:
            serving.in_a_loop(stop(*server, *other))


def test_on_a_phone_the_result_comes_before_the_settings(page: Page):
    page.set_viewport_size({"width": 390, "height": 844})
    tops = [
        page.locator(f"#ct2mr-{part}").evaluate("e => e.getBoundingClientRect().top")
        for part in ("example-0", "bar", "made", "contrast", "truth")
    ]
    assert tops == sorted(tops)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_who_waits_for_others_is_told_for_how_many(page: Page, browser, address):
    page.locator("#ct2mr-speed").get_by_text("Diffusion").click()
    page.locator("#ct2mr-steps input[type=number]").fill("100")
    page.click("#ct2mr-go")
    expect(status(page)).to_contain_text("Step", timeout=TIMEOUT)
    other = browser.new_page()
    other.goto(f"{address}?tab=mr2ct")
    other.click("#mr2ct-go")
    expect(status(other, "mr2ct")).to_contain_text("1 before you", timeout=TIMEOUT)
    page.click("#ct2mr-stop")
    expect(status(other, "mr2ct")).to_contain_text("Done in", timeout=TIMEOUT)
    other.close()
