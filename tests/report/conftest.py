"""A headless Chromium, where there is one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """The system's browser; Debian has it as `apt-get install chromium`."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """A page opened from disk, with its console messages and requests.

    quiet: whether the test fails for any of them.
    """

    def __init__(self, browser, path: Path, *, quiet: bool = True, **context):
        self.quiet = quiet
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"} | context
        )
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.address = path.resolve().as_uri()
        self.page.goto(self.address)

    def texts(self, selector: str) -> list[str]:
        """Return the elements' texts."""
        return [text.strip() for text in self.page.locator(selector).all_text_contents()]

    @property
    def fetched(self) -> list[str]:
        """Return requests for anything outside the file."""
        own = (self.address, "data:", "blob:")
        return [url for url in self.requests if not url.startswith(own)]


@pytest.fixture
def opened(chromium) -> Iterator:
    """Open files; after the test, close them and check that they were quiet."""
    pages: list[Watched] = []

    def open_page(path: Path, **options) -> Watched:
        pages.append(Watched(chromium, path, **options))
        return pages[-1]

    yield open_page
    for one in pages:
        one.page.evaluate("0")  # receive pending messages
        one.context.close()
    for one in pages:
        if one.quiet:
            assert (one.complaints, one.fetched) == ([], [])
