"""Published networks of pictures as representations: their own pooled output, of pictures of any size; FDr^k."""

from __future__ import annotations

import pytest
import torch

from distill.eval.metrics import frechet_distance, frechet_ratios
from distill.networks.features import FEATURES, load_features
from distill.networks.vision_features import VISION_KINDS

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
MADE = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)),
    "clip": lambda: transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES, intermediate_size=32)),
    "siglip": lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES, intermediate_size=32)),
    "convnext": lambda: transformers.ConvNextV2Model(
        transformers.ConvNextV2Config(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], image_size=32)
    ),
}
# of pixels, as the models were taught: dinov2 and convnext ImageNet's, siglip a half
PIXELS = {
    "dinov2": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "siglip": ([0.5] * 3, [0.5] * 3),
    "convnext": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}


@pytest.mark.parametrize("kind", VISION_KINDS)
def test_features_are_the_networks_own_of_a_picture_of_its_size(kind, tmp_path):
    torch.manual_seed(0)
    model = MADE[kind]().eval()
    model.save_pretrained(tmp_path, safe_serialization=True)
    found = load_features(f"{kind}:{tmp_path}")
    side = model.config.image_size
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    mean, deviation = (torch.tensor(v)[:, None, None] for v in PIXELS[kind])
    with torch.no_grad():
        expected = model(pixel_values=((images + 1) / 2 - mean) / deviation).pooler_output
    torch.testing.assert_close(found(images), expected, atol=1e-5, rtol=1e-4)
    larger = torch.rand(1, 3, 40, 48, requires_grad=True)
    found.function(larger).square().sum().backward()
    assert larger.grad.abs().sum() > 0 and all(not p.requires_grad for p in found.network.parameters())
    with pytest.raises(ValueError, match=f"{kind}:MODEL"):
        load_features(kind)
    with pytest.raises(ValueError, match="that can be opened"):
        load_features(f"{kind}:{tmp_path / 'nothing'}")


def test_every_kind_is_a_representation():
    assert set(VISION_KINDS) < set(FEATURES) and set(VISION_KINDS) == set(MADE)


def test_ratios_are_over_the_distance_of_held_out_pictures():
    g = torch.Generator().manual_seed(0)
    training, held_out = ({"a": torch.randn(n, 3, generator=g), "b": 100 * torch.randn(n, 2, generator=g)} for n in (400, 60))
    generated = {"a": torch.randn(60, 3, generator=g) + 1, "b": 100 * torch.randn(60, 2, generator=g) + 50}
    mean, each = frechet_ratios(generated, training, held_out)
    for name, ratio in each.items():
        expected = frechet_distance(generated[name], training[name]) / frechet_distance(held_out[name], training[name])
        assert ratio == pytest.approx(expected) and ratio > 2
    assert mean == pytest.approx((each["a"] + each["b"]) / 2)
    assert frechet_ratios(held_out, training, held_out)[0] == pytest.approx(1)
    with pytest.raises(ValueError, match="same representations"):
        frechet_ratios({"a": generated["a"]}, training, held_out)
    with pytest.raises(ValueError, match="give as many"):
        frechet_ratios({k: v[:50] for k, v in generated.items()}, training, held_out)
