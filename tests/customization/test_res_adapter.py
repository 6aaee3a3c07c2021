"""ResAdapter: what trains is resamplers and norms alone, the file does what was trained, sizes are drawn as published."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

from customization.base.config import open_model
from customization.data import ConceptConfig
from customization.methods.res_adapter import ResAdapterConfig, ResAdapterObjective, norms, resamplers
from customization.size_sampling import Sizes, SizesConfig, shares
from customization.train import check_method, make_trainer, read_config
from distill.config import TrainConfig
from gen.adapters import read_adapter
from gen.generator import Generator
from samplers.denoiser import Context
from tests.customization.kit import BASE, pictures, shake
from tests.gen import pipelines

X, TIME = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])


def objective(model, **settings) -> ResAdapterObjective:
    config = ResAdapterConfig(**{"model": str(model), "adapter": {"rank": 2}, **settings})
    return ResAdapterObjective(config, open_model(config, "cpu"))


@torch.no_grad()
def test_the_file_is_what_was_trained_and_taken_off_leaves_nothing(tiny_model, tmp_path):
    plain = Generator.from_pretrained(tiny_model, "cpu", "float32")
    condition = plain.encode_prompt(["a red cat", "the moon"])
    call = lambda network, adapters=(): network(X, TIME, condition, Context(adapters=dict(adapters)))  # noqa: E731
    before, state = call(plain.network), {n: v.clone() for n, v in plain.network.state_dict().items()}
    made = objective(tiny_model)
    trained = made.roles["adapter"].network
    assert torch.allclose(trained(lambda: call(made.generator.network)), before, atol=1e-5)
    shake(trained)
    wanted = trained(lambda: call(made.generator.network))
    made.export({"adapter": trained}, tmp_path)
    adapter = read_adapter(tmp_path / "adapter.safetensors")
    lora = {layer for layer, delta in adapter.layers.items() if delta.kind == "lora"}
    full = {layer for layer, delta in adapter.layers.items() if delta.kind == "full"}
    assert lora == {
        "denoiser.patch_embed",
        "denoiser.head",
        "denoiser.final_conv",
    }  # a U-ViT: where pictures become tokens, and back
    assert full == {f"denoiser.{n}" for n, m in plain.network.named_modules() if isinstance(m, nn.LayerNorm)}
    assert plain.load_adapter(adapter, "a").complete
    torch.testing.assert_close(call(plain.network, {"a": 1.0}), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - before).abs().max() > 0.05
    plain.unload_adapter("a")
    assert torch.equal(call(plain.network), before)
    assert all(torch.equal(v, plain.network.state_dict()[n]) for n, v in state.items())


def test_a_unet_trains_its_resamplers_and_group_norms():
    unet = pipelines.stable_diffusion().unet
    chosen = resamplers(unet)
    expected = {n for n, m in unet.named_modules() if isinstance(m, nn.Conv2d) and ("downsample" in n or "upsample" in n)}
    assert set(chosen) == expected and expected
    trained = norms(unet)
    blocks = {n for n, m in unet.named_modules() if type(m).__name__ == "ResnetBlock2D"}
    assert set(trained) == {f"{block}.norm{i}" for block in blocks for i in (1, 2)}
    share = sum(p.numel() for name in trained for p in unet.get_submodule(name).parameters())
    assert share < 0.05 * sum(p.numel() for p in unet.parameters())
    with pytest.raises(ValueError, match="no layer that ends in downsamplers"):
        resamplers(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="LoRA of convolutions"):
        ResAdapterConfig(adapter={"type": "lokr"})


def test_sizes_are_drawn_by_their_squared_distance_and_training_sees_them(tiny_model, tmp_path):
    assert shares([16, 32, 64], 32) == [256 / 1280, 0.0, 1024 / 1280] and sum(shares([5, 7, 30], 11)) == pytest.approx(1)
    with pytest.raises(ValueError, match="nothing to learn"):
        shares([32, 32], 32)
    data = {"type": "sizes", "sizes": [16, 32, 48], "of": {"images": str(pictures(tmp_path / "images")), "prompt": "a cat"}}

    objective = {"type": "res_adapter", "model": str(tiny_model), "adapter": {"rank": 2}}
    config = TrainConfig(**{**BASE, "output": tmp_path / "run", "data": data, "max_steps": 3, "objective": objective})
    run = make_trainer(config)
    sides = Counter(run.source.batch(range(2 * k, 2 * k + 2)).latents.shape[-1] for k in range(60))
    assert sides.keys() == {4, 12} and 20 < sides[4] < 40  # equal shares; 32 pixels, the model's own, never
    run.train()
    assert read_adapter(tmp_path / "run" / "export" / "adapter.safetensors").layers
    wrong = SizesConfig(of=ConceptConfig(images=Path("x"), size=8), sizes=(8,))
    with pytest.raises(ValueError, match="neither size nor buckets nor prior"):
        Sizes(wrong, 0, run.objective.generator)


def test_the_config_is_valid():
    config, _ = read_config(Path(__file__).parents[2] / "configs" / "lora" / "res_adapter.yaml", [])
    _, checked = check_method(config.objective)
    assert isinstance(checked, ResAdapterConfig)
    SizesConfig.model_validate({name: value for name, value in config.data.items() if name != "type"})
