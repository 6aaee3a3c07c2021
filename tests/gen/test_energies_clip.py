"""Energies of CLIP on a small model of transformers' own: against its processor and forward, and heads by hand."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from gen.rewards.clip import DEVIATION, MEAN, embed_images, load_clip, read_head
from gen.tasks.energies import energy_info, get_energy
from gen.tasks.energies.clip import AestheticScore, ClipSimilarity
from samplers.denoiser import Condition
from tests.gen.pipelines import LETTERS, clip_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": len(LETTERS) * 2, "eos_token_id": len(LETTERS) * 2 + 1, "pad_token_id": 1}
    config = CLIPConfig(
        text_config={**sizes, **ends, "vocab_size": len(LETTERS) * 2 + 2, "projection_dim": 12},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, "projection_dim": 12},
        projection_dim=12,
    )
    where = tmp_path_factory.mktemp("clip")
    CLIPModel(config).eval().save_pretrained(where)
    clip_tokenizer().save_pretrained(where)
    return where


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_likeness_is_transformers_own(folder):
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    texts = ["a cat", "a red heart"]
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor(do_resize=False, do_center_crop=False, do_rescale=False)
    pixels = processor(list(IMAGES), return_tensors="pt")["pixel_values"]
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(pixel_values=pixels, **tokens).logits_per_image.diagonal()
    energy = get_energy(energy_info("clip"), model=str(folder))
    torch.testing.assert_close(energy.for_prompts(texts)(IMAGES, Condition()), expected, rtol=0, atol=2e-5)
    fixed = get_energy(energy_info("clip"), model=str(folder), text="a cat", scale=3.0).for_prompts(texts)(IMAGES, Condition())
    assert fixed[0].item() == pytest.approx(expected[0].item() * 3 / model.logit_scale.exp().item(), abs=1e-5)
    assert not torch.isclose(fixed[1] * model.logit_scale.exp() / 3, expected[1])


def test_larger_pictures_are_brought_to_size_and_gradients_reach_them(folder):
    images = torch.nn.functional.interpolate(IMAGES, scale_factor=2, mode="nearest").requires_grad_()
    energy = ClipSimilarity(str(folder)).for_prompts(["a cat", "a dog"])
    gradient = torch.autograd.grad(energy(images, Condition()).sum(), images)[0]
    assert gradient.isfinite().all() and (gradient.flatten(1).norm(dim=1) > 0).all()
    step = (images + 1e-2 * gradient / gradient.abs().max()).detach()
    assert (energy(step, Condition()) > energy(images, Condition())).all()
    assert len(MEAN) == len(DEVIATION) == 3


def test_a_head_is_its_layers_one_after_another(folder, tmp_path):
    g = torch.Generator().manual_seed(2)
    tensors, sizes = {}, {0: (8, 12), 2: (4, 8), 10: (1, 4)}  # ordered by number, not by spelling
    for number, shape in sizes.items():
        tensors[f"layers.{number}.weight"] = torch.randn(*shape, generator=g)
        tensors[f"layers.{number}.bias"] = torch.randn(shape[0], generator=g)
    save_file(tensors, tmp_path / "head.safetensors")
    energy = AestheticScore(str(folder), str(tmp_path / "head.safetensors"), scale=2.0)
    score = embed_images(load_clip(str(folder))[0], IMAGES)
    for number in sizes:
        score = score @ tensors[f"layers.{number}.weight"].T + tensors[f"layers.{number}.bias"]
    torch.testing.assert_close(energy(IMAGES, Condition()), 2 * score[:, 0], rtol=1e-5, atol=1e-5)
    save_file({"weight": tensors["layers.10.weight"]}, tmp_path / "plain.safetensors")
    weight, bias = read_head(tmp_path / "plain.safetensors", 4)
    assert torch.allclose(weight, tensors["layers.10.weight"][0]) and bias == 0


def test_what_cannot_be_opened_is_said_in_a_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match="is not a CLIP model that can be opened"):
        ClipSimilarity(str(tmp_path))
    with pytest.raises(ValueError, match="got no text"):
        ClipSimilarity(str(folder)).for_prompts([""])
    save_file({"layers.0.weight": torch.zeros(1, 5)}, tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match="but 12 numbers come in"):
        AestheticScore(str(folder), tmp_path / "wide.safetensors")
    save_file({"layers.0.weight": torch.zeros(3, 12)}, tmp_path / "long.safetensors")
    with pytest.raises(ValueError, match="no head that ends in one score"):
        AestheticScore(str(folder), tmp_path / "long.safetensors")
