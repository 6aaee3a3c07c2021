"""Options that people who train LoRAs know: pseudo-Huber losses, noise of several resolutions, rates for B, ranks by layer,
optimisers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from customization.base.config import CustomizationConfig
from customization.base.huber import HuberConfig, pseudo_huber_of
from customization.base.pyramid_noise import PyramidConfig, add_pyramid
from distill.optim.optimizer import Optimizer
from distill.optimizer_config import KINDS, OptimizerConfig
from distill.types import Batch, Draws
from gen.io.weights import sha256
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from tests.customization.kit import objective, pictures, shake, trainer


def test_the_loss_is_pseudo_huber_with_the_levels_parameter(tiny_model):
    """Against the formula in float64, at three levels with a parameter each; and its two limits."""
    made = objective(tiny_model, huber={"c": 0.2})
    g = torch.Generator().manual_seed(0)
    x0, eps, raw = (torch.randn(3, 4, 2, 2, generator=g) for _ in range(3))
    alpha, sigma = torch.tensor([1.0, 0.6, 0.0]), torch.tensor([0.0, 0.8, 1.0])
    level = NoiseLevel(torch.tensor([0.0, 0.5, 1.0]), alpha, sigma)
    made.diffusion.weight = lambda level: torch.tensor([1.0, 2.0, 0.5])
    found = made.error(Prediction(level.mix(x0, eps), level, raw, (0.0, 1.0)), x0, eps, 0)
    c = torch.tensor([1.0, 0.2 + 0.8 * (0.6 / 1.4) ** 2, 0.2], dtype=torch.float64)[:, None, None, None]
    weight = torch.tensor([1.0, 4.0, 0.25])[:, None, None, None]
    wanted = weight * 2 * c * ((((raw - eps).double() ** 2) + c**2).sqrt() - c)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    small, large = torch.tensor([1e-6]), torch.tensor([1e6])
    assert float(pseudo_huber_of(small**2, 0.1)) == pytest.approx(1e-12, rel=1e-4)
    assert float(pseudo_huber_of(large**2, 0.1)) == pytest.approx(2 * 0.1 * 1e6, rel=1e-4)
    assert HuberConfig(c=0.3, schedule="constant").at(level) == 0.3


def test_pyramid_noise_is_the_sum_of_its_resolutions_and_no_batchs():
    config, shape = PyramidConfig(levels=5, discount=0.5), (3, 8, 16)
    draws = Draws(7, torch.tensor([4, 9]))
    made = add_pyramid(draws.normal("eps", shape), draws, config)
    total = draws.normal("eps", shape)
    for level, sides in ((1, (4, 8)), (2, (2, 4)), (3, (1, 2))):  # then a side is one
        total = total + 0.5**level * F.interpolate(draws.normal(f"pyramid {level}", (3, *sides)), (8, 16), mode="bilinear")
    total = torch.stack([sample / sample.std(correction=0) for sample in total])
    torch.testing.assert_close(made, total, atol=1e-6, rtol=0)
    alone = Draws(7, torch.tensor([9]))
    assert torch.equal(add_pyramid(alone.normal("eps", shape), alone, config)[0], made[1])
    # a mean over n pixels has the variance 1 / n in white noise, and 1.5 times that here
    many = Draws(1, torch.arange(300))
    means = add_pyramid(many.normal("eps", (1, 16, 16)), many, PyramidConfig()).mean((1, 2, 3))
    assert 1.25 / 256 < means.var() < 1.75 / 256


def test_noise_and_rates_of_a_method_are_as_asked_for(tiny_model):
    made = objective(tiny_model, noise_pyramid={"discount": 0.5}, up_rate=4.0, text_adapter={"rank": 2}, text_rate=0.5)
    draws, like = Draws(0, torch.arange(2)), torch.zeros(2, 4, 8, 8)
    wanted = add_pyramid(draws.normal("eps", (4, 8, 8)), draws, PyramidConfig(discount=0.5))
    assert torch.equal(made.noise(draws, like), wanted)
    optimizer = Optimizer(made.roles["adapter"].network, OptimizerConfig(lr=1e-3))
    rates = {}
    for group in optimizer.parts[0].param_groups:
        for parameter in group["params"]:
            name = optimizer.names[parameter]
            part = "text" if "text_encoder" in name else "denoiser"
            rates.setdefault((part, "B" if "lora_B" in name else "A"), set()).add(round(group["lr"], 9))
    assert rates == {
        ("denoiser", "A"): {1e-3}, ("denoiser", "B"): {4e-3}, ("text", "A"): {5e-4}, ("text", "B"): {2e-3}
    }  # fmt: skip


def test_a_rate_for_b_is_refused_where_there_is_none():
    with pytest.raises(ValidationError, match=r"up_rate is for the B of a LoRA \(dora, lora, rslora\), not for loha"):
        CustomizationConfig(up_rate=4.0, adapter={"type": "loha"})


@pytest.mark.parametrize(("type", "alpha"), [("lora", None), ("rslora", 3.0), ("dora", None), ("loha", None), ("lokr", 2.0)])
def test_layers_have_the_ranks_that_their_names_ask_for(tiny_model, type, alpha):
    """What is exported has them, with the scale that training had."""
    settings = {"type": type, "rank": 2, "ranks": {"in_blocks": 3, "attn": 1}, "targets": ["attn.qkv", "mlp.fc1"]}
    made = objective(tiny_model, adapter={**settings, "alpha": alpha})
    shake(made.roles["adapter"].network)
    adapter = made.to_adapter({name: value.detach() for name, value in made.roles["adapter"].network.named.items()})
    seen = set()
    for layer, delta in adapter.layers.items():
        rank = 1 if ".attn." in layer else 3 if ".in_blocks." in layer else 2
        if type != "lokr":  # whose factors are cut otherwise
            assert delta.rank == rank
        wanted = (rank if alpha is None else alpha) / (rank**0.5 if type == "rslora" else rank)
        assert delta.scale == pytest.approx(wanted), layer
        seen.add(rank)
    assert seen == {1, 2, 3}


def test_a_part_of_a_name_that_no_layer_has_is_named(tiny_model):
    with pytest.raises(ValueError, match=r"ranks names 'atn', but no layer that trains has these parts"):
        objective(tiny_model, adapter={"rank": 2, "ranks": {"atn": 1}})


def test_training_goes_on_from_a_lora(tiny_model, tmp_path):
    """The network is the one with that LoRA on, at another rank and alpha than the file's, and its B A grows from there."""
    first = objective(tiny_model, adapter={"rank": 2, "alpha": 3.0}, text_adapter={"rank": 1})
    shake(first.roles["adapter"].network)
    first.export({"adapter": first.roles["adapter"].network}, tmp_path)
    file = tmp_path / "adapter.safetensors"
    second = objective(tiny_model, adapter={"rank": 4, "alpha": 8.0}, text_adapter={"rank": 1}, start=str(file))
    x, level = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), second.diffusion.path(0.5)
    captions = Batch(index=torch.arange(2), captions=["a cat", "a dog"])

    def says(made) -> torch.Tensor:
        network = made.roles["adapter"].network
        with torch.no_grad():
            return network(lambda: made.predict(x, level, made.condition(captions, x)).raw)

    torch.testing.assert_close(says(second), says(first), atol=1e-5, rtol=1e-4)
    assert second.inputs()["start"] == sha256(file) and "start" not in first.inputs()  # a run that goes on says if it changed
    assert (says(objective(tiny_model)) - says(first)).abs().max() > 1e-2
    grown = second.roles["adapter"].network.named
    assert all(
        value.abs().sum(1).min() > 0 for name, value in grown.items() if name.startswith("denoiser") and "lora_A" in name
    )

    with pytest.raises(ValueError, match=r"rank at denoiser\..* is 2, but 1 is to be trained; raise rank to 2"):
        objective(tiny_model, adapter={"rank": 1}, text_adapter={"rank": 1}, start=str(file))
    with pytest.raises(ValueError, match="that layer does not train; give the adapter the targets"):
        objective(tiny_model, adapter={"rank": 2, "targets": ["qkv"]}, text_adapter={"rank": 1}, start=str(file))
    with pytest.raises(ValidationError, match="start is a LoRA that an adapter of type lora or rslora"):
        CustomizationConfig(adapter={"type": "loha"}, start=str(file))


@pytest.mark.parametrize("type", KINDS)
def test_every_optimizer_teaches_a_lora_whose_blocks_are_computed_again(tiny_model, tmp_path, type):
    """Every factor moves, B from the zero that it starts at, which keeps A where it is in the first step."""
    if KINDS[type].make.startswith("distill.optim.library"):
        pytest.importorskip("pytorch_optimizer")
    own = {"prodigy": {"lr": 1.0}, "dog": {"lr": 1.0, "options": {"relative_start": 1e-2}}}.get(type, {"lr": 1e-2})
    settings = {"optimizer": {"type": type, **own}, "schedule": {"type": "constant", "warmup": 1}, "max_steps": 3}
    images = pictures(tmp_path / "images", count=1)
    made = trainer(tmp_path / "run", images, tiny_model, gradient_checkpointing=True, **settings)
    factors = made.networks["adapter"].named
    before = {name: value.detach().clone() for name, value in factors.items()}
    made.train()
    assert before and not [name for name, value in factors.items() if torch.equal(value, before[name])]
    assert all(value.isfinite().all() for value in factors.values())
