"""pi-Flow against exact answers: a mixture's policy is Bayes' rule, and a student that says it has no loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distill.objectives.bases.teacher import Teacher
from distill.objectives.pi_flow import PiFlowConfig, PiFlowObjective
from distill.types import Draws
from gen.models.folder import policy_of
from gen.nn.backbones.policy_head import PolicyHeadConfig, as_policy
from gen.nn.registry import build
from samplers.analytic import Mixture
from samplers.denoiser import Condition, Context
from samplers.path import expand
from samplers.policy import FIRST_SPREAD, GridPolicy, Policy, follow, follow_rows, straight_time
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.distill.students import FLOW, SIZES, VP, batch_of, exact_teacher, latents, loss_of, tiny_teacher
from tests.gen.conftest import randomise
from tests.gen.joint import OWN

SPREAD = 0.4
NETWORKS = {"dit": {"type": "dit", **SIZES, "learned_variance": True}, "uvit": {"type": "uvit", **SIZES}, **OWN}


class ExactPolicy(nn.Module):
    """Says the posterior of a mixture of equal spreads over one pixel, as a mixture's policy, components as x0. wrong: all of
    it in the first component's mean, E[x0 | x], as a network of plain predictions would."""

    def __init__(self, oracle: Mixture, clock, wrong: bool = False):
        super().__init__()
        self.oracle, self.clock, self.wrong = oracle, clock, wrong
        self.config = type(
            "Config", (), {"policy": PolicyHeadConfig(kind="mixture", count=len(oracle.means)), "num_classes": 0}
        )()
        self.zero = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, time, condition, context=None):
        level = self.clock(time)
        joint, means, _ = self.oracle._components(x, level, condition)
        alpha, sigma = level.alpha, level.sigma
        spread = (SPREAD**-2 + (alpha / sigma) ** 2) ** -0.5  # of x0 given x and its component
        if self.wrong:
            means = (joint.softmax(1)[:, :, None, None, None] * means).sum(1, keepdim=True).expand_as(means)
        logs = joint[:, :, None, None]
        told = expand((spread / straight_time(level) / FIRST_SPREAD).log(), x).expand(-1, 1, 1, 1)
        return torch.cat([means.flatten(1, 2), logs, told], 1) + self.zero


def oracle_teacher(path=FLOW) -> Teacher:
    teacher = exact_teacher(path)
    mixture = Mixture.example(teacher.path, shape=(3, 1, 1))
    teacher.network.oracle = Mixture(teacher.path, mixture.means, torch.full_like(mixture.stds, SPREAD), mixture.weights)
    teacher.network.config.num_classes = 0
    return teacher


def exact_student(teacher: Teacher, wrong: bool = False, **config) -> PiFlowObjective:
    network = ExactPolicy(teacher.network.oracle, teacher.network.level, wrong)
    settings = {"start": "network", "steps": 2, "components": 5, "substeps": 16, "dropout": 0.0, **config}
    return PiFlowObjective(PiFlowConfig(**settings), network, None, teacher)


@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "vp"])
def test_the_policy_of_the_exact_posterior_is_the_exact_denoiser_everywhere(path):
    """arXiv 2504.05304, section 3.3: the posterior at one point gives that at any later one. Not that of the point itself."""
    objective = exact_student(oracle_teacher(path))
    oracle, path = objective.teacher.network.oracle, objective.path
    x = torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    start = get_grid("uniform", path, 4)[1]
    said = objective.predict(objective.roles["student"].network, x, path(torch.full((6,), start.t).double()), Condition())
    torch.testing.assert_close(said.x0, oracle(x, start, Condition(), Context()).x0, rtol=1e-9, atol=1e-9)
    z = x / (start.alpha + start.sigma) + 0.3 * torch.randn(6, 3, 1, 1, generator=torch.Generator().manual_seed(1)).double()
    for level in get_grid("uniform", path, 8)[3:-1]:
        there = oracle((level.alpha + level.sigma) * z, level, Condition(), Context()).x0
        torch.testing.assert_close(said.clean(z, straight_time(level)), there, rtol=1e-7, atol=1e-7)
        assert (said.x0 - there).abs().max() > 1e-2


