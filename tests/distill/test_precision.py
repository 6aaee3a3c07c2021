"""Loss scaling against torch's, schedules against their formulas, optimisers against theirs and torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distill.config import ConfigError, OptimizerConfig, ScheduleConfig, TrainConfig, parse_config
from distill.optim.optimizer import Muon, Optimizer
from distill.optim.precision import LossScaler, autocast, product_dtype
from distill.optim.schedule import lr_factor
from distill.run_folder import TrainingError
from tests.distill.toy import BASE, toy_trainer


def test_the_scale_follows_torchs_rule():
    pattern = [False] * 5 + [True] + [False] * 3 + [True, True] + [False] * 9
    ours = LossScaler(True, scale=1024.0, interval=4)
    theirs = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4, enabled=True)
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.0)
    for overflow in pattern:
        optimizer.zero_grad()
        theirs.scale(parameter.sum()).backward()
        if overflow:
            parameter.grad.fill_(float("inf"))
        theirs.step(optimizer)
        theirs.update()
        ours.update(overflow)
        assert ours.scale == theirs.get_scale()


def test_gradients_are_divided_by_the_scale_and_state_survives():
    scaler = LossScaler(True, scale=8.0)
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    a.grad = torch.tensor([8.0, 4.0])
    scaler.unscale([a, b])
    assert a.grad.tolist() == [1.0, 0.5] and b.grad is None
    scaler.update(False)
    other = LossScaler(True)
    other.load_state_dict(scaler.state_dict())
    assert (other.scale, other.good) == (8.0, 1)
    assert LossScaler(False).state_dict() == {}


def test_a_scale_that_never_fits_is_exhausted():
    scaler = LossScaler(True, scale=4.0)
    for _ in range(2):
        scaler.update(True)
        assert not scaler.exhausted
    scaler.update(True)
    assert scaler.exhausted


@pytest.mark.parametrize("fast, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_bf16_is_float32_where_a_cpu_emulates_it(monkeypatch, fast, dtype):
    monkeypatch.setattr("distill.optim.precision.fast_bfloat16", lambda device: fast)
    cpu = torch.device("cpu")
    with autocast(cpu, "bf16"):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    with autocast(cpu):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype
    assert product_dtype(torch.device("cuda"), "bf16") == torch.bfloat16
    assert product_dtype(cpu, "fp32") == torch.float32
    made: list[torch.dtype] = []
    monkeypatch.setattr("distill.optim.optimizer.orthogonalize", lambda m, *settings: made.append(settings[-1]) or m)
    weight = nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    Muon([weight]).step()
    assert made == [dtype]


def test_formats():
    with autocast(torch.device("cpu"), "fp16"):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float16
    with autocast(torch.device("cpu"), "fp32"):
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == torch.float32


def test_float16_is_for_cuda(tmp_path):
    with pytest.raises(TrainingError, match="fp16 is for CUDA"):
        toy_trainer(tmp_path, precision="fp16")


def test_cosine_constant_and_inverse_square_root():
    cosine = ScheduleConfig(type="cosine", warmup=10, final=0.1)
    assert lr_factor(4, 110, cosine) == pytest.approx(0.5)
    assert lr_factor(60, 110, cosine) == pytest.approx(0.55)
    assert lr_factor(110, 110, cosine) == pytest.approx(0.1)
    assert lr_factor(35, 110, cosine) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    constant = ScheduleConfig(type="constant", warmup=0)
    assert {lr_factor(step, 50, constant) for step in range(51)} == {1.0}
    root = ScheduleConfig(type="inverse_sqrt", warmup=0, reference=100, cooldown=0.5, final=0.0)
    assert lr_factor(100, 1000, root) == 1.0
    assert lr_factor(400, 1000, root) == pytest.approx(0.5)
    dropped = ScheduleConfig(type="constant", warmup=2, drops={5: 0.5, 8: 0.1})
    assert [lr_factor(step, 10, dropped) for step in (0, 4, 5, 8)] == pytest.approx([0.5, 1.0, 0.5, 0.05])
    assert ScheduleConfig.model_validate_json(dropped.model_dump_json()) == dropped
    with pytest.raises(ValueError, match="drops"):
        ScheduleConfig(drops={5: 0.0})
    assert lr_factor(900, 1000, root) == pytest.approx(1 / 3 * 0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": {"type": "constant", "cooldown": 0.1}}, "a constant schedule has no cooldown"),
        ({"schedule": {"type": "cosine", "reference": 5}}, "a cosine schedule has no reference"),
        ({"ema": {"type": "power", "decay": 0.9}}, "a power average has no decay"),
        ({"ema": {"widths": [0.1]}}, "a constant average has no widths"),
        ({"ema": {"type": "power", "widths": [0.5]}}, "between 0 and"),
        ({"ema": {"type": "power", "widths": [0.1, 0.1001]}}, "differ"),
        ({"roles": {"net": {"optimizer": {"lr": -1}}}}, "roles.net: lr"),
        ({"roles": {"net": {"optimizer": {"learning_rate": 1}}}}, "learning_rate"),
        ({"roles": {"net": {"every": 0}}}, "every"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, "less than 1"),
        ({"resume": 3}, "resume"),
        ({"world_size": 0}, "world_size"),
    ],
)
def test_settings_that_contradict_one_another(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({**BASE, "output": str(tmp_path), **changes})


def test_a_role_inherits_what_it_does_not_change(tmp_path):
    settings = {**BASE, "output": tmp_path, "optimizer": {"type": "radam", "lr": 3e-4, "weight_decay": 0.1}}
    config = TrainConfig(**settings, roles={"critic": {"optimizer": {"lr": 1e-5}, "ema": {"type": "power"}}})
    optimizer, schedule, ema, every = config.of_role("critic")
    assert optimizer == OptimizerConfig(type="radam", lr=1e-5, weight_decay=0.1)
    assert schedule == config.schedule and ema.type == "power" and every == 1
    assert config.of_role("other")[0] == config.optimizer
    # what a checkpoint holds is all of it, and reads back as the same
    assert parse_config(config.model_dump(mode="json")) == config
    waits = TrainConfig(**{**settings, "schedule": {"warmup": 7}}, roles={"critic": {"schedule": {"type": "constant"}}})
    assert waits.of_role("critic")[1] == ScheduleConfig(type="constant", warmup=7)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 4).double()


def run(config: OptimizerConfig, steps: int) -> tuple[list, list]:
    """(weights after every step, gradients) with gradients drawn from a fixed stream and no clipping."""
    network, generator = Small(), torch.Generator().manual_seed(1)
    optimizer, weights, grads = Optimizer(network, config), [], []
    start = network.linear.weight.detach().clone()
    for step in range(steps):
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.01
        grads.append(network.linear.weight.grad.clone())
        optimizer.step(1 / (1 + step))
        weights.append(network.linear.weight.detach().clone())
    return [start, *weights], grads


@pytest.mark.parametrize("type", ["adamw", "radam"])
def test_optimisers_follow_their_equations(type):
    """Kingma and Ba 2015 with decoupled decay; Liu et al. 2020, Algorithm 2, whose rectification starts where rho_t > 5 as in
    torch. The rate changes with the step."""
    lr, b1, b2, eps, wd = 1e-2, 0.9, 0.95, 1e-8, 0.1
    weights, grads = run(OptimizerConfig(type=type, lr=lr, betas=(b1, b2), eps=eps, weight_decay=wd, clip=1e9), 60)
    w, m, v = weights[0].clone(), 0, 0
    rho = 2 / (1 - b2) - 1
    for t, grad in enumerate(grads, 1):
        rate = lr / t
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad**2
        w = w * (1 - rate * wd)
        unbiased = m / (1 - b1**t)
        if type == "adamw":
            w = w - rate * unbiased / ((v / (1 - b2**t)).sqrt() + eps)
        else:
            rho_t = rho - 2 * t * b2**t / (1 - b2**t)
            if rho_t > 5:
                r = math.sqrt((rho_t - 4) * (rho_t - 2) * rho / ((rho - 4) * (rho - 2) * rho_t))
                w = w - rate * unbiased * r * math.sqrt(1 - b2**t) / (v.sqrt() + eps)
            else:
                w = w - rate * unbiased
        torch.testing.assert_close(weights[t], w, atol=1e-9, rtol=0)


SHAPES = [(24, 16), (16, 24), (24, 16), (16, 16)]


def two_muons() -> tuple[list, list, list]:
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in SHAPES]
    grads = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(3)]

    def run(kind, **settings):
        parameters = [nn.Parameter(value.clone()) for value in start]
        optimizer = kind(parameters, lr=0.1, weight_decay=0.2, momentum=0.9, **settings)
        for step in grads:
            for parameter, grad in zip(parameters, step, strict=True):
                parameter.grad = grad.clone()
            optimizer.step()
        return [(p.detach(), optimizer.state[p]["momentum_buffer"]) for p in parameters]

    return run(Muon), run(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"), start


def test_muon_in_batches_is_torchs_muon():
    """Same state, same updates to bfloat16 rounding (an update has entries of about 0.2 lr)."""
    for (a, m), (b, n), before in zip(*two_muons(), strict=True):
        assert (a - b).abs().max() < 0.02 * (b - before).abs().max()
        torch.testing.assert_close(m, n, atol=1e-6, rtol=0)


def test_muon_is_torchs_muon_without_the_rounding(monkeypatch):
    """Both orthogonalise in bfloat16; in float32 they agree to its rounding."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self)
    monkeypatch.setattr(Muon, "dtype", torch.float32)
    for (a, _), (b, _), _ in zip(*two_muons(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("type", ["adamw", "radam", "muon"])
def test_a_loaded_optimiser_goes_on_as_the_saved_one(type):
    config = OptimizerConfig(type=type, lr=1e-2, clip=1.0)
    weights, _ = run(config, 6)
    network, generator = Small(), torch.Generator().manual_seed(1)
    optimizer = Optimizer(network, config)
    for step in range(6):
        if step == 3:
            state = {name: value.clone() for name, value in optimizer.state_dict().items()}
            optimizer = Optimizer(network, config)
            optimizer.load_state_dict(state)
        for p in network.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.01
        optimizer.step(1 / (1 + step))
    assert torch.equal(network.linear.weight, weights[-1])


def test_a_schedule_begins_anew_at_its_restarts():
    """Each stage has the whole schedule to itself: here a warm-up of two steps and a fall to 0 at its end."""
    staged = ScheduleConfig(warmup=2, cooldown=1.0, final=0.0, restarts=(4, 10))
    alone = ScheduleConfig(warmup=2, cooldown=1.0, final=0.0)
    expected = [lr_factor(step, 4, alone) for step in range(4)]
    expected += [lr_factor(step, 6, alone) for step in range(6)] + [lr_factor(step, 2, alone) for step in range(2)]
    assert [lr_factor(step, 12, staged) for step in range(12)] == expected
    assert [lr_factor(step, 4, ScheduleConfig(restarts=(9,))) for step in range(4)] == [
        lr_factor(step, 4, ScheduleConfig()) for step in range(4)
    ]
    with pytest.raises(ValueError, match="must rise"):
        ScheduleConfig(restarts=(4, 4))
