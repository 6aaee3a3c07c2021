"""What peft trains, and what we make of it: the same function, whatever the kind."""

from __future__ import annotations

import json
import math

import peft
import pytest
import torch
from pydantic import ValidationError
from torch.testing import assert_close

from customization.base.config import FORMATS, CustomizationConfig
from customization.base.export import write_file
from distill.networks.lora.peft_injection import AdapterConfig, inject
from gen.adapters import read_adapter
from gen.generator import Generator
from gen.nn.registry import build
from samplers.denoiser import Context
from tests.customization.kit import objective, shake
from tests.gen.conftest import UVIT, randomise

KINDS = {
    "lora": {"rank": 2, "alpha": 3},
    "rslora": {"rank": 2, "alpha": 3},
    "dora": {"rank": 2, "alpha": 3},
    "loha": {"rank": 2, "alpha": 3},
    "lokr": {"rank": 2, "alpha": 3, "factor": 4},
    "oft": {"block_size": 4},
}
X, TIME = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_starts_as_the_model_and_exports_what_it_became(kind, tiny_model, tmp_path):
    plain = Generator.from_pretrained(tiny_model, "cpu", "float32")
    prompts = ["a red cat", "the moon"]
    condition = plain.encode_prompt(prompts)
    made = objective(tiny_model, adapter={"type": kind, **KINDS[kind]}, name="style")
    trained = made.roles["adapter"].network

    def run() -> torch.Tensor:
        return made.generator.network(X, TIME, condition, Context())

    before = plain.network(X, TIME, condition, Context())
    assert_close(trained(run), before, rtol=1e-5, atol=1e-5)
    shake(trained)
    wanted = trained(run)
    assert (wanted - before).abs().max() > 0.05
    made.export({"adapter": trained}, tmp_path)
    report = plain.load_adapter(tmp_path / "adapter.safetensors", "a")
    assert report.complete
    assert_close(plain.network(X, TIME, condition, Context(adapters={"a": 1.0})), wanted, rtol=1e-4, atol=1e-4)

    folder = tmp_path / "peft-denoiser"
    if kind != "oft":
        made.config = made.config.model_copy(update={"format": "peft"})
        folder = write_file(made.to_adapter(dict(trained.named)), made.config.format, made.metadata(), tmp_path / "peft").parent
    fresh = Generator.from_pretrained(tiny_model, "cpu", "float32").network
    theirs = peft.PeftModel.from_pretrained(fresh, folder).base_model.model
    assert_close(theirs(X, TIME, condition, Context()), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_format_says_the_same(tiny_model, tmp_path):
    made = objective(tiny_model, adapter={"rank": 2, "alpha": 3}, text_adapter={"rank": 2})
    trained = made.roles["adapter"].network
    shake(trained)
    values = dict(trained.named)
    whole = made.to_adapter(values)
    assert {"denoiser", "text_encoder"} == set(whole.parts) and all(delta.scale == (1.5 if "denoiser" in layer else 1.0)
        for layer, delta in whole.layers.items())  # fmt: skip
    outputs = {}
    for format in FORMATS:
        one = objective(tiny_model, adapter={"rank": 2, "alpha": 3}, format=format, name="style")
        own = {name: value for name, value in values.items() if name.startswith("denoiser")}
        path = write_file(one.to_adapter(own), one.config.format, one.metadata(), tmp_path / format)
        adapter = read_adapter(path.parent if format == "peft" else path)
        assert adapter.format == format
        if format != "peft":
            told = adapter.metadata
            assert (told["ss_network_dim"], told["ss_network_alpha"]) == ("2", "3") and told["modelspec.title"] == "style"
            assert told["modelspec.sai_model_spec"] == "1.0.0" and told["modelspec.architecture"] == "fewstep-uvit/lora"
        generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
        generator.load_adapter(adapter, "a")
        outputs[format] = generator.network(X, TIME, generator.encode_prompt(["cat", "dog"], {}), Context(adapters={"a": 1.0}))
    for output in outputs.values():
        assert_close(output, outputs["diffusers"], rtol=1e-5, atol=1e-5)
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["r"] == 2 and settings["lora_alpha"] == 3


def network():
    return randomise(build({**UVIT, "num_classes": 2}), 1).requires_grad_(False)


def test_start_values_are_those_of_the_seed_and_leave_the_global_stream_alone():
    networks = [network() for _ in range(3)]
    state = torch.get_rng_state()
    one, two, other = (inject(net, AdapterConfig(rank=2), seed) for net, seed in zip(networks, (1, 1, 2), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_targets_are_ends_of_names_and_nothing_else_trains():
    net = network()
    found = inject(net, AdapterConfig(rank=2, targets=("attn.qkv", "mlp.fc1"), exclude=("in_blocks.0.mlp.fc1",)), 0)
    layers = {name.partition(".lora_")[0] for name in found}
    assert layers and all(layer.endswith(("attn.qkv", "mlp.fc1")) for layer in layers)
    assert not any(layer.endswith("in_blocks.0.mlp.fc1") for layer in layers)
    assert {name for name, p in net.named_parameters() if p.requires_grad} == set(found)


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"targets": ["attn.qvk"]}, "did you mean 'attn.qkv'"),
        ({"targets": ["attn.qkv"], "exclude": ["qkv"]}, "No layer of the denoiser is left"),
        ({"rank": 33, "targets": ["attn.qkv"]}, "has a rank of at most 32"),
    ],
)
def test_what_cannot_train_is_said_before_the_network_changes(settings, reason):
    net = network()
    names = [name for name, _ in net.named_modules()]
    with pytest.raises(ValueError, match=reason):
        inject(net, AdapterConfig(**settings), 0)
    assert [name for name, _ in net.named_modules()] == names


@pytest.mark.parametrize(
    "bad", [{"alpha": math.nan}, {"alpha": math.inf}, {"rank": 0}, {"type": "lora", "factor": 4}, {"type": "oft", "rank": 4}]
)
def test_settings_that_cannot_be_are_refused(bad):
    with pytest.raises(ValidationError):
        CustomizationConfig(adapter=bad)


def test_nothing_to_train_is_an_error(tiny_model):
    with pytest.raises(ValueError, match="Nothing is set to train"):
        objective(tiny_model, adapter=None)


def test_an_adapter_for_another_model_is_refused(tiny_model, tmp_path):
    made = objective(tiny_model)
    trained = made.roles["adapter"].network
    made.export({"adapter": trained}, tmp_path)
    other = Generator(
        {**made.generator.config.model_dump(mode="json"), "classes": None}, build({**UVIT, "dim": 48, "depth": 2})
    )
    with pytest.raises(ValueError, match=r"does not fit|fits nothing"):
        other.load_adapter(tmp_path / "adapter.safetensors")
    assert other.adapters == {}
