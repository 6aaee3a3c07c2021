"""`quantize=` on opening: our networks and diffusers', adapters beside and in such weights, recipes, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from gen.adapters import Adapter, Delta
from gen.generator import Generator
from gen.nn.quantized import SCHEMES, QuantizedWeight, quantize
from samplers.denoiser import Condition, Context
from tests.gen import test_single_file as single
from tests.gen.test_bridge_parity import noise, ours
from tests.gen.test_stored_weights import nf4

CALL = {"prompt": "a red heart", "num_inference_steps": 2, "output_type": "pt", "progress": False, "seed": 1}


def linears(network: nn.Module) -> dict[str, nn.Linear]:
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear)}


def dequantised(network: nn.Module) -> None:
    """The same numbers, as plain weights."""
    for layer in linears(network).values():
        if isinstance(layer.weight, QuantizedWeight):
            layer.weight = nn.Parameter(layer.weight.dense(), requires_grad=False)


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    return single.written(tmp_path_factory.mktemp("flux"), single.flux())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_default_model(scheme):
    """Near the plain picture, nearer with more bits; the recipe says it, and gives the picture again."""
    unquantised = Generator.from_pretrained(device="cpu", dtype="float32")
    plain = unquantised(**CALL).images
    generator = Generator.from_pretrained(device="cpu", dtype="float32", quantize=scheme)
    assert sum(isinstance(layer.weight, QuantizedWeight) for layer in linears(generator.network).values()) > 10
    made = generator(**CALL)
    assert (made.images - plain).abs().mean() < {"int8": 0.01, "fp8": 0.02, "int4": 0.06, "nf4": 0.06}[scheme]
    recipe = made.recipes[0]
    assert recipe.machine.quantize == scheme
    assert torch.equal(generator.replay(recipe, output_type="pt", progress=False).images, made.images)
    with pytest.warns(UserWarning, match=rf"made with quantize: {scheme}, and here it is none; the picture will differ"):
        unquantised.replay(recipe, output_type="latent", progress=False)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_a_folder_and_a_file_of_diffusers(flux, scheme):
    """Quantised as they are read: both are what quantising afterwards gives, and never held whole."""
    _, file, folder = flux
    options = {"dtype": "float32", "device": "cpu", "quantize": scheme}
    from_folder = Generator.from_pretrained(folder, **options)
    from_file = Generator.from_pretrained(file, text_encoder=folder, vae=folder, **options)
    plain = linears(Generator.from_pretrained(folder, dtype="float32", device="cpu").network)
    count = 0
    for name, layer in linears(from_folder.network).items():
        if isinstance(layer.weight, QuantizedWeight):
            count += 1
            expected = quantize(plain[name].weight, scheme)
            assert all(torch.equal(layer.weight.parts[part], expected.parts[part]) for part in expected.parts)
        else:
            assert torch.equal(layer.weight, plain[name].weight)
    assert count > 15
    x = noise(from_folder, 1)
    assert torch.equal(ours("flux", from_folder, x, 3.5), ours("flux", from_file, x, 3.5))


def test_what_cannot_be_quantised(flux, tmp_path):
    _, file, folder = flux
    with pytest.raises(ValueError, match=r"quantize is 'int3'; give int8, fp8, int4, nf4"):
        Generator.from_pretrained(folder, quantize="int3")
    stored = {k: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v for k, v in load_file(file).items()}
    save_file(stored, tmp_path / "fp8.safetensors")
    with pytest.raises(ValueError, match=r"is quantised already; leave quantize='int8' out"):
        Generator.from_pretrained(tmp_path / "fp8.safetensors", text_encoder=folder, vae=folder, quantize="int8")
    with pytest.raises(ValueError, match="has no layer that quantize='int8' is for"):
        Generator.from_pretrained(
            single.pipelines.save(single.pipelines.stable_diffusion(), tmp_path / "tiny"), quantize="int8"
        )
    with pytest.raises(ValueError, match=r"holds its weights in fewer bits, which no format .* keeps"):
        Generator.from_pretrained(folder, quantize="int8", device="cpu").save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("kind", ["bitsandbytes", "fp8"])
def test_a_pipeline_whose_weights_are_stored_in_fewer_bits(flux, tmp_path, kind):
    """bitsandbytes' folders without that package, and fp8 without a scale."""
    import shutil

    _, _, folder = flux
    shutil.copytree(folder, tmp_path / "stored")
    file = tmp_path / "stored" / "transformer" / "diffusion_pytorch_model.safetensors"
    config = tmp_path / "stored" / "transformer" / "config.json"
    stored = {}
    for name, value in load_file(file).items():
        if value.ndim == 2 and "blocks" in name and value.shape[1] % 64 == 0:
            if kind == "fp8":
                stored[name] = value.to(torch.float8_e4m3fn)
            else:
                stored |= {name.removesuffix("weight") + key: part.contiguous() for key, part in nf4(value)[0].items()}
        else:
            stored[name] = value
    save_file(stored, file)
    if kind == "bitsandbytes":
        values = json.loads(config.read_text())
        config.write_text(json.dumps(values | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}))
    generator = Generator.from_pretrained(tmp_path / "stored", dtype="float32", device="cpu")
    coded = [layer for layer in linears(generator.network).values() if isinstance(layer.weight, QuantizedWeight)]
    assert len(coded) > 15
    x = noise(generator, 1)
    found = ours("flux", generator, x, 3.5)
    dequantised(generator.network)
    torch.testing.assert_close(found, ours("flux", generator, x, 3.5), atol=1e-5, rtol=0)
    config.write_text(json.dumps({"quantization_config": {"quant_method": "torchao"}}))
    with pytest.raises(ValueError, match=r"is quantised by 'torchao', which is not read; .* with quantize="):
        Generator.from_pretrained(tmp_path / "stored")


