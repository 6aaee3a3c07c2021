"""LoRA on diffusers' networks and their text encoders: what diffusers makes of the same file, and every way of using one."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gen.adapters import read_adapter
from gen.adapters.originals import originals
from samplers.denoiser import Context
from tests.gen.test_bridge_parity import noise, ours, theirs

pytest.importorskip("peft")
WEIGHT = 0.7
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BACKBONE = {"stable_diffusion": "unet", "sdxl": "unet"}


def backbone(name: str, pipeline) -> nn.Module:
    return getattr(pipeline, BACKBONE.get(name, "transformer"))


def layers_of(network: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}


def factors(out: int, width: int, kernel: tuple[int, ...] = (), seed: int = 0, rank: int = 3) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, width, *kernel, generator=random) / width**0.5
    return down, torch.randn(out, rank, *[1] * len(kernel), generator=random) / 4


def kohya(prefix: str, names: dict[str, tuple[int, ...]], alpha: float = 1.5) -> dict[str, torch.Tensor]:
    """A file's tensors for layers of these names and weight shapes, with alphas that are not the rank."""
    tensors = {}
    for seed, (name, (out, width, *kernel)) in enumerate(names.items()):
        key = f"{prefix}_{name.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = factors(out, width, tuple(kernel), seed)
        tensors[f"{key}.alpha"] = torch.tensor(alpha + seed % 2)
    return tensors


def shapes_of(network: nn.Module, only: str = "") -> dict[str, tuple[int, ...]]:
    return {name: tuple(m.weight.shape) for name, m in layers_of(network).items() if only in name}


def published(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of its weight; `test_adapters_originals` says that the names are right."""
    modules = layers_of(network)
    found = {}
    for name, targets in originals(network, modules):
        if "processor" not in name and "cross." not in name:
            shape = modules[targets[0].module].weight.shape
            rows = max((target.cut[1] for target in targets if target.cut), default=shape[0])
            found[name] = (rows, *shape[1:])
    return found


def text(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """CLIP's layers as files name them, with text_model in front whatever the library's version calls them."""
    return {name if name.startswith("text_") else f"text_model.{name}": shape for name, shape in shapes.items()}


def files(name: str, pipeline) -> dict[str, dict[str, torch.Tensor]]:
    """naming -> a file that diffusers reads too."""
    network = backbone(name, pipeline)
    if name == "stable_diffusion":
        words = kohya("lora_te", text(shapes_of(pipeline.text_encoder)))
        return {"kohya": kohya("lora_unet", shapes_of(network)) | words}
    if name == "sdxl":
        words = kohya("lora_te1", text(shapes_of(pipeline.text_encoder)))
        words |= kohya("lora_te2", text(shapes_of(pipeline.text_encoder_2)))
        return {"original": kohya("lora_unet", published(network)) | words}
    if name == "flux":
        # not linear1, whose width diffusers' converter takes to be 3072, nor what it reads without its alpha or not at all
        names = {name: shape for name, shape in published(network).items() if "blocks" in name and "linear1" not in name}
        words = kohya("lora_te1", text(shapes_of(pipeline.text_encoder)))
        return {"kohya": kohya("lora_unet", names) | words}
    return {}


def their_output(generator, network: nn.Module, *inputs) -> torch.Tensor:
    """What our wrapper gets from another network."""
    own, generator.network.network = generator.network.network, network
    try:
        return generator.network(*inputs, Context())
    finally:
        generator.network.network = own


@torch.no_grad()
def compare(name: str, pipeline, generator, file: Path, parts: int) -> None:
    """Denoiser, text encoders and pictures, with the file in both at the same weight."""
    x = noise(generator, 2)
    plain = ours(name, generator, x, 4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="a")
        pipeline.set_adapters("a", WEIGHT)
    report = generator.load_adapter(file, "a", WEIGHT)
    try:
        assert report.complete and len({layer.partition(".")[0] for layer in report.matched}) == parts
        latents, time = torch.randn(2, *x.shape[1:]), torch.tensor([0.3, 0.8])
        condition = generator.encode_prompt(["a cat", "two dogs"])
        found = generator.network(latents, time, condition, Context(adapters={"a": WEIGHT}))
        reference = their_output(generator, backbone(name, pipeline), latents, time, condition)
        torch.testing.assert_close(found, reference, **CLOSE)
        assert (found - generator.network(latents, time, condition, Context())).abs().max() > 0.01
        for part, encoder in generator.text_encoder.encoders.items():
            ids = torch.randint(0, 60, (1, 77), generator=torch.Generator().manual_seed(1))
            with generator._loaded.parts[part].using({"a": WEIGHT}):
                own = encoder(ids).last_hidden_state
            torch.testing.assert_close(own, getattr(pipeline, part)(ids).last_hidden_state, **CLOSE)
        made = ours_adapted(name, generator, x)
        torch.testing.assert_close(made, theirs(name, pipeline, x, 4.0), atol=1e-4, rtol=0)
        assert (made - plain).abs().max() > 0.01
    finally:
        generator.unload_adapter("a")
        pipeline.unload_lora_weights()
    assert torch.equal(ours(name, generator, x, 4.0), plain)


def ours_adapted(name: str, generator, x: torch.Tensor) -> torch.Tensor:
    grid = None
    return ours(name, generator, x, 4.0, schedule=grid)


@pytest.mark.parametrize("name, parts", [("stable_diffusion", 2), ("sdxl", 3), ("flux", 2)])
def test_diffusers_gets_the_same_from_the_file(bridged, tmp_path, name, parts):
    pipeline, generator = bridged(name)
    for naming, tensors in files(name, pipeline).items():
        save_file(tensors, tmp_path / f"{naming}.safetensors")
        compare(name, pipeline, generator, tmp_path / f"{naming}.safetensors", parts)
