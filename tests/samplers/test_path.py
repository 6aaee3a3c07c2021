"""Noise paths: rates are derivatives, log-SNR inverts, tables are kept entry by entry."""

import math

import pytest
import torch

from samplers import NoiseLevel, RectifiedFlow, VarianceExploding, VariancePreserving
from samplers.path import Trigonometric, VariancePreservingSDE

PATHS = {
    "VE": VarianceExploding(),
    "VP linear": VariancePreserving.linear(),
    "VP scaled": VariancePreserving.scaled_linear(),
    "VP cosine": VariancePreserving.cosine(),
    "VP sigmoid": VariancePreserving.sigmoid(),
    "VP zero SNR": VariancePreserving.scaled_linear(zero_terminal_snr=True),
    "VP SDE": VariancePreservingSDE(),
    "trigonometric": Trigonometric(),
    "RF": RectifiedFlow(),
}
# between the knots of a 1000-entry table, and in both of its end pieces
TIMES = [0.0004, 0.00153, 0.1234, 0.50027, 0.9871, 0.99963]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("u", TIMES)
def test_rate_is_the_derivative(name, u):
    path, t, step = PATHS[name], u * PATHS[name].t_noise, 1e-7 * PATHS[name].t_noise
    ahead, behind = path(t + step), path(t - step)
    d_alpha, d_sigma = path.rate(path(t))
    assert math.isclose(d_alpha, (ahead.alpha - behind.alpha) / (2 * step), rel_tol=1e-5, abs_tol=1e-7)
    assert math.isclose(d_sigma, (ahead.sigma - behind.sigma) / (2 * step), rel_tol=1e-5, abs_tol=1e-7)


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("u", TIMES)
def test_at_logsnr_inverts(name, u):
    path, t = PATHS[name], u * PATHS[name].t_noise
    level = path(t)
    back = path.at_logsnr(level.logsnr)
    for a, b in [(back.t, t), (back.alpha, level.alpha), (back.sigma, level.sigma)]:
        assert math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("name", PATHS)
def test_floats_and_tensors_agree(name):
    path = PATHS[name]
    times = torch.tensor(TIMES, dtype=torch.float64) * path.t_noise
    many = path(times)
    rates = path.rate(many)
    for i, t in enumerate(times.tolist()):
        one = path(t)
        assert all(isinstance(v, float) for v in (one.alpha, one.sigma, one.logsnr, *path.rate(one)))
        assert math.isclose(many.alpha[i].item(), one.alpha) and math.isclose(many.sigma[i].item(), one.sigma)
        assert math.isclose(many.logsnr[i].item(), one.logsnr, rel_tol=1e-9)
        assert all(math.isclose(r[i].item(), v, rel_tol=1e-9) for r, v in zip(rates, path.rate(one), strict=True))


@pytest.mark.parametrize("name", PATHS)
def test_clean_end(name):
    clean = PATHS[name](0.0)
    assert (clean.alpha, clean.sigma, clean.logsnr) == (1.0, 0.0, math.inf)


@pytest.mark.parametrize("name", ["RF", "VP zero SNR"])
def test_noisy_end(name):
    noise = PATHS[name](1.0)
    assert (noise.alpha, noise.sigma, noise.logsnr) == (0.0, 1.0, -math.inf)


@pytest.mark.parametrize("name", [n for n in PATHS if n.startswith("VP")])
def test_variance_is_preserved(name):
    level = PATHS[name](torch.linspace(0, 1, 3001, dtype=torch.float64))
    assert torch.allclose(level.alpha**2 + level.sigma**2, torch.ones(3001, dtype=torch.float64), atol=1e-14)
    assert (level.alpha.diff() < 0).all() and (level.sigma.diff() > -1e-15).all()


def test_table_entries_are_exact():
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cumprod(1 - betas, 0)
    path = VariancePreserving.from_betas(betas)
    level = path.discrete(torch.arange(1000, dtype=torch.float64))
    assert torch.allclose(level.alpha**2, bar, rtol=1e-12, atol=0)
    assert torch.allclose(level.sigma**2, 1 - bar, rtol=1e-11, atol=0)
    same = VariancePreserving.from_alphas_cumprod(bar)
    assert torch.allclose(torch.tensor(same.table), torch.tensor(path.table), atol=1e-10)


def test_mix_is_the_forward_process():
    x0, eps = torch.ones(2, 1, 2, 2), 2 * torch.ones(2, 1, 2, 2)
    x = NoiseLevel(0.0, torch.tensor([0.5, 1.0]), torch.tensor([0.25, 0.0])).mix(x0, eps)
    assert torch.equal(x[:, 0, 0, 0], torch.tensor([1.0, 1.0]))


def test_bad_paths_are_refused():
    for bounds in [(1.0, 0.5), (-1.0, 2.0), (0.1, math.inf), (math.nan, 1.0)]:
        with pytest.raises(ValueError, match="sigma_min < sigma_max"):
            VarianceExploding(*bounds)
    for table in [(), (1.0,), (1.0, 2.0), (1.0, -math.inf, -math.inf), (1.0, math.nan, -1.0)]:
        with pytest.raises(ValueError, match="does not fall strictly"):
            VariancePreserving(table)
