"""Log-likelihood by the probability-flow ODE against exact densities."""

import math
from dataclasses import replace

import pytest
import torch

from samplers import Context, RectifiedFlow, VarianceExploding, VariancePreserving
from samplers.analytic import Gaussian, Mixture
from samplers.likelihood import log_likelihood
from samplers.path import Trigonometric
from samplers.tableaus import TABLEAUS
from tests.samplers.references import k_diffusion, k_model

VE, VP, RF, TRIG = VarianceExploding(0.002, 80.0), VariancePreserving.linear(), RectifiedFlow(), Trigonometric()
PATHS = {"VE": VE, "VP": VP, "RF": RF, "trigonometric": TRIG}
MEAN, STD = torch.tensor([0.3, -0.4]).double(), torch.tensor([0.5, 1.5]).double()


def points(path, logsnr=1.0, count=5):
    level = path.at_logsnr(logsnr)
    return level, Mixture.example(path).sample(count, level, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "kind"), [*((name, "x0") for name in PATHS), ("VP", "eps"), ("VP", "v"), ("RF", "flow")])
def test_mixture(name, kind):
    """The exact density of x_t at log-SNR 1, from noise so strong (log-SNR -13) that the prior is right to 1e-5."""
    path = PATHS[name]
    level, x = points(path)
    mixture = Mixture.example(path, kind)
    found = log_likelihood(mixture, x, start=level, end=path.at_logsnr(-13.0), steps=70)
    assert (found.nats - mixture.log_density(x, level)).abs().max() < 5e-5


def test_gaussian_from_clean_data():
    """The density of the data itself; beginning at sigma / alpha = 0.001 costs about that squared."""
    gaussian = Gaussian(RF, MEAN, STD)
    x = MEAN + STD * torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.5, 3.0]]).double()
    found = log_likelihood(gaussian, x, end=RF.at_logsnr(-10.0), steps=80)
    exact = torch.distributions.Normal(MEAN, STD).log_prob(x).sum(1)
    assert (found.nats - exact).abs().max() < 1e-4
    assert (found.bits_per_dim() + exact / (2 * math.log(2))).abs().max() < 1e-4
    assert torch.allclose(found.bits_per_dim(256), found.bits_per_dim() + 7)
    assert (found.latent - gaussian.ode(x, RF(0.0), RF.at_logsnr(-10.0))).abs().max() < 1e-4


def test_the_prior_knows_the_data():
    """With centred data of one standard deviation, data_std makes even a weakly noised end exact."""
    gaussian = Gaussian(VP, torch.zeros(2).double(), torch.full((2,), 0.7).double())
    level, x = points(VP)
    mean, variance = gaussian.marginal(level)
    exact = torch.distributions.Normal(mean, variance.sqrt()).log_prob(x).sum(1)
    options = {"start": level, "end": VP.at_logsnr(-0.5), "steps": 30}
    assert (log_likelihood(gaussian, x, data_std=0.7, **options).nats - exact).abs().max() < 1e-7
    assert (log_likelihood(gaussian, x, data_std=0.0, **options).nats - exact).abs().max() > 1e-2


def test_the_path_does_not_matter():
    """In y = x / alpha, which all paths share, the numbers are the same."""
    nats = []
    for path in PATHS.values():
        level = path.at_logsnr(1.0)
        x = level.alpha * torch.tensor([[0.2, -1.0], [1.5, 0.4]]).double()
        found = log_likelihood(Mixture.example(path), x, start=level, end=path.at_logsnr(-3.0), steps=6)
        nats.append(found.nats + 2 * math.log(level.alpha))
    assert all((other - nats[0]).abs().max() < 1e-10 for other in nats[1:])


def test_orders():
    level, x = points(VP)
    mixture = Mixture.example(VP)
    mixture = replace(mixture, stds=mixture.stds + 0.5)

    def run(steps, method):
        end = VP.at_logsnr(-2.0)
        return log_likelihood(mixture, x, start=level, end=end, steps=steps, method=method, data_std=0.0).nats

    exact = run(40, "dopri5")
    for method, order, steps in (("euler", 1, 20), ("heun", 2, 20), ("rk4", 4, 10), ("dopri5", 5, 8)):
        coarse, fine = ((run(n, method) - exact).abs().max().item() for n in (steps, 2 * steps))
        assert abs(math.log2(coarse / fine) - order) < 0.35, method


