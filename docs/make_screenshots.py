"""The pictures of docs/ui.md: python docs/make_screenshots.py serves the page, uses it in Chromium, and writes docs/ui/*.png.

With names of parts (draw, stop, tabs, read, pairs, methods, teach, phones) only those.

Needs the extra dev, and Chromium (CHROMIUM, or `chromium` on the path).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from editor_screenshots import field, shoot_tabs
from PIL import Image
from tab_screenshots import shoot_methods, shoot_pairs, shoot_phones, shoot_read, shoot_stop, shoot_teach

OUT = Path(__file__).parent / "ui"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or "chromium"
PROMPTS = ("a red heart", "a yellow sun with a face", "a house with a green roof", "a purple flower", "a blue car", "a cat")
COLOURS, MOST = (240, 128, 64, 32), 100_000  # of a palette, tried in turn; bytes of a file


@contextlib.contextmanager
def served(folder: str) -> Iterator[str]:
    """The address of a page of its own."""
    command = [sys.executable, "-m", "gen", "ui", "--no-browser", "-o", f"{folder}/outputs"]
    server = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    try:
        assert server.stderr is not None
        address = re.search(r"http://\S+", server.stderr.readline())
        assert address, server.stderr.read()
        yield address[0]
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)


def keep(page: Any, name: str) -> None:
    """What is seen now."""
    save(Image.open(io.BytesIO(page.screenshot())), name)


def save(picture: Image.Image, name: str) -> None:
    """A picture of the page, with as many colours as keep its file small."""
    for colours in COLOURS:
        picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(OUT / f"{name}.png", optimize=True)
        if (OUT / f"{name}.png").stat().st_size < MOST:
            break
    print(OUT / f"{name}.png", flush=True)


def open_section(page: Any, title: str) -> None:
    page.locator(".fs-section").get_by_text(title, exact=True).first.click()
    page.wait_for_timeout(500)


def draw_some(page: Any) -> None:
    """Pictures for the other tabs to work on."""
    prompt = page.get_by_role("textbox", name="Prompt")
    page.get_by_text("Ready", exact=True).wait_for()
    for seed, text in enumerate(PROMPTS):
        prompt.fill(text)
        field(page, "seed").fill(str(seed))
        page.keyboard.press("Control+Enter")
        page.wait_for_function(f"document.querySelectorAll('[data-state=done]').length >= {seed + 1}")


def shoot(page: Any) -> None:
    """Use the page as a person does, and keep what is seen on the way."""
    prompt = page.get_by_role("textbox", name="Prompt")
    field(page, "steps").fill("60")
    for text in ("a dog in a hat", "a rainbow", "a green apple"):
        prompt.fill(text)
        page.keyboard.press("Control+Enter")
    page.wait_for_function("parseFloat(document.querySelector('.fs-bar > div').style.width) > 35")
    keep(page, "queue")
    page.wait_for_function("!document.querySelector('[data-state=running], [data-state=queued]')")
    field(page, "steps").fill("")
    open_section(page, "Guidance")
    field(page, "rule").click()
    page.get_by_role("option", name="apg", exact=True).click()
    open_section(page, "Picture")
    page.wait_for_timeout(500)
    keep(page, "guidance")
    page.locator("[data-action=code]").click()
    page.wait_for_timeout(700)
    keep(page, "code")
    page.keyboard.press("Escape")
    page.locator("[data-tab=gallery]").click()
    page.locator(".fs-grid .fs-thumb").nth(3).click()
    page.locator("[data-action=d-replay]").click()
    page.get_by_text("Made again:").wait_for()
    keep(page, "details")
    page.keyboard.press("Escape")
    page.locator("[data-detail]").wait_for(state="detached")
    page.get_by_label("Look: as the system").click()
    page.get_by_label("Look: light").click()
    page.wait_for_timeout(500)
    keep(page, "gallery")


def main() -> None:
    from playwright.sync_api import sync_playwright

    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, served(folder) as address, sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        gallery = Path(folder) / "outputs"

        def opened() -> Any:
            page = browser.new_page(viewport={"width": 1280, "height": 780})
            page.set_default_timeout(600_000)
            page.goto(address)
            page.get_by_text("Ready", exact=True).wait_for()
            return page

        page = opened()
        draw_some(page)
        page.wait_for_timeout(500)
        keep(page, "drawn")
        parts = {
            "draw": shoot,
            "stop": lambda page: shoot_stop(page, keep),
            "tabs": lambda page: shoot_tabs(page, keep, gallery),
            "read": lambda page: shoot_read(page, keep, gallery),
            "pairs": lambda page: shoot_pairs(page, keep),
            "methods": lambda page: shoot_methods(page, keep),
            "teach": lambda page: shoot_teach(page, keep),
            "phones": lambda page: shoot_phones(page, save),
        }
        for name, part in parts.items():
            if not sys.argv[1:] or name in sys.argv[1:]:
                page = opened()
                part(page)
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
