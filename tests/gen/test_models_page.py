"""docs/models.md is what the code says, and has every family."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from gen.models.bridge.families.table import FAMILIES
from gen.models.bridge.pipeline import PIPELINES

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def models():
    return runpy.run_path(str(DOCS / "generate_models.py"))


def test_the_page_is_what_the_generator_writes(models):
    assert (DOCS / "models.md").read_text(encoding="utf-8") == models["page"](), "run python docs/generate_models.py"


def test_every_family_has_a_row_and_a_command(models):
    page = models["page"]()
    for family in PIPELINES.values():
        assert page.count(f"| {family.name} |") == 3


TINY = {
    "StableDiffusionXLPipeline": "sdxl",
    "FluxPipeline": "flux",
    "Flux2Pipeline": "flux2",
    "Krea2Pipeline": "krea2",
    "PixArtAlphaPipeline": "pixart",
    "QwenImagePipeline": "qwen_image",
    "ZImagePipeline": "z_image",
}


@pytest.mark.parametrize("pipeline", TINY)
def test_the_row_is_about_the_network_that_opens(models, bridged, pipeline):
    _, generator = bridged(TINY[pipeline])
    row = FAMILIES[pipeline]
    assert type(generator.network) is row.network
    assert models["takes"](row) == tuple(generator.text_encoder.takes)
