"""Every prediction kind read in every way, for scalar and per-sample levels."""

import math

import pytest
import torch

from samplers import (
    Condition,
    Context,
    NetworkDenoiser,
    NoiseLevel,
    Prediction,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    prediction_row,
)

PATHS = [VarianceExploding(), VariancePreserving.linear(), RectifiedFlow()]
KINDS = ["eps", "x0", "v", "flow", "edm"]
G = torch.Generator().manual_seed(0)
X0, EPS = (torch.randn(3, 2, 4, 4, generator=G, dtype=torch.float64) for _ in range(2))


def levels(path):
    times = torch.tensor([0.05, 0.4, 0.9], dtype=torch.float64) * path.t_noise
    return [path(0.4 * path.t_noise), path(times)]


def by_hand(kind, path, level, x):
    """Each kind's training target as its paper writes it."""
    alpha, sigma = (v if isinstance(v, float) else v.reshape(-1, 1, 1, 1) for v in (level.alpha, level.sigma))
    if kind == "edm":  # F = (D - c_skip x) / c_out
        c_skip, c_out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25) ** 0.5
        return (X0 - c_skip * x) / c_out
    if kind == "flow":
        d_alpha, d_sigma = (v if isinstance(v, float) else v.reshape(-1, 1, 1, 1) for v in path.rate(level))
        return d_alpha * X0 + d_sigma * EPS
    return {"eps": EPS, "x0": X0, "v": alpha * EPS - sigma * X0}[kind]


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_every_reading(kind, path):
    for level in levels(path):
        x = level.mix(X0, EPS)
        p = Prediction(x, level, by_hand(kind, path, level, x), prediction_row(kind, level, path))
        assert torch.allclose(p.x0, X0, atol=1e-10)
        assert torch.allclose(p.eps, EPS, atol=1e-10)
        assert torch.allclose(p.v, by_hand("v", path, level, x), atol=1e-8)
        assert torch.allclose(p.flow(path), by_hand("flow", path, level, x), atol=1e-8)
        sigma = level.sigma if isinstance(level.sigma, float) else level.sigma.reshape(-1, 1, 1, 1)
        assert torch.allclose(p.score, -EPS / sigma, rtol=1e-9)
        assert torch.allclose(p.with_x0(2 * X0).x0, 2 * X0)
        assert torch.allclose(p.with_raw(2 * p.raw).raw, 2 * p.raw)


@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_readings_at_the_ends(kind):
    """Pure noise and clean data are levels like any other."""
    path = RectifiedFlow()
    for t in (1.0, 0.0):
        level = path(t)
        x = level.mix(X0, EPS)
        p = Prediction(x, level, by_hand(kind, path, level, x), prediction_row(kind, level, path))
        if t == 1.0 or kind != "x0":
            assert torch.allclose(p.x0, X0, atol=1e-14)
        if (t, kind) != (0.0, "x0") and (t, kind) != (1.0, "eps"):
            assert torch.allclose(p.eps, EPS, atol=1e-14)


def test_x0_from_eps_at_pure_noise_is_not_a_number():
    level = RectifiedFlow()(1.0)
    assert Prediction(EPS, level, EPS, (0.0, 1.0)).x0.isnan().all()


def test_unknown_kind_is_a_sentence():
    with pytest.raises(ValueError, match=r"Unknown prediction 'noise': choose one of eps, x0"):
        prediction_row("noise", NoiseLevel(0.5, 0.5, 0.5), RectifiedFlow())


class Recorder:
    """A network that notes its time and returns what it is told."""

    def __init__(self, channels=1):
        self.channels = channels

    def __call__(self, x, time, condition, context):
        self.x, self.time = x, time
        return torch.cat([x] * self.channels, 1)


@pytest.mark.parametrize(
    ("clock", "path", "t", "expected"),
    [
        ("t", RectifiedFlow(), 0.3, 0.3),
        ("1000t", RectifiedFlow(), 0.3, 300.0),
        ("index", VariancePreserving.linear(), 1.0, 999.0),
        ("index", VariancePreserving.linear(), 0.001, 0.0),
        ("log_sigma/4", VarianceExploding(), 2.0, math.log(2.0) / 4),
    ],
)
def test_network_clocks(clock, path, t, expected):
    network = Recorder()
    denoiser = NetworkDenoiser(network, path, "v", clock)
    denoiser(X0, path(t), Condition(), Context())
    assert network.time.shape == (3,) and torch.allclose(network.time.double(), torch.full((3,), expected).double(), atol=1e-4)


def test_network_scaling_precision_and_variance():
    path, context = VarianceExploding(), Context()
    network = Recorder(channels=2)
    denoiser = NetworkDenoiser(
        network, path, "edm", "log_sigma/4", input_scale="edm", dtype=torch.float32, learned_variance=True
    )
    p = denoiser(X0, path(3.0), Condition(), context)
    assert network.x.dtype == torch.float32 and p.raw.dtype == torch.float64
    assert torch.allclose(network.x.double(), X0 / math.sqrt(9.25), atol=1e-6)
    assert p.raw.shape == X0.shape and p.variance.shape == X0.shape
    assert context.evaluations == 3
    with pytest.raises(ValueError, match="Unknown clock"):
        NetworkDenoiser(network, path, clock="tt")
    with pytest.raises(ValueError, match="Unknown input scale"):
        NetworkDenoiser(network, path, input_scale="c_in")
