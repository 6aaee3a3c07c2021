"""Recipes that version 0.1.0 wrote, replayed: the results that it stored come back.

To the bit on the processor and PyTorch that made them; elsewhere sums round otherwise, and steps carry that on.
"""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gen import Recipe
from tests.gen.saved_models import given, opened, rows

DATA = Path(__file__).parents[1] / "data" / "saved"
ROWS = rows(DATA)
TOLERANCE = 1e-3  # of the largest value; other vector units of one processor gave 4e-5


def fingerprint() -> dict[str, str]:
    """What rounding depends on: PyTorch, the processor, and the vector units that PyTorch takes."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = sorted({line for line in lines if line.startswith(("model name", "flags"))})
    except OSError:
        processor = [platform.processor()]
    units = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "processor": hashlib.sha256(repr((processor, units)).encode()).hexdigest()[:16]}


@pytest.fixture(scope="module")
def results() -> dict[str, torch.Tensor]:
    return load_file(DATA / "results.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("pipelines")


@pytest.fixture(autouse=True)
def one_thread():
    """As the recipes say; large sums are split among threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def retrained(row, weights: dict[str, str]) -> set[str]:
    """The parts whose weights are no longer those that the result was stored with, where it depends on them: latents pass
    through the decoder only on the way to an energy."""
    recorded = (row["recipe"].get("model") or {}).get("weights") or {}
    parts = {part for part, digest in recorded.items() if weights.get(part, digest) != digest}
    return parts if row["recipe"].get("guide") else parts - {"autoencoder"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_a_saved_recipe_gives_its_result_again(row, results, folder):
    recipe = Recipe.from_json(json.dumps(row["recipe"]))
    model, stored = opened(row["model"], folder), results[row["id"]]
    made = model.replay(recipe, row["output"], progress=False, **given(row["given"])).images[0].float()
    if parts := retrained(row, model.weights):
        assert made.shape == stored.shape and torch.isfinite(made).all()
        pytest.skip(f"the package's {' and '.join(sorted(parts))} has other weights than the one that made this result")
    if fingerprint() == json.loads((DATA / "machine.json").read_text()):
        assert torch.equal(made, stored), f"differs by up to {(made - stored).abs().max():.3g}"
    torch.testing.assert_close(made, stored, rtol=0, atol=TOLERANCE * stored.abs().max().item())


@pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])
def test_the_fields_of_a_recipe_keep_their_order(row):
    """So that the file of a replay is the same to the last byte."""
    now = json.loads(Recipe.from_json(json.dumps(row["recipe"])).to_json())
    assert [name for name in now if name in row["recipe"]] == [name for name in row["recipe"] if name in now]


def test_the_tolerance_tells_a_changed_recipe(results, folder):
    """Half as much guidance is far outside of it."""
    row = ROWS[0]
    recipe = Recipe.from_json(json.dumps({**row["recipe"], "guidance_scale": row["recipe"]["guidance_scale"] / 2}))
    made = opened(row["model"], folder).replay(recipe, row["output"], progress=False).images[0]
    stored = results[row["id"]]
    assert (made - stored).abs().max() > 20 * TOLERANCE * stored.abs().max()


def test_every_kind_of_part_is_among_them():
    recipes = [row["recipe"] for row in ROWS]
    assert {recipe["version"] for recipe in recipes} == {2}
    for field in (
        "cache",
        "start",
        "guide",
        "restore",
        "layout",
        "tweaks",
        "canvas",
        "views",
        "adapters",
        "regions",
        "composition",
    ):
        assert any(recipe.get(field) for recipe in recipes), field
