"""Chromium at a page of the server, watched for what a page under a strict policy must not do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import pytest

Scheme = Literal["light", "dark"]
_NAMES: Final = ("chromium", "chromium-browser", "google-chrome")
_PROBE: Final = Path(__file__).with_name("probe.js")
# Where pictures of the views are to be kept, if anywhere.
PICTURES: Final = os.environ.get("SCREENSHOTS")
_ARGUMENTS: Final = ("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",)


@dataclass(slots=True)
class Tab:
    """A page, with what it logged as an error and asked for."""

    page: Any
    url: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def go(self, view: str = "adapters") -> None:
        self.page.goto(f"{self.url}/console#/{view}")
        self.page.locator("#title").wait_for()

    def keep(self, name: str) -> None:
        if PICTURES:
            while self.page.locator(".notice").count():
                self.page.locator(".notice button").first.click()
            self.page.screenshot(path=Path(PICTURES) / f"{name}.png")

    def check(self) -> None:
        """Fail for any error, violation of the policy, or request to another host."""
        assert self.errors == []
        assert self.page.evaluate("probe.violations") == []
        assert self.requests
        own = (f"{self.url}/", f"blob:{self.url}/")
        assert [one for one in self.requests if not one.startswith(own)] == []

    def check_reading(self) -> None:
        """Fail for faint text, and for controls without a name."""
        assert self.page.evaluate("probe.faint()") == []
        assert self.page.evaluate("probe.nameless()") == []


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser; where it is missing the test is skipped and says so."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    sandbox = () if os.geteuid() else ("--no-sandbox",)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=[*_ARGUMENTS, *sandbox])
        yield browser
        browser.close()


@contextmanager
def visit(browser: Any, url: str, *, scheme: Scheme = "light") -> Iterator[Tab]:
    """A tab with nothing kept from others."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme=scheme)
    context.add_init_script(path=_PROBE)
    page = context.new_page()
    page.set_default_timeout(30_000)
    tab = Tab(page, url)
    page.on("pageerror", lambda error: tab.errors.append(str(error)))
    page.on("request", lambda request: tab.requests.append(request.url))
    page.on("console", lambda line: line.type == "error" and tab.errors.append(line.text))
    yield tab
    context.close()