def test_the_embedded_pair_is_consistent():
    """The two solutions agree on constants, and each stage's weights and the step's sum to what Runge-Kutta asks."""
    tableau = TABLEAUS["dopri5"]
    assert abs(math.fsum(tableau.error)) < 1e-15 and math.isclose(math.fsum(tableau.weights), 1)
    nodes = [math.fsum(row) for row in tableau.stages]
    assert torch.allclose(
        torch.tensor(nodes).double(), torch.tensor([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1]).double(), atol=1e-7
    )
    for power in range(4):  # both are of order 4 at least: their quadratures agree on cubics
        assert abs(math.fsum(w * c**power for w, c in zip(tableau.error, nodes, strict=True))) < 1e-15


def test_a_hopeless_tolerance_is_a_sentence(monkeypatch):
    monkeypatch.setattr("samplers.likelihood._MOST_STEPS", 3)
    level, x = points(VP)
    with pytest.raises(ValueError, match="try a larger tolerance"):
        log_likelihood(Mixture.example(VP), x, start=level, tolerance=1e-9)


def test_adaptive_steps_meet_the_tolerance():
    level, x = points(RF)
    mixture, end = Mixture.example(RF), RF.at_logsnr(-13.0)
    exact, calls = mixture.log_density(x, level), []
    for tolerance in (1e-3, 1e-7):
        context = Context()
        found = log_likelihood(mixture, x, start=level, end=end, tolerance=tolerance, context=context)
        assert (found.nats - exact).abs().max() < max(20 * tolerance, 2e-5)
        assert context.evaluations == len(x) * found.evaluations
        calls.append(found.evaluations)
    assert calls[0] < calls[1]


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_the_estimate_is_unbiased(kind):
    """200 estimates of one point, within four standard errors of the exact trace."""
    level, x = points(VP, count=1)
    mixture, options = Mixture.example(VP), {"start": level, "end": VP.at_logsnr(-2.0), "steps": 8}
    exact = log_likelihood(mixture, x, divergence="exact", **options).nats
    many = log_likelihood(mixture, x.expand(200, 2), divergence=kind, seeds=range(200), **options).nats
    assert many.std() > 0.01
    assert (many.mean() - exact).abs() < 4 * many.std() / 200**0.5
    averaged = log_likelihood(mixture, x.expand(200, 2), divergence=kind, seeds=range(200), probes=8, **options).nats
    assert averaged.std() < 0.6 * many.std()


def test_an_estimate_depends_on_its_own_seed_only():
    level, x = points(VP, count=3)
    options = {"start": level, "steps": 5, "divergence": "rademacher"}
    together = log_likelihood(Mixture.example(VP), x, seeds=[4, 5, 6], **options).nats
    alone = log_likelihood(Mixture.example(VP), x[1:2], seeds=[5], **options).nats
    assert torch.allclose(together[1:2], alone, atol=1e-12)


def test_many_dimensions_are_estimated():
    """81 independent pixels have a diagonal Jacobian, where a Rademacher estimate is exact."""
    gaussian = Gaussian(VP, torch.zeros(1, 9, 9).double(), torch.full((1, 9, 9), 0.7).double())
    level = VP.at_logsnr(1.0)
    x = gaussian.sample(2, level, torch.Generator().manual_seed(1))
    found = log_likelihood(gaussian, x, start=level, end=VP.at_logsnr(-2.0), steps=30, data_std=0.7, seeds=[1, 2])
    mean, variance = gaussian.marginal(level)
    assert (found.nats - torch.distributions.Normal(mean, variance.sqrt()).log_prob(x).flatten(1).sum(1)).abs().max() < 1e-5
    assert found.evaluations == 4 * 30


