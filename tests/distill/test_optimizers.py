"""Every optimiser that a config can name: its published update, an exact resume, several processes, its bytes, its options."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import nn

from distill.config import ConfigError, OptimizerConfig, ScheduleConfig, TrainConfig, parse_config
from distill.memory import optimizer_bytes
from distill.optim import adamw_8bit
from distill.optim.optimizer import Optimizer
from distill.optim.table import advice
from distill.optimizer_config import KINDS
from distill.trainer import TrainingError
from tests.distill import optimizers as published
from tests.distill.processes import launched, on_processes
from tests.distill.states import close, everything, stop_after
from tests.distill.toy import BASE, Net, toy_trainer

pytest.importorskip("pytorch_optimizer")
# what makes a short run show everything: several new bases, a warm-up that ends, averages in eight bits
OPTIONS = {
    "ademamix": {"warmup": 4},
    "soap": {"every": 2},
    "adamw_8bit": {"block": 16, "smallest": 0},
    "prodigy": {"d0": 1e-2, "bias_correction": True},
    "dog": {"relative_start": 1e-2},
}


def settings(type: str, **changes) -> dict:
    rate = {} if type in ("prodigy", "dog") else {"lr": 1e-2, "muon_lr": 1e-2}
    return {"type": type, **rate, "options": OPTIONS.get(type, {}), **changes}


class Two(nn.Module):
    """A matrix and a vector."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(6, 4, generator=g, dtype=torch.float64))
        self.vector = nn.Parameter(torch.randn(5, generator=g, dtype=torch.float64))


def stepped(config: OptimizerConfig, steps: int = 7) -> tuple[Optimizer, list, list, list]:
    """(optimiser, weights before, gradients, rates) of steps with a warm-up of three; gradients are a slope and noise."""
    network, g = Two(), torch.Generator().manual_seed(1)
    optimizer, slope = Optimizer(network, config, steps), Two()
    before = [p.detach().clone() for p in network.parameters()]
    gradients, factors = [], [min(1.0, (k + 1) / 3) for k in range(steps)]
    for factor in factors:
        grads = [s.detach() + torch.randn(s.shape, generator=g, dtype=s.dtype) for s in slope.parameters()]
        gradients.append(grads)
        for parameter, grad in zip(network.parameters(), grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step(factor)
    return optimizer, before, gradients, [config.lr * factor for factor in factors]


@pytest.mark.parametrize("type", sorted(KINDS.keys() - {"muon", "adamw_8bit"}))
def test_the_update_is_the_published_one(type):
    """Seven steps in float64 with weight decay and a rising rate, Prodigy and DoG (arXiv 2306.06101, 2302.12022) among them.
    Muon has a test of its own (test_precision.py)."""
    config = OptimizerConfig(**settings(type, weight_decay=0.1))
    optimizer, before, gradients, rates = stepped(config)
    wanted = getattr(published, type)(before, gradients, rates, config)
    tolerance = 1e-6 if type == "soap" else 1e-11  # its bases are made in float32
    for parameter, value, start in zip(optimizer.parameters, wanted, before, strict=True):
        torch.testing.assert_close(parameter.detach(), value, atol=tolerance, rtol=0)
        assert (value - start).abs().max() > 1e-3  # it moved by far more
    if type == "prodigy":
        found = float(optimizer.parts[0].param_groups[0]["d"])
        assert found == pytest.approx(published.prodigy.distance, rel=1e-12) and found > 1e-2


def nearest(name: str, x: torch.Tensor) -> torch.Tensor:
    """By trying all 256 values of each number of each block of 16."""
    values = adamw_8bit.dynamic_map(name == "exp_avg").double()
    rounded = []
    for part in x.flatten().split(16):
        scale = part.abs().max()
        tried = values if name == "exp_avg" else values[1:]  # a square above zero stays above it
        rounded.append(tried[((part / scale)[:, None] - tried).abs().argmin(1)] * scale)
    return torch.cat(rounded).view(x.shape)


def test_eight_bits_are_adamw_with_rounded_averages():
    config = OptimizerConfig(**settings("adamw_8bit", weight_decay=0.1))
    optimizer, before, gradients, rates = stepped(config)
    wanted = published.adamw(before, gradients, rates, config, nearest)
    exact = published.adamw(before, gradients, rates, config)
    for parameter, value, other in zip(optimizer.parameters, wanted, exact, strict=True):
        torch.testing.assert_close(parameter.detach(), value, atol=1e-8, rtol=0)
        assert 1e-5 < (value - other).abs().max() < 1e-2


def test_paged_averages_are_put_away_and_fetched_for_every_update(monkeypatch):
    """Nothing else changes: the same weights to the bit. On a GPU they lie in page-locked memory, which no test here has."""
    away, back = [], []
    monkeypatch.setattr(adamw_8bit, "park", lambda x: away.append(x) or x.clone())
    monkeypatch.setattr(adamw_8bit, "fetch", lambda x, device: back.append(x) or x.clone())
    given = settings("adamw_8bit", weight_decay=0.1)
    plain, *_ = stepped(OptimizerConfig(**given))
    assert not away and not back
    paged, _, _, rates = stepped(OptimizerConfig(**{**given, "options": {**given["options"], "paged": True}}))
    count = 4 * len(paged.parameters)  # places and scales of two averages
    assert (len(away), len(back)) == (count * len(rates), count * (len(rates) - 1))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters, paged.parameters, strict=True))


