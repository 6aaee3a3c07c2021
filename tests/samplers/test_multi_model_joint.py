"""A picture and something of it denoised together: the exact joint distribution and conditionals of a Gaussian pair."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow, get_solver, sample
from samplers.guidance import ClassifierFree
from samplers.multi_model.joint import JointStreams
from samplers.path import NoiseLevel, expand
from samplers.prediction import Prediction
from tests.samplers.toy_models import far, rand

FLOW = RectifiedFlow()
MEAN = torch.tensor([0.4, -0.7], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.3, 0.8], [0.8, 0.9]], dtype=torch.float64)
COUNT, LAST = 4, 0.4  # rows of each stream; the clock that runs end at
# of every row: the noise of x, that of y, and how far the given value is from its mean, in its standard deviations
BASIS = torch.eye(4, dtype=torch.float64)[:, 1:]


@dataclass(frozen=True)
class PairDenoiser:
    """E[x0, y0 | x, y] of a Gaussian pair, at a level for each row: the linear posterior, written out."""

    path = FLOW

    def __call__(self, x, level, condition, context) -> Prediction:
        context.count(len(x))
        alpha, sigma = (torch.as_tensor(v, dtype=x.dtype).expand(len(x)).view(-1, 2, COUNT) for v in (level.alpha, level.sigma))
        seen = x.view(-1, 2, COUNT)
        told = 0.0 if condition.label is None else (condition.label >= 0).to(x).view(-1, 2, COUNT)
        (a, b), (v, w) = alpha.unbind(1), (sigma**2).unbind(1)
        (xx, xy), (_, yy) = COVARIANCE.tolist()
        first, second = seen[:, 0] - a * MEAN[0], seen[:, 1] - b * MEAN[1]
        p, q, r = a * a * xx + v, a * b * xy, b * b * yy + w  # of what is seen: its covariance
        u, z = (r * first - q * second) / (p * r - q * q), (p * second - q * first) / (p * r - q * q)
        x0 = torch.stack([MEAN[0] + a * xx * u + b * xy * z, MEAN[1] + a * xy * u + b * yy * z], 1)
        return Prediction(x, level, (x0 + told).reshape(x.shape), (1.0, 0.0))


def affine(held: dict[int, NoiseLevel], given: int = 1, steps: int = 100):
    """(mean (2,), covariance (2, 2)) of x and y at the clock LAST, where what is given is random too."""
    clean = torch.zeros(2, COUNT, dtype=torch.float64)
    clean[given] = MEAN[given] + COVARIANCE[given, given].sqrt() * BASIS[:, 2]
    noise = BASIS[:, :2].T.contiguous()
    rows = [value.reshape(2 * COUNT, 1, 1, 1) for value in (clean, noise)]
    streams = JointStreams(PairDenoiser(), COUNT, *rows, held)
    levels = [FLOW(t) for t in torch.linspace(1, LAST, steps + 1, dtype=torch.float64).tolist()]
    made = sample(streams, get_solver("flow_rk4"), rows[1].clone(), levels, Condition()).view(2, COUNT)
    columns = made[:, 1:] - made[:, :1]
    return made[:, 0], columns @ columns.T


def marginal(mean: torch.Tensor, covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of clean moments, those at LAST."""
    return (1 - LAST) * mean, (1 - LAST) ** 2 * covariance + LAST**2 * torch.eye(len(mean), dtype=torch.float64)


def test_both_are_drawn_from_the_joint_distribution():
    for found, exact in zip(affine({}), marginal(MEAN, COVARIANCE), strict=True):
        assert far(found, exact) < 1e-10


@pytest.mark.parametrize("given", [0, 1])
def test_one_is_drawn_of_the_other(given):
    """Given clean data, the other's moments are the conditional's: the value's share and the variance that is left."""
    drawn, clean = 1 - given, {given: FLOW(0.0)}
    mean, covariance = affine(clean, given)
    slope = COVARIANCE[0, 1] / COVARIANCE[given, given]
    left = COVARIANCE[drawn, drawn] - slope * COVARIANCE[0, 1]
    # over all given values, which are at their own mean in the row of the mean
    expected = (1 - LAST) ** 2 * (left + slope**2 * COVARIANCE[given, given]) + LAST**2
    assert abs(mean[drawn] - (1 - LAST) * MEAN[drawn]) < 1e-10
    assert abs(covariance[drawn, drawn] - expected) < 1e-10
    crossed = (1 - LAST) ** 2 * slope * COVARIANCE[given, given]
    assert abs(covariance[0, 1] - crossed) < 1e-10


@pytest.mark.parametrize("share", [0.55, 0.7])
def test_a_coarse_wish_keeps_the_joint_distribution(share):
    """What is given waits noised, and both go on from there: over all that may be given, the pair is exact."""
    for found, exact in zip(affine({1: FLOW(share)}), marginal(MEAN, COVARIANCE), strict=True):
        assert far(found, exact) < 1e-10


def test_what_is_held_is_said_and_the_rest_is_the_posterior():
    """At a single evaluation: rows that wait are seen at their own level, whatever x holds there, and guidance leaves them."""
    x, clean, noise = (rand(2 * COUNT, 1, 1, 1, seed=seed) for seed in range(3))
    waits, level = FLOW(0.2), FLOW(0.6)
    streams = JointStreams(PairDenoiser(), COUNT, clean, noise, {0: waits})
    label = Condition(label=torch.zeros(2 * COUNT, dtype=torch.long))
    guided = ClassifierFree(streams, 3.0)(x, level, label, Context())
    seen = torch.cat([waits.mix(clean, noise)[:COUNT], x[COUNT:]])
    alpha = torch.tensor([waits.alpha, level.alpha], dtype=x.dtype).repeat_interleave(COUNT)
    exact = PairDenoiser()(seen, NoiseLevel(1 - alpha, alpha, 1 - alpha), Condition(), Context()).x0
    assert torch.equal(guided.x0[:COUNT], clean[:COUNT])
    assert far(guided.x0[COUNT:], exact[COUNT:] + 3.0) < 1e-12
    assert streams(x, FLOW(0.1), Condition(), Context()).row == (1.0, 0.0)  # below its level nothing waits
    assert far(streams(x, FLOW(0.1), Condition(), Context()).x0, PairDenoiser()(x, FLOW(0.1), Condition(), Context()).x0) == 0


def test_guidance_of_the_join():
    """raw = separate + s (joint - separate), at the rows' own levels."""

    @dataclass(frozen=True)
    class Separate(PairDenoiser):
        def __call__(self, x, level, condition, context) -> Prediction:
            return Prediction(x, level, 0.5 * x / expand(level.alpha, x), (1.0, 0.0))

    x, clean = rand(2 * COUNT, 1, 1, 1), rand(2 * COUNT, 1, 1, 1, seed=1)
    level = FLOW(0.5)
    said = JointStreams(PairDenoiser(), COUNT, clean, x, {}, Separate(), 2.5)(x, level, Condition(), Context()).x0
    joint, separate = (one(x, level, Condition(), Context()).x0 for one in (PairDenoiser(), Separate()))
    assert far(said, separate + 2.5 * (joint - separate)) < 1e-12
