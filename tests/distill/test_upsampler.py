"""Training of an upsampler: what the network is shown, and that its loss is least at a Gaussian posterior."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from distill.objectives.upsampler import UpsamplerObjective, UpsamplerObjectiveConfig
from distill.types import Batch, Draws, Phase
from gen.nn.backbones.upsampler import LEVEL
from gen.nn.registry import build
from samplers.path import RectifiedFlow
from tests.distill.cases import CASES

FLOW, PHASE = RectifiedFlow(), Phase("denoiser", "denoiser")


class Seen(nn.Module):
    """A network that keeps what it is given, and says what `answer` says of it."""

    def __init__(self, noise, answer=lambda x, image: torch.zeros_like(x)):
        super().__init__()
        self.config = SimpleNamespace(factor=2, noise=noise, enlarging="bicubic", num_classes=0)
        self.answer = answer

    def forward(self, x, time, condition, context=None):
        self.x, self.time, self.condition = x, time, condition
        return self.answer(x, condition.image)


def loss_of(network, images, **config):
    objective = UpsamplerObjective(UpsamplerObjectiveConfig(prediction="x0", **config), network)
    batch = Batch(index=torch.arange(len(images)), images=images)
    return objective.loss(PHASE, {"denoiser": network}, batch, Draws(0, batch.index, "denoiser"), 0)[0]


def test_what_the_network_is_shown():
    """alpha(s) times the mean of squares, plus sigma(s) times noise of the small picture's shape, enlarged; and s."""
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = Seen((0.2, 0.7))
    loss_of(network, images)
    draws = Draws(0, torch.arange(5), "denoiser")
    s, eps = 0.2 + 0.5 * draws.uniform("augmentation"), draws.normal("small", (3, 4, 4))
    small = images.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    noised = (1 - s)[:, None, None, None] * small + s[:, None, None, None] * eps
    expected = F.interpolate(noised, (8, 8), mode="bicubic")
    assert (network.condition.image - expected).abs().max() < 1e-5
    assert torch.allclose(network.condition.extra[LEVEL], s)
    assert network.x.shape == images.shape


# ---- a world of Gaussian pictures of 2 by 2 pixels, whose small picture is one pixel ----

COVARIANCE = torch.tensor([[1.0, 0.6, 0.6, 0.2], [0.6, 1.0, 0.3, 0.5], [0.6, 0.3, 1.0, 0.4], [0.2, 0.5, 0.4, 1.0]]).double()
MEAN = torch.full((1, 4), 0.25).double()


def posterior(level, s):
    """(4, 5): E[x0 | x, image] as a matrix on the four pixels of x and the image's one, which is everywhere the same."""
    seen = torch.cat([level.alpha * torch.eye(4).double(), (1 - s) * MEAN])
    noise = torch.diag(torch.tensor([level.sigma**2] * 4 + [s**2]).double())
    return COVARIANCE @ seen.T @ torch.linalg.inv(seen @ COVARIANCE @ seen.T + noise)


@pytest.mark.parametrize("s", [0.0, 0.4, 1.0])
def test_its_loss_is_least_at_the_posterior(s):
    """At the exact posterior mean errors and everything seen are uncorrelated, within 5 standard errors: any other linear
    network has a larger loss. Under noise alone (s = 1) that is the posterior without a picture."""
    count, level = 3000, FLOW(0.5)
    root = torch.linalg.cholesky(COVARIANCE)
    z = torch.randn(count, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    images = (z @ root.T).view(count, 3, 2, 2).float()
    network = Seen((s, s))

    class AtOneLevel(UpsamplerObjective):
        def levels(self, draws, device):
            return FLOW(torch.full((len(draws.index),), 0.5, dtype=torch.float64))

    objective = AtOneLevel(UpsamplerObjectiveConfig(prediction="x0"), network)
    batch = Batch(index=torch.arange(count), images=images)
    objective.loss(PHASE, {"denoiser": network}, batch, Draws(0, batch.index, "denoiser"), 0)
    image = network.condition.image
    assert (image - image[..., :1, :1]).abs().max() < 1e-5
    seen = torch.cat([network.x.flatten(2), image[..., :1, 0]], 2).double()
    weights = posterior(level, s)
    error = seen @ weights.T - images.flatten(2).double()
    products = (error[..., :, None] * seen[..., None, :]).flatten(0, 1)
    standard_error = products.std(0) / len(products) ** 0.5
    assert (products.mean(0).abs() < 5 * standard_error).all()
    assert (weights[:, 4].abs().max() < 1e-12) == (s == 1)
    if s < 1:  # and without the picture it is not the least
        alone = seen[..., :4] @ posterior(level, 1.0)[:, :4].T - images.flatten(2).double()
        other = (alone[..., :, None] * seen[..., None, :]).flatten(0, 1)
        assert (other.mean(0).abs() > 8 * other.std(0) / len(other) ** 0.5).any()


def test_parts_of_pictures_are_parts():
    objective = UpsamplerObjective(UpsamplerObjectiveConfig(crop=4), Seen((0.0, 0.0)))
    images = torch.arange(2 * 3 * 100.0).view(2, 3, 10, 10)
    batch = Batch(index=torch.tensor([3, 9]), images=images)
    cropped = objective.cropped(batch, Draws(0, batch.index)).images
    again = objective.cropped(batch, Draws(0, batch.index)).images
    assert cropped.shape == (2, 3, 4, 4) and torch.equal(cropped, again)
    for part, picture in zip(cropped, images, strict=True):
        top, left = divmod(int(part[0, 0, 0] - picture[0, 0, 0]), 10)
        assert torch.equal(part, picture[:, top : top + 4, left : left + 4])


def test_what_cannot_be_trained_is_said():
    with pytest.raises(ValueError, match="enlarges nothing"):
        UpsamplerObjective(UpsamplerObjectiveConfig(), build({**CASES["diffusion"]["network"], "channels": 3}))
    with pytest.raises(ValueError, match="multiple of the network's factor 2"):
        UpsamplerObjective(UpsamplerObjectiveConfig(crop=5), Seen((0.0, 0.0)))
    network = build(CASES["upsampler"]["network"])
    for changes, message in (({"noise": [0.5, 0.2]}, "lowest <= highest"), ({"backbone": {"type": "dimr"}}, "backbone.type")):
        with pytest.raises(ValueError, match=message):
            build({"type": "upsampler", **network.config.model_dump(mode="json"), **changes})
