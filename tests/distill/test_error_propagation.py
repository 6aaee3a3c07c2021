"""Error propagation: ancestral steps, the distance of samples, and what a biased denoiser adds up to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill.losses.propagation import ancestral, cumulative_errors, mmd, roll
from distill.losses.solver_steps import LevelTable
from distill.objectives.error_propagation import ErrorPropagationConfig, ErrorPropagationObjective
from distill.propagation import main, measure_propagation
from distill.types import Draws, Phase
from gen.nn.registry import build
from samplers.analytic import Gaussian
from samplers.denoiser import Condition, Context
from samplers.path import RectifiedFlow, VariancePreserving, expand
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.distill.flow_maps import gaussian_teacher
from tests.distill.students import SIZES, Source, batch_of
from tests.gen.conftest import randomise

MEAN, STD = torch.tensor([0.7, -1.2]).double(), torch.tensor([0.4, 1.5]).double()
PHASE = Phase("denoiser", "denoiser")


def ladder_of(path, steps: int) -> LevelTable:
    return LevelTable.of(get_grid("uniform", path, steps))


@pytest.mark.parametrize("path", [RectifiedFlow(), VariancePreserving.linear()], ids=["flow", "vp"])
def test_a_chain_is_ddpms(path):
    """Of equal noise, as the sampler of one level for all goes."""
    oracle, steps = Gaussian(path, MEAN, STD), 6
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()
    noises = [torch.randn(5, 2, generator=torch.Generator().manual_seed(k)).double() for k in range(1, steps + 1)]
    levels, ladder, given = get_grid("uniform", path, steps), ladder_of(path, steps), iter(noises)
    expected = sample(oracle, get_solver("ddpm"), x, levels, noise=lambda s, t: next(given))
    start = torch.full((5,), ladder.steps)
    found = roll(lambda x, level: oracle(x, level, Condition(), Context()).x0, x, start, steps, ladder, lambda k: noises[k])
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_a_sample_that_is_clean_rests():
    ladder, x = ladder_of(RectifiedFlow(), 4), torch.ones(3, 2).double()
    asked: list[Tensor] = []

    def clean(x, level):
        asked.append(level.t)
        return 0 * x

    out = roll(clean, x, torch.tensor([0, 1, 3]), 2, ladder, torch.zeros_like(x).mul)
    assert torch.equal(out[0], x[0]) and out[1].abs().max() == 0 and 0 < out[2].abs().max() < 1
    assert len(asked) == 2 and all((t > 0).all() for t in asked)


def test_the_posterior_is_that_of_two_gaussians():
    """Given x0 and x_s, by multiplying q(x_t | x0) with q(x_s | x_t)."""
    path = VariancePreserving.linear()
    s, t = path(torch.tensor([0.8]).double()), path(torch.tensor([0.5]).double())
    x0, x_s = torch.tensor([[0.3]]).double(), torch.tensor([[-1.1]]).double()
    ratio = s.alpha / t.alpha
    step = s.sigma**2 - ratio**2 * t.sigma**2
    precision = 1 / t.sigma**2 + ratio**2 / step
    mean = (t.alpha * x0 / t.sigma**2 + ratio * x_s / step) / precision
    found = [ancestral(x0, x_s, s, t, torch.full((1, 1), z).double()) for z in (0.0, 1.0)]
    torch.testing.assert_close(found[0], mean)
    torch.testing.assert_close(found[1] - found[0], precision.rsqrt()[:, None])


def test_the_discrepancy_is_its_sum_over_pairs():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 3, generator=g).double(), torch.randn(5, 3, generator=g).double() + 0.5
    both = [*a, *b]
    width = sum(float((u - v).square().sum()) for u in both for v in both) / 72

    def kernel(u, v):
        return sum(float((-(u - v).square().sum() / (scale * width)).exp()) for scale in (0.25, 0.5, 1, 2, 4)) / 5

    def mean(u, v, own=False):
        pairs = [kernel(x, y) for i, x in enumerate(u) for j, y in enumerate(v) if not (own and i == j)]
        return sum(pairs) / len(pairs)

    assert mmd(a, b).item() == pytest.approx(mean(a, a) + mean(b, b) - 2 * mean(a, b))
    assert mmd(a, b, unbiased=True).item() == pytest.approx(mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b))
    assert mmd(a, a.flip(0)).abs() < 1e-12 < mmd(a, b)


def test_an_exact_denoiser_adds_up_to_nothing_and_a_biased_one_to_more_and_more():
    path = RectifiedFlow()
    oracle, g = Gaussian(path, MEAN, STD), torch.Generator().manual_seed(0)
    ladder, x0 = ladder_of(path, 24), MEAN + STD * torch.randn(800, 2, generator=g).double()

    def errors(bias: float) -> list[float]:
        def clean(x, level):
            return oracle(x, level, Condition(), Context()).x0 + bias

        return cumulative_errors(clean, x0, [18, 12, 6, 0], ladder, torch.Generator().manual_seed(1))

    exact, biased = errors(0.0), errors(0.3)
    assert max(map(abs, exact)) < 0.01
    assert biased == sorted(biased) and biased[-1] > 0.05 and errors(0.6)[-1] > biased[-1]


def propagation(network: nn.Module | None = None, **config) -> ErrorPropagationObjective:
    torch.manual_seed(0)
    network = network or randomise(build({"type": "dit", **SIZES}), 3)
    settings = {"levels": 12, "reach": 5, "drop_label": 0.0, "clock": "t", **config}
    return ErrorPropagationObjective(ErrorPropagationConfig(**settings), network.requires_grad_(True), Source())


def test_the_loss_is_diffusions_and_a_share_of_the_discrepancy():
    batch = Source().batch(range(8))
    draws = Draws(0, batch.index, "denoiser")
    plain, with_it = (propagation(propagation_weight=weight) for weight in (0.0, 0.7))
    losses = [one.loss(PHASE, {"denoiser": one.roles["denoiser"].network}, batch, draws, 3)[0] for one in (plain, with_it)]
    apart = with_it.propagated(with_it.roles["denoiser"].network, batch, draws, 3)
    torch.testing.assert_close(losses[1], losses[0] + 0.7 * apart)
    assert apart > 0 and torch.autograd.grad(apart, with_it.roles["denoiser"].network.head.weight)[0].abs().max() > 0


def test_gradients_flow_through_at_most_reach_steps():
    objective, batch = propagation(reach=3), Source().batch(range(4))
    calls, counts = [], set()
    network = objective.roles["denoiser"].network

    def counted(*arguments):
        calls.append(True)
        return network(*arguments)

    for step in range(20):
        calls.clear()
        objective.propagated(counted, batch, Draws(0, batch.index, "denoiser"), step)
        counts.add(len(calls))
        again = Draws(0, batch.index + 50, "denoiser")  # another process's samples: as many calls
        before = len(calls)
        objective.propagated(counted, batch, again, step)
        assert len(calls) == 2 * before
    assert counts == {1, 2, 3}


class Shifted(nn.Module):
    """The exact velocity of a Gaussian's flow, whose clean image is off by a number that trains."""

    def __init__(self, oracle: Gaussian, off: float):
        super().__init__()
        self.oracle, self.off = oracle, nn.Parameter(torch.tensor(off).double())

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        level = self.oracle.path(time.double())
        x0 = self.oracle(x, level, Condition(), Context()).x0 + self.off
        return (x - x0) / expand(level.t, x)


