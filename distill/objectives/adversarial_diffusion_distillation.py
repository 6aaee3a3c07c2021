"""Adversarial diffusion distillation (ADD): one to four steps, pictures judged by the features of a pretrained network.

The student's clean image, decoded, must look real to small heads on the feature maps of a frozen network of pictures; and the
guided teacher, given the student's image with noise added, must arrive at the same image. The heads are told what the prompt
says and, where the student starts from noised data, what the data's picture shows, so that it must make use of what it is
given.

Source: arXiv 2311.17042, section 3.2: equations 1 to 4, with losses and penalties summed over heads, each a mean over the
places of its map; the heads' penalty on the gradient at real pictures; the weighting c(t) = alpha_t. Their features are
DINOv2's. The real pictures here are decoded from latents too, so that the heads do not learn to tell a decoder's work from a
camera's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses.adversarial import AdversarialLossConfig, relativistic, squared_gradients, weighted_penalties
from distill.networks.discriminator import loss_with_logs, prompt_vector, start_weights
from distill.networks.feature_maps import load_feature_maps
from distill.objectives.bases.student_rollout import RolloutConfig, RolloutObjective, twofold
from distill.parallel.shards import detached_weights, unwrap
from distill.types import Batch, Draws, Phase, Role


class AdversarialDiffusionConfig(RolloutConfig, AdversarialLossConfig):
    """features: the network whose feature maps are judged (distill/networks/feature_maps.py). distillation_weight: of the
    teacher's share of the student's loss, beside 1 of the adversarial. penalty: of the squared gradient of the heads at real
    features, each head's on its own; `gradient_penalties` are of the sum over heads, at features too. hidden: channels of a
    head."""

    features: str = "evaluator"
    distillation_weight: float = Field(default=2.5, ge=0)
    penalty: float = Field(default=1e-5, ge=0)
    hidden: int = Field(default=64, gt=0)


class MapHeads(nn.Module):
    """Per feature map (B, C, h, w), a small convolutional network that judges every place; where prompts or pictures have a
    width, it also asks how well the place fits the vectors (B, P) and (B, E), by projections (arXiv 1802.05637). -> logits,
    one (B, h w) for each map."""

    def __init__(self, widths: Sequence[int], hidden: int, prompt: int = 0, picture: int = 0):
        super().__init__()
        self.bodies = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, hidden, 1), nn.GroupNorm(1, hidden), nn.LeakyReLU(0.2),
                nn.Conv2d(hidden, hidden, 3, padding=1), nn.GroupNorm(1, hidden), nn.LeakyReLU(0.2),
            )
            for width in widths
        )  # fmt: skip
        self.tails = nn.ModuleList(nn.Conv2d(hidden, 1, 1) for _ in widths)
        self.prompts = nn.ModuleList(nn.Linear(prompt, hidden, bias=False) for _ in widths) if prompt else None
        self.pictures = nn.ModuleList(nn.Linear(picture, hidden, bias=False) for _ in widths) if picture else None
        start_weights(self)

    def forward(self, maps: Sequence[Tensor], prompt: Tensor | None = None, picture: Tensor | None = None) -> list[Tensor]:
        found = []
        for number, (x, body, tail) in enumerate(zip(maps, self.bodies, self.tails, strict=True)):
            h = body(x)
            logits = tail(h).flatten(1).float()
            for projections, vector in ((self.prompts, prompt), (self.pictures, picture)):
                if projections is not None and vector is not None:
                    wanted = projections[number](vector)
                    fit = torch.einsum("bchw,bc->bhw", h.float(), wanted.float())
                    logits = logits + fit.flatten(1) / h.shape[1] ** 0.5
            found.append(logits)
        return found


class AdversarialDiffusionObjective(RolloutObjective):
    """See the module. Roles `student` and `discriminator` train."""

    config: AdversarialDiffusionConfig
    source: ClassVar[str] = "arXiv 2311.17042"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.maps = load_feature_maps(config.features)
        self.teacher.check_draws_pictures("adversarial_consistency")
        prompt = prompt_vector(self.teacher.empty_condition())
        # a student that starts from pure noise, or from what it drew itself, was told nothing of the data's picture
        self.shows_picture = config.inputs == "data" and config.steps > 1 and config.noisiest_share < 1
        picture = self.maps.embedding if self.shows_picture else 0
        heads = MapHeads(self.maps.widths, config.hidden, 0 if prompt is None else prompt.shape[1], picture)
        self.roles["discriminator"] = Role(heads, ema=False, second_order=config.penalty > 0 or config.penalised)

    # ---- what is judged ----

    def features(self, x0: Tensor) -> list[Tensor]:
        """Feature maps of the pictures of x0 (B, C, h, w), differentiable in it."""
        return self.maps.see(self.decode(x0))

    @torch.no_grad()
    def picture(self, real: Tensor, draws: Draws) -> Tensor | None:
        """What the data's pictures show (B, E), zero for samples that start from pure noise; None where no sample was told."""
        if not self.shows_picture:
            return None
        informative = self.start(draws, real.device) < self.levels.steps
        return self.maps.embed(self.decode(real)) * informative[:, None]

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase.name == "discriminator":
            return self.discriminator_loss(models, batch, draws)
        x0, real, condition, scale = self.rollout(models["student"], batch, draws)
        conditions = prompt_vector(condition), self.picture(real, draws)
        adversarial = self.fooling(detached_weights(models["discriminator"]), x0, real, conditions)
        level = self.path(draws.uniform("level", device=x0.device).double() * self.path.t_noise)
        x_t = level.mix(x0.detach(), draws.normal_like("noise", x0))
        error = losses.squared(x0, self.teacher_predict(models, x_t, level, condition, scale).x0)
        # equation 4, with c(t) = alpha_t
        distillation = (level.alpha.to(error) * error).mean()
        logged = {"adversarial": adversarial.detach(), "distillation": distillation.detach()}
        # equation 1
        return adversarial + self.config.distillation_weight * distillation, logged

    def fooling(
        self, heads: Callable[..., Any], x0: Tensor, real: Tensor, conditions: tuple[Tensor | None, Tensor | None]
    ) -> Tensor:
        """The student's adversarial loss for its x0: by itself or, in pairs, beside the data's."""
        on_fake = heads(self.features(x0), *conditions)
        if not self.config.relativistic:
            return -over_heads(on_fake)  # arXiv 2311.17042, equation 2
        with torch.no_grad():
            on_real = heads(self.features(real), *conditions)
        return over_heads([relativistic(fake, true) for fake, true in zip(on_fake, on_real, strict=True)])

    def discriminator_loss(
        self, models: Mapping[str, nn.Module], batch: Batch, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            x0, real, condition, _ = self.rollout(unwrap(models["student"]), batch, draws)
            maps, count = self.features(torch.cat([real, x0])), len(x0)
        second = self.roles["discriminator"].second_order
        maps = [x.float().requires_grad_(second) for x in maps]
        conditions = twofold(prompt_vector(condition)), twofold(self.picture(real, draws))
        heads = models["discriminator"](maps, *conditions)
        # arXiv 2311.17042, equation 3: the hinge loss of every head, and the penalty on its gradient at real pictures
        judged = [loss_with_logs(self.config, logits[:count], logits[count:]) for logits in heads]
        total = torch.stack([loss for loss, _ in judged]).sum()
        logged = {name: torch.stack([values[name] for _, values in judged]).mean() for name in judged[0][1]}
        if self.config.penalty:
            on_real = sum(logits[:count].mean(1) for logits in heads)
            gradients = torch.autograd.grad(on_real.sum(), maps, create_graph=True)
            penalty: Any = sum(g[:count].float().square().flatten(1).sum(1).mean() for g in gradients)
            total = total + self.config.penalty * penalty
            logged["penalty"] = penalty.detach()
        if self.config.penalised:
            scores = torch.stack([logits.mean(1) for logits in heads]).sum(0)
            both, more = weighted_penalties(self.config, *squared_gradients(scores, maps).chunk(2))
            total, logged = total + both, logged | more
        return total, logged


def over_heads(logits: Sequence[Tensor]) -> Tensor:
    """The sum over heads of the mean of each."""
    return torch.stack([one.mean() for one in logits]).sum()
