"""Power-function averages: the running one against its closed form, and the least squares against quadrature."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import nn

from distill.ema import main
from distill.optim.ema import Ema, find_snapshots, reconstruct
from distill.optim.power_ema import combination, decay, gamma_of, inner
from gen.io.weights import CheckpointError
from tests.distill.toy import toy_trainer


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_gamma_gives_the_width(width):
    """The standard deviation of (gamma + 1) tau^gamma on [0, 1], integrated numerically."""
    gamma = gamma_of(width)
    moments = [quad(lambda t, k=k: (gamma + 1) * t ** (gamma + k), 0, 1, epsabs=1e-13)[0] for k in range(3)]
    assert moments[0] == pytest.approx(1, abs=1e-9)
    assert (moments[2] - moments[1] ** 2) ** 0.5 == pytest.approx(width, rel=1e-6)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.29, float("nan")])
def test_a_width_that_no_average_has(width):
    with pytest.raises(ValueError, match="must lie between"):
        gamma_of(width)


@pytest.mark.parametrize("width", [0.05, 0.15])
def test_the_running_average_is_the_closed_form(width):
    gamma, count = gamma_of(width), 40
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(3, 2).double()
    ema = Ema(network, lambda step: decay(gamma, step))
    history = []
    for step in range(count):
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
        history.append(network.weight.detach().clone())
        ema.update(network, step)
    i = torch.arange(1, count + 1, dtype=torch.float64)
    weights = (i / count) ** (gamma + 1) - ((i - 1) / count) ** (gamma + 1)
    expected = torch.einsum("i,ijk->jk", weights, torch.stack(history))
    torch.testing.assert_close(ema.network.weight, expected, atol=1e-13, rtol=0)


def test_the_inner_product_is_the_integral():
    for (a, b), expected in {((10, 3.0), (7, 5.0)): None, ((4, 16.97), (9, 6.94)): None}.items():

        def product(t, a=a, b=b):
            return np.prod([(g + 1) * t**g / s ** (g + 1) for s, g in (a, b)])

        expected = quad(product, 0, min(a[0], b[0]), epsabs=1e-14)[0]
        assert inner(a, b) == pytest.approx(expected, rel=1e-9)
        assert inner(b, a) == pytest.approx(expected, rel=1e-9)


def test_a_stored_average_is_found_again():
    stored = [(step, gamma_of(width)) for step in (100, 200, 300) for width in (0.05, 0.1)]
    for k, wanted in enumerate(stored):
        weights = combination(stored, wanted)
        assert weights == pytest.approx([float(i == k) for i in range(6)], abs=1e-8)


def test_the_combination_is_the_least_squares_solution():
    """Against a dense grid of the profiles, solved without normal equations."""
    stored = [(step, gamma_of(width)) for step in (250, 500, 750, 1000) for width in (0.05, 0.1)]
    wanted = (1000, gamma_of(0.075))
    edges = np.linspace(0, 1000, 20_001)
    middle = (edges[1:] + edges[:-1]) / 2

    def profile(step, gamma):
        return np.where(middle <= step, (gamma + 1) / step * np.minimum(middle / step, 1) ** gamma, 0)

    matrix = np.stack([profile(*p) for p in stored], axis=1)
    expected = np.linalg.lstsq(matrix, profile(*wanted), rcond=None)[0]
    weights = combination(stored, wanted)
    assert weights == pytest.approx(expected, abs=2e-3)
    assert matrix @ weights == pytest.approx(profile(*wanted), abs=0.05 * profile(*wanted).max())
    assert sum(weights) == pytest.approx(1, abs=0.02)


def test_reconstruction_comes_near_the_average_kept_directly(tmp_path):
    """A run that keeps widths 0.05 and 0.10, with snapshots, and one that keeps 0.075 all along."""
    common = {"max_steps": 128, "checkpoint_every": 128, "log_every": 128, "optimizer": {"lr": 1e-2}}
    power = {"type": "power", "widths": [0.05, 0.1], "snapshot_every": 8}
    toy_trainer(tmp_path / "two", ema=power, **common).train()
    direct = toy_trainer(tmp_path / "direct", ema={"type": "power", "widths": [0.075]}, **common)
    direct.train()
    files = find_snapshots(tmp_path / "two")["net"]
    assert len(files) == 32
    made = reconstruct(files, 0.075)
    wanted = direct.averaged["net"].state_dict()
    error = max((made[name] - wanted[name]).abs().max() for name in wanted)
    stored = reconstruct(files, 0.05)
    apart = max((stored[name] - wanted[name]).abs().max() for name in wanted)
    assert error < 0.05 * apart


def test_a_run_without_snapshots_says_how_to_get_them(tmp_path, capsys):
    with pytest.raises(CheckpointError, match=r"ema\.snapshot_every"):
        find_snapshots(tmp_path)
    assert main(["reconstruct", str(tmp_path), "--width", "0.1"]) == 2
    assert capsys.readouterr().err.startswith("fewstep: ")


def test_constant_averages_without_warm_up():
    ema = Ema(nn.Linear(2, 2), 0.9, warmup=False)
    assert ema.decay_at(0) == 0.9 and Ema(nn.Linear(2, 2), 0.9).decay_at(0) == 0.1