def test_the_values_of_eight_bits():
    for signed in (True, False):
        values = adamw_8bit.dynamic_map(signed)
        assert len(values) == 256 == len(values.unique()) and values[-1] == 1 and (values == 0).sum() == 1
        assert values[0] == (-1 if signed else 0)
    x = torch.tensor([[0.0, 1e-12, -3.0, 1.0]])
    blocks = adamw_8bit.to_blocks(x.square(), 4, adamw_8bit.dynamic_map(False))
    back = adamw_8bit.from_blocks(blocks, x.shape, adamw_8bit.dynamic_map(False))
    assert back[0, 0] == 0 < back[0, 1] and back[0, 2] == 9  # what an update divides by does not vanish
    again = adamw_8bit.to_blocks(back, 4, adamw_8bit.dynamic_map(False))
    assert torch.equal(again.places, blocks.places) and torch.equal(again.scales, blocks.scales)


def test_schedule_free_has_other_weights_for_use_and_comes_back_to_the_bit():
    config = OptimizerConfig(**settings("schedule_free", weight_decay=0.1))
    optimizer, before, gradients, rates = stepped(config)
    published.schedule_free(before, gradients, rates, config)
    training = [p.detach().clone() for p in optimizer.parameters]
    with optimizer.evaluating():
        for parameter, average in zip(optimizer.parameters, published.schedule_free.averages, strict=True):
            torch.testing.assert_close(parameter.detach(), average, atol=1e-12, rtol=0)
    assert all(torch.equal(p, w) for p, w in zip(optimizer.parameters, training, strict=True))
    assert not torch.equal(training[0], published.schedule_free.averages[0])


def test_averages_and_exports_of_schedule_free_are_of_the_weights_for_use(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=5, optimizer=settings("schedule_free"), ema={"decay": 0.0, "warmup": False})
    seen = {}
    trainer.objective.export = lambda models, folder: seen.update({n: p.clone() for n, p in models["net"].state_dict().items()})
    trainer.train()
    optimizer, network = trainer.roles.optimizers["net"], trainer.networks["net"]
    with optimizer.evaluating():
        used = {name: value.clone() for name, value in network.state_dict().items()}
    assert all(torch.equal(used[name], seen[name]) for name in used)
    assert not torch.equal(used["head.weight"], network.head.weight)


