"""Photograph every tab, with the bundled checkpoints and example, into assets/screenshots/.

    python tools/screenshots.py [--phone DIR]

Needs requirements-dev.txt and Chromium. --phone also takes every tab at phone width, into DIR.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.ui.page import build, launch_options
from tests.browser.conftest import CHROMIUM

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "screenshots"
TABS = {
    "ct_to_mri": ("ct2mr", "CT → MRI"),
    "contours_to_mri": ("contour2mr", "Contours → MRI"),
    "mri_to_ct": ("mr2ct", "MRI → CT"),
}
WAIT = 120_000


def photograph(page: Page, title: str, name: str, path: Path) -> None:
    open_tab(page, title)
    page.click(f"#{name}-example-0")
    page.wait_for_function(f"document.querySelector('#{name}-status')?.innerText.includes('Done')", timeout=WAIT)
    for picture in ("input", "made", "truth-picture", "error"):
        image = page.locator(f"#{name}-{picture} img")
        image.scroll_into_view_if_needed(timeout=WAIT)
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    page.screenshot(path=path, full_page=True)


def photograph_volume(page: Page, path: Path) -> None:
    open_tab(page, "Volume")
    page.click("#volume-example-0")
    page.locator("#volume-viewer [data-shown='input+made+truth']").wait_for(timeout=WAIT)
    page.locator("#volume-viewer .choices input[value=error]").check()
    page.locator("#volume-viewer [data-shown='input+made+truth+error']").wait_for(timeout=WAIT)
    page.wait_for_timeout(2000)
    page.screenshot(path=path, full_page=True)


def open_tab(page: Page, title: str) -> None:
    tab = page.get_by_role("tab", name=title, exact=True)
    if not tab.is_visible():  # at phone width the last tabs are in a menu
        page.get_by_role("button", name="More tabs").click()
        tab = page.locator(".overflow-dropdown").get_by_role("button", name=title, exact=True)
    tab.click()


def photograph_results(page: Page, path: Path) -> None:
    open_tab(page, "Results")
    page.get_by_role("heading", name="Summary").wait_for(timeout=WAIT)
    page.wait_for_timeout(1000)
    page.screenshot(path=path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phone", type=Path)
    phone = parser.parse_args().phone
    demo = build()
    demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    sizes = [(FOLDER, 1400, 1000), *([(phone, 390, 844)] if phone else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for folder, width, height in sizes:
            folder.mkdir(parents=True, exist_ok=True)
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(demo.local_url)
            page.wait_for_selector("#ct2mr-go")
            for file, (name, title) in TABS.items():
                photograph(page, title, name, folder / f"{file}.png")
            photograph_volume(page, folder / "volume.png")
            photograph_results(page, folder / "results.png")
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
