"""What axe-core finds in every tab, light and dark, and what a keyboard reaches."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.test_page import TIMEOUT, open_tab
from tests.browser.test_volume import shows

pytestmark = pytest.mark.browser


def violations(page: Page) -> list[str]:
    """The critical and serious ones, each with where it is."""
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [
        f"{each['id']}: {node['target']}"
        for each in found
        if each["impact"] in ("critical", "serious")
        for node in each["nodes"]
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, address, theme):
    page.goto(f"{address}?__theme={theme}")
    for title, name in (("CT → MRI", "ct2mr"), ("Contours → MRI", "contour2mr"), ("MRI → CT", "mr2ct")):
        open_tab(page, title)
        expect(page.locator(f"#{name}-scores")).to_contain_text("synthrad", timeout=TIMEOUT)
        made = "Synthetic CT" if name == "mr2ct" else "Synthetic MRI (T1)"
        expect(page.locator(f"#{name}-made img")).to_have_attribute("alt", made)
        assert not violations(page), title
    open_tab(page, "Volume")
    shows(page, "input+made+truth")
    page.locator("#volume-viewer .choices input[value=error]").check()
    shows(page, "input+made+truth+error")
    assert not violations(page)
    open_tab(page, "Results")
    expect(page.get_by_role("heading", name="Summary")).to_be_visible(timeout=TIMEOUT)
    assert not violations(page)


def test_the_handle_between_two_pictures_follows_the_arrow_keys(page: Page):
    handle = page.locator("#ct2mr-slider [role=slider]")
    handle.scroll_into_view_if_needed()
    handle.focus()
    before = handle.bounding_box()["x"]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(300)
    left = handle.bounding_box()["x"]
    assert left < before - 10
    assert int(handle.get_attribute("aria-valuenow")) < 50
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    assert handle.bounding_box()["x"] > left + 5


def test_radios_follow_the_arrow_keys_and_show_their_focus(page: Page):
    radios = page.locator("#ct2mr-contrast input[type=radio]")
    radios.first.focus()
    page.keyboard.press("ArrowRight")
    expect(radios.nth(1)).to_be_checked()
    outline = radios.nth(1).evaluate("radio => getComputedStyle(radio.closest('label')).outlineStyle")
    assert outline == "solid"
