"""The pictures of docs/ui.md that show stopping, reading, pairs, Teach, Methods and phones; `make_screenshots.py` calls it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from editor_screenshots import field
from PIL import Image

PHONE = {"width": 390, "height": 780}
PHONE_TABS = ("draw", "edit", "compare", "teach", "methods", "gallery")
STRIPES = [(number, 40 + 12 * number) for number in range(5)]  # pictures to learn from: number, what they differ by


def shoot_stop(page: Any, keep: Callable[[Any, str], None]) -> None:
    """A preview, and a job that is stopped."""
    field(page, "steps").fill("80")
    field(page, "number").fill("3")
    page.get_by_role("textbox", name="Prompt").fill("a yellow sun with a face")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("document.querySelectorAll('[data-state=running]').length === 1")
    page.wait_for_selector("[data-stage][src^='data:']")
    page.wait_for_function("document.querySelector('[data-progress]').innerText.match(/picture 2 of 3, step [2-7][0-9]/)")
    keep(page, "preview")
    page.get_by_role("textbox", name="Prompt").press("Escape")
    page.wait_for_selector("[data-state=stopped]")
    page.wait_for_timeout(700)
    keep(page, "stopped")
    field(page, "steps").fill("")
    field(page, "number").fill("1")


def shoot_read(page: Any, keep: Callable[[Any, str], None], gallery: Path) -> None:
    """A picture that is dropped gives its settings."""
    with page.expect_file_chooser() as chooser:
        page.locator("[data-tab=gallery]").click()
        page.locator("[data-action=read]").click()
    chooser.value.set_files(next(gallery.glob("a-purple-flower*.png")))
    page.get_by_text("are in the fields").wait_for()
    page.wait_for_timeout(500)
    keep(page, "read")


def shoot_pairs(page: Any, keep: Callable[[Any, str], None]) -> None:
    """Two pictures of one prompt."""
    page.locator("[data-tab=compare]").click()
    page.locator("[data-compare-mode=pairs]").click()
    field(page, "pairs.prompt").fill("a house with a red roof")
    field(page, "pairs.pairs").fill("2")
    page.locator("[data-action=draw-pairs]").click()
    page.locator("[data-pair-said]").filter(has_text="which is better").wait_for()
    page.locator("[data-side='0']").click()
    page.locator("[data-pair-said]").filter(has_text="1 choice").wait_for()
    page.wait_for_function("document.querySelector('[data-action=left-better]').disabled === false")
    page.wait_for_timeout(700)
    keep(page, "pairs")


def shoot_teach(page: Any, keep: Callable[[Any, str], None]) -> None:
    """Pictures to learn from, the finished LoRA, and a picture with it."""
    page.locator("[data-tab=teach]").click()
    with page.expect_file_chooser() as chooser:
        page.locator("[data-upload=train] .q-uploader__header .q-btn").last.click()
    files = [{"name": f"{number}.png", "mimeType": "image/png", "buffer": stripes(by)} for number, by in STRIPES]
    chooser.value.set_files(files)
    page.get_by_text(f"{len(STRIPES)} pictures.").wait_for()
    for name, value in (
        *(("name", "stripes"), ("prompt", "a <stripes> picture"), ("word", "<stripes>"), ("starts_as", "red")),
        *(("steps", "30"), ("rank", "4")),
    ):
        field(page, f"train.{name}").fill(value)
    page.locator("[data-action=draw-training]").click()
    page.locator("[data-trained]").filter(has_text="acts on the tab Draw").wait_for(timeout=1_200_000)
    page.wait_for_timeout(700)
    keep(page, "teach")
    page.locator("[data-tab=draw]").click()
    field(page, "seed").fill("3")
    page.locator("[data-panel=basics] .q-item").first.click()
    page.locator("[data-panel=adapters] .q-item").first.click()
    page.locator("[data-action=draw]").click()
    page.wait_for_function("document.querySelector('[data-progress]').innerText.includes('stripes')")
    page.wait_for_timeout(700)
    keep(page, "lora")


def shoot_methods(page: Any, keep: Callable[[Any, str], None]) -> None:
    """Solvers with their pictures."""
    page.locator("[data-tab=methods]").click()
    field(page, "methods.search").fill("dpmpp")
    page.locator("[data-action=draw-examples]").click()
    page.locator("[data-said=examples]").filter(has_text="done").wait_for()
    page.wait_for_timeout(700)
    keep(page, "methods")


def shoot_phones(page: Any, save: Callable[[Image.Image, str], None]) -> None:
    """Every tab at 390 pixels, beside one another."""
    page.set_viewport_size(PHONE)
    sheet = Image.new("RGB", (len(PHONE_TABS) // 2 * (PHONE["width"] + 20) - 20, 2 * PHONE["height"] + 20), "#8a8a90")
    for number, tab in enumerate(PHONE_TABS):
        page.locator(f"[data-tab={tab}]").click()
        page.wait_for_timeout(700)
        row, column = divmod(number, len(PHONE_TABS) // 2)
        shot = Image.open(io.BytesIO(page.screenshot()))
        sheet.paste(shot, (column * (PHONE["width"] + 20), row * (PHONE["height"] + 20)))
    save(sheet, "phones")


def stripes(by: int) -> bytes:
    """A picture of stripes; by: how wide they are."""
    picture, file = Image.new("RGB", (128, 128), "#f4d35e"), io.BytesIO()
    for left in range(0, 128, max(by // 4, 8)):
        picture.paste("#2f5d9b", (left, 0, left + max(by // 8, 4), 128))
    picture.save(file, "PNG")
    return file.getvalue()
