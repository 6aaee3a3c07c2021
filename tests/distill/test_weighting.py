"""Weightings of the diffusion loss against their published formulas, and levels against the density that they claim."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from distill.losses.levels import TimeConfig, draw_levels, log_density
from distill.losses.loss_weighting import Weighting
from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective
from distill.types import Draws
from samplers.analytic import Gaussian
from samplers.denoiser import Condition, Context
from samplers.path import NoiseLevel, RectifiedFlow, VarianceExploding, VariancePreserving, VariancePreservingSDE
from samplers.prediction import Prediction, prediction_row
from tests.distill.test_diffusion import FLOW, PHASE, VP, Fixed, batch_of

VE = {"type": "variance_exploding"}
WEIGHTINGS = [
    {"type": "min_snr"},
    {"type": "soft_min_snr"},
    {"type": "p2", "gamma": 0.5},
    {"type": "truncated_snr"},
    {"type": "edm"},
    {"type": "sigmoid", "bias": -1.0},
]


def levels_between(path, low=0.05, high=20.0, count=50) -> NoiseLevel:
    return path.at_logsnr(torch.linspace(-math.log(high), -math.log(low), count, dtype=torch.float64))


def factor(level: NoiseLevel, predicted: str, path=VP, **weighting) -> torch.Tensor:
    """What the objective multiplies the squared error of the raw prediction by."""
    config = DiffusionConfig(path=path, prediction=predicted, weighting=weighting, min_sigma=1e-9)
    return DiffusionObjective(config, nn.Identity()).weight(level) ** 2


def test_published_forms():
    """Each weighting on the reading that its paper writes it for."""
    level = levels_between(VariancePreserving.scaled_linear())
    snr = (level.alpha / level.sigma) ** 2
    close = torch.testing.assert_close
    close(factor(level, "eps", type="min_snr", gamma=5.0), snr.clamp(max=5) / snr)
    close(factor(level, "v", type="min_snr", gamma=5.0), snr.clamp(max=5) / (snr + 1))
    close(factor(level, "x0", type="min_snr", gamma=5.0), snr.clamp(max=5))
    close(factor(level, "eps", type="p2", gamma=1.0, k=1.0), 1 / (1 + snr))
    close(factor(level, "eps", type="p2", gamma=0.0), torch.ones_like(snr))
    close(factor(level, "x0", type="soft_min_snr", gamma=4.0), 1 / (1 / snr + 1 / 4))
    close(factor(level, "x0", type="truncated_snr"), torch.maximum(snr, torch.ones_like(snr)))
    # the larger of the errors of x0 and eps, which differ by the factor SNR
    close(factor(level, "eps", type="truncated_snr"), torch.maximum(1 / snr, torch.ones_like(snr)))


def test_edm_weights_its_own_network_output_evenly():
    """lambda(sigma) c_out(sigma)^2 = 1: on every level, the cleanest too."""
    path = VarianceExploding()
    level = levels_between(path, 0.0005, 80)
    config = DiffusionConfig(path=VE, prediction="edm", weighting={"type": "edm"}, min_sigma=0.05)
    weight = DiffusionObjective(config, nn.Identity()).weight(level)
    torch.testing.assert_close(weight, torch.ones(50, dtype=torch.float64))
    # and on D it is equation 2's lambda
    expected = (level.sigma**2 + 0.25) / (level.sigma * 0.5) ** 2
    torch.testing.assert_close(factor(level, "x0", VE, type="edm"), expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda w: w["type"])
@pytest.mark.parametrize("path", [VP, FLOW, VE], ids=["vp", "flow", "ve"])
def test_the_gradient_is_the_same_whatever_the_network_predicts(path, weighting):
    """Two networks that say the same x0 in two languages get the same loss, and the same gradient on that x0."""
    batch = batch_of(6)
    said = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(5)).double().requires_grad_()
    losses, grads = [], []
    for kind in ("x0", "eps", "v", "flow", "edm"):
        config = DiffusionConfig(
            path=path, prediction=kind, weighting=weighting, min_sigma=1e-9, time={"type": "log_normal", "std": 0.6}
        )
        objective = DiffusionObjective(config, Fixed(torch.zeros(1)))
        objective.clean = lambda batch: batch.latents  # in float64
        exact = objective.levels(Draws(3, batch.index, "denoiser"), torch.device("cpu"))
        exact = objective.path.at_logsnr(exact.logsnr.double())
        objective.levels = lambda draws, device, exact=exact: exact
        eps = Draws(3, batch.index, "denoiser").normal("eps", (2, 4, 4))
        x = exact.mix(batch.latents, eps)
        raw = Prediction(x, exact, said, (1.0, 0.0)).read(prediction_row(kind, exact, objective.path))
        prediction = Prediction(x, exact, raw, prediction_row(kind, exact, objective.path))
        objective.denoiser = lambda network, prediction=prediction: lambda *arguments: prediction
        loss = objective.loss(PHASE, {"denoiser": None}, batch, Draws(3, batch.index, "denoiser"), 0)[0]
        losses.append(loss.item())
        grads.append(torch.autograd.grad(loss, said)[0])
    assert losses == pytest.approx([losses[0]] * 5, rel=1e-5)  # the error itself is taken in float32
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0], rtol=1e-4, atol=1e-6 * grads[0].abs().max().item())


@pytest.mark.parametrize(
    "time",
    [
        {"type": "log_normal", "mean": 0.3, "std": 1.5},
        {"type": "logit_normal", "mean": -0.4, "std": 1.2},
        {"type": "uniform"},
        {"type": "uniform_logsnr", "low": 1e-3, "high": 1e3},
        {"type": "karras", "low": 1e-3, "high": 1e3},
    ],
    ids=lambda t: t["type"],
)
@pytest.mark.parametrize("path", [RectifiedFlow(), VariancePreservingSDE()], ids=["flow", "vp"])
def test_sigmoid_weighting_is_an_integral_over_log_snr(path, time):
    """The expected loss of the exact denoiser is half the integral of sigmoid(bias - lambda) |eps error|^2, however the levels
    are drawn."""
    std, bias = 0.7, 1.0

    def error_of_eps(logsnr):  # the posterior variance of eps for x0 ~ N(0, std^2)
        snr = torch.exp(2 * logsnr)
        return snr * std**2 / (snr * std**2 + 1)

    logsnr = torch.linspace(-7, 12, 20001, dtype=torch.float64)
    # half log-SNR twice over: d lambda / 2 = d logsnr
    integral = torch.trapezoid(torch.sigmoid(bias - 2 * logsnr) * error_of_eps(logsnr), logsnr).item()
    weighting = TypeAdapter(Weighting).validate_python({"type": "sigmoid", "bias": bias})
    config = TimeConfig(**time)
    level = draw_levels(config, path, Draws(0, torch.arange(20000)))
    level = path.at_logsnr(level.logsnr.double())
    snr = (level.alpha / level.sigma) ** 2
    values = weighting.on_x0(snr, lambda: log_density(config, path, level)) / snr * error_of_eps(level.logsnr)
    assert values.mean().item() == pytest.approx(integral, abs=4.5 * values.std().item() / 20000**0.5)
    assert values.std().item() / 20000**0.5 < 0.05 * integral  # the check is tight


def test_the_posterior_variance_used_above_is_the_oracles():
    path = RectifiedFlow()
    oracle = Gaussian(path, torch.zeros(3, dtype=torch.float64), torch.full((3,), 0.7, dtype=torch.float64))
    g = torch.Generator().manual_seed(0)
    level = path(0.4)
    x0, eps = 0.7 * torch.randn(50000, 3, generator=g).double(), torch.randn(50000, 3, generator=g).double()
    said = oracle(level.mix(x0, eps), level, Condition(), Context())
    snr = (level.alpha / level.sigma) ** 2
    assert (said.eps - eps).square().mean().item() == pytest.approx(snr * 0.49 / (snr * 0.49 + 1), rel=0.02)


def test_edm_levels_are_log_normal():
    level = draw_levels(TimeConfig(type="log_normal", mean=-1.2, std=1.2), VarianceExploding(), Draws(0, torch.arange(6000)))
    logs = level.sigma.log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=4 * 1.2 / 6000**0.5)
    assert logs.std().item() == pytest.approx(1.2, abs=0.05)
    assert torch.equal(level.t, level.sigma)


def test_no_level_is_noisier_than_the_path():
    path = VariancePreserving.scaled_linear()
    level = draw_levels(TimeConfig(type="log_normal", mean=4.0), path, Draws(0, torch.arange(500)))
    assert level.t.max() <= 1 and level.sigma.max() < 1
    assert (level.t == 1).sum() > 100


def test_a_weighting_and_a_loss_are_not_combined():
    with pytest.raises(ValidationError, match="give one of them"):
        DiffusionConfig(loss="v", weighting={"type": "edm"})
    with pytest.raises(ValidationError, match="min_snr"):
        DiffusionConfig(weighting={"type": "minsnr"})