@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "vp"])
@pytest.mark.parametrize("how", [{}, {"mixing_steps": 2, "window": 1}, {"states": 1}], ids=["own", "after mixing", "one"])
def test_a_student_that_follows_the_exact_solution_has_no_loss(path, how):
    teacher, batch = oracle_teacher(path), batch_of(8, shape=(3, 1, 1))
    right, wrong = (loss_of(exact_student(teacher, wrong, **how), batch, step=2).item() for wrong in (False, True))
    assert right < 1e-14 and wrong > 1e-3


@pytest.mark.parametrize("teachers", [0.0, 0.25, 1.0])
def test_the_teachers_ways_fall_from_all_of_a_step_to_nothing(teachers):
    """The policy's lead to random places of what they have: the last of three is at 3 / 4 of it, within 5 standard errors."""
    objective, room = exact_student(oracle_teacher(), states=3), torch.full((2000,), 0.4).double()
    own, led = objective.ways(Draws(0, torch.arange(2000)), room, teachers)
    torch.testing.assert_close(led.sum(1), teachers * room)
    assert min(own.min(), led.min()) >= 0
    last = own.sum(1) / 0.4
    assert last.max() <= 1 - teachers + 1e-9
    assert (last.mean() - 0.75 * (1 - teachers)).abs() <= 5 * (1 - teachers) * (3 / 80 / 2000) ** 0.5


def test_the_mean_over_a_window_is_that_of_the_substeps():
    """arXiv 2510.14974: (z_a - z_b) / (tau_a - tau_b), by hand; and a row with a window of less than two has its own."""
    objective = exact_student(oracle_teacher(), shift=2.0)
    policy, network = objective.policy, objective.roles["student"].network
    x = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    time = torch.tensor([0.8, 0.8]).double()
    level = objective.at(time)
    clean = objective.predict(network, x, level, Condition()).clean
    mean = objective.velocity(clean, x, time, torch.tensor([4 / 16, 1 / 16]).double())
    tau = policy.tau(0.8)
    assert tau == pytest.approx(1.6 / 1.8)
    end = follow(
        clean.__class__(clean.components, clean.log_weights, clean.spread, clean.z, tau), policy, x, tau, policy.tau(0.55), 4
    )
    torch.testing.assert_close(mean[0], ((x - end) / (tau - policy.tau(0.55)))[0])
    torch.testing.assert_close(mean[1], ((x - clean(x, tau)) / tau)[1])


def test_one_step_of_the_sampler_is_many_of_the_exact_denoiser():
    """One evaluation of the student, 64 of the denoiser: the same end to the last digits."""
    objective = exact_student(oracle_teacher(), steps=1)
    oracle, path = objective.teacher.network.oracle, objective.path
    noise = torch.randn(5, 3, 1, 1, generator=torch.Generator().manual_seed(3)).double()
    context = Context()
    denoiser = objective.teacher.denoiser(objective.roles["student"].network)
    one = sample(denoiser, get_solver("policy", substeps=64), noise, get_grid("uniform", path, 1), context=context)
    many = sample(oracle, get_solver("ddim"), noise, get_grid("uniform", path, 64))
    assert context.evaluations == 5
    torch.testing.assert_close(one, many, rtol=1e-6, atol=1e-6)
    single = sample(denoiser, get_solver("ddim"), noise, get_grid("uniform", path, 1))
    assert (single - many).abs().max() > 0.1


def test_a_grid_is_linear_between_its_times_and_ends_where_its_stretch_does():
    policy = Policy("grid", 3, segment=0.5)
    components = torch.arange(3.0).reshape(1, 3, 1, 1, 1)  # at times 0.3, 0.55 and 0.8
    clean, z = GridPolicy(policy, components, 0.8), torch.zeros(1, 1, 1, 1)
    for time, value in ((0.8, 2.0), (0.675, 1.5), (0.55, 1.0), (0.3, 0.0), (0.1, 0.0), (0.9, 2.0)):
        assert clean(z, time).item() == pytest.approx(value)
        rows = GridPolicy(policy, components, torch.tensor([0.8]))
        assert rows(z, torch.tensor([time])).item() == pytest.approx(value, abs=1e-6)
    short = GridPolicy(policy, components, 0.25)  # the stretch ends at clean data
    assert short(z, 0.125).item() == pytest.approx(1.0)
    # x0 = 1 all along: the straight line to it, whatever the steps
    line = GridPolicy(policy, torch.ones(1, 3, 1, 1, 1), 0.8)
    for steps in (1, 7):
        assert follow(line, policy, z, 0.8, 0.2, steps).item() == pytest.approx(0.75)
    each = follow_rows(line, policy, z, torch.tensor([0.8]), torch.tensor([0.2]), 10)
    assert each.item() == pytest.approx(0.75)


