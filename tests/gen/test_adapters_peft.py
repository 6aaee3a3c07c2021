"""Adapters that peft itself trains and saves: every key found, and the output of peft's own forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gen.adapters import Adapters, read_adapter, write_adapter
from gen.adapters.delta import Delta
from gen.adapters.peft_config import make_config, scale_of

peft = pytest.importorskip("peft")


class Tiny(nn.Module):
    """Every kind of layer that peft adapts here; convolutions with stride and padding, a Linear without bias."""

    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(4, 12, 3, stride=2, padding=1)
        self.conv_1x1 = nn.Conv2d(12, 16, 1)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(16, 40), "down": nn.Linear(40, 16, bias=False)}) for _ in "ab"
        )

    def forward(self, x):
        h = self.conv_1x1(self.conv_in(x).relu()).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = h + block["down"](block["up"](h).tanh())
        return h


LINEAR = ["up", "down"]
ALL = [*LINEAR, "conv_in", "conv_1x1"]
CONFIGS = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=ALL),
    "rslora": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=ALL),
    "patterns": lambda: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=ALL, rank_pattern={"up": 2, r"blocks\.1\.down": 3},
        alpha_pattern={"blocks.0.up": 1, "conv_in": 9},
    ),
    "dora": lambda: peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=ALL),
    "lora_bias": lambda: peft.LoraConfig(r=4, lora_alpha=6, lora_bias=True, target_modules=["up", "conv_in", "conv_1x1"]),
    "loha": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=ALL),
    "loha_tucker": lambda: peft.LoHaConfig(r=3, alpha=5, use_effective_conv2d=True, target_modules=ALL),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=ALL),
    "lokr_tucker": lambda: peft.LoKrConfig(r=1, alpha=5, use_effective_conv2d=True, target_modules=ALL),
    "lokr_both": lambda: peft.LoKrConfig(r=1, alpha=5, decompose_both=True, decompose_factor=4, target_modules=ALL),
    "lokr_whole": lambda: peft.LoKrConfig(r=64, alpha=16, target_modules=ALL),
}  # fmt: skip


def trained(kind: str, seed: int = 0, dtype=torch.float64) -> tuple[nn.Module, nn.Module]:
    """(the network, the same one under peft) with random adapter weights, as after training."""
    torch.manual_seed(seed)
    base = Tiny().to(dtype)
    wrapped = Tiny().to(dtype)
    wrapped.load_state_dict(base.state_dict())
    wrapped = peft.get_peft_model(wrapped, CONFIGS[kind]())
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora" in name or "hada" in name or "lokr" in name:
                scale = 0.3 if "magnitude" in name else 0.5
                parameter.add_(
                    torch.randn(parameter.shape, dtype=parameter.dtype) * scale * parameter.abs().mean().clamp_min(0.3)
                )
    return base, wrapped.to(dtype).eval()


X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_file_of_peft_gives_the_output_of_peft(kind, tmp_path):
    base, wrapped = trained(kind)
    wrapped.save_pretrained(tmp_path)
    adapters = Adapters(base)
    report = adapters.load(read_adapter(tmp_path, "a"))
    assert report.complete and len(report.matched) == (4 if kind == "lora_bias" else 6)
    with torch.no_grad():
        expected, plain = wrapped(X), base(X)
        with adapters.using({"a": 1.0}):
            ours = base(X)
        adapters.fuse({"a": 1.0})
        fused = base(X)
    assert (expected - plain).abs().max() > 0.05  # the adapter does something
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fused, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "rslora", "patterns", "loha", "lokr_both"])
def test_a_weight_is_pefts_scale(kind, tmp_path):
    base, wrapped = trained(kind)
    wrapped.save_pretrained(tmp_path)
    adapters = Adapters(base)
    adapters.load(read_adapter(tmp_path, "a"))
    for module in wrapped.modules():
        if hasattr(module, "set_scale"):
            module.scaling["default"] *= 0.35
    with torch.no_grad(), adapters.using({"a": 0.35}):
        torch.testing.assert_close(base(X), wrapped(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", CONFIGS)
def test_peft_opens_what_we_write(kind, tmp_path):
    """A file in other spellings, written in peft's, and back in peft."""
    base, wrapped = trained(kind)
    wrapped.save_pretrained(tmp_path / "theirs")
    adapter = read_adapter(tmp_path / "theirs")
    write_adapter(adapter, tmp_path / "between.safetensors", "diffusers")
    between = read_adapter(tmp_path / "between.safetensors")
    assert between.format == "diffusers"
    write_adapter(between, tmp_path / "ours", "peft")
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(again(X), wrapped(X), rtol=1e-6, atol=1e-6)


def test_several_adapters_add_up_as_in_peft(tmp_path):
    base, first = trained("lora", 0)
    _, second = trained("rslora", 7)
    adapters = Adapters(base)
    for name, one in (("first", first), ("second", second)):
        one.save_pretrained(tmp_path / name)
        adapters.load(read_adapter(tmp_path / name, name))
    both = peft.PeftModel.from_pretrained(base.__class__().double(), tmp_path / "first", adapter_name="first")
    both.base_model.model.load_state_dict(base.state_dict(), strict=False)
    both.load_adapter(tmp_path / "second", "second")
    both.base_model.set_adapter(["first", "second"])
    state = {name.replace(".base_layer", ""): value for name, value in both.base_model.model.state_dict().items()}
    for name, value in base.state_dict().items():
        state[name].copy_(value)
    with torch.no_grad(), adapters.using({"first": 1.0, "second": 1.0}):
        torch.testing.assert_close(base(X), both(X), rtol=1e-6, atol=1e-6)


def test_float32_is_close_too(tmp_path):
    base, wrapped = trained("dora", dtype=torch.float32)
    wrapped.save_pretrained(tmp_path)
    adapters = Adapters(base)
    adapters.load(read_adapter(tmp_path, "a"))
    with torch.no_grad(), adapters.using({"a": 1.0}):
        torch.testing.assert_close(base(X.float()), wrapped(X.float()), rtol=1e-5, atol=1e-5)


def test_a_layer_whose_name_ends_another_keeps_its_own_rank_and_alpha():
    """`up` beside `blocks.0.up`: a pattern of peft's fits the ends of names too, ours and peft's own reading of it."""
    from peft.utils.other import get_pattern_key

    ranks, alphas = {"up": 2, "blocks.0.up": 3, "blocks.1.up": 3}, {"up": 1.0, "blocks.0.up": 6.0, "blocks.1.up": 6.0}
    layers = {
        path: Delta({"down": torch.ones(rank, 4), "up": torch.ones(5, rank)}, alphas[path] / rank)
        for path, rank in ranks.items()
    }
    config = make_config(layers, {})
    assert config["rank_pattern"] == {"^up": 2}
    for path, rank in ranks.items():
        assert scale_of(config, path, rank) == alphas[path] / rank
        for table, values, usual in (("rank_pattern", ranks, "r"), ("alpha_pattern", alphas, "lora_alpha")):
            found = config[table].get(get_pattern_key(config[table].keys(), path), config[usual])
            assert found == values[path]
