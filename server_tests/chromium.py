"""The fixture `browser`: headless Chromium, for the tests that `tox run -e browser` runs."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from server_tests.serve import tox

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", "chrome"])), None
)
INSTALL = "apt-get install chromium (Debian), brew install --cask chromium (macOS), or name one in CHROMIUM"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, which can reach no other host than this one."""
    reason = f"not run: needs a browser; `{tox()} run -e browser` runs it"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    if CHROMIUM is None:
        pytest.skip(f"not run: there is no Chromium: {INSTALL}")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(
            executable_path=CHROMIUM,
            args=["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"],
        )
        yield chromium
        chromium.close()
