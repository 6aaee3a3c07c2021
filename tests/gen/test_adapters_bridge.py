"""LoRA on diffusers' networks and their text encoders: every way of using one, against the same networks with other weights.

`test_adapters_pipelines` compares with what diffusers makes of the same files.
"""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from samplers.denoiser import Condition, Context
from tests.gen.lora import every_layer, factors, kohya, layers_of, published, shapes_of, text
from tests.gen.test_adapters_originals import Checkpoint

WEIGHT = 0.7
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
SAVED = {  # family -> the formats that it is saved in; peft's holds one network
    "stable_diffusion": ("diffusers",),
    "sdxl": ("kohya", "diffusers"),
    "pixart": ("ai-toolkit",),
    "dit": ("kohya", "peft"),
    "sd3": ("diffusers", "ai-toolkit"),
    "flux": ("kohya", "diffusers"),
    "chroma": ("kohya", "diffusers"),
    "sana": ("peft",),
    "kolors": ("kohya",),
}

LANGUAGE = ("sana", "kolors")  # language models read their prompts, which adapters leave as they are


def changed(network: nn.Module, tensors: dict[str, torch.Tensor], prefix: str, weight: float) -> dict[str, torch.Tensor]:
    """The weights with w alpha / r B A added, as the papers have it."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for name in layers_of(network):
        for spelled in (name, f"text_model.{name}"):
            key = f"{prefix}_{spelled.replace('.', '_')}"
            if f"{key}.alpha" in tensors:
                down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
                change = tensors[f"{key}.alpha"] / len(down) * up.flatten(1) @ down.flatten(1)
                state[f"{name}.weight"] += weight * change.reshape(state[f"{name}.weight"].shape)
    return state


def inputs(generator, name: str) -> tuple:
    random = torch.Generator().manual_seed(3)
    latents = torch.randn(2, generator.channels, 8, 8, generator=random)
    if name == "dit":
        return latents, torch.tensor([300.0, 800.0]), Condition(label=torch.tensor([3, 7]))
    return latents, torch.tensor([0.3, 0.8]), generator.encode_prompt(["a cat", "two dogs"])


@torch.no_grad()
@pytest.mark.parametrize("name", SAVED)
def test_every_way_of_using_one(bridged, tmp_path, name):
    _, generator = bridged(name)
    encoders = generator.text_encoder.encoders if generator.text_encoder else {}
    tensors = every_layer(generator, tuple(part for part in encoders if name not in LANGUAGE))
    save_file(tensors, tmp_path / "a.safetensors")
    network, given = generator.network, inputs(generator, name)
    original = {key: value.clone() for key, value in network.state_dict().items()}
    plain = network(*given, Context())
    report = generator.load_adapter(tmp_path / "a.safetensors", weight=WEIGHT)
    try:
        assert report.complete and len(report.matched) == len([key for key in tensors if key.endswith(".alpha")])
        # the network with changed weights
        acted = network(*given, Context(adapters=generator.adapters))
        network.network.load_state_dict(changed(network.network, tensors, "lora_unet", WEIGHT))
        reference = network(*given, Context())
        network.load_state_dict(original)
        torch.testing.assert_close(acted, reference, **CLOSE)
        assert (acted - plain).abs().max() > 0.01
        # each sample its own
        mixed = network(*given, Context(adapters=[{"a": WEIGHT}, {}]))
        torch.testing.assert_close(mixed, torch.stack([acted[0], plain[1]]), **CLOSE)
        # in the weights, and out of them
        before = generator.encode_prompt(["a cat"]) if encoders else None
        generator.fuse_adapters()
        assert generator.adapters == {} and any(not torch.equal(v, original[k]) for k, v in network.state_dict().items())
        torch.testing.assert_close(network(*given, Context()), acted, **CLOSE)
        if encoders:
            torch.testing.assert_close(generator.encode_prompt(["a cat"]).tokens, before.tokens, **CLOSE)
        generator.unfuse_adapters()
        assert generator.adapters == {"a": WEIGHT}
        assert all(torch.equal(value, original[key]) for key, value in network.state_dict().items())
        if encoders and name not in LANGUAGE:
            without = generator.encode_prompt(["a cat"], {})
            assert (without.tokens - before.tokens).abs().max() > 0.01
        # saved and read again
        for format in SAVED[name]:
            path = tmp_path / (format if format == "peft" else f"{format}.safetensors")
            saved = generator.save_adapter("a", path, format, fold=format == "ai-toolkit")
            assert generator.load_adapter(saved, "again", weight=0.0).complete
            again = network(*given, Context(adapters={"again": WEIGHT}))
            generator.unload_adapter("again")
            torch.testing.assert_close(again, acted, **CLOSE)
    finally:
        generator.unload_adapter("a")
    assert torch.equal(network(*given, Context()), plain)


@torch.no_grad()
def test_layers_of_sd3_by_its_authors_names(bridged, tmp_path):
    """Changes of weights go through diffusers' converter as a checkpoint would, and are added."""
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    _, generator = bridged("sd3")
    network, given = generator.network, inputs(generator, "sd3")
    names = published(network.network)
    tensors = kohya("lora_unet", names)
    save_file(tensors, tmp_path / "a.safetensors")
    checkpoint = Checkpoint({"context_embedder.weight": torch.zeros(16, 1)})
    for name, shape in names.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        down, up = tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"]
        change = tensors[f"{key}.alpha"] / len(down) * up.flatten(1) @ down.flatten(1)
        checkpoint[f"{name}.weight"], checkpoint[f"{name}.bias"] = change.reshape(shape), torch.zeros(shape[0])
    changes = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    original = {key: value.clone() for key, value in network.network.state_dict().items()}
    report = generator.load_adapter(tmp_path / "a.safetensors")
    try:
        acted = network(*given, Context(adapters={"a": 1.0}))
        modules = {target for targets in report.matched.values() for target in targets}
        state = {k: v + changes[k].reshape(v.shape) if k.removesuffix(".weight") in modules else v for k, v in original.items()}
        network.network.load_state_dict(state)
        torch.testing.assert_close(acted, network(*given, Context()), **CLOSE)
    finally:
        network.network.load_state_dict(original)
        generator.unload_adapter("a")
    assert {"transformer_blocks.0.attn.add_v_proj", "norm_out.linear", "transformer_blocks.1.norm1_context.linear"} <= modules