def test_k_diffusion():
    """Its estimator is exact in one dimension; integrated by dopri5 to 1e-6 there."""
    kd = k_diffusion()
    mixture = Mixture.example(VE, shape=(1,))
    x = torch.tensor([[0.1], [-1.2], [2.0]]).double()
    theirs, _ = kd.log_likelihood(k_model(mixture), x, 0.05, 60.0, atol=1e-6, rtol=1e-6)
    ours = log_likelihood(mixture, x, start=VE(0.05), end=VE(60.0), tolerance=1e-6, data_std=0.0)
    assert (ours.nats - theirs).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": VP.at_logsnr(-1.0), "end": VP.at_logsnr(1.0)}, "from less to more noise"),
        ({"end": RF(1.0)}, "both finite"),
        ({"method": "rk45"}, "Unknown method 'rk45'"),
        ({"divergence": "hutch"}, "Unknown divergence"),
        ({"divergence": "gaussian"}, "one seed per image: none for 5"),
        ({"divergence": "gaussian", "seeds": [1]}, "one seed per image: 1 for 5"),
        ({"steps": 0}, "steps >= 1"),
        ({"tolerance": 0.0}, "above 0"),
    ],
)
def test_errors_are_sentences(options, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(Mixture.example(VP), points(VP)[1], **options)


SD = VariancePreserving.scaled_linear()  # sigma / alpha from 0.029 to 14.6


@pytest.mark.parametrize("std", [0.05, 0.12, 0.3, 1.0])
def test_the_clean_end_of_a_table(std):
    """Between clean data and a table's first entry: (r / s)^4 / 4 at the mean, a few times that three deviations out."""
    gaussian = Gaussian(SD, torch.zeros(2).double(), torch.full((2,), std).double())
    x = std * torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.5, 3.0]]).double()
    exact = torch.distributions.Normal(gaussian.mean, gaussian.std).log_prob(x).sum(1)
    found = log_likelihood(gaussian, x, steps=60, data_std=std)
    error, least = (found.nats - exact).abs() / 2, SD.discrete(0)
    bound = (least.sigma / least.alpha / std) ** 4 / 4
    assert error[0] < bound and error.max() < 4 * bound + 1e-6
    assert found.evaluations == 4 * 60 + 4


def test_the_noisy_end_of_a_table():
    """The prior leaves d (1 - z^2) / (2 R^2) a dimension, which the denoiser's word on its last level takes away."""
    gaussian = Gaussian(SD, torch.zeros(1).double(), torch.ones(1).double())
    x = torch.tensor([[0.0], [1.0], [3.0]]).double()
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    error = log_likelihood(gaussian, x, steps=60, data_std=0.0).nats - exact
    most = SD.discrete(999)
    expected = (1 - x[:, 0] ** 2) / (2 * (most.sigma / most.alpha) ** 2)
    assert (error - expected).abs().max() < 2e-4 and expected.abs().max() > 1e-2
    assert (log_likelihood(gaussian, x, steps=60).nats - exact).abs().max() < 1e-5


@pytest.mark.parametrize(("path", "bound"), [(SD, 6e-3), (VP, 1e-4), (RF, 1e-4), (VE, 1e-4)], ids=["SD", "VP", "RF", "VE"])
def test_a_mixture_between_the_ends_of_its_path(path, bound):
    """From clean data to the path's own most noise: nats a dimension, the worst of 60 points."""
    mixture = Mixture.example(path)
    x = mixture.sample(60, VP.at_logsnr(12.0), torch.Generator().manual_seed(0))
    exact = mixture.log_density(x, path(0.0))
    assert (log_likelihood(mixture, x, steps=130).nats - exact).abs().max() / 2 < bound
    assert (log_likelihood(mixture, x, steps=130, data_std=0.0).nats - exact).abs().max() / 2 > 2 * bound


def test_the_last_level_of_many_dimensions():
    """Rademacher estimates of independent pixels are exact, at both ends too."""
    gaussian = Gaussian(SD, torch.full((1, 9, 9), 0.4).double(), torch.full((1, 9, 9), 0.7).double())
    x = gaussian.mean + 0.7 * torch.randn(2, 1, 9, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = torch.distributions.Normal(gaussian.mean, gaussian.std).log_prob(x).flatten(1).sum(1)
    assert (log_likelihood(gaussian, x, steps=40, seeds=[1, 2]).nats - exact).abs().max() / 81 < 1e-5