def adapter(network: nn.Module, name: str, seed: int) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    layers = {}
    for layer, module in linears(network).items():
        if isinstance(module.weight, QuantizedWeight):
            out, width = module.weight.shape
            factors = {"down": torch.randn(3, width, generator=draw) * 0.1, "up": torch.randn(out, 3, generator=draw) * 0.1}
            layers[f"denoiser.{layer}"] = Delta(factors, 1.0)
    return Adapter(name, layers)


@pytest.mark.parametrize("scheme", ["fp8", "nf4"])
def test_adapters_beside_quantised_weights(scheme):
    """One for all and one for each sample: as beside plain weights of the same numbers. Fused, near; unfused, exact."""
    generator = Generator.from_pretrained(device="cpu", dtype="float32", quantize=scheme)
    before = generator(**CALL).images
    for i, name in enumerate("ab"):
        generator.load_adapter(adapter(generator.network, name, i))
    call = CALL | {"prompt": ["a red heart"] * 2}

    def pictures() -> list[torch.Tensor]:
        generator.set_adapters({"a": 1.0, "b": 0.5})
        made = [generator(**call).images]
        x, time = (
            torch.randn(2, generator.channels, 16, 16, generator=torch.Generator().manual_seed(0)),
            torch.tensor([0.5, 0.5]),
        )
        from samplers.denoiser import Condition, Context

        with torch.no_grad():
            made.append(generator.network(x, time, Condition(), Context(adapters=[{"a": 1.0}, {"b": 0.7}])))
        return made

    found = pictures()
    generator.set_adapters({"a": 1.0})
    beside = generator(**CALL).images
    generator.fuse_adapters()
    assert (generator(**CALL).images - beside).abs().mean() < 0.05 and (beside - before).abs().mean() > 0.01
    generator.unfuse_adapters()
    generator.set_adapters({})
    assert torch.equal(generator(**CALL).images, before)
    dequantised(generator.network)
    for one, other in zip(found, pictures(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_lora_learns_beside_quantised_weights():
    """distill's LoRA: gradients are those beside the same numbers as plain weights, and a step changes the output."""
    from distill.networks.lora.overlay import LoraConfig, LoraNetwork

    generator = Generator.from_pretrained(device="cpu", dtype="float32", quantize="nf4")
    x, time = torch.randn(1, generator.channels, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5])

    def gradients() -> dict[str, torch.Tensor]:
        lora = LoraNetwork(generator.network, LoraConfig(rank=2))
        with torch.no_grad():
            for value in lora.up.values():
                value.fill_(0.01)
        lora(x, time, Condition(), Context()).square().mean().backward()
        return {name: value.grad for name, value in lora.named_parameters()}

    found = gradients()
    dequantised(generator.network)
    expected = gradients()
    assert found.keys() == expected.keys() and len(found) > 10
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-3)
