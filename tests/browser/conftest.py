"""A real server with the bundled checkpoints, and a real Chromium."""

import shutil

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.serving import served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
expect.set_options(timeout=30_000)  # other work may share the machine


@pytest.fixture(scope="session")
def address():
    with served() as demo:
        yield demo.local_url


@pytest.fixture(scope="session")
def browser():
    assert CHROMIUM, "The browser tests need Chromium: apt-get install chromium."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address) -> Page:
    """The open page. Afterwards: no script failed, and nothing was asked of another server."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    failures = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda said: failures.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("request", lambda request: None if _is_own(request.url, address) else failures.append(request.url))
    page.goto(address)
    page.wait_for_selector("#ct2mr-go")
    yield page
    page.close()
    assert not failures


def _is_own(url: str, address: str) -> bool:
    return url.startswith((address.rstrip("/"), "data:", "blob:"))
