"""Steps with noise as normal distributions: against exact ones, on flows (arXiv 2505.05470) and on other paths."""

from __future__ import annotations

import pytest
import torch

from distill.losses import transitions
from distill.losses.transitions import divergence, drawn, log_prob
from samplers.path import NoiseLevel, RectifiedFlow, Trigonometric, VariancePreservingSDE

PATHS = (RectifiedFlow(), Trigonometric(), VariancePreservingSDE())


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def level(path, share: float, count: int = 1) -> NoiseLevel:
    return path(torch.full((count,), share * path.t_noise, dtype=torch.float64))


def test_log_probabilities_are_those_of_a_normal_distribution():
    ahead, mean, noise = (numbers(3, 2, 2, 2, seed=seed) for seed in range(3))
    deviation = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    normal = torch.distributions.Normal(mean, deviation.view(-1, 1, 1, 1).expand_as(mean))
    torch.testing.assert_close(log_prob(ahead, mean, deviation), normal.log_prob(ahead).flatten(1).mean(1), rtol=1e-12, atol=0)
    other = torch.distributions.Normal(ahead, normal.scale)
    exact = torch.distributions.kl_divergence(normal, other).flatten(1).mean(1)
    torch.testing.assert_close(divergence(mean, ahead, deviation), exact, rtol=1e-12, atol=0)
    torch.testing.assert_close((drawn(mean, deviation, noise) - mean) / normal.scale, noise)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_ddim_with_noise_keeps_the_marginal_and_at_eta_1_is_the_posterior(path):
    s, t = level(path, 0.7), level(path, 0.3)
    x0, eps = numbers(1, 2), numbers(1, 2, seed=1)
    x = s.alpha * x0 + s.sigma * eps
    for eta in (0.0, 0.5, 1.0):
        mean, deviation = transitions.ddim(x0, x, s, t, eta)
        coefficient = (mean - t.alpha * x0) / eps  # of the noise of x, which is unit normal given x0
        torch.testing.assert_close(coefficient**2 + deviation**2, (t.sigma**2).expand(1, 2), rtol=1e-12, atol=0)
    # x_s = r x_t + sqrt(sigma_s^2 - r^2 sigma_t^2) n with r = alpha_s / alpha_t: the product of two normal distributions
    ratio = s.alpha / t.alpha
    added = s.sigma**2 - ratio**2 * t.sigma**2
    variance = 1 / (1 / t.sigma**2 + ratio**2 / added)
    torch.testing.assert_close(deviation**2, variance, rtol=1e-12, atol=0)
    torch.testing.assert_close(mean, variance * (t.alpha * x0 / t.sigma**2 + ratio * x / added), rtol=1e-10, atol=0)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("noisier", [0.7, 1.0])
def test_noising_and_the_posterior_are_one_joint_distribution(path, noisier):
    """Both ways to write p(x_s, x_t | x0): their log-probabilities are the same at any point."""
    s, t = level(path, noisier), level(path, 0.3)
    x0, x_t, x_s = (numbers(1, 2, seed=seed) for seed in range(3))

    def log_p(x, mean, deviation):
        return torch.distributions.Normal(mean, deviation).log_prob(x)

    forwards = log_p(x_t, t.alpha * x0, t.sigma) + log_p(x_s, *transitions.noising(x_t, t, s))
    backwards = log_p(x_s, s.alpha * x0, s.sigma) + log_p(x_t, *transitions.ddim(x0, x_s, s, t, 1.0))
    torch.testing.assert_close(forwards, backwards, rtol=1e-9, atol=1e-9)


def test_a_step_of_the_flow_is_the_published_one():
    path = RectifiedFlow()
    s, t, x, velocity = level(path, 0.8), level(path, 0.6), numbers(1, 4), numbers(1, 4, seed=1)
    x0 = x - s.sigma * velocity
    mean, deviation = transitions.flow(x0, x, s, t, 0.7, 0.95)
    sigma, dt = 0.8, -0.2
    std = (sigma / (1 - sigma)) ** 0.5 * 0.7
    published = x * (1 + std**2 / (2 * sigma) * dt) + velocity * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
    torch.testing.assert_close(mean, published, rtol=1e-12, atol=1e-12)
    assert deviation.item() == pytest.approx(std * 0.2**0.5, rel=1e-12)
    noisiest = level(path, 1.0)
    _, held = transitions.flow(x0, x, noisiest, s, 0.7, 0.9)
    assert held.item() == pytest.approx((0.9 / 0.1) ** 0.5 * 0.7 * 0.2**0.5, rel=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("noise", [0.0, 0.7, 1.5])
def test_small_steps_of_the_flow_keep_the_marginals_of_a_gaussian(path, noise):
    """Of data N(m, d^2) with the exact denoiser: mean and variance after one step are off by the square of its length."""
    m, d = 0.7, 0.4
    errors = []
    for length in (0.02, 0.01):
        s, t = level(path, 0.6), level(path, 0.6 - length)
        total = s.alpha**2 * d**2 + s.sigma**2

        def step(x, s=s, t=t, total=total):
            x0 = m + s.alpha * d**2 / total * (x - s.alpha * m)
            return transitions.flow(x0, x, s, t, noise, 0.99)

        at_zero, deviation = step(torch.zeros(1, 1, dtype=torch.float64))
        slope = step(torch.ones(1, 1, dtype=torch.float64))[0] - at_zero
        mean, variance = at_zero + slope * s.alpha * m, slope**2 * total + deviation**2
        errors.append([(mean - t.alpha * m).abs().item(), (variance - t.alpha**2 * d**2 - t.sigma**2).abs().item()])
    assert all(second <= first / 3.4 or second < 1e-12 for first, second in zip(*errors, strict=True)), errors
    if noise:
        assert deviation.item() > 0.01


def test_new_noise():
    t, x0 = level(RectifiedFlow(), 0.3), numbers(1, 4)
    mean, deviation = transitions.renoise(x0, t)
    torch.testing.assert_close(mean, 0.7 * x0)
    assert deviation.item() == pytest.approx(0.3)
