"""A ControlNet and an IP-Adapter in Chromium: offered where the model takes them, said to be out of place where not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gen.pipeline.png import read_recipe
from tests.gen import ip_adapters, pipelines
from tests.gen.test_control import network_for
from tests.gen.ui.kit import field, in_browser, opened, photo, ready, section, served

pytestmark = in_browser()


@pytest.fixture
def models(bridged, tmp_path) -> Path:
    """A tiny Stable Diffusion, a ControlNet and an IP-Adapter for it, in one folder."""
    pipeline, generator = bridged("stable_diffusion")
    pipelines.save(pipeline, tmp_path / "models" / "sd")
    network_for("stable_diffusion", pipeline, 5).save_pretrained(tmp_path / "models" / "edges", safe_serialization=True)
    ip_adapters.save(tmp_path / "models" / "ip", ip_adapters.ip_adapter(generator.network.network))
    return tmp_path / "models"


def give(page, name: str) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator(f"[data-field={name}] .q-uploader__header .q-btn").last.click()
    chooser.value.set_files([{"name": "photo.png", "mimeType": "image/png", "buffer": photo(32, 32)}])


def test_a_picture_is_followed_and_seen(browser, models, tmp_path):
    with served(tmp_path, "--models", str(models)) as (address, output), opened(browser, address) as page:
        ready(page)
        section(page, "From a picture")
        page.locator("[data-conditions]").filter(has_text="'automatic' takes no IP-Adapters").wait_for()
        assert field(page, "controlnet").is_visible() and not field(page, "ip_adapter").is_visible()
        field(page, "model").click()
        assert page.get_by_role("option").all_inner_texts() == ["automatic", "fast, 4 steps", "default, 20 steps", "sd"]
        page.get_by_role("option", name="sd", exact=True).click()
        field(page, "controlnet").click()
        page.get_by_role("option", name="edges", exact=True).click()
        field(page, "steps").fill("2")
        page.get_by_role("textbox", name="Prompt").fill("a cat")
        page.keyboard.press("Control+Enter")
        page.get_by_text("Choose a picture too: a picture and a ControlNet go together.").wait_for()
        give(page, "control")
        page.locator(".fs-given img[src^='/given/']").first.wait_for()
        field(page, "control_weight").fill("0.5")
        field(page, "ip_adapter").click()
        page.get_by_role("option").last.click()
        give(page, "ip_image")
        page.wait_for_function("document.querySelectorAll(\".fs-given img[src^='/given/']\").length === 2")
        field(page, "ip_scale").fill("0.6")
        page.get_by_role("textbox", name="Prompt").focus()
        page.keyboard.press("Control+Enter")
        page.locator("[data-state=done], [data-state=failed]").wait_for()
        assert page.locator("[data-state=failed]").count() == 0, page.locator("[data-job]").inner_text()
        recipe = read_recipe(next(output.glob("*.png")))
        assert recipe.control and recipe.image_prompts[0].scale == (0.6,)
        field(page, "model").click()
        page.get_by_role("option", name="automatic", exact=True).click()
        page.locator("[data-conditions]").filter(has_text="'automatic' takes no").wait_for()
        assert field(page, "controlnet").is_visible()  # what is set can be taken away
