"""How soon a visitor of a page that has just been started sees something, and has something translated.

    python tools/page_benchmark.py

Starts `python app.py`, opens it in Chromium as soon as it answers, and prints in seconds: from the opening of the page
to its first paint and to the first example's result; from clicks on the next examples to their results, made
beforehand; from the choice of another contrast to what is translated then; and from the opening of the Volume tab by
its address to its example. For two visitors: the first comes while the models are still being loaded.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
WAIT = 120_000
PAINTED = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
SHOWN = (
    """(selector) => { const i = document.querySelector(selector); return i && i.complete && i.naturalWidth > 100 }"""
)


def started() -> tuple[subprocess.Popen, str]:
    """A page of its own, once it answers, and its address."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    process = subprocess.Popen([sys.executable, "app.py", "--port", str(port)], cwd=ROOT, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    while process.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return process, address
        except OSError:
            time.sleep(0.1)
    sys.exit("The page did not start.")


def say(what: str, seconds: float) -> None:
    print(f"{seconds:7.2f} s  {what}", flush=True)


def visit(page: Page, address: str, who: str) -> None:
    """Open the page and have something translated."""
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_function(SHOWN, arg="#ct2mr-made img", timeout=WAIT)
    say(f"{who}: the first example's result is shown", time.perf_counter() - began)
    say(f"{who}: first paint", page.evaluate(PAINTED) / 1000)
    status = page.locator("#ct2mr-status")
    for number, file in ((1, "axial003"), (2, "axial016")):
        began = time.perf_counter()
        page.click(f"#ct2mr-example-{number}")
        expect(page.locator("#ct2mr-files")).to_contain_text(file, timeout=WAIT)
        say(f"{who}: example {number + 1} is shown after a click", time.perf_counter() - began)
    for contrast in ("T2", "T1"):
        began = time.perf_counter()
        page.locator("#ct2mr-contrast").get_by_label(contrast).check()
        expect(page.locator("#ct2mr-made")).to_contain_text(f"({contrast})", timeout=WAIT)
        expect(status).to_contain_text("Done in", timeout=WAIT)
        say(f"{who}: translated, the contrast changed to {contrast}", time.perf_counter() - began)
    began = time.perf_counter()
    page.goto(f"{address}?tab=volume")
    page.locator("#volume-viewer [data-shown='input+made+truth']").wait_for(timeout=WAIT)
    say(f"{who}: the volume's example is shown", time.perf_counter() - began)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    began = time.perf_counter()
    process, address = started()
    say("from the start of the process to its first answer", time.perf_counter() - began)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for who in ("first visitor", "second visitor"):
                page = browser.new_page(viewport={"width": 1400, "height": 900})
                visit(page, address, who)
                page.close()
            browser.close()
    finally:
        process.terminate()
        process.wait(30)
    print(f"on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
