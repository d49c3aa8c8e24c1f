"""Photograph every tab, with the bundled checkpoints and example, into assets/screenshots/.

    python tools/screenshots.py

On a desktop, on a phone (phone_*) and in the dark (dark_*). Needs requirements-dev.txt and Chromium.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mediffuse.ui.page import build, launch_options
from tests.browser.conftest import CHROMIUM

FOLDER = Path(__file__).resolve().parents[1] / "assets" / "screenshots"
TABS = {
    "ct_to_mri": "ct2mr",
    "contours_to_mri": "contour2mr",
    "mri_to_ct": "mr2ct",
    "volume": "volume",
    "results": "results",
}
LOOKS = {"": (1400, 1000, "light"), "phone_": (390, 1600, "light"), "dark_": (1400, 1000, "dark")}
"""(width, height, theme) by what begins a file's name. A phone is scrolled: half of it is seen at a time."""
WAIT = 120_000


def slices_ready(page: Page, name: str) -> None:
    """Wait for the example that a tab opens on."""
    for picture in ("input", "made", "truth-picture"):
        page.wait_for_function(
            "found => { const i = document.querySelector(found); return i && i.complete && i.naturalWidth > 100 }",
            arg=f"#{name}-{picture} img",
            timeout=WAIT,
        )


def volume_ready(page: Page) -> None:
    page.locator("#volume-viewer [data-shown='input+made+truth']").wait_for(timeout=WAIT)
    page.locator("#volume-viewer .choices input[value=error]").check()
    page.locator("#volume-viewer [data-shown='input+made+truth+error']").wait_for(timeout=WAIT)


def results_ready(page: Page) -> None:
    page.get_by_role("heading", name="Summary").wait_for(timeout=WAIT)


def photograph(page: Page, path: Path) -> None:
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(1000)
    with Image.open(io.BytesIO(page.screenshot())) as image:
        image.convert("RGB").save(path, quality=85, method=6)
    print(path)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    demo = build()
    demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for begin, (width, height, theme) in LOOKS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            for file, tab in TABS.items():
                page.goto(f"{demo.local_url}?tab={tab}&__theme={theme}")
                page.locator(f"#tab-{tab}").wait_for(timeout=WAIT)
                if tab == "volume":
                    volume_ready(page)
                elif tab == "results":
                    results_ready(page)
                else:
                    slices_ready(page, tab)
                photograph(page, FOLDER / f"{begin}{file}.webp")
            page.close()
        browser.close()
    demo.close()


if __name__ == "__main__":
    main()
