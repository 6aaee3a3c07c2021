"""The tab "Teach" in Chromium: pictures to a LoRA that acts on what is drawn next."""

from __future__ import annotations

import pytest

from gen.pipeline.png import read_recipe
from tests.gen.ui.kit import field, in_browser, opened, photo, ready, served

pytest.importorskip("peft")
pytestmark = in_browser(900)


def test_what_is_taught_acts_on_the_next_picture(browser, tmp_path):
    with served(tmp_path) as (address, output), opened(browser, address) as page:
        ready(page)
        page.locator("[data-tab=teach]").click()
        page.keyboard.press("Control+Enter")
        page.get_by_text("Drop the pictures to learn from").wait_for()
        with page.expect_file_chooser() as chooser:
            page.locator("[data-upload=train] .q-uploader__header .q-btn").last.click()
        files = [{"name": "x.png", "mimeType": "image/png", "buffer": photo(side, 128)} for side in (128, 120)]
        chooser.value.set_files(files)
        page.get_by_text("2 pictures.").wait_for()
        field(page, "train.name").fill("stripes")
        field(page, "train.prompt").fill("a <stripes> picture")
        field(page, "train.word").fill("<stripes>")
        field(page, "train.starts_as").fill("red")
        field(page, "train.steps").fill("1")
        field(page, "train.rank").fill("1")
        page.locator("[data-action=draw-training]").click()
        page.locator("[data-trained]").filter(has_text="acts on the tab Draw").wait_for(timeout=600_000)
        assert (output / "loras" / "stripes.safetensors").is_file()
        page.locator("[data-tab=draw]").click()
        field(page, "steps").fill("1")
        page.locator("[data-action=draw]").click()
        page.wait_for_selector("[data-state=done]")
        picture = next(output.glob("*.png"))
        recipe = read_recipe(picture)
        assert list(recipe.adapters.values()) == [1.0] and "<stripes>" in recipe.prompt


def test_a_phone_has_all_of_it(browser, tmp_path):
    size = {"width": 390, "height": 844}
    with served(tmp_path) as (address, _), opened(browser, address, viewport=size, has_touch=True) as page:
        page.locator("[data-tab=teach]").click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