@pytest.mark.parametrize("type", ["adamw", "muon"])
def test_parameters_have_the_rates_that_a_network_asks_for(type):
    network: Any = Net()
    network.rates = {"blocks.0.weight": 3.0, "head.bias": 0.5}
    optimizer = Optimizer(network, OptimizerConfig(type=type, lr=1e-3, muon_lr=1e-2))
    groups = [group for part in optimizer.parts for group in part.param_groups]
    found = {optimizer.names[parameter]: group["lr"] for group in groups for parameter in group["params"]}
    usual = {"muon": {"blocks.0.weight": 1e-2, "blocks.1.weight": 1e-2}}.get(type, {})
    assert found == {name: network.rates.get(name, 1.0) * usual.get(name, 1e-3) for name in optimizer.names.values()}


# ---- what every one of them must do ----


@pytest.mark.parametrize("type", KINDS)
def test_a_resumed_run_is_the_whole_one_bit_for_bit(tmp_path, type):
    section = settings(type)
    toy_trainer(tmp_path / "whole", max_steps=8, optimizer=section).train()
    stop_after(toy_trainer(tmp_path / "parts", max_steps=8, optimizer=section), 3)
    resumed = toy_trainer(tmp_path / "parts", max_steps=8, optimizer=section)
    resumed.train()
    assert min(resumed.source.asked) == 3 * 8
    close(everything(tmp_path / "whole"), everything(tmp_path / "parts"), 0)


@pytest.mark.parametrize("type", KINDS)
def test_frozen_weights_stay_and_bytes_are_counted(type):
    network = Two().float()
    network.vector.requires_grad_(False)
    optimizer = Optimizer(network, OptimizerConfig(**settings(type)))
    counted, before = optimizer_bytes(optimizer), network.vector.clone()
    for _ in range(2):
        network.matrix.grad = torch.ones(6, 4)
        optimizer.step(1.0)
    assert torch.equal(network.vector, before) and not torch.equal(network.matrix, Two().matrix.float())
    assert {name.partition("::")[0] for name in optimizer.state_dict()} == {"matrix"}
    if type == "adamw_8bit":  # checkpoints hold it in float32
        assert counted == 2 * (32 + 2 * 4)
    else:
        numbers = set(getattr(optimizer.parts[0], "shared", ()))  # of a group, not of a parameter
        kept = {name: value for name, value in optimizer.state_dict().items() if name.partition("::")[2] not in numbers}
        assert counted == sum(value.nbytes for value in kept.values())


def _ddp(output, type) -> None:
    toy_trainer(output, parallel="ddp", world_size=2, max_steps=4, optimizer=settings(type)).train()


def _fsdp2(output, type) -> None:
    trainer = toy_trainer(output, parallel="fsdp2", world_size=2, max_steps=4, optimizer=settings(type))
    assert trainer.parallel.kind == "fsdp2"
    trainer.train()


def _zero(output, type) -> None:
    launched(2)
    toy_trainer(output, max_steps=4, optimizer=settings(type)).train()


def _refused(output, how, type) -> None:
    if how is _zero:
        launched(2)
    with pytest.raises(TrainingError, match=f"optimizer.type={type} does not work under .* whole matrices"):
        toy_trainer(output, parallel="fsdp2" if how is _fsdp2 else "auto", optimizer=settings(type))


# Eight bits have other blocks on each process. SOAP's bases turn as they like where few gradients have been, and it moves there
# by up to a rate in every step all the same: its weights are compared alone.
APART = {"adamw_8bit": 2e-2, "soap": 4e-2, "adafactor": 1e-5}


# one of each kind of state at once, the rest of the product is slow
QUICK = {
    ("lion", _fsdp2),
    ("adamw_8bit", _fsdp2),
    ("dog", _fsdp2),
    ("prodigy", _zero),
    ("schedule_free", _zero),
    ("soap", _zero),
}
PLACES = [
    pytest.param(type, how, marks=[] if (type, how) in QUICK else pytest.mark.slow, id=f"{type}{how.__name__}")
    for type in sorted(KINDS.keys() - {"adamw", "radam", "muon"})
    for how in (_ddp, _fsdp2, _zero)
]


