"""LoRA on diffusers' networks and their text encoders: what diffusers makes of the same file."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from samplers.denoiser import Context
from tests.gen.lora import every_layer, factors, kohya, published, shapes_of, text
from tests.gen.test_bridge_parity import noise, ours, theirs

pytest.importorskip("peft")
WEIGHT = 0.7
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
BACKBONE = {"stable_diffusion": "unet", "sdxl": "unet"}


def backbone(name: str, pipeline) -> nn.Module:
    return getattr(pipeline, BACKBONE.get(name, "transformer"))


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
def compare(name: str, pipeline, generator, file: Path, parts: int, pictures: bool = True) -> None:
    """Denoiser, text encoders and pictures, with the file in both at the same weight."""
    x = noise(generator, 1)
    latents, time = torch.randn(2, *x.shape[1:]), torch.tensor([0.3, 0.8])
    plain = generator.network(latents, time, generator.encode_prompt(["a cat", "two dogs"]), Context())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="a")
        pipeline.set_adapters("a", WEIGHT)
    report = generator.load_adapter(file, "a", WEIGHT)
    try:
        assert report.complete and len({layer.partition(".")[0] for layer in report.matched}) == parts
        condition = generator.encode_prompt(["a cat", "two dogs"])
        found = generator.network(latents, time, condition, Context(adapters={"a": WEIGHT}))
        reference = their_output(generator, backbone(name, pipeline), latents, time, condition)
        torch.testing.assert_close(found, reference, **CLOSE)
        assert (found - plain).abs().max() > 0.01
        for part, encoder in generator.text_encoder.encoders.items():
            ids = torch.randint(0, 60, (1, 77), generator=torch.Generator().manual_seed(1))
            with generator.loaded_adapters.parts[part].using({"a": WEIGHT}):
                own = encoder(ids).last_hidden_state
            torch.testing.assert_close(own, getattr(pipeline, part)(ids).last_hidden_state, **CLOSE)
        if pictures:
            made = ours(name, generator, x, 4.0)
            torch.testing.assert_close(made, theirs(name, pipeline, x, 4.0), atol=1e-4, rtol=0)
    finally:
        generator.unload_adapter("a")
        pipeline.unload_lora_weights()
    assert torch.equal(generator.network(latents, time, generator.encode_prompt(["a cat", "two dogs"]), Context()), plain)


@pytest.mark.parametrize("name, parts", [("stable_diffusion", 2), ("sdxl", 3), ("flux", 2)])
def test_diffusers_gets_the_same_from_the_file(bridged, tmp_path, name, parts):
    pipeline, generator = bridged(name)
    for naming, tensors in files(name, pipeline).items():
        save_file(tensors, tmp_path / f"{naming}.safetensors")
        compare(name, pipeline, generator, tmp_path / f"{naming}.safetensors", parts)


@pytest.mark.parametrize("name, text_parts", [("sd3", ("text_encoder", "text_encoder_2")), ("flux", ("text_encoder",))])
def test_diffusers_reads_what_we_save(bridged, tmp_path, name, text_parts):
    """All layers, each with its own alpha, which diffusers' format keeps in a config; the file goes back into both."""
    pipeline, generator = bridged(name)
    save_file(every_layer(generator, text_parts), tmp_path / "a.safetensors")
    generator.load_adapter(tmp_path / "a.safetensors")
    try:
        saved = generator.save_adapter("a", tmp_path / "saved.safetensors")
    finally:
        generator.unload_adapter("a")
    assert any(key.startswith("transformer.transformer_blocks.0.attn.to_q.lora_A") for key in load_file(saved))
    # what other programs look for, whatever the library's own name
    assert any(key.startswith("text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A") for key in load_file(saved))
    compare(name, pipeline, generator, saved, 1 + len(text_parts), pictures=False)


@torch.no_grad()
def test_files_of_xlabs_trainer(bridged, tmp_path):
    """Against the same file in diffusers' names, by diffusers' own conversion."""
    from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers

    _, generator = bridged("flux")
    width = {"qkv": 96, "proj": 32}
    layers = [f"double_blocks.0.processor.{kind}_lora{n}" for kind in width for n in (1, 2)]
    layers.append("single_blocks.0.processor.qkv_lora")
    tensors = {}
    for seed, layer in enumerate(layers):
        down, up = factors(width["qkv" if "qkv" in layer else "proj"], 32, seed=seed)
        tensors |= {f"{layer}.down.weight": down, f"{layer}.up.weight": up}
    save_file(tensors, tmp_path / "xlabs.safetensors")
    converted = _convert_xlabs_flux_lora_to_diffusers(dict(tensors))
    save_file({key: value.clone() for key, value in converted.items()}, tmp_path / "diffusers.safetensors")
    latents, time, condition = torch.randn(1, 4, 8, 8), torch.tensor([0.4]), generator.encode_prompt(["a cat"])
    outputs = []
    for name in ("xlabs", "diffusers"):
        report = generator.load_adapter(tmp_path / f"{name}.safetensors")
        outputs.append(generator.network(latents, time, condition, Context(adapters={name: 1.0})))
        generator.unload_adapter(name)
        assert {module for modules in report.matched.values() for module in modules} == {
            *[f"transformer_blocks.0.attn.{m}" for m in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")],
            *["transformer_blocks.0.attn.to_out.0", "transformer_blocks.0.attn.to_add_out"],
            *[f"single_transformer_blocks.0.attn.{m}" for m in ("to_q", "to_k", "to_v")],
        }
    torch.testing.assert_close(*outputs, **CLOSE)
