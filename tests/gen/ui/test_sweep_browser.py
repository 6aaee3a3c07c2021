"""The tab "Compare" in Chromium: a grid whose cells fill, its code, a phone."""

from __future__ import annotations

from tests.gen.ui.kit import field, in_browser, opened, ready

pytestmark = in_browser()


def test_cells_fill_as_they_are_drawn(browser, site):
    with opened(browser, site[0]) as page:
        ready(page)
        page.locator("[data-tab=compare]").click()
        page.locator("[data-ready=Words]").click()
        assert field(page, "sweep.across").input_value() == "prompt:red=red,blue,green"
        page.keyboard.press("Control+Enter")
        page.get_by_text("Say what to draw").wait_for()
        field(page, "sweep.prompt").fill("a red heart")
        field(page, "sweep.across").fill("steps=1,nothing")
        page.locator("[data-action=draw-sweep]").click()
        page.locator(".fs-prompt .q-field__messages").filter(has_text="nothing").wait_for()
        field(page, "sweep.across").fill("steps=1,2")
        field(page, "sweep.down").fill("sampler=euler,heun")
        page.locator("[data-action=draw-sweep]").click()
        page.wait_for_function("document.querySelectorAll('.fs-cell').length === 4")
        page.wait_for_function("document.querySelectorAll('.fs-cell img').length === 4")
        page.locator("[data-said=sweep]").filter(has_text="done").wait_for()
        captions = page.locator(".fs-sweep .fs-hint").all_inner_texts()
        assert captions == ["steps 1", "steps 2", "sampler euler", "sampler heun"]
        assert len(list(site[1].glob("*.png"))) == 4
        page.locator(".fs-cell button").first.click()
        page.locator("[data-detail]").get_by_text("euler", exact=True).wait_for()
        page.keyboard.press("Escape")
        page.locator("[data-detail]").wait_for(state="detached")
        page.locator("[data-action=code-sweep]").click()
        assert "fewstep sweep" in page.locator("[data-text]").nth(1).inner_text()
        page.keyboard.press("Escape")
        page.locator("[data-code]").wait_for(state="detached")


def test_a_phone_scrolls_the_grid_and_not_the_page(browser, site):
    with opened(browser, site[0], viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark") as page:
        ready(page)
        page.locator("[data-tab=compare]").click()
        field(page, "sweep.prompt").fill("a star")
        field(page, "sweep.across").fill("steps=1-6")
        field(page, "sweep.down").fill("")
        page.locator("[data-action=draw-sweep]").click()
        page.wait_for_function("document.querySelectorAll('.fs-cell img').length >= 2")
        page.locator("[data-action=stop-sweep]").click()
        page.locator("[data-said=sweep]").filter(has_text="stopped").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
