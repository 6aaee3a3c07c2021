"""The page in Chromium as somebody uses it who does not know it: wrong input, several pages at once, choosing, the keyboard."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from PIL import Image

from gen.pipeline.png import read_recipe
from tests.gen.ui.kit import draw, ended, field, in_browser, opened, quiet, ready, section, served

pytestmark = in_browser()


@pytest.fixture
def page(browser, site):
    with opened(browser, site[0]) as one:
        ready(one)
        yield one


def choose(page, name: str, option: str) -> None:
    field(page, name).click()
    page.get_by_role("option", name=option, exact=True).click()


def says(page, words: str) -> None:
    """The one message of an error."""
    page.locator("[data-kind=negative]").filter(has_text=re.compile(words)).wait_for()
    assert page.locator("[data-kind=negative]").count() == 1


def test_what_is_typed_into_a_list_is_taken_or_said_to_be_wrong(page):
    section(page, "Sampler")
    for typed, shown, words in (
        ("Euler a", "euler_a", ""),
        ("euler_b", "euler_b", "'euler_b' is not in the list; did you mean euler?"),
        ("zzzz", "zzzz", "choose one of its names"),
        ("heun", "heun", ""),
    ):
        field(page, "sampler").click()
        page.keyboard.press("Control+A")
        page.keyboard.type(typed)
        page.keyboard.press("Tab")
        page.wait_for_function(f"document.querySelector(\"[data-field='sampler']\").value === {shown!r}")
        if words:
            page.get_by_text(words).wait_for()
    assert page.locator(".q-field__messages").filter(has_text="list").count() == 0
    field(page, "sampler").click()
    page.keyboard.press("Control+A")
    page.keyboard.type("euler_b")
    page.keyboard.press("Control+Enter")  # typed and drawn at once
    page.locator("[data-state=failed]").wait_for()
    page.locator(".q-field__messages").filter(has_text="Unknown").wait_for()
    quiet(page)


def test_a_number_that_is_none_is_not_passed_over(page):
    for name in ("steps", "width", "seed", "number"):
        field(page, name).fill("")
        field(page, name).click()
        page.keyboard.type("e-")
        page.get_by_text("That is no number.").wait_for()
        page.keyboard.press("Control+Enter")
        page.get_by_text(re.compile("Give a whole number")).wait_for()
        assert page.locator("[data-job]").count() == 0
        field(page, name).fill("8" if name != "number" else "1")
        page.wait_for_function("!document.querySelector('.q-field--error')")


def test_one_message_at_a_time_says_what_was_wrong_and_can_be_closed(page):
    page.locator("[data-tab=edit]").click()
    for name, kind, size, words in (
        ("notes.txt", "text/plain", 4, "notes.txt is no picture; give a PNG"),
        ("large.png", "image/png", (64 << 20) + 1, "large.png has more than 64 MiB"),
        ("broken.png", "image/png", 4, "no picture that can be read"),
    ):
        with page.expect_file_chooser() as chooser:
            page.locator("[data-upload=edit] .q-uploader__header .q-btn").last.click()
        page.evaluate("window.given = 0")
        if size > 1 << 20:  # too much to be sent here: made in the browser
            page.evaluate(
                "size => { const file = new File([new Uint8Array(size)], 'large.png', {type: 'image/png'});"
                "getElement(Number(document.querySelector('[data-upload=edit]').id.slice(1))).$refs.qRef.addFiles([file]); }",
                size,
            )
        else:
            chooser.value.set_files([{"name": name, "mimeType": kind, "buffer": b"x" * size}])
        says(page, words)
    page.locator("[data-action=draw-edit]").click()
    says(page, "Choose a picture first")
    page.locator("[data-kind=negative]").get_by_label("Close").click()
    page.locator("[data-kind=negative]").wait_for(state="detached")


def test_what_is_wrong_on_a_tab_is_said_on_it(page):
    page.locator("[data-tab=edit]").click()
    page.locator("[data-mode-button=panorama]").click()
    field(page, "edit.prompt").fill("a forest")
    field(page, "edit.width").fill("133")
    field(page, "edit.height").fill("128")
    page.locator("[data-action=draw-edit]").click()
    page.locator(".fs-edit .fs-wrong").filter(has_text="133").wait_for()
    page.locator("[data-tab=draw]").click()
    assert page.locator(".fs-settings .q-field--error").count() == 0
    field(page, "steps").fill("5000")
    page.locator("[data-tab=compare]").click()
    field(page, "sweep.prompt").fill("a cat")
    page.locator("[data-action=draw-sweep]").click()
    says(page, "Steps, on the tab Draw: Give a whole number")
    page.locator("[data-tab=draw]").click()
    quiet(page)


def test_code_is_of_the_fields_and_of_the_picture_each_under_its_name(page):
    field(page, "seed").fill("5")
    draw(page, "a red heart")
    ended(page)
    page.get_by_role("textbox", name="Prompt").fill("a cat")
    page.locator("[data-action=code]").click()
    titles = page.locator("[data-part]")
    titles.first.wait_for()
    assert titles.all_inner_texts() == ["What the fields say now", "The picture on screen: a-red-heart-5.png"]
    texts = page.locator("[data-text]").all_inner_texts()
    assert ["a cat" in text for text in texts] == [True, True, False, False]
    assert ["a red heart" in text for text in texts] == [False, False, True, True]
    page.keyboard.press("Escape")
    page.locator("[data-code]").wait_for(state="detached")
    quiet(page)


def test_shapes_formats_hires_and_variations(page, site):
    page.locator("[data-action=shapes]").click()
    page.locator("[data-shape='16:9']").click()
    page.wait_for_function("document.querySelector(\"[data-field='width']\").value === '176'")
    choose(page, "suffix", "WebP")
    field(page, "quality").fill("100")
    section(page, "Hires and variations")
    field(page, "variation_seed").fill("3")
    field(page, "variation_strength").fill("0.1")
    field(page, "seed").fill("9")
    draw(page, "a blue fish")
    ended(page)
    recipe = read_recipe(site[1] / "a-blue-fish-9.webp")
    assert (recipe.width, recipe.height) == (176, 96) and recipe.variation.seed == 3
    page.locator("[data-action=details]").click()
    page.locator("[data-action=d-replay]").click()
    page.get_by_text("Made again: equal to the last byte.").wait_for()
    page.keyboard.press("Escape")
    page.locator("[data-detail]").wait_for(state="detached")
    for name, value in (("width", "64"), ("height", "64"), ("steps", "2"), ("hires_strength", "0.5")):
        field(page, name).fill(value)
    page.keyboard.press("Control+Enter")
    page.get_by_text("Say how many times as large").wait_for()
    field(page, "hires").fill("2")
    page.keyboard.press("Control+Enter")
    ended(page, 2)
    recipe = read_recipe(site[1] / "a-blue-fish-9-1.webp")
    assert (recipe.width, recipe.height) == (128, 128) and recipe.hires.scale == 2
    section(page, "From a picture")
    page.locator("[data-conditions]").filter(has_text="--models FOLDER").wait_for()
    quiet(page)


def test_left_or_right_is_kept_and_can_be_taken_back(page, site):
    page.locator("[data-tab=compare]").click()
    page.locator("[data-compare-mode=pairs]").click()
    page.locator("[data-action=draw-pairs]").click()
    page.get_by_text("Say what to draw, a prompt a line.").wait_for()
    field(page, "pairs.prompt").fill("a red heart\na yellow sun")
    field(page, "pairs.pairs").fill("3")
    page.locator("[data-action=draw-pairs]").click()
    page.get_by_text("a red heart: which is better?").wait_for()
    left = page.locator("[data-side='0'] img").get_attribute("src")
    page.locator("[data-side='0']").click()
    page.get_by_text("a yellow sun: which is better?").wait_for()
    file = site[1] / "preferences.jsonl"
    (row,) = (json.loads(line) for line in file.read_text().splitlines())
    assert row["prompt"] == "a red heart" and f"/{row['chosen']}?" in left and row["rejected"] != row["chosen"]
    assert all(read_recipe(site[1] / row[name]).prompt == "a red heart" for name in ("chosen", "rejected"))
    page.locator("[data-action=undo]").click()
    page.get_by_text("The choice is taken back.").wait_for()
    assert file.read_text() == ""
    right = page.locator("[data-side='1'] img").get_attribute("src")
    page.locator("[data-action=right-better]").focus()
    page.keyboard.press("ArrowRight")  # from the keyboard
    page.get_by_text("a red heart: which is better?").wait_for()
    (row,) = (json.loads(line) for line in file.read_text().splitlines())
    assert row["prompt"] == "a yellow sun" and f"/{row['chosen']}?" in right
    page.locator("[data-action=neither]").click()
    page.get_by_text("1 choice in preferences.jsonl.", exact=True).wait_for()
    page.locator("[data-tab=draw]").click()
    quiet(page)


def test_the_queue_is_ordered_and_emptied_from_the_keyboard(page):
    """And the focus stays with its job, whatever becomes of the list."""
    field(page, "steps").fill("900")
    draw(page, "a dog")
    page.wait_for_selector("[data-state=running]")
    for prompt in ("one", "two", "three"):
        draw(page, prompt)
        page.locator("[data-job]").get_by_text(prompt, exact=True).wait_for()

    def waiting(names: list[str]) -> None:
        page.wait_for_function(
            "names => [...document.querySelectorAll('[data-state=queued] .fs-label')].map((e) => e.innerText).join() === names",
            arg=",".join(names),
        )

    def focused(prompt: str) -> None:
        page.wait_for_function("name => document.activeElement.getAttribute('aria-label') === name", arg=prompt)

    page.locator("[data-state=queued]").last.focus()
    focused("three")
    page.keyboard.press("Alt+ArrowUp")
    waiting(["one", "three", "two"])
    focused("three")
    page.keyboard.press("Alt+ArrowUp")
    waiting(["three", "one", "two"])
    focused("three")
    page.keyboard.press("Alt+ArrowDown")
    waiting(["one", "three", "two"])
    focused("three")
    page.keyboard.press("ArrowDown")
    focused("two")
    page.keyboard.press("Delete")
    waiting(["one", "three"])
    page.locator("[data-state=queued]").first.focus()
    page.keyboard.press("Delete")
    waiting(["three"])
    page.locator("[data-state=queued]").first.focus()
    page.keyboard.press("Delete")
    waiting([])
    page.locator("[data-state=running]").focus()
    page.keyboard.press("Delete")
    quiet(page)


def test_two_pages_share_the_queue_and_one_that_is_closed_leaves_its_job(browser, site, page):
    with opened(browser, site[0]) as other:
        ready(other)
        field(other, "steps").fill("60")
        field(other, "width").fill("13")
        draw(other, "wrong")
        other.locator("[data-state=failed]").wait_for()
        page.locator("[data-state=failed]").wait_for()  # the queue says it here, too
        assert page.locator(".q-field--error").count() == 0 and page.locator(".fs-toast").count() == 0
        field(other, "width").fill("")
        draw(other, "a star")
        page.locator("[data-state=running]").wait_for()
        page.wait_for_selector("[data-stage][src^='data:']")  # the preview is on both
        other.reload()
        ready(other)
        other.locator("[data-state=running]").wait_for()
        other.wait_for_selector("[data-stage][src^='data:']")
    ended(page)
    assert len(list(site[1].glob("a-star-*"))) == 1
    quiet(page)


@pytest.mark.parametrize("width", [390, 360])
def test_a_phone_has_every_tab(browser, site, width):
    """None is wider than the screen, and the names of the tabs stand beside one another, under nothing."""
    with opened(browser, site[0], viewport={"width": width, "height": 780}, has_touch=True) as page:
        ready(page)
        boxes = [one.bounding_box() for one in page.locator(".q-tab__label").all()]
        assert len(boxes) == 6
        ends = [(box["x"], box["x"] + box["width"]) for box in boxes]
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends)), ends
        assert page.locator(".fs-head .q-tabs__arrow:visible").count() == 0
        assert ends[0][0] >= 0 and ends[-1][1] <= page.get_by_label("Look:").bounding_box()["x"]
        for tab in ("edit", "compare", "teach", "methods", "gallery", "draw"):
            page.locator(f"[data-tab={tab}]").tap()
            page.locator(f"[data-tab={tab}][aria-selected=true]").wait_for()
            page.wait_for_timeout(200)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        for panel in page.locator(".fs-section").all():
            panel.locator(".q-item").first.tap()
        page.wait_for_timeout(500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_gallery_of_two_hundred_shows_all_of_it_by_and_by(browser, tmp_path):
    (tmp_path / "out").mkdir()
    for number in range(200):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(
            tmp_path / "out" / f"red-{number:03}.{('png', 'jpg', 'webp')[number % 3]}"
        )
    with served(tmp_path) as (address, _), opened(browser, address) as page:
        page.locator("[data-tab=gallery]").click()
        page.get_by_text("200 pictures in out").wait_for()
        for count in (60, 120, 180, 200):
            page.wait_for_function(f"document.querySelectorAll('.fs-gallery .fs-thumb').length === {count}")
            if count < 200:
                page.get_by_role("button", name="More", exact=True).click()
        page.locator(".fs-gallery .fs-thumb").last.scroll_into_view_if_needed()
        page.wait_for_function("[...document.querySelectorAll('.fs-gallery .fs-thumb img')].at(-1).naturalWidth > 0")
        page.get_by_role("textbox", name="Search names").fill("red-19")
        page.wait_for_function("document.querySelectorAll('.fs-gallery .fs-thumb').length === 10")


def test_a_browser_that_was_away_finds_its_page_as_it_was(page):
    page.get_by_role("textbox", name="Prompt").fill("a yellow star")
    field(page, "steps").fill("3")
    page.wait_for_timeout(1000)
    page.evaluate("window.socket.disconnect()")
    page.wait_for_timeout(30_000)
    page.evaluate("window.socket.connect()")
    page.wait_for_timeout(3000)
    assert page.get_by_role("textbox", name="Prompt").input_value() == "a yellow star"
    page.locator("[data-action=draw]").click()
    ended(page)
    assert "a yellow star" in page.locator("[data-job]").first.inner_text()
    quiet(page)


def test_the_browsers_back_button_does_not_lose_the_page(page, site):
    draw(page, "a cat")
    page.goto("about:blank")
    page.go_back()
    page.get_by_role("textbox", name="Prompt").wait_for()
    ended(page)
    quiet(page)
