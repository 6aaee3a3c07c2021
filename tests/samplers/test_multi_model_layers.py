"""Layers that are blended by alpha at every level: against `over`, against each layer alone, and the canvas when it goes on."""

from __future__ import annotations

import pytest
import torch

from samplers.denoiser import Condition, Context
from samplers.multi_model.layers import BlendedLayers, shares_seen
from samplers.noise import normal, seeded_noise
from samplers.path import RectifiedFlow
from samplers.prediction import Prediction
from samplers.registry import get_grid, get_solver
from samplers.sample import sample

PATH = RectifiedFlow()


def alphas(count: int) -> list[torch.Tensor]:
    """Of layers, the lowest opaque."""
    made = [torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(count)]
    return [torch.ones_like(made[0]), *made[1:]]


def test_shares_are_what_over_shows():
    """Colours one upon the other, from below."""
    given, seen = alphas(4), torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    colours = torch.rand(4, 1, 3, 4, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for alpha, colour in zip(given, colours, strict=True):
        seen = alpha * colour + (1 - alpha) * seen
    shares = shares_seen(given)
    assert (sum(share * colour for share, colour in zip(shares, colours, strict=True)) - seen).abs().max() < 1e-15
    assert (sum(shares) - 1).abs().max() < 1e-15
    hidden = shares_seen([torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)])
    assert not hidden[0].any() and (hidden[1] == 1).all()


class Rows:
    """A denoiser whose rows are Gaussians of their own means and a standard deviation of 0.5."""

    def __init__(self, means: torch.Tensor):
        self.means, self.path = means, PATH

    def __call__(self, x, level, condition, context):
        gain = level.alpha * 0.25 / (level.alpha**2 * 0.25 + level.sigma**2)
        return Prediction(x, level, self.means + gain * (x - level.alpha * self.means), (1.0, 0.0))


def drawn(denoiser, rows: int, solver: str = "dpmpp_2m", pictures: int = 2) -> torch.Tensor:
    noise = normal(range(pictures), (3, 4, 4), "latents").double()
    source = seeded_noise(list(range(pictures)), noise)
    levels = get_grid("uniform", PATH, 12)
    x = torch.cat([noise] * rows) * levels[0].sigma
    return sample(denoiser, get_solver(solver), x, levels, Condition(), noise=lambda s, t: torch.cat([source(s, t)] * rows))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "euler_a", "dpmpp_2m_sde"])
def test_the_canvas_is_the_blend_of_layers_drawn_alone(solver):
    """Without a common end, each layer is its own picture, and the canvas is these one upon the other, whatever the solver."""
    shares, means = tuple(shares_seen(alphas(3))), torch.tensor([9.0, 1.0, -2.0, 0.5]).double()
    rows = means.repeat_interleave(2).view(8, 1, 1, 1).expand(8, 3, 4, 4).contiguous()
    found = drawn(BlendedLayers(Rows(rows), shares, until=1e9), 4, solver).chunk(4)
    for k in range(1, 4):
        alone = drawn(Rows(rows[2 * k : 2 * k + 2]), 1, solver)
        assert (found[k] - alone).abs().max() < 1e-12
    blend = sum(share * layer for share, layer in zip(shares, found[1:], strict=True))
    assert (found[0] - blend).abs().max() < 1e-9


def test_from_a_level_on_the_canvas_goes_on_alone():
    """Up to that level it is the blend, and then it is drawn by its own row: from the blend's noisy canvas, by hand."""
    shares = tuple(shares_seen(alphas(2)))
    rows = torch.tensor([5.0, 1.0, -1.0]).double().view(3, 1, 1, 1).expand(3, 3, 4, 4).contiguous()
    levels = get_grid("uniform", PATH, 12)
    until = float(levels[6].logsnr)
    together = BlendedLayers(Rows(rows), shares, until)
    found = drawn(together, 3, "ddim", pictures=1)
    noise = normal([0], (3, 4, 4), "latents").double()
    apart = [sample(Rows(row[None]), get_solver("ddim"), noise * levels[0].sigma, levels[:7], Condition()) for row in rows[1:]]
    canvas = sum(share * layer for share, layer in zip(shares, apart, strict=True))
    by_hand = sample(Rows(rows[:1]), get_solver("ddim"), canvas, levels[6:], Condition())
    assert (found[:1] - by_hand).abs().max() < 1e-9
    assert (found[:1] - drawn(BlendedLayers(Rows(rows), shares, 1e9), 3, "ddim", pictures=1)[:1]).abs().max() > 0.1


def test_what_cannot_be_blended_is_refused():
    rows = Rows(torch.zeros(2, 3, 4, 4).double())
    with pytest.raises(ValueError, match="no layers"):
        BlendedLayers(rows, (), 0.0)
    with pytest.raises(ValueError, match="sum to 1"):
        BlendedLayers(rows, (torch.full((1, 1, 4, 4), 0.5),), 0.0)
    with pytest.raises(ValueError, match="3 rows are not a canvas and 1 layers"):
        level = PATH(0.5)
        BlendedLayers(rows, (torch.ones(1, 1, 4, 4),), 0.0)(torch.zeros(3, 3, 4, 4), level, Condition(), Context())
