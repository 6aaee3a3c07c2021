"""Multimarginal interpolants as a method: its data, what its loss is least for, its network and command."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from distill.objectives.multimarginal import MultimarginalObjective, MultimarginalObjectiveConfig
from distill.transport import as_read, main
from distill.types import Batch, Draws, Phase
from gen.models.components import save_component
from gen.nn.multimarginal import Multimarginal, MultimarginalConfig
from tests.gen.conftest import randomise

SIZES = {"size": 8, "patch": 4, "dim": 16, "depth": 3, "heads": 2}
PHASE = Phase("parts", "parts")


def network(*kinds: str) -> Multimarginal:
    return randomise(Multimarginal(MultimarginalConfig(marginals=kinds, **SIZES)), 1).eval()


def objective(*kinds: str, **config) -> MultimarginalObjective:
    return MultimarginalObjective(MultimarginalObjectiveConfig(**config), network(*kinds))


def pictures(count: int, seed: int = 0) -> Batch:
    images = 2 * torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) - 1
    return Batch(torch.arange(count), images=images)


def test_the_parts_of_the_network_add_up_to_x():
    weights = torch.tensor([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    parts = network("noise", "picture", "lines")(weights, x)
    torch.testing.assert_close((weights[:, :, None, None, None] * parts).sum(1), x, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(parts[1, 1], x[1], atol=1e-5, rtol=1e-5)  # at a corner its part is all of it


def test_kinds_are_made_of_the_picture_and_the_coupling_says_of_which():
    kinds, batch = ("noise", "picture", "grey", "flat", "lines"), pictures(3)
    draws = Draws(0, batch.index)
    paired = objective(*kinds).corners(batch, draws)
    apart = objective(*kinds, coupling="independent").corners(batch, draws)
    assert torch.equal(paired[:, 1], batch.images) and torch.equal(apart[:, 1], batch.images.roll(1, 0))
    assert torch.equal(apart[:, 0], paired[:, 0]) and torch.equal(apart[:, 2], paired[:, 2].roll(2, 0))
    grey = (batch.images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(paired[:, 2], grey.expand(-1, 3, -1, -1))
    assert len(paired[:, 3].unique()) <= 4 and set(paired[:, 4].unique().tolist()) <= {-1.0, 1.0}
    with pytest.raises(ValueError, match="the data have no pairs"):
        objective("picture", "source").corners(batch, draws)
    with pytest.raises(ValueError, match="Did you mean 'lines'"):
        objective("noise", "line")


def test_weights_are_uniform_on_the_simplex_or_on_its_edges():
    """Of a flat Dirichlet the means are 1 / 3 and the variances 1 / 18; on an edge 1 / 3 and 1 / 9 (half of a_k in 2 of 3)."""
    draws = Draws(0, torch.arange(4000))
    for edges, variance in ((0.0, 1 / 18), (1.0, 1 / 9)):
        weights = objective("noise", "picture", "lines", edges=edges).weights(draws, torch.device("cpu"))
        torch.testing.assert_close(weights.sum(1), torch.ones(4000))
        torch.testing.assert_close(weights.mean(0), torch.full((3,), 1 / 3), atol=0.02, rtol=0)
        torch.testing.assert_close(weights.var(0), torch.full((3,), variance), atol=0.006, rtol=0)
        assert bool(((weights == 0).sum(1) == (1 if edges else 0)).all())


def test_the_loss_is_least_at_the_conditional_means():
    """Noise and black-or-white pictures of one pixel's worth: E[x_k | x] by hand, and its loss is the posterior's variance."""
    made = objective("noise", "picture", edges=0.0)
    sign = torch.where(torch.rand(3000, generator=torch.Generator().manual_seed(3)) < 0.5, -1.0, 1.0)
    batch = Batch(torch.arange(3000), images=sign[:, None, None, None].expand(-1, 3, 1, 1).contiguous())
    draws = Draws(1, batch.index)

    def means(weights, x, off=0.0):
        a, b = weights[:, :, None, None, None].unbind(1)
        mean = torch.tanh((b / a**2 * x).sum(1, keepdim=True)).expand_as(x) + off  # log odds: 2 b x / a^2, of three channels
        return torch.stack([(x - b * mean) / a, mean], 1)

    def loss(off: float) -> float:
        return made.loss(PHASE, {"parts": lambda w, x: means(w, x, off)}, batch, draws, 0)[1]["error/picture"].item()

    best = loss(0.0)
    for off in (-0.2, 0.2):  # a mean that is off by d costs d^2 more
        assert loss(off) == pytest.approx(best + off**2, abs=0.02)


def test_the_command_takes_pictures_and_noise(tmp_path, capsys):
    save_component(network("noise", "picture", "lines"), tmp_path / "model")
    for name, size in (("a", 20), ("b", 8)):
        Image.new("RGB", (size, 12), "red").save(tmp_path / f"{name}.png")
    out, model = tmp_path / "out", str(tmp_path / "model")
    told = ["--from", "lines", "--to", "picture", "--steps", "2", "-o", str(out)]
    assert main([model, str(tmp_path / "a.png"), str(tmp_path / "b.png"), *told]) == 0
    assert main([model, "--from", "noise", "--to", "lines", "--steps", "2", "-n", "2", "--seed", "5", "-o", str(out)]) == 0
    written = [line.rsplit("/", 1)[1] for line in capsys.readouterr().out.split()]
    assert written == ["a-picture.png", "b-picture.png", "lines-5.png", "lines-6.png"]
    assert Image.open(out / "lines-6.png").size == (8, 8)
    wide = Image.new("RGB", (20, 12), "red")
    wide.paste("blue", (4, 0, 16, 12))
    wide.save(tmp_path / "wide.png")
    blue = torch.tensor([-1.0, -1.0, 1.0])[:, None, None].expand(1, 3, 8, 8)
    torch.testing.assert_close(as_read(tmp_path / "wide.png", 8), blue, rtol=0, atol=1e-5)  # the square in the middle
    for wrong, words in (
        ([str(tmp_path / "a.png"), "--from", "lines", "--to", "picture", "-n", "2"], "are for drawing from noise"),
        (["--from", "lines", "--to", "picture"], "No picture of the kind 'lines'"),
        (["--from", "noise", "--to", "icons"], "this network knows noise, picture, lines"),
        (["--from", "noise", "--to", "noise"], "give two that differ"),
        ([str(tmp_path / "a.png"), "--from", "noise", "--to", "lines"], "leave the pictures out"),
    ):
        assert main([model, *wrong]) == 2
        assert words in capsys.readouterr().err
