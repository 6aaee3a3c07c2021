"""The oracles themselves: closed forms against automatic differentiation, sampling and numerical integration."""

import math

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow, VarianceExploding, VariancePreserving
from samplers.analytic import Gaussian, LinearPosterior, Mixture, reference_ode

PATHS = [VarianceExploding(), VariancePreserving.linear(), RectifiedFlow()]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("label", [None, -1, 1])
def test_mixture_denoiser_is_the_score(path, label):
    """Tweedie: eps = -sigma grad log p, x0 = (x + sigma^2 score) / alpha, with the score by automatic differentiation."""
    mixture = Mixture.example(path, labelled=True)
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    condition = Condition() if label is None else Condition(label=torch.full((7,), label))
    for logsnr in (-3.0, 0.0, 2.0):
        level = path.at_logsnr(logsnr)
        p = mixture(x, level, condition, Context())
        score = mixture.score(x, level, condition)
        assert torch.allclose(p.eps, -level.sigma * score, atol=1e-11)
        assert torch.allclose(p.x0, (x + level.sigma**2 * score) / level.alpha, atol=1e-11)


def test_log_density_integrates_to_one():
    mixture = Mixture.example(RectifiedFlow(), labelled=True)
    axis = torch.linspace(-7, 7, 281, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    for label in (-1, 0, 2):
        density = mixture.log_density(points, mixture.path(0.3), Condition(label=torch.full((len(points),), label))).exp()
        assert math.isclose(density.sum().item() * (axis[1] - axis[0]).item() ** 2, 1, rel_tol=1e-6)


def test_labels_pick_components():
    mixture = Mixture.example(RectifiedFlow(), labelled=True)
    x = mixture.means.clone()  # at every component's mean
    for label in range(3):
        x0 = mixture(x, mixture.path(1.0), Condition(label=torch.full((5,), label)), Context()).x0
        mine = mixture.labels == label
        expected = (mixture.weights[mine, None] * mixture.means[mine]).sum(0) / mixture.weights[mine].sum()
        assert torch.allclose(x0, expected.expand(5, 2))


def test_samples_have_the_mixture_moments():
    mixture = Mixture.example(VarianceExploding())
    level = mixture.path(0.5)
    x = mixture.sample(40000, level, torch.Generator().manual_seed(0))
    mean = (mixture.weights[:, None] * mixture.means).sum(0)
    second = (mixture.weights[:, None] * (mixture.means**2 + mixture.stds**2)).sum(0) + level.sigma**2
    standard_error = (second - mean**2).sqrt() / 200
    assert ((x.mean(0) - mean).abs() < 4 * standard_error).all()
    assert torch.allclose((x**2).mean(0), second, rtol=0.05)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_reference_matches_the_gaussian_solution(path):
    gaussian = Gaussian(path, torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 1.3]).double())
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s, t = path.at_logsnr(-2.0), path.at_logsnr(2.0)
    numerical = reference_ode(gaussian, x, s, t, 200)
    assert torch.allclose(numerical, gaussian.ode(x, s, t), atol=1e-8)


@pytest.mark.parametrize("path", [RectifiedFlow(), VariancePreserving.linear(), VarianceExploding()], ids=["RF", "VP", "VE"])
def test_the_linear_posterior_is_that_of_bayes_rule(path):
    g = torch.Generator().manual_seed(3)
    prior = Gaussian(path, torch.randn(2, 3, generator=g, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64), "eps")
    matrix, y, noise = (
        torch.randn(4, 6, generator=g, dtype=torch.float64),
        torch.randn(4, generator=g, dtype=torch.float64),
        0.3,
    )
    posterior = LinearPosterior(prior, matrix, y, noise)
    precision = torch.eye(6, dtype=torch.float64) / 0.8**2 + matrix.T @ matrix / noise**2
    covariance = precision.inverse()
    mean = covariance @ (prior.mean.flatten() / 0.8**2 + matrix.T @ y / noise**2)
    for ours, exact in zip(posterior.moments(), (mean, covariance), strict=True):
        assert (ours - exact).abs().max() < 1e-12
    x = torch.randn(5, 2, 3, generator=g, dtype=torch.float64)
    for level in (path.at_logsnr(-3.0), path.at_logsnr(2.0)):
        total = level.alpha**2 * covariance + level.sigma**2 * torch.eye(6, dtype=torch.float64)
        off = (x.flatten(1) - level.alpha * mean) @ total.inverse()
        said = posterior(x, level, Condition(), Context())
        assert (said.x0.flatten(1) - mean - level.alpha * off @ covariance).abs().max() < 1e-10
        assert (said.eps.flatten(1) - level.sigma * off).abs().max() < 1e-10
    assert posterior(x, path(0.0), Condition(), Context()).raw.isfinite().all()
