"""Adapters on networks of diffusers, and files that diffusers writes and reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gen.adapters import Adapter, Adapters, Delta, read_adapter, write_adapter

diffusers = pytest.importorskip("diffusers")
RANDOM = torch.Generator().manual_seed(0)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RANDOM)


def close(a, b) -> None:
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=8,
        norm_num_groups=2, attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return network.double().eval()


def layers_of(network: nn.Module, scale: float = 0.5, only: str = "") -> dict[str, Delta]:
    """A LoRA on every linear layer and convolution whose name holds `only`."""
    layers = {}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and only in name:
            out, width, *kernel = module.weight.shape
            layers[name] = Delta({"down": rand(3, width, *kernel) * 0.2, "up": rand(out, 3, *[1] * len(kernel)) * 0.2}, scale)
    return layers


@torch.no_grad()
def test_every_layer_of_a_unet_by_kohyas_names(unet):
    x, text = rand(1, 4, 8, 8).double(), rand(1, 3, 8).double()
    layers = layers_of(unet)
    assert len(layers) > 60
    adapters = Adapters(unet)
    report = adapters.load(Adapter("a", {f"denoiser.{name.replace('.', '_')}": delta for name, delta in layers.items()}))
    assert report.complete and list(report.matched.values()) == [(name,) for name in layers]
    before = unet(x, 3, text).sample
    with adapters.using({"a": 0.8}):
        ours = unet(x, 3, text).sample
    for name, delta in layers.items():
        weight = unet.get_submodule(name).weight
        weight += 0.8 * delta.delta(weight)
    close(ours, unet(x, 3, text).sample)
    assert (ours - before).abs().max() > 0.1


@torch.no_grad()
def test_diffusers_loads_what_we_write_and_saves_what_we_load(unet, tmp_path):
    """A scale that is not 1 on some layers, so that a lost alpha would show."""
    pytest.importorskip("peft")
    x, text = rand(1, 4, 8, 8).double(), rand(1, 3, 8).double()
    layers = layers_of(unet, 0.5, "attn1.to_") | layers_of(unet, 2.0, "conv1")
    adapter = Adapter("a", {f"denoiser.{name}": delta for name, delta in layers.items()})
    adapters = Adapters(unet)
    adapters.load(adapter)
    with adapters.using({"a": 1.0}):
        ours = unet(x, 3, text).sample
    written = write_adapter(adapter, tmp_path / "a.safetensors", "diffusers")
    unet.load_lora_adapter(tmp_path, prefix="unet", weight_name=written.name, adapter_name="theirs")
    close(unet.double()(x, 3, text).sample, ours)
    unet.save_lora_adapter(tmp_path / "saved", "theirs")
    unet.delete_adapters("theirs")
    unet.unload_lora()
    again = Adapters(unet)
    report = again.load(read_adapter(tmp_path / "saved", "b"))
    assert report.complete and {delta.scale for delta in report.adapter.layers.values()} == {0.5, 2.0}
    with again.using({"b": 1.0}):
        close(unet(x, 3, text).sample, ours)