@pytest.mark.parametrize(("type", "how"), PLACES)
def test_two_processes_are_one(tmp_path, type, how):
    """The others are in test_parallel.py and test_zero.py."""
    if how is _zero:
        pytest.importorskip("deepspeed")
    refused = {_fsdp2: KINDS[type].shards, _zero: KINDS[type].zero}.get(how)
    if refused:
        on_processes(2, _refused, tmp_path, how, type)
        return
    toy_trainer(tmp_path / "one", max_steps=4, optimizer=settings(type)).train()
    on_processes(2, how, tmp_path / "two", type)
    one, two = everything(tmp_path / "one"), everything(tmp_path / "two")
    if type == "soap":
        one, two = ({name: value for name, value in run.items() if name.startswith("net/")} for run in (one, two))
    close(one, two, APART.get(type, 2e-6), 1e-4 if type in ("prodigy", "dog") else 0)


# ---- what configs may say ----


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        ({"type": "ademamx"}, r"unknown optimizer 'ademamx': did you mean 'ademamix'\? Known: adamw, radam"),
        ({"type": "prodigy", "options": {"d_coeff": 2}}, r"options of prodigy: .*'d_coeff'.*'d_coef'.*there are: d0, d_coef"),
        ({"type": "prodigy", "options": {"growth_rate": 0.5}}, "greater than 1"),
        ({"type": "adamw", "options": {"alpha": 2}}, "adamw has no options of its own, and alpha is given"),
        ({"type": "dog", "betas": [0.9, 0.99]}, "dog has no betas; leave it out"),
        ({"type": "lion", "eps": 1e-6}, "lion has no eps"),
        ({"type": "schedule_free", "betas": [0, 0.9]}, "schedule_free needs a first beta above 0"),
        ({"type": "ademamix", "betas": [0, 0.9]}, "ademamix needs a first beta above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(section, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_config({**BASE, "output": "x", "optimizer": section})


def test_a_type_brings_its_own_settings_and_a_role_may_have_another_type():
    assert OptimizerConfig(type="prodigy").lr == OptimizerConfig(type="dog").lr == 1
    assert OptimizerConfig(type="lion").betas == (0.9, 0.99) and OptimizerConfig().betas == (0.9, 0.95)
    again = OptimizerConfig(**OptimizerConfig(type="soap", options={"every": 5}).model_dump(mode="json"))
    assert again == OptimizerConfig(type="soap", options={"every": 5})
    section = {"type": "prodigy", "options": {"d_coef": 2}, "weight_decay": 0.1}
    roles = {"critic": {"optimizer": {"type": "lion"}}, "net": {"optimizer": {"clip": 2.0}}}
    config = TrainConfig(**{**BASE, "output": "x", "optimizer": section, "roles": roles})
    critic, net = (config.of_role(name)[0] for name in ("critic", "net"))
    assert critic == OptimizerConfig(type="lion", weight_decay=0.1)
    assert net == OptimizerConfig(**section, clip=2.0) and net.lr == 1


def test_settings_that_are_hardly_meant_are_told(tmp_path):
    falling, steady = ScheduleConfig(), ScheduleConfig(type="constant")
    assert list(advice(OptimizerConfig(type="prodigy"), falling)) == list(advice(OptimizerConfig(), falling)) == []
    assert list(advice(OptimizerConfig(type="schedule_free"), steady)) == []
    assert "schedule.type=constant" in next(advice(OptimizerConfig(type="schedule_free"), falling))
    for type in ("prodigy", "dog"):
        with pytest.warns(UserWarning, match=rf"lr is 0\.1; {type} finds its own"):
            toy_trainer(tmp_path, optimizer=settings(type, lr=0.1))


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    monkeypatch.delitem(sys.modules, "distill.optim.library", raising=False)
    with pytest.raises(TrainingError, match=r"type=lion needs the package pytorch-optimizer: .*\[optimizers\]"):
        Optimizer(Two(), OptimizerConfig(type="lion"))
