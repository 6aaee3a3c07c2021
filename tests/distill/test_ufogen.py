"""UFOGen: levels of a pair, what the reconstruction counts, and what the two losses settle together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.levels import first_clock
from distill.objectives.ufogen import UfogenConfig, UfogenObjective, step_divergence
from distill.types import Draws, Phase, Role
from samplers.denoiser import Context
from samplers.path import NoiseLevel, RectifiedFlow, VariancePreserving
from tests.distill.gaussian_generators import MEAN, STD, Deterministic, gaussian_batch, gaussian_teacher, log_ratio, wide
from tests.distill.students import FLOW, STUDENT, VP, latents, models_of, tiny_teacher
from tests.gen.conftest import randomise

JUDGE = Phase("discriminator", "discriminator")


def ufogen(teacher, network: nn.Module, **changes) -> UfogenObjective:
    return UfogenObjective(UfogenConfig(**{"start": "network", **changes}), network, None, teacher)


class BestJudge(nn.Module):
    """log p(x_t) of the data less that of a generator whose x0 is N(mean, (share STD)^2), on a rectified flow."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        alpha, sigma = wide(1 - time.double()), wide(time.double())
        real, fake = ((alpha * MEAN, (alpha**2 * (k * STD) ** 2 + sigma**2) ** 0.5) for k in (1.0, self.share))
        return log_ratio(x, real, fake)[:, None]


class OnGaussians(UfogenObjective):
    """With the best discriminator, as an exact network has no copy that could learn."""

    def add_discriminator(self) -> None:
        self.roles["discriminator"] = Role(BestJudge(float(self.roles["student"].network.share.detach())), ema=False)


def slope(share: float, **changes) -> tuple[float, float]:
    """(the gradient in the share, the loss) of the generator at the best discriminator."""
    student = Deterministic(gaussian_teacher().path, share)
    objective = OnGaussians(UfogenConfig(start="network", **changes), student, None, gaussian_teacher())
    batch = gaussian_batch(600)
    loss, _ = objective.loss(STUDENT, models_of(objective), batch, Draws(0, batch.index, "student"), 0)
    loss.backward()
    return float(student.share.grad), float(loss.detach())


def test_the_discriminator_settles_the_spread_and_the_reconstruction_which_picture_goes_with_which_noise():
    alone = {"reconstruction_weight": 0.0}
    for share, sign in ((0.7, -1), (1.3, 1), (-0.7, 1), (-1.3, -1)):
        assert sign * slope(share, **alone)[0] > 0.01
    assert abs(slope(1.0, **alone)[0]) < 1e-9 and abs(slope(-1.0, **alone)[0]) < 1e-9  # both have the data's distribution
    assert slope(1.0)[1] < slope(-1.0)[1] - 0.1  # and one of them belongs to its noise
    # by the reconstruction alone the pictures are those of a denoiser, with too little spread
    blurred = {"adversarial_weight": 1e-9}
    assert slope(1.0, **blurred)[0] > 0.01


@pytest.mark.parametrize("path", [RectifiedFlow(), VariancePreserving.cosine(64)], ids=lambda path: type(path).__name__)
def test_the_reconstruction_is_the_divergence_of_the_noising_steps(path):
    s, t = (path(torch.full((1,), share, dtype=torch.float64)) for share in (0.7, 0.4))
    x0, other, eps = (torch.tensor([v], dtype=torch.float64) for v in (0.3, -0.5, 0.8))
    ratio = s.alpha / t.alpha
    deviation = (s.sigma**2 - ratio**2 * t.sigma**2).sqrt()
    ahead, drawn = (torch.distributions.Normal(ratio * (t.alpha * v + t.sigma * eps), deviation) for v in (x0, other))
    exact = torch.distributions.kl_divergence(drawn, ahead)
    torch.testing.assert_close(step_divergence(s, t) * (x0 - other) ** 2, exact, rtol=1e-10, atol=0)


def test_pure_noise_has_nothing_to_reconstruct():
    noise, below = (NoiseLevel(*(torch.tensor([float(v)]) for v in level)) for level in ((1, 0, 1), (0.75, 0.25, 0.75)))
    assert step_divergence(noise, below).item() == 0


@pytest.mark.parametrize(("network", "path", "kind"), [("dit", FLOW, "flow"), ("uvit", VP, "v")])
def test_losses_are_their_formulas(network, path, kind):
    teacher = tiny_teacher(network, path, kind)
    objective = ufogen(teacher, nn.Identity(), start="teacher", weight="snr", reconstruction_weight=0.7, noisiest_share=0.5)
    student = randomise(objective.roles["student"].network, 3)
    judge = randomise(objective.roles["discriminator"].network, 4)
    batch, models = latents(), models_of(objective)
    draws = Draws(0, batch.index, "student")
    at = objective.pair(batch, draws)
    noisiest = draws.uniform("noisiest") < 0.5
    assert 0 < noisiest.sum() < 4 and (at.s.t[noisiest] == teacher.path.t_noise).all()
    least = first_clock(teacher.path)
    torch.testing.assert_close(at.t.t, (at.s.t - 0.25 * teacher.path.t_noise).clamp(min=float(least)))
    x0 = objective.predict(student, at.x_s, at.s, at.condition).x0
    logits = {}
    for name, clean in (("real", batch.latents), ("fake", x0)):
        x_t = at.t.mix(clean, draws.normal(name, (2, 4, 4)))
        called = {}

        def network_of(x, time, condition, context, called=called):
            called["raw"] = judge.network(x, time, condition, context)
            return called["raw"]

        teacher.denoiser(network_of)(x_t, at.t, at.condition, Context())
        weight, bias = judge.read.weight[0, :, 0, 0], judge.read.bias
        logits[name] = torch.einsum("bchw,c->bhw", called["raw"], weight) + bias
    found, _ = objective.loss(JUDGE, models, batch, draws, 0)
    expected = F.softplus(-logits["real"]).mean() + F.softplus(logits["fake"]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    snr = ((at.s.alpha / at.s.sigma) ** 2).clamp(max=5).float()
    reconstruction = (snr * (x0 - batch.latents).square().mean((1, 2, 3))).mean()
    found, _ = objective.loss(STUDENT, models, batch, draws, 0)
    torch.testing.assert_close(found, F.softplus(-logits["fake"]).mean() + 0.7 * reconstruction, rtol=1e-4, atol=1e-6)


def test_one_step_is_what_the_result_draws_in():
    objective = ufogen(tiny_teacher(), nn.Identity(), start="teacher")
    assert objective.defaults().num_inference_steps == 1 and objective.defaults().sampler == "lcm"
    assert len(objective.cuts.t) == 5