def test_dropped_components_count_no_more_and_some_stay():
    objective = exact_student(oracle_teacher())
    x = torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    clean = objective.predict(objective.roles["student"].network, x, objective.at(torch.tensor([0.7, 0.7])), Condition()).clean
    dropped = torch.tensor([[True, True, False, True, True], [True] * 5])
    left = clean.without(dropped)
    torch.testing.assert_close(left(clean.z, clean.start)[0], clean.components[0, 2])  # alone, at the start: its mean
    assert torch.equal(left.log_weights[1], clean.log_weights[1])


@pytest.mark.parametrize("kind", ["grid", "mixture"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_widened_network_says_what_it_said(name, kind):
    """In every component, whatever the order of the numbers of a patch."""
    network = randomise(build(NETWORKS[name]), 1).eval()
    wide, channels = as_policy(network, PolicyHeadConfig(kind=kind, count=3)).eval(), network.config.channels
    side = network.config.size
    inputs = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.7])
    plain, said = network(*inputs, Condition(), Context())[:, :channels], wide(*inputs, Condition(), Context())
    assert said.shape[1] == policy_of(wide).outputs(channels)
    torch.testing.assert_close(said[:, : 3 * channels], plain.repeat(1, 3, 1, 1))
    assert not said[:, 3 * channels :].any()


def test_the_components_of_a_mixture_begin_apart_by_one_number_each():
    network = randomise(build({"type": "dit", **SIZES}), 1)
    x, time = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((1,), 0.5)
    apart = as_policy(network, PolicyHeadConfig(kind="mixture", count=3), apart=0.1)(x, time, Condition())
    shift = apart[:, :6] - network(x, time, Condition()).repeat(1, 3, 1, 1)
    assert shift.std((2, 3)).max() < 1e-6 and len(set(shift[0, :, 0, 0].tolist())) == 6


def test_a_lora_student_trains_its_last_layer_and_comes_out_whole(tmp_path):
    config = PiFlowConfig(lora={"rank": 2}, merge=True, steps=2, components=2, substeps=8, policy="grid")
    objective = PiFlowObjective(config, nn.Identity(), None, tiny_teacher())
    network = objective.roles["student"].network
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"down", "up", "layers"}
    loss_of(objective, latents()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in network.named_parameters() if not n.startswith("down"))
    with torch.no_grad():
        network.layers["head/bias"] += 1
        network.up["blocks/0/attn/qkv"] += 0.1
    from gen import Generator

    objective.export({"student": network}, tmp_path / "export")
    generator = Generator.from_pretrained(tmp_path / "export")
    x, time, told = torch.ones(1, 2, 4, 4), torch.full((1,), 0.5), Condition(label=torch.tensor([1]))
    torch.testing.assert_close(generator.denoiser.network(x, time, told, Context()), network(x, time, told))
    assert generator.config.defaults.sampler == "policy"


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="set merge to true"):
        PiFlowConfig(lora={"rank": 2})
    with pytest.raises(ValueError, match="leave target_ema out"):
        PiFlowConfig(target_ema=0.9)
    with pytest.raises(ValueError, match="cannot be made to predict a policy"):
        PiFlowObjective(PiFlowConfig(), nn.Identity(), None, oracle_teacher())
    with pytest.raises(ValueError, match="leave the network section out"):
        PiFlowObjective(PiFlowConfig(), build({"type": "dit", **SIZES}), None, tiny_teacher())
    with pytest.raises(ValueError, match="set learned_variance to false"):
        build({"type": "dit", **SIZES, "learned_variance": True, "policy": {"count": 2}})
    with pytest.raises(ValueError, match="choose one of grid, mixture"):
        Policy("dx")
    assert math.isclose(Policy(shift=3.0).tau(Policy(shift=3.0).time(0.3)), 0.3)
