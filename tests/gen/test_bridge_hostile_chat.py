"""Folders of the families that language models read, with configs that no honest file has: one sentence each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gen.generator import Generator
from tests.gen import pipelines, pipelines_chat


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """name -> a folder of this family, made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = pipelines.save(getattr(pipelines_chat, name)(), tmp_path_factory.mktemp("hostile") / name)
        return made[name]

    return folder


CASES = [
    ("qwen_image", "transformer", {"axes_dims_rope": [200_000, 6, 6]}, "asks for positions of 200000 in 'axes_dims_rope'"),
    ("z_image", "transformer", {"axes_lens": [100_000_000, 64, 64]}, "asks for positions of 100000000 in 'axes_lens'"),
    ("z_image", "transformer", {"all_patch_size": []}, "cannot be opened as a ZImageTransformer2DModel"),
    ("flux2_klein", "vae", {"patch_size": [2, 2, 1]}, r"patches of \[2, 2, 1\], which are no squares"),
    ("flux2_klein", "vae", {"patch_size": [4, 1]}, r"patches of \[4, 1\], which are no squares"),
    ("flux2_klein", "vae", {"batch_norm_eps": "x"}, "batch_norm_eps is 'x', which are no numbers"),
    ("flux2_klein", "text_encoder", {"num_hidden_layers": 26, "layer_types": None}, "has unknown model.layers.26"),
    ("qwen_image", "vae", {"latents_mean": ["a"] * 4}, r"latents_mean is \['a', 'a', 'a', 'a'\], which are no numbers"),
    ("qwen_image", "vae", {"latents_mean": [0.0, 1.0, 2.0]}, "not one number per channel"),
    ("qwen_image", "text_encoder", {"auto_map": {"AutoModel": "x.y"}}, "chooses code to run"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "part", "change", "message"), CASES)
def test_configs_that_are_refused(folder_of, tmp_path, name, part, change, message):
    folder = shutil.copytree(folder_of(name), tmp_path / name)
    config = folder / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        Generator.from_pretrained(folder, device="cpu", dtype="float32")


def test_a_language_model_with_too_few_layers_is_refused():
    """Before anything is read."""
    from gen.models.bridge.chat import ChatReader
    from gen.models.bridge.families.flux2 import QWEN

    with pytest.raises(ValueError, match="the network reads hidden states of layer 27 of a language model that has 3"):
        ChatReader(pipelines_chat.qwen_tokenizer(), pipelines_chat.qwen3(), QWEN)
