"""A headless Chromium: Playwright's own, or the system's."""

import contextlib
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def launched():
    """A Playwright `Browser`; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        executable = playwright.chromium.executable_path
        if not Path(executable).exists():
            executable = next(filter(None, map(shutil.which, NAMES)), None)
        if executable is None:
            pytest.skip("no Chromium")
        chromium = playwright.chromium.launch(
            executable_path=executable,
            args=[
                # Containers have no sandbox, and the pages are ours.
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
            ],
        )
        try:
            yield chromium
        finally:
            chromium.close()
