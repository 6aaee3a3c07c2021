"""Weights go to the device tensor by tensor as they are read: nothing of a model lies on the CPU once its files are open."""

from __future__ import annotations

import pytest
import torch

from gen.models.options import ModelOptions
from gen.models.pretrained import find_model, load_model
from gen.nn.initialisation import opening_on
from tests.gen import pipelines
from tests.gen import test_single_file as single
from tests.pretend import pretended

__all__ = ["pretended"]


@pytest.fixture
def folders(tmp_path, tiny_model, monkeypatch):
    """kind -> (what is opened, options)."""
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # the pretended device is of one thread

    def make(kind: str):
        if kind == "ours":
            return tiny_model, ModelOptions()
        if kind == "file":
            _, file, folder = single.written(tmp_path, single.flux())
            return file, ModelOptions(text_encoder=folder, vae=folder)
        name, native = kind.removesuffix(", native"), kind.endswith("native")
        folder = pipelines.save(getattr(pipelines, name)(), tmp_path / name)
        return folder, ModelOptions(native=native)

    return make


KINDS = ("ours", "stable_diffusion", "sdxl", "pixart", "flux", "pixart, native", "flux, native", "file")


def tensors(part):
    return [*part.parameters(), *part.buffers()]


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_goes_where_it_is_used(pretended, folders, kind):
    source, options = folders(kind)
    _, folder = find_model(source, None, None, torch.float32)
    with opening_on(pretended.device):
        opened = load_model(folder, torch.float32, options)
    assert torch.device("cpu") not in {value.device for part in opened.parts.values() for value in part.parameters()}
    there = len(pretended.waits)
    for part in opened.parts.values():
        part.to(pretended.device)
    moved = len(pretended.waits) - there  # what remains are small tables that no file has
    assert moved <= sum(len(list(part.buffers())) for part in opened.parts.values())
    plain = load_model(folder, torch.float32, options)
    for name, part in opened.parts.items():
        found, expected = part.state_dict(), plain.parts[name].state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():  # what no text is, is computed there
            torch.testing.assert_close(pretended.take(found[key]), value, atol=1e-4, rtol=0, msg=f"{name} {key}")