def test_the_regulariser_draws_a_biased_denoiser_back():
    """Its gradient has the sign of the bias; of an unbiased one it is small beside."""
    mean, std = torch.zeros(2, 2, 2).double(), torch.ones(2, 2, 2).double()
    batch = batch_of(400)  # unit normals

    def gradient(off: float) -> float:
        network = Shifted(Gaussian(RectifiedFlow(), mean, std, "x0"), off)
        apart = propagation(network, reach=1).propagated(network, batch, Draws(0, batch.index, "denoiser"), 0)
        return torch.autograd.grad(apart, network.off)[0].item()

    low, none, high = (gradient(off) for off in (-0.8, 0.0, 0.8))
    assert low < 0 < high and abs(none) < 0.4 * min(-low, high)


def test_both_halves_are_at_the_levels_that_the_chain_came_to():
    """Of data far from 0, whose levels tell themselves apart, an exact denoiser's halves are one distribution."""
    mean, std, batch = torch.full((2, 2, 2), 3.0).double(), torch.ones(2, 2, 2).double(), batch_of(400)
    batch.latents = batch.latents + 3
    network = Shifted(Gaussian(RectifiedFlow(), mean, std, "x0"), 0.0)
    apart = [propagation(network).propagated(network, batch, Draws(0, batch.index, "denoiser"), step) for step in range(3)]
    assert max(apart) < 0.02
    with torch.no_grad():
        network.off += 1
    assert min(propagation(network).propagated(network, batch, Draws(0, batch.index, "denoiser"), s) for s in range(3)) > 0.04


def test_a_run_logs_cumulative_errors():
    objective = propagation(measured=8)
    found = objective.measure({"denoiser": objective.roles["denoiser"].network})
    assert list(found) == [f"cumulative_error/{n}" for n in (9, 6, 3, 0)]
    assert propagation(measured=0).measure({"denoiser": objective.roles["denoiser"].network}) == {}


def test_a_finished_model_is_measured():
    """An exact one adds up to nothing at any of ten levels, and one of another mean to more the further it goes."""
    teacher = gaussian_teacher()
    oracle = teacher.network.oracle

    class Drawn:
        def batch(self, counters):
            batch = batch_of(len(counters))
            batch.latents = oracle.mean + oracle.std * batch.latents
            return batch

    exact = measure_propagation(teacher, Drawn(), 20, 400)
    assert list(exact) == pytest.approx([k / 10 for k in range(9, -1, -1)]) and max(map(abs, exact.values())) < 0.02
    teacher.network.zero.requires_grad_(False).fill_(0.5)
    biased = measure_propagation(teacher, Drawn(), 20, 400)
    assert biased[0.0] > 0.05 and biased[0.0] > list(biased.values())[4] > list(exact.values())[4]


def test_the_command_says_what_is_wrong(capsys, tmp_path):
    assert main(["default", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err
    assert main(["default", "x.yaml", "--count", "1"]) == 2
    assert "give at least 2 of each" in capsys.readouterr().err
