"""A real browser for the tests of pages, and what they hold of every page: it says nothing and asks for nothing."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE_SECONDS = 30.0
"""Seconds that the browser may take, at most, to do what a test waits for."""

expect.set_options(timeout=1000 * PATIENCE_SECONDS)


@dataclass
class Heard:
    """What a page says and asks for, all of which should be nothing."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Chromium; for one module alone: while it is open, asyncio counts as running in this thread."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium here: run `tests/tools/chromium.sh`")
    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=chromium, args=sandbox)
        yield browser
        browser.close()


@contextmanager
def open_page(browser: Browser, file: Path, heard: Heard, **options: Any) -> Iterator[Page]:
    """The page in `file`, open; it must stay silent, ask for no other file, and run no foreign script."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light", **options)
    page.on("console", lambda message: heard.said.append(message.text))
    page.on("pageerror", lambda error: heard.said.append(str(error)))
    page.on("request", lambda request: heard.asked.extend([] if request.url.startswith("data:") else [request.url]))
    page.goto(file.as_uri())
    yield page
    assert page.evaluate("window.pwned") is None
    page.close()
    assert heard.said == []
    assert heard.asked == [file.as_uri()]


def until(page: Page, expression: str) -> None:
    """Wait for it; the browser's own way to wait is forbidden by the page's policy."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)
