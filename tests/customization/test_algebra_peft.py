"""Merges against peft's own, where peft is right, and files that go both ways."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from customization.algebra import Keep, resize, weighted_sum
from gen.adapters import read_adapter, write_adapter
from tests.customization.adapters import changes

peft = pytest.importorskip("peft")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(14, 20), nn.Linear(20, 14, bias=False)

    def forward(self, x):
        return self.down(self.up(x).tanh())


def trained(rank: int, alpha: float, seed: int, name: str = "default", **options):
    torch.manual_seed(0)
    net = Net().double()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["up", "down"], init_lora_weights=False, **options)
    torch.manual_seed(seed)
    return peft.get_peft_model(net, config, adapter_name=name).double()


@pytest.fixture
def two(tmp_path):
    """(peft's model with both adapters, their two files): ranks 4 and 3, scales 1.5 and 2."""
    trained(4, 6, 1).save_pretrained(tmp_path / "a")
    trained(3, 6, 2).save_pretrained(tmp_path / "b")
    torch.manual_seed(0)
    model = peft.PeftModel.from_pretrained(Net().double(), tmp_path / "a", adapter_name="a")
    model.load_adapter(tmp_path / "b", "b")
    return model, [read_adapter(tmp_path / name, name) for name in "ab"]


def theirs(model, name: str) -> dict[str, torch.Tensor]:
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "get_delta_weight")}
    return {f"denoiser.{n}": m.get_delta_weight(name).detach() for n, m in layers.items()}


def close(one: dict, two: dict, tolerance: float) -> None:
    assert one.keys() == two.keys()
    for name, value in two.items():
        torch.testing.assert_close(one[name], value, rtol=tolerance, atol=tolerance)


def test_a_sum_is_pefts_cat_and_its_rank_is_pefts_svd(two):
    model, adapters = two
    model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "cat", combination_type="cat")
    made, _ = weighted_sum(adapters, [0.7, 0.4])
    close(changes(made), theirs(model, "cat"), 1e-6)
    model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "svd", combination_type="svd", svd_rank=3)
    made, _ = weighted_sum(adapters, [0.7, 0.4], keep=Keep(rank=3))
    close(changes(made), theirs(model, "svd"), 2e-6)


def test_rslora_and_patterns_are_summed_by_their_own_scales(tmp_path):
    """Where peft's merge is off by a factor, the reference is the change that each of its layers says it makes."""
    models = [trained(4, 6, 1, use_rslora=True), trained(3, 6, 2, alpha_pattern={"up": 1}, rank_pattern={"down": 2})]
    whole = [theirs(model, "default") for model in models]
    for name, model in zip("ab", models, strict=True):
        model.save_pretrained(tmp_path / name)
    adapters = [read_adapter(tmp_path / name, name) for name in "ab"]
    made, _ = weighted_sum(adapters, [0.7, -0.4])
    close(changes(made), {layer: 0.7 * whole[0][layer] - 0.4 * whole[1][layer] for layer in whole[0]}, 1e-6)


@pytest.mark.parametrize("between", ["diffusers", "kohya", "ai-toolkit", "peft"])
def test_peft_opens_what_was_merged_and_resized(two, tmp_path, between):
    made, _ = weighted_sum(two[1], [0.7, 0.4])
    made, _ = resize(made, Keep(rank=5))
    if between == "ai-toolkit":
        made = made.__class__(made.name, {layer: delta.folded() for layer, delta in made.layers.items()})
    path = tmp_path / ("m" if between == "peft" else "m.safetensors")
    write_adapter(made, path, between)
    read = read_adapter(path)
    close({layer.replace("_", "."): one for layer, one in changes(read).items()}, changes(made), 1e-12)
    if between != "kohya":
        write_adapter(read, tmp_path / "last", "peft")
        torch.manual_seed(0)
        model = peft.PeftModel.from_pretrained(Net().double(), tmp_path / "last")
        close(theirs(model, "default"), changes(made), 1e-6)
        assert model.peft_config["default"].r == 5
