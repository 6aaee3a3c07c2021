"""SaRA and unlearning as methods of the registry, with sparse gradients and from data to file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from customization.methods.sara import SparseUpdate, apply_sparse
from customization.methods.sparse_weight import SparseWeight, nuclear_norm, replaced
from customization.train import check_method, read_config
from distill.checkpointing.folder import load_latest
from distill.run_folder import TrainingError
from distill.types import Draws
from gen.generator import Generator
from gen.models.folder import write_model
from gen.nn.registry import build
from tests.customization.kit import pictures, trainer
from tests.customization.test_methods import DIT, made
from tests.gen.conftest import CONFIG, randomise, tiny_autoencoder, tiny_text_encoder

SARA = {"type": "sara", "adapter": None, "threshold": 0.05, "nuclear": 1e-3, "reselect_at": 2}
FORGET = {"type": "unlearning", "adapter": None, "target": 1.02}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dit"
    return write_model(folder, CONFIG, randomise(build(DIT), 1), tiny_autoencoder(), tiny_text_encoder())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "images")


# ---- gradients ----


@pytest.mark.parametrize("kind", ["linear", "conv1d", "conv2d"])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_of_the_entries_are_those_of_the_whole_weight(kind, autocast):
    torch.manual_seed(0)
    layer = {"linear": nn.Linear(6, 5), "conv1d": nn.Conv1d(6, 5, 3, 2, 1), "conv2d": nn.Conv2d(6, 5, 3, padding=1, stride=2)}[
        kind
    ]
    x = torch.randn({"linear": (4, 3, 6), "conv1d": (4, 6, 9), "conv2d": (4, 6, 8, 8)}[kind])
    base, index = layer.weight.detach(), torch.randperm(layer.weight.numel())[:11].sort().values
    values = (base.flatten()[index] + torch.randn(11)).requires_grad_()
    found = []
    for make in (lambda: replaced(base, index, values), lambda: SparseWeight.of(base, index, values)):
        given = x.clone().requires_grad_()
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = torch.func.functional_call(layer, {"weight": make()}, given)
        y.float().square().sum().backward()
        found.append((y.detach().float(), given.grad, values.grad, layer.bias.grad.clone()))
        values.grad = None
    for whole, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, whole, rtol=3e-2 if autocast else 1e-5, atol=0.3 if autocast else 1e-5)


def test_nothing_of_a_weights_size_is_kept_between_the_passes():
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)))
    for layer in network:  # one entry in sixteen is small
        layer.weight.data += 0.5
        layer.weight.data.flatten()[::16] = 1e-3
    update = SparseUpdate(network, 2e-3)
    kept: dict[int, int] = {}
    own = {p.data_ptr() for p in network.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = update(torch.randn(2, 64)).square().mean() + 1e-3 * update.nuclear_norm()
    loss.backward()
    assert max(kept.values()) <= 64 * 64 // 16 and sum(kept.values()) < 5 * 64 * 64 // 3
    assert all(p.grad.shape == (64 * 64 // 16,) for p in update.parameters())


def test_the_nuclear_norm_is_that_of_the_whole_change():
    torch.manual_seed(0)
    base, index = torch.randn(5, 4).double(), torch.tensor([0, 3, 7, 8, 15, 19])
    values = (base.flatten()[index] + torch.randn(6)).requires_grad_()
    found = nuclear_norm(values, base.flatten()[index], index, base.shape)
    expected = torch.linalg.svdvals(replaced(base, index, values) - base).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, values)[0], torch.autograd.grad(expected, values)[0])


# ---- from data to file ----


@pytest.mark.parametrize("name", ["sara", "unlearning"])
def test_there_is_a_config_for_it(name):
    config, _ = read_config(Path(__file__).parents[2] / "configs" / "lora" / f"{name}.yaml", [])
    check_method(config.objective)
    assert config.objective["type"] == name


def test_both_files_do_what_the_trained_network_does(tmp_path, images, model):
    one = trainer(tmp_path / "run", images, model, objective=SARA, max_steps=4, optimizer={"lr": 3e-2, "weight_decay": 0.0})
    network = one.objective.generator.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert one.networks["adapter"].named.keys() == one.objective.small.keys()
    one.train()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    wanted = one.networks["adapter"](made, one.objective.generator, "a cat")
    plain, loaded, applied = (Generator.from_pretrained(model, "cpu", "float32") for _ in range(3))
    assert (wanted - made(plain, "a cat")).abs().max() > 0.01
    loaded.load_adapter(tmp_path / "run" / "export" / "adapter.safetensors")
    torch.testing.assert_close(made(loaded, "a cat"), wanted, rtol=1e-3, atol=1e-4)
    apply_sparse(applied.network, tmp_path / "run" / "export" / "sparse.safetensors")
    torch.testing.assert_close(made(applied, "a cat"), wanted, rtol=1e-3, atol=2e-5)
    after = applied.network.state_dict()
    for name, value in before.items():  # to the bit where a weight was not small
        small = value.abs() < 0.05 if f"denoiser.{name}" in one.objective.small else torch.zeros_like(value, dtype=torch.bool)
        assert torch.equal(after[name][~small], value[~small])
    sparse = load_file(tmp_path / "run" / "export" / "sparse.safetensors")
    assert sum(v.numel() for n, v in sparse.items() if n.endswith("values")) <= sum(
        p.numel() for p in one.networks["adapter"].parameters()
    )


def test_what_has_grown_settles_for_the_rest_of_the_run(tmp_path, images, model):
    settings = {"objective": SARA, "optimizer": {"lr": 3e-2, "weight_decay": 0.0}}
    whole = trainer(tmp_path / "whole", images, model, max_steps=4, **settings)
    seen: list[dict[str, torch.Tensor]] = []
    after, named = whole.objective.after_step, whole.networks["adapter"].named

    def watched(step: int) -> None:
        after(step)
        seen.append({name: small.values(named[name].detach()).clone() for name, small in whole.objective.small.items()})

    whole.objective.after_step = watched
    whole.train()
    grown = {name: value.abs() >= 0.05 for name, value in seen[1].items()}
    assert any(mask.any() for mask in grown.values()) and not all(mask.all() for mask in grown.values())
    for name, mask in grown.items():
        assert torch.equal(seen[3][name][mask], seen[1][name][mask])
        assert not mask.logical_not().any() or not torch.equal(seen[3][name][~mask], seen[1][name][~mask])
    trainer(tmp_path / "parts", images, model, max_steps=3, **settings).train()
    trainer(tmp_path / "parts", images, model, max_steps=4, **settings).train()
    a, b = (load_latest(tmp_path / name).tensors for name in ("whole", "parts"))
    assert a.keys() == b.keys() and all(torch.equal(v, b[group][name]) for group in a for name, v in a[group].items())


def unlearn(folder: Path, images: Path, model: Path, **settings):
    prior = pictures(folder / "prior", 3, captions=False)
    data = {"prior": {"prompt": "a dog", "count": 3, "folder": str(prior)}}
    objective = {**FORGET, **settings.pop("objective", {})}
    return trainer(folder / "run", images, model, objective=objective, data=data, batch_size=4, max_steps=4, **settings)


def test_unlearning_changes_one_layer_and_raises_the_loss_on_the_concept(tmp_path, images, model):
    one = unlearn(tmp_path, images, model)
    network = one.objective.generator.network
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batch = one.source.batch(range(12, 16))  # of the last step
    probe = (batch, Draws(0, batch.index, "adapter"), 3)
    with torch.no_grad():
        start = {kind: float(loss) for kind, loss in one.objective.losses(*probe).items()}
    one.train()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    adapter = load_file(tmp_path / "run" / "export" / "adapter.safetensors")
    assert len(adapter) == 1
    one.objective.generator.load_adapter(tmp_path / "run" / "export" / "adapter.safetensors")
    number, change = one.objective.found
    layer = network.get_submodule(one.objective.layers[number])
    with torch.no_grad():
        weight = getattr(layer, "base_layer", layer).weight
        weight += change
        end = {kind: float(loss) for kind, loss in one.objective.losses(*probe).items()}
    assert end["forget"] / start["forget"] == pytest.approx(1.02, abs=0.01)
    assert end["retain"] / start["retain"] < end["forget"] / start["forget"]


def test_unlearning_says_what_it_lacks(tmp_path, images, model):
    with pytest.raises(ValueError, match=r"give data\.prior"):
        trainer(tmp_path / "a", images, model, objective=FORGET, max_steps=2).train()
    with pytest.raises(ValueError, match="No linear layer or convolution of the denoiser ends in nothing"):
        unlearn(tmp_path / "b", images, model, objective={"targets": ["nothing"]})
    with pytest.raises(TrainingError, match=r"give a lower objective\.target"):
        unlearn(tmp_path / "c", images, model, objective={"target": 1e9, "rounds": 1}).train()
    with pytest.raises(ValueError, match="No weight of the denoiser is smaller"):
        trainer(tmp_path / "d", images, model, objective={**SARA, "threshold": 1e-12})
