"""Methods of customization: what their layers compute, what trains, and that files do what the trained network does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from customization.base.config import open_model
from customization.methods.consislora import ConsistentConfig, ConsistentObjective
from customization.methods.custom_diffusion import key_value_layers
from customization.methods.factors import PREFIX, Factors, attach, folded
from customization.methods.moslora import MixtureLayers, start_mixer
from customization.methods.multibooth import MultiBoothConfig
from customization.methods.orthogonal_adaptation import OrthogonalLayers, basis, capacity, columns, crosstalk, directions
from customization.train import check_method, read_config
from distill.optim.schedule import lr_factor
from distill.types import Draws, Phase
from gen.adapters import Adapter, Delta, read_adapter, write_adapter
from gen.generator import Generator
from gen.models.folder import write_model
from gen.nn.registry import build
from samplers.path import RectifiedFlow, VariancePreservingSDE
from samplers.prediction import Prediction, prediction_row
from tests.customization.kit import pictures, shake, trainer
from tests.gen.conftest import CONFIG, randomise, tiny_autoencoder, tiny_text_encoder

DIT = {"type": "dit", "size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 2, "heads": 2, "text_tokens": 8, "text_dim": 16}
CONFIGS = [Path(__file__).parents[2] / "configs" / "lora" / f"{name}.yaml" for name in (
    "consislora_content", "consislora_style", "custom_diffusion", "moslora", "multibooth", "orthogonal")]  # fmt: skip
OWN = {
    "moslora": {"adapter": {"rank": 3, "alpha": 2}},
    "orthogonal": {"adapter": {"rank": 4}, "concept": 2},
    "custom_diffusion": {"tokens": {"<new>": {"init": "cat"}}, "token_rate": 3.0},
    "consislora": {"adapter": {"rank": 2}, "switch": 2},
    "multibooth": {"adapter": {"rank": 2}, "tokens": {"<new>": {"init": "cat"}}, "token_rate": 3.0},
}


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dit"
    return write_model(folder, CONFIG, randomise(build(DIT), 1), tiny_autoencoder(), tiny_text_encoder())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "images")


def made(generator: Generator, first: str = "a <new> cat") -> torch.Tensor:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": 2, "output_type": "latent", "progress": False}
    generator._encoded.clear()
    return generator([first, "a dog"], latents=x, **call).images


def run(folder: Path, images: Path, model: Path, kind: str, **settings):
    own = {"adapter": None} if kind == "custom_diffusion" else {}
    objective = {"type": kind, **own, **OWN[kind], **settings}
    data = {"prompt": "a <new> cat"} if "tokens" in objective else {}
    return trainer(folder, images, model, objective=objective, data=data, max_steps=3, optimizer={"lr": 3e-2})


@pytest.mark.parametrize("kind", OWN)
def test_the_file_does_what_the_trained_network_does(kind, tmp_path, images, model):
    one = run(tmp_path / "run", images, model, kind)
    network = one.objective.generator.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fresh, plain = Generator.from_pretrained(model, "cpu", "float32"), made(one.objective.generator)
    at_first = [made(generator, "a cat") for generator in (one.objective.generator, fresh)]
    assert_close(*at_first, rtol=1e-5, atol=1e-5)
    one.train()
    after = network.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed and all(PREFIX in name or "lora_" in name for name in changed)
    adapter = read_adapter(tmp_path / "run" / "export" / "adapter.safetensors")
    assert adapter.types.keys() == ({"full"} if kind == "custom_diffusion" else {"LoRA"})
    fresh.load_adapter(adapter)
    if kind == "custom_diffusion":  # its word, which had its own part in this
        assert list(adapter.words) == ["<new>"] and "new.safetensors" in {p.name for p in (tmp_path / "run/export").iterdir()}
        with_word = made(fresh)
        alone = Generator.from_pretrained(model, "cpu", "float32")
        alone.load_adapter(replace(adapter, words={}))
        assert (made(alone)[0] - with_word[0]).abs().max() > 0.01
    wanted = made(one.objective.generator)
    assert (wanted - plain).abs().max() > 0.01
    assert_close(made(fresh), wanted, rtol=1e-3, atol=1e-4)


def test_a_normalised_word_is_as_long_as_the_one_it_began_as(model, images, tmp_path):
    one = run(tmp_path / "run", images, model, "multibooth")
    start = one.objective.words["text_encoder"].vectors[0].detach().clone()
    one.train()
    words = one.objective.words["text_encoder"]
    trained, length = words.vectors[0].detach(), start.norm()
    assert (trained.norm() - length).abs() > 1e-3  # it is free to be of any length
    read = words.fill(torch.zeros(1, 1, 16), torch.tensor([[words.first]]))[0, 0]
    assert_close(read, trained[0] * length / trained.norm(), rtol=1e-5, atol=1e-6)
    adapter = read_adapter(tmp_path / "run" / "export" / "adapter.safetensors")
    assert_close(adapter.words["<new>"]["text_encoder"][0], read, rtol=1e-3, atol=1e-4)
    assert all(layer.endswith("cross.kv") for layer in adapter.layers)
    logged = one.objective.compute(one.source.batch([0, 1]), Draws(0, torch.arange(2), "adapter"), 0)
    assert_close(logged[1]["length"], trained.square().sum())
    plain = super(type(one.objective), one.objective).compute(one.source.batch([0, 1]), Draws(0, torch.arange(2), "adapter"), 0)
    assert_close(logged[0] - plain[0], 0.01 * trained.square().sum(), rtol=1e-3, atol=1e-5)
    with pytest.raises(ValueError, match="starts as a known one"):
        MultiBoothConfig(tokens={"<new>": {}})


def test_factors_are_a_product_beside_a_layer():
    layer = nn.Linear(5, 4).double()
    x, down, mid, up = randn(3, 7, 5), randn(2, 5, seed=1), randn(2, 2, seed=2), randn(4, 2, seed=3)
    plain = layer(x)
    trained = attach(layer, Factors({"down": down, "mid": mid, "up": up}, ("down",), 0.5))
    assert list(trained) == [PREFIX + "mid", PREFIX + "up"]
    assert_close(layer(x), plain + 0.5 * x @ (up @ mid @ down).T, rtol=1e-12, atol=1e-12)
    assert_close(folded([down, mid, up]), up @ mid @ down, rtol=1e-12, atol=1e-12)
    for wrong, why in (
        ({"down": down, "up": randn(4, 3)}, r"is \(4, 3\), and gets 2"),
        ({"down": down}, "end in 2 numbers, and the layer has 4"),
    ):
        with pytest.raises(ValueError, match=why):
            attach(nn.Linear(5, 4).double(), Factors(wrong))
    with pytest.raises(ValueError, match="taught already"):
        attach(layer, Factors({"up": up, "down": down}))
    with pytest.raises(ValueError, match="this is a Conv2d"):
        attach(nn.Conv2d(2, 2, 1), Factors({}))


def test_a_mixer_of_ones_is_a_lora_and_others_turn_it():
    random = torch.Generator().manual_seed(0)
    assert torch.equal(start_mixer("identity", 3, random), torch.eye(3))
    turned = start_mixer("orthogonal", 6, random)
    assert_close(turned @ turned.T, torch.eye(6), rtol=1e-5, atol=1e-5)
    assert start_mixer("kaiming", 64, random).abs().max() <= 1 / 8
    layer, plain = nn.Linear(5, 4).double(), randn(3, 5) @ (randn(4, 2, seed=3) @ randn(2, 5, seed=1)).T
    base = layer(randn(3, 5))
    attach(layer, Factors({"down": randn(2, 5, seed=1), "mixer": torch.eye(2).double(), "up": randn(4, 2, seed=3)}))
    assert_close(layer(randn(3, 5)), base + plain, rtol=1e-12, atol=1e-12)
    for wrong in ({"type": "dora"}, {"conv": True}):
        with pytest.raises(ValueError, match="plain LoRAs"):
            MixtureLayers(**wrong)


def test_the_mixer_trains(model, images, tmp_path):
    one = run(tmp_path / "run", images, model, "moslora")
    shake(one.networks["adapter"])
    batch = one.source.batch([0, 1])
    loss, _ = one.objective.loss(Phase("adapter", "adapter"), one.networks, batch, Draws(0, batch.index), 0)
    loss.backward()
    gradients = {name.rpartition(PREFIX)[2]: p.grad for name, p in one.networks["adapter"].named.items()}
    assert set(gradients) == {"down", "mixer", "up"} and all(g.abs().max() > 0 for g in gradients.values())


def concept(number: int, layers: OrthogonalLayers, size: int = 48, out: int = 30) -> Adapter:
    down = directions(size, layers, number)
    return Adapter(str(number), {"denoiser.x": Delta({"down": down, "up": randn(out, layers.rank, seed=number)})})


def gaussian(number: int, rank: int, size: int = 48, out: int = 30) -> Adapter:
    factors = {"down": randn(rank, size, seed=99 + number), "up": randn(out, rank, seed=number)}
    return Adapter(str(number), {"denoiser.x": Delta(factors)})


def difference(adapter: Adapter) -> torch.Tensor:
    return adapter.layers["denoiser.x"].delta(torch.zeros(30, 48, dtype=torch.float64))


def test_concepts_with_columns_of_their_own_do_not_disturb_one_another():
    layers = OrthogonalLayers(rank=5)
    assert capacity(768, 20) == 38 and capacity(48, 5) == 9
    assert_close(basis(48) @ basis(48).T, torch.eye(48).double(), rtol=0, atol=1e-12)
    assert not torch.equal(basis(48), basis(48, 1))
    everyone = [concept(i, layers) for i in range(9)]
    assert sorted(c for i in range(9) for c in columns(48, 5, i)) == list(range(45))
    assert crosstalk(everyone) < 1e-14
    merged = sum(0.6 * difference(one) for one in everyone)
    for one in everyone[::4]:
        inside = randn(7, 5) @ one.layers["denoiser.x"].factors["down"]  # inputs in the span of its columns
        assert_close(inside @ merged.T, 0.6 * inside @ difference(one).T, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"inputs hold 9 concepts of rank 5, numbers 0 to 8; lower rank"):
        concept(9, layers)


def test_others_do():
    """Random columns share some; plain LoRAs share directions. What is measured is |D_i D_j^T| itself."""
    shared = OrthogonalLayers(rank=5, bins="random")
    everyone = [concept(i, shared) for i in range(9)]
    a, b = difference(gaussian(0, 5)), difference(gaussian(1, 5))
    talk = crosstalk([gaussian(0, 5), gaussian(1, 5)])
    assert talk == pytest.approx(((a @ b.T).norm() / (a.norm() * b.norm())).item(), rel=1e-9) and talk > 0.03
    assert crosstalk(everyone) > 0.03
    free = [not set(columns(768, 20, 2 * i, "random")) & set(columns(768, 20, 2 * i + 1, "random")) for i in range(300)]
    assert sum(free) / 300 == pytest.approx(0.586, abs=0.1)  # prod (748 - i) / (768 - i), i < 20
    with pytest.raises(ValueError, match="has a full"):
        crosstalk([Adapter("a", {"x": Delta({"weight": a})})] * 2)


def test_custom_diffusion_tunes_keys_and_values_of_text_alone(model, tiny_model, images, tmp_path):
    one = run(tmp_path / "run", images, model, "custom_diffusion", tokens={})
    names = [name.removeprefix("denoiser.").removesuffix(f".{PREFIX}weight") for name in one.networks["adapter"].named]
    assert sorted(names) == ["blocks.0.cross.kv", "blocks.1.cross.kv"]

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn1, self.attn2 = ({n: nn.Linear(2, 2) for n in ("to_q", "to_k", "to_v")} for _ in range(2))
            self.attn1, self.attn2 = nn.ModuleDict(self.attn1), nn.ModuleDict(self.attn2)

    assert key_value_layers(Text()) == ["attn2.to_k", "attn2.to_v"]
    with pytest.raises(ValueError, match="needs cross-attention to text; use lora"):
        run(tmp_path / "other", images, tiny_model, "custom_diffusion")
    assert key_value_layers(build(DIT), ("attn.qkv",)) == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@pytest.mark.parametrize("path", [VariancePreservingSDE(), RectifiedFlow()], ids=["vp", "flow"])
def test_the_loss_of_x0_is_that_of_eps_times_the_noise_to_signal_ratio(kind, path):
    level = path(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    x0, eps, raw = randn(3, 2, 4, 4), randn(3, 2, 4, 4, seed=1), randn(3, 2, 4, 4, seed=2)
    prediction = Prediction(level.mix(x0, eps), level, raw, prediction_row(kind, level, path))
    own = object.__new__(ConsistentObjective)
    own.config = ConsistentConfig(switch=10)
    early, late = own.error(prediction, x0, eps, 9), own.error(prediction, x0, eps, 10)
    ratio = ((level.sigma / level.alpha) ** 2).reshape(3, 1, 1, 1)
    assert_close(late, early * ratio, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(late, early, rtol=0.1)


def test_style_is_learned_beside_content_that_stays(model, images, tmp_path):
    layers = {f"denoiser.blocks.{i}.attn.qkv": Delta({"down": randn(2, 32, seed=i).float(), "up": randn(96, 2).float() / 9})
              for i in range(2)}  # fmt: skip
    content = write_adapter(Adapter("content", layers), tmp_path / "content.safetensors", "kohya")
    bytes_before = content.read_bytes()
    one = run(tmp_path / "run", images, model, "consislora", frozen=str(content), frozen_weight=0.8, switch=0)
    weights = {
        name: value.clone() for name, value in one.objective.generator.network.state_dict().items() if "lora" not in name
    }
    one.train()
    after = one.objective.generator.network.state_dict()
    assert content.read_bytes() == bytes_before and all(torch.equal(value, after[name]) for name, value in weights.items())
    fresh = Generator.from_pretrained(model, "cpu", "float32")
    plain = open_model(ConsistentConfig(model=str(model)), "cpu").network.state_dict()
    name = "blocks.0.attn.qkv"
    taught = next(value for key, value in weights.items() if key.startswith(name) and key.endswith("weight"))
    assert_close(taught, plain[f"{name}.weight"] + 0.8 * layers[f"denoiser.{name}"].delta(taught), rtol=1e-5, atol=1e-5)
    fresh.load_adapter(content, weight=0.8)
    fresh.load_adapter(tmp_path / "run" / "export" / "adapter.safetensors", name="style")
    assert_close(made(fresh), made(one.objective.generator), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configs_are_valid(path):
    config, _ = read_config(path, [])
    _, checked = check_method(config.objective)
    if path.stem == "consislora_content":  # published: 2e-4, and 1e-4 from the step on at which the loss changes
        rate = [config.optimizer.lr * lr_factor(step, config.max_steps, config.schedule) for step in (100, 499, 500, 1499)]
        assert rate == pytest.approx([2e-4, 2e-4, 1e-4, 1e-4]) and checked.switch == 500


@pytest.mark.parametrize("method", ["custom_diffusion", "sara", "unlearning"])
def test_methods_that_train_the_networks_own_weights_take_no_adapter(method):
    for adapter in ({"type": None}, {"rank": 4}):
        with pytest.raises(ValueError, match="has no adapter; leave adapter out, or use lora"):
            check_method({"type": method, "adapter": adapter})
