"""The page in Chromium, as a person uses it: first picture, stopping, the queue, the gallery, a phone, the keyboard alone."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from tests.gen.ui.kit import WAIT, draw, ended, field, holds, in_browser, opened, quiet, ready, section, served

pytestmark = in_browser()
A1111 = "a green tree\nNegative prompt: blurry\nSteps: 9, Sampler: Euler a, CFG scale: 3.5, Seed: 42, Size: 128x64"


@pytest.fixture(scope="module")
def loras(tmp_path_factory) -> Path:
    """A LoRA that fits the default model."""
    import torch

    from gen import Generator
    from gen.adapters import Adapter, Delta, write_adapter

    random = torch.Generator().manual_seed(0)
    layers = {}
    for name, module in Generator.from_pretrained("default").network.named_modules():
        if isinstance(module, torch.nn.Linear) and "attn" in name:
            down = torch.randn(2, module.in_features, generator=random) * 0.05
            layers[f"denoiser.{name}"] = Delta({"down": down, "up": torch.randn(module.out_features, 2, generator=random)}, 1.0)
    folder = tmp_path_factory.mktemp("loras")
    write_adapter(Adapter("wave", layers), folder / "wave.safetensors", "kohya")
    return folder


@pytest.fixture(scope="module")
def site(tmp_path_factory, loras):
    with served(tmp_path_factory.mktemp("ui"), "--lora-dir", str(loras)) as one:
        yield one


@pytest.fixture
def page(browser, site):
    """An open page; nothing may be said in its console."""
    with opened(browser, site[0]) as one:
        yield one


def drop(page, name: str, data: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("[data-action=read]").click()
    chooser.value.set_files([{"name": name, "mimeType": "image/png", "buffer": data}])


def png(**texts: str) -> bytes:
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (16, 16), "green").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def test_the_first_picture_is_watched_and_kept(page, site):
    """Asked for while the model still opens; every preview is another one."""
    page.evaluate(
        "window.sources = new Set(); new MutationObserver(() => window.sources.add(document.querySelector('[data-stage]').src))"
        ".observe(document.querySelector('[data-stage]'), {attributes: true, attributeFilter: ['src']})"
    )
    field(page, "model").click()
    page.get_by_role("option", name="default, 20 steps").click()
    draw(page, "a red heart")
    page.wait_for_selector("[data-stage][src^='/pictures']")
    previews = page.evaluate("[...window.sources].filter(source => source.startsWith('data:')).length")
    assert previews >= 3
    made = list(site[1].glob("*.png"))
    assert len(made) == 1 and made[0].name.startswith("a-red-heart-")
    assert page.evaluate("document.querySelector('[data-stage]').naturalWidth") == 128
    quiet(page)


def test_a_queue_of_three_is_moved_cancelled_and_stopped(page, site):
    ready(page)
    before = set(site[1].glob("*.png"))
    field(page, "steps").fill("400")
    field(page, "number").fill("9")
    draw(page, "a dog")
    page.wait_for_selector("[data-stage][src^='data:']")
    field(page, "steps").fill("2")
    field(page, "number").fill("1")
    for prompt in ("a cat", "a blue fish", "a yellow sun"):
        draw(page, prompt)
        page.locator("[data-job]").get_by_text(prompt, exact=True).wait_for()
    page.get_by_label("Sooner: a yellow sun").click()
    page.wait_for_function("document.querySelectorAll('[data-state=queued]')[1].innerText.startsWith('a yellow sun')")
    page.get_by_label("Cancel: a cat").click()
    page.wait_for_function("document.querySelectorAll('[data-state=queued]').length === 2")
    page.get_by_role("textbox", name="Prompt").focus()
    page.keyboard.press("Escape")
    ended(page, 2)
    made = sorted((path.stat().st_mtime_ns, path.name.rpartition("-")[0]) for path in set(site[1].glob("*.png")) - before)
    names = [name for _, name in made if not name.startswith("a-dog")]
    assert names == ["a-yellow-sun", "a-blue-fish"]
    assert page.locator("[data-state=stopped]").count() == 2
    quiet(page)


def test_a_lora_acts_and_the_code_makes_the_same_file(page, site, tmp_path):
    ready(page)
    section(page, "LoRAs and embeddings")
    field(page, "adapters").click()
    page.keyboard.type("wav")
    page.keyboard.press("Tab")
    page.get_by_text("'wav' is not in the list; did you mean wave?").wait_for()
    field(page, "adapters").click()
    page.get_by_role("option", name="wave").click()
    page.locator("[data-adapter=wave]").press("Control+A")
    page.keyboard.type("e-")
    page.get_by_text("That is no number.").wait_for()
    page.keyboard.press("Control+Enter")
    page.locator("[data-kind=negative]").filter(has_text="The weight of wave.safetensors is nan").wait_for()
    page.locator("[data-adapter=wave]").fill("0.5")
    field(page, "seed").fill("7")
    field(page, "steps").fill("3")
    draw(page, "a red heart")
    ended(page)
    name = page.locator("[data-progress]").inner_text()
    assert name.startswith("a-red-heart-7")
    page.locator("[data-action=code]").click()
    texts = page.locator("[data-text]")
    texts.first.wait_for()
    script, line = texts.nth(0).inner_text(), texts.nth(1).inner_text()
    assert "wave.safetensors" in script and "weight=0.5" in script and "wave.safetensors:0.5" in line
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "picture.png").read_bytes() == (site[1] / name).read_bytes()
    page.keyboard.press("Escape")
    quiet(page)


def test_what_is_wrong_stands_beside_its_field(page):
    ready(page)
    field(page, "steps").fill("5000")
    draw(page, "a cat")
    page.get_by_text("Give a whole number from 1 to 1000.").wait_for()
    assert page.locator("[data-job]").count() == 0
    field(page, "steps").fill("2")
    field(page, "width").fill("13")
    page.keyboard.press("Control+Enter")
    page.locator("[data-state=failed]").wait_for()
    assert "multiple" in page.locator(".fs-settings .q-field__messages").all_inner_texts()[0]
    field(page, "width").fill("")
    page.keyboard.press("Control+Enter")
    ended(page)
    section(page, "Energy")
    field(page, "guide").click()
    page.get_by_role("option", name="colour").click()
    field(page, "guide_options.colour").wait_for()
    section(page, "Energy")  # closed again
    page.keyboard.press("Control+Enter")
    page.get_by_text("colour is needed; give a value.").wait_for()
    page.wait_for_function("document.activeElement.dataset.field === 'guide_options.colour'")
    quiet(page)


def test_pictures_that_are_read_fill_the_fields(page):
    ready(page)
    page.locator("[data-tab=gallery]").click()
    drop(page, "theirs.png", png(parameters=A1111))
    page.get_by_text("The settings of theirs.png are in the fields.").wait_for()
    for name, value in (("prompt", "a green tree"), ("negative", "blurry"), ("steps", "9"), ("scale", "3.5"), ("seed", "42")):
        holds(page, name, value)
    section(page, "Sampler")
    holds(page, "sampler", "euler_a")
    graph = {
        "1": {"inputs": {"text": "a red car"}},
        "2": {"inputs": {"positive": ["1", 0], "steps": 6, "sampler_name": "heun"}},
    }
    page.locator("[data-tab=gallery]").click()
    drop(page, "<img src=x onerror=alert(1)>.png", png(prompt=json.dumps(graph)))
    holds(page, "prompt", "a red car")
    assert page.locator(".fs-toast img").count() == 0
    page.locator("[data-tab=gallery]").click()
    for data, words in ((png(), "holds no settings"), (b"\x89PNG\r\n\x1a\nnothing", "damaged|cannot|no picture|not a")):
        drop(page, "bad.png", data)
        page.locator("[data-kind=negative]").filter(has_text=re.compile(words)).first.wait_for()
    assert page.get_by_role("textbox", name="Search names").is_visible()


def test_a_picture_is_dropped_anywhere(page):
    ready(page)
    data = base64.b64encode(png(parameters=A1111)).decode()
    page.evaluate(
        "data => { const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0)), given = new DataTransfer();"
        "given.items.add(new File([bytes], 'there.png', {type: 'image/png'}));"
        "for (const kind of ['dragenter', 'dragover', 'drop'])"
        " document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: given, bubbles: true, cancelable: true})); }",
        data,
    )
    page.get_by_text("The settings of there.png are in the fields.").wait_for()
    holds(page, "prompt", "a green tree")
    assert not page.evaluate("document.body.classList.contains('fs-dropping')")


def test_the_gallery_replays_deletes_and_compares(page, site):
    ready(page)
    field(page, "steps").fill("2")
    field(page, "number").fill("2")
    field(page, "seed").fill("100")
    draw(page, "a purple flower")
    ended(page)
    page.locator("[data-tab=gallery]").click()
    page.locator(".fs-grid").get_by_label("a-purple-flower-101.png").click()
    page.locator("[data-action=d-replay]").click()
    page.get_by_text("Made again: equal to the last byte.").wait_for()
    page.locator("[data-action=d-delete]").click()
    page.get_by_text("a-purple-flower-101.png is in the trash.").wait_for()
    assert (site[1] / "trash" / "a-purple-flower-101.png").exists() and not (site[1] / "a-purple-flower-101.png").exists()
    page.locator("[data-action=undo]").click()
    page.locator(".fs-grid").get_by_label("a-purple-flower-101.png").wait_for()
    assert (site[1] / "a-purple-flower-101.png").exists()
    page.locator("[data-action=compare]").click()
    for seed in (100, 101):
        page.locator(".fs-grid").get_by_label(f"a-purple-flower-{seed}.png").click()
    page.locator("[data-compare]").wait_for()
    slider = page.get_by_label("Where the first picture ends")
    slider.focus()
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelector('.fs-compare').style.getPropertyValue('--cut')") == "0%"
    page.get_by_text("Side by side").click()
    page.wait_for_selector(".fs-pair img >> visible=true")
    page.keyboard.press("Escape")
    page.locator(".fs-grid").get_by_label("a-purple-flower-100.png").click()
    page.locator("[data-action=d-use]").click()
    holds(page, "seed", "100")
    quiet(page)


def test_a_phone_has_all_of_it(browser, site):
    with opened(browser, site[0], viewport={"width": 390, "height": 844}, has_touch=True, color_scheme="dark") as page:
        ready(page)
        for tab in ("draw", "gallery"):
            page.locator(f"[data-tab={tab}]").click()
            page.wait_for_timeout(300)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
        page.locator("[data-tab=draw]").click()
        field(page, "steps").fill("1")
        page.get_by_role("textbox", name="Prompt").fill("a star")
        page.get_by_role("button", name="Draw", exact=True).click()
        ended(page)
        assert page.locator("[data-stage]").bounding_box()["width"] > 300
        quiet(page)


def test_the_keyboard_alone_is_enough(page):
    """From the address to a picture and its details, each stop visible and with a name."""
    ready(page)
    assert page.evaluate("document.activeElement.dataset.field") == "prompt"
    page.keyboard.type("a blue fish")
    names = []
    for _ in range(60):
        page.keyboard.press("Tab")
        names.append(
            page.evaluate(
                "(() => { const e = document.activeElement, b = e.getBoundingClientRect(), s = getComputedStyle(e);"
                "return [e.getAttribute('aria-label') || e.innerText || e.labels?.[0]?.innerText || e.title || '',"
                " s.outlineStyle !== 'none' || s.boxShadow !== 'none' || !!e.closest('.q-field--focused'),"
                " b.width * b.height > 0] })()"
            )
        )
        if names[-1][0] == "Steps":
            break
    assert all(name and focus and seen for name, focus, seen in names), names
    order = [name.strip().lower() for name, *_ in names]
    places = [order.index(one) for one in ("not in the picture", "draw", "model", "width", "seed", "steps")]
    assert places == sorted(places), order
    page.keyboard.type("2")
    page.keyboard.press("Control+Enter")
    ended(page)
    page.locator("[data-action=details]").focus()
    page.keyboard.press("Enter")
    page.locator("[data-detail]").wait_for()
    page.keyboard.press("Escape")
    page.locator("[data-detail]").wait_for(state="detached")
    quiet(page)


def test_a_page_that_is_opened_again_shows_what_was_made(browser, site, tmp_path):
    with opened(browser, site[0]) as page:
        count = len(list(site[1].glob("*.png")))
        page.locator("[data-tab=gallery]").click()
        page.get_by_text(f"{count} picture").first.wait_for()
        assert page.locator(".fs-grid .fs-thumb").count() == min(count, 60)


def test_another_host_asks_for_its_token(browser, tmp_path):
    with served(tmp_path, "--token", "a-secret-word") as (address, _), contextlib.closing(browser.new_context()) as context:
        bare = address.partition("?")[0]
        page = context.new_page()
        page.set_default_timeout(WAIT)
        assert page.goto(bare).status == 401 and "printed" in page.content()
        page.goto(address)
        page.get_by_role("textbox", name="Prompt").wait_for()
        assert "a-secret-word" not in page.url and page.evaluate("document.cookie") == ""
        assert page.goto(bare).status == 200