@torch.no_grad()
@pytest.mark.parametrize("naming", ["lora_unet_single_blocks_0_linear1.lora_{}.weight",
                                    "diffusion_model.single_blocks.0.linear1.lora_{}.weight",
                                    "single_blocks.0.linear1.lora_{}.weight"])  # fmt: skip
def test_flux_keeps_attention_and_mlp_in_one_layer(bridged, tmp_path, naming):
    _, generator = bridged("flux")
    network, given = generator.network, inputs(generator, "flux")
    down, up = factors(32 * 3 + 128, 32)
    letters = ("down", "up") if "unet" in naming else ("A", "B")
    save_file({naming.format(letters[0]): down, naming.format(letters[1]): up}, tmp_path / "a.safetensors")
    report = generator.load_adapter(tmp_path / "a.safetensors")
    [modules] = report.matched.values()
    block = "single_transformer_blocks.0"
    assert modules == (f"{block}.attn.to_q", f"{block}.attn.to_k", f"{block}.attn.to_v", f"{block}.proj_mlp")
    try:
        acted = network(*given, Context(adapters={"a": 1.0}))
        saved = load_file(generator.save_adapter("a", tmp_path / "saved.safetensors"))
    finally:
        generator.unload_adapter("a")
    weights = {module: network.network.get_submodule(module).weight for module in modules}
    before = {module: weight.clone() for module, weight in weights.items()}
    for module, rows in zip(modules, (up @ down).split((32, 32, 32, 128)), strict=True):
        weights[module] += rows
        written = saved[f"transformer.{module}.lora_B.weight"] @ saved[f"transformer.{module}.lora_A.weight"]
        torch.testing.assert_close(written, rows, **CLOSE)
    reference = network(*given, Context())
    for module, weight in weights.items():
        weight.copy_(before[module])
    torch.testing.assert_close(acted, reference, **CLOSE)


@torch.no_grad()
def test_the_empty_prompt_is_read_with_the_text_encoders_adapters(bridged, tmp_path):
    """Guidance pulls away from what the adapted encoder makes of "", as from a negative prompt that says nothing."""
    _, generator = bridged("stable_diffusion")
    save_file(kohya("lora_te", text(shapes_of(generator.text_encoder.encoders["text_encoder"]))), tmp_path / "a.safetensors")
    call = {"seed": 1, "num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "pt", "progress": False}
    generator.load_adapter(tmp_path / "a.safetensors")
    null = generator.encode_prompt([""], negative=True).tokens
    implied = generator("a cat", **call).images
    assert torch.equal(generator.network.null.tokens, null)
    generator.set_adapters({})
    generator("a cat", **call)
    assert (generator.network.null.tokens - null).abs().max() > 0.01
    generator.unload_adapter("a")
    assert (generator("a cat", **call).images - implied).abs().max() > 1e-3
