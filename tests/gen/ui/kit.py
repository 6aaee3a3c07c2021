"""What the tests of the page in Chromium share: a server of its own, a browser's page, and what a hand does on it."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
WAIT = 120_000  # milliseconds, for a machine that is busy


def in_browser(seconds: int = 600) -> list[pytest.MarkDecorator]:
    """Marks of a file of such tests, each of which may take so long."""
    missing = not os.path.exists(CHROMIUM)
    return [pytest.mark.slow, pytest.mark.skipif(missing, reason="needs Chromium"), pytest.mark.timeout(seconds)]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def served(folder: Path, *options: str):
    """(address, output folder) of a server of its own."""
    port = free_port()
    command = [sys.executable, "-m", "gen", "ui", "--no-browser", "--port", str(port), "-o", str(folder / "out"), *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        line = server.stderr.readline()
        address = re.search(r"http://\S+", line)
        assert address, line + server.stderr.read()
        yield address[0], folder / "out"
    finally:
        server.send_signal(signal.SIGINT)
        try:
            assert server.wait(WAIT / 1000) == 0, server.stderr.read()
        finally:
            server.kill()


@contextlib.contextmanager
def opened(browser, address, **context):
    one = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
    page, said = one.new_page(), []
    page.set_default_timeout(WAIT)
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.get_by_role("textbox", name="Prompt").wait_for()
    try:
        yield page
        assert said == []
    finally:
        one.close()


def ready(page) -> None:
    page.get_by_text("Ready", exact=True).wait_for(state="attached")


def draw(page, prompt: str) -> None:
    page.get_by_role("textbox", name="Prompt").fill(prompt)
    page.keyboard.press("Control+Enter")


def ended(page, count: int = 1, state: str = "done") -> None:
    page.wait_for_function(f"document.querySelectorAll('[data-state={state}]').length >= {count}")


def quiet(page) -> None:
    """Nothing runs or waits, and what has ended is taken off the list."""
    page.wait_for_function("!document.querySelector('[data-state=running], [data-state=queued]')")
    while page.locator("[data-job-action=forget]").count():
        before = page.locator("[data-job]").count()
        page.locator("[data-job-action=forget]").first.click()
        page.wait_for_function(f"document.querySelectorAll('[data-job]').length < {before}")


def field(page, name: str):
    return page.locator(f"[data-field='{name}']")


def holds(page, name: str, value: str) -> None:
    """A field shows this, soon."""
    playwright.expect(field(page, name)).to_have_value(value, timeout=WAIT)


def section(page, title: str) -> None:
    page.locator(".fs-section").get_by_text(title, exact=True).first.click()


def photo(width: int = 128, height: int = 128) -> bytes:
    """A picture without two equal rows."""
    rows, columns = np.mgrid[:height, :width]
    pixels, file = np.stack([rows * 2 % 256, columns * 2 % 256, (rows + columns) % 256], -1).astype(np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
