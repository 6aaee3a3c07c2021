"""The tab "Edit" in Chromium: a drawn mask, painted regions, dragged borders, restoration, a phone."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from gen.pipeline.png import read_recipe
from tests.gen.ui.kit import field, in_browser, opened, photo, ready

pytestmark = in_browser()


@pytest.fixture
def page(browser, site):
    with opened(browser, site[0]) as one:
        ready(one)
        field(one, "steps").fill("2")
        field(one, "seed").fill("7")
        one.locator("[data-tab=edit]").click()
        one.locator(".fs-paint").wait_for()
        yield one


def give(page, data: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("[data-upload=edit] .q-uploader__header .q-btn").last.click()
    chooser.value.set_files([{"name": "photo.png", "mimeType": "image/png", "buffer": data}])
    shown(page)


def shown(page) -> None:
    page.wait_for_function("document.querySelector('.fs-paint canvas').style.visibility === 'visible'")


def drag(page, *points: tuple[float, float]) -> None:
    """Over the canvas; points are shares of its width and height."""
    box = page.locator(".fs-paint canvas").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=4)
    page.mouse.up()


def result(page, site) -> Image.Image:
    """What the tab's job made."""
    shown_before = page.locator("[data-result=edit]").get_attribute("alt")
    page.locator("[data-action=draw-edit]").click()
    page.wait_for_function(
        "before => { const now = document.querySelector('[data-result=edit]').alt;"
        " return (now.endsWith('.png') && now !== before) || document.querySelector('.fs-edit .fs-wrong').innerText }",
        arg=shown_before,
    )
    page.locator("[data-said=edit]").filter(has_text="done").wait_for()
    assert page.locator(".fs-edit .fs-wrong").first.inner_text() == ""
    name = page.locator("[data-result=edit]").get_attribute("alt")
    return Image.open(site[1] / name)


def test_pixels_outside_a_drawn_mask_stay(page, site):
    give(page, photo())
    field(page, "edit.prompt").fill("a red heart")
    drag(page, (0.1, 0.5), (0.4, 0.5))
    page.get_by_text("of the picture is made anew").wait_for()
    painted = page.locator("[data-painted]").inner_text()
    page.locator(".fs-paint canvas").press("]")  # a larger brush
    drag(page, (0.8, 0.8), (0.81, 0.8))
    page.locator("[data-action=undo]").click()
    page.wait_for_function(f"document.querySelector('[data-painted]').innerText === {painted!r}")
    made, before = np.asarray(result(page, site)), np.asarray(Image.open(io.BytesIO(photo())))
    changed = (made != before).any(-1)
    rows, columns = changed.nonzero()
    assert changed.sum() > 300 and rows.min() > 48 and rows.max() < 80 and columns.max() < 68
    mask = max((site[1] / ".given").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    white = np.asarray(Image.open(mask).convert("L")) > 0
    assert not (changed & ~white).any() and white.sum() < 0.2 * white.size


def test_a_mask_is_inverted_erased_and_cleared(page):
    give(page, photo())
    drag(page, (0.5, 0.5), (0.6, 0.5))
    said = page.locator("[data-painted]")
    page.wait_for_function("parseInt(document.querySelector('[data-painted]').innerText) > 0")
    some = int(said.inner_text().split("%")[0])
    page.locator("[data-action=invert]").click()
    page.wait_for_function(f"Math.abs(parseInt(document.querySelector('[data-painted]').innerText) - {100 - some}) <= 1")
    page.locator("[data-action=tool-erase]").click()
    drag(page, (0.1, 0.1), (0.9, 0.1))
    page.wait_for_function(f"parseInt(document.querySelector('[data-painted]').innerText) < {95 - some}")
    page.locator("[data-action=clear]").click()
    page.wait_for_function("document.querySelector('[data-painted]').innerText.startsWith('0%')")
    page.locator(".fs-paint canvas").press("b")
    page.locator("[data-action=tool-brush][aria-pressed=true]").wait_for()
    page.locator(".fs-paint canvas").press("Space")  # from the keyboard alone
    page.wait_for_function("!document.querySelector('[data-painted]').innerText.startsWith('0%')")


def test_regions_are_boxes_and_paint_and_make_the_command_line(page, site):
    page.locator("[data-mode-button=regions]").click()
    shown(page)
    page.locator("[data-action=draw-edit]").click()
    page.get_by_text("drag a box on the picture for it").wait_for()
    field(page, "edit.region-0").fill("a red heart")
    drag(page, (0, 0), (0.5, 0.5))
    page.locator("[data-region='1']").click()
    field(page, "edit.region-1").fill("a blue car")
    page.wait_for_function("document.querySelector(\"[data-region='1']\").getAttribute('aria-pressed') === 'true'")
    drag(page, (0.5, 0.5), (1, 1))
    field(page, "edit.prompt").fill("a white background")
    made = result(page, site)
    assert made.size == (256, 256)
    layout = read_recipe(made.filename).layout
    assert [region.prompt for region in layout.regions] == ["a red heart", "a blue car"]
    assert layout.background == "a white background"
    assert [abs(a - b) < 3 for a, b in zip(layout.regions[1].box, (128, 128, 128, 128), strict=True)] == [True] * 4
    page.locator("[data-action=code-edit]").click()
    assert "fewstep layout" in page.locator("[data-text]").nth(1).inner_text()
    page.keyboard.press("Escape")
    page.locator("[data-code]").wait_for(state="detached")
    page.locator("[data-action=tool-brush]").click()
    drag(page, (0.1, 0.8), (0.3, 0.8))
    made = result(page, site)
    layout = read_recipe(made.filename).layout
    assert layout.regions[0].box is not None and layout.regions[1].mask is not None


def test_a_dragged_border_extends_the_picture(page, site):
    page.locator("[data-mode-button=outpaint]").click()
    give(page, photo())
    edge = page.locator("[data-edge=right]").bounding_box()
    x, y = edge["x"] + edge["width"] / 2, edge["y"] + edge["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=4)
    page.mouse.up()
    page.wait_for_function("parseInt(document.querySelector(\"[data-field='edit.right']\").value) > 0")
    by = int(field(page, "edit.right").input_value())
    assert by % 8 == 0
    made = result(page, site)
    assert made.size == (128 + by, 128)
    assert (np.asarray(made)[:, :128] == np.asarray(Image.open(io.BytesIO(photo())))).all()


def test_a_picture_is_enlarged_and_restored_and_edited_further(page, site):
    page.locator("[data-mode-button=upscale]").click()
    give(page, photo(64, 64))
    field(page, "edit.strength").fill("0.6")
    assert result(page, site).size == (128, 128)
    page.locator("[data-mode-button=restore]").click()
    give(page, photo(32, 32))
    assert result(page, site).size == (128, 128)
    page.locator("[data-mode-button=inpaint]").click()
    page.locator("[data-action=edit-result]").click()
    page.locator("[data-action=edit-gallery]").click()
    page.locator("[data-pick] .fs-thumb").first.click()
    page.locator("[data-pick]").wait_for(state="detached")


def test_a_phone_paints_by_touch(browser, site):
    with opened(browser, site[0], viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark") as page:
        page.locator("[data-tab=edit]").click()
        for mode in ("regions", "outpaint", "panorama", "upscale", "restore", "inpaint"):
            page.locator(f"[data-mode-button={mode}]").click()
            page.wait_for_timeout(200)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, mode
        give(page, photo())
        page.locator(".fs-paint canvas").scroll_into_view_if_needed()
        box = page.locator(".fs-paint canvas").bounding_box()
        page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.wait_for_function("parseInt(document.querySelector('[data-painted]').innerText) > 0")
