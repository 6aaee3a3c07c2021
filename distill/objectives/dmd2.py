"""Distribution matching distillation (DMD2): the student's pictures are to be distributed as the guided teacher's.

The gradient of the Kullback-Leibler divergence between the two, at some noise level, is the difference of their scores: the
teacher knows its own, and a second network, the critic, is trained all along to denoise what the student draws. Heads on the
critic's pooled tokens tell the student's pictures from the data, which corrects what the teacher itself gets wrong. No picture
of the teacher's is ever made, so the student is not bound to its trajectories.

Sources: arXiv 2405.14867 (DMD2), sections 4.2 to 4.5; the gradient and its weight, arXiv 2311.18828, equations 7 and 8. With a
LoRA student the critic is a LoRA too, as in variational score distillation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses.adversarial import AdversarialLossConfig, relativistic, squared_gradients, weighted_penalties
from distill.losses.levels import TimeConfig, draw_levels
from distill.networks.discriminator import (
    PooledHeads,
    allow_second_gradients,
    block_features,
    hook_of,
    quarter_blocks,
    record_features,
)
from distill.networks.lora.overlay import LoraConfig, LoraNetwork
from distill.objectives.bases.student import Places
from distill.objectives.bases.student_network import copy_weights, freeze_unread, like_teacher
from distill.objectives.bases.student_rollout import RolloutConfig, RolloutObjective, twofold
from distill.objectives.bases.teacher import Scale, predict_guided
from distill.parallel.shards import detached_weights, unwrap
from distill.types import Batch, Draws, Phase, Role
from samplers.denoiser import CLOCKS, Condition, Context
from samplers.guidance.two_branch import Guided
from samplers.hooks import check_reached
from samplers.path import NoiseLevel, expand
from samplers.prediction import Prediction

if TYPE_CHECKING:
    from distill.data.source import Source


class DistributionMatchingConfig(RolloutConfig, AdversarialLossConfig):
    """time, range: the levels at which distributions are compared and real is told from drawn, and (low, high), the shares of
    the clock that they are kept between; little noise judges details, much of it the whole.
    distribution_weight, adversarial_weight: of the student's two losses; discriminator_weight: of telling real from drawn in
    the critic's, 0 (as with adversarial_weight) for no heads. blocks: those of the critic whose tokens the heads read (none
    given: a quarter, half and three quarters of the way through, and the last). weight, max_weight: of the critic's denoising
    error. heads_rate: the heads' learning rate over the critic's. critic_warmup: steps in which the critic alone trains. The
    critic's updates per student's are `roles.student.every`.
    """

    time: TimeConfig = TimeConfig(type="uniform")
    range: tuple[float, float] = (0.02, 0.98)
    distribution_weight: float = Field(default=1.0, ge=0)
    adversarial_weight: float = Field(default=5e-3, ge=0)
    discriminator_weight: float = Field(default=1e-2, ge=0)
    blocks: tuple[int, ...] = ()
    weight: losses.Weight = "snr"
    max_weight: float = Field(default=5.0, gt=0)
    heads_rate: float = Field(default=1.0, gt=0)
    critic_warmup: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> DistributionMatchingConfig:
        low, high = self.range
        if not 0 < low < high <= 1:
            raise ValueError(f"range {self.range} must rise within 0 and 1, and 0 itself, clean data, has no score")
        if (self.adversarial_weight > 0) != (self.discriminator_weight > 0):
            raise ValueError(
                f"adversarial_weight {self.adversarial_weight} and discriminator_weight {self.discriminator_weight}: a "
                "discriminator serves only where both are above 0, so give both or neither"
            )
        return self


@dataclass(frozen=True)
class Compared:
    """What the two networks say of the student's pictures x0 (B, ...), noised at a level.

    noised: x0 with the noise. fake: the critic's denoised mean, detached. real: the teacher's, guided, and without guidance as
    `real.cond`. logits: (B, N) of the discriminator, above 0 for real.
    """

    x0: Tensor
    noised: Tensor
    level: NoiseLevel
    condition: Condition
    scale: Scale
    fake: Tensor
    real: Guided
    logits: Tensor


class Critic(nn.Module):
    """A denoiser's network and heads on its tokens: called as the network is, it returns (what that returns, logits (B, N))."""

    def __init__(self, network: nn.Module, heads: nn.Module | None, blocks: Sequence[int], heads_rate: float = 1.0):
        super().__init__()
        self.network, self.heads, self.blocks, self.heads_rate = network, heads, blocks, heads_rate

    @property
    def rates(self) -> dict[str, float]:
        """Learning rates of parameters over the optimiser's."""
        return {name: self.heads_rate for name, _ in self.named_parameters() if name.startswith("heads.")}

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context) -> tuple[Tensor, Tensor]:
        if self.heads is None:
            return self.network(x, time, condition, context), x.new_zeros(len(x), 0)
        context, found = record_features(context, self.blocks, self.network, x)
        raw = self.network(x, time, condition, context)
        check_reached(context, hook_of(self.network), "The discriminator")
        return raw, self.heads([found[index] for index in self.blocks], time)


class DistributionMatchingObjective(RolloutObjective):
    """See the module. Roles `student` and `critic` train, each in its phase."""

    config: DistributionMatchingConfig
    source: ClassVar[str] = "arXiv 2405.14867"
    critic_guidance: float = 1.0  # under which the critic trains

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        critic = self._critic()
        if isinstance(critic.heads, PooledHeads) and source is not None:
            self._standardize(critic, source)
        self.roles["critic"] = Role(critic, ema=False, second_order=config.penalised)
        if config.penalised:
            allow_second_gradients(critic.network)

    @property
    def critic_lora(self) -> LoraConfig | None:
        """The critic is a LoRA on the teacher, of these sizes; None: a network of its own."""
        return self.config.lora

    def _critic(self) -> Critic:
        config, teacher = self.config, self.teacher.network
        if self.critic_lora is not None:
            network: nn.Module = LoraNetwork(teacher, self.critic_lora)
        else:
            network = like_teacher(self.teacher, ("guidance",) if config.embed_guidance else ())
            copy_weights(teacher, network)
            freeze_unread(network)
        heads, blocks = self._heads() if config.adversarial_weight else (None, ())
        return Critic(network, heads, blocks, config.heads_rate)

    def _heads(self) -> tuple[nn.Module, tuple[int, ...]]:
        """(what tells data from drawings by the critic's tokens, the blocks after which it reads them)."""
        blocks, widths = self.read(quarter_blocks)
        return PooledHeads(widths), blocks

    def read(self, places: Places) -> tuple[tuple[int, ...], list[int]]:
        """(the blocks of the critic that are read, the width of each); of a U-Net the middle, as published."""
        blocks, widths = self.judged_blocks(self.config.blocks, places)
        unet = hook_of(self.teacher.network) == "map"
        return (blocks[-1:], widths[-1:]) if unet and not self.config.blocks else (blocks, widths)

    @torch.no_grad()
    def _standardize(self, critic: Critic, source: Source, count: int = 64) -> None:
        """Show the heads the first samples of the data as they will see them, at rising levels."""
        assert isinstance(critic.heads, PooledHeads)
        batch = source.batch(range(count))
        draws, x0 = Draws(0, batch.index, "heads"), self.clean(batch)
        condition, noise = self.condition(batch, x0.device), draws.normal_like("noise", x0)
        drawn = self.compared(Draws(0, torch.arange(1024), "heads"), x0.device)
        knots, denoiser = len(critic.heads.times), self.teacher.denoiser(self.teacher.network, self.dtype)
        for knot, t in enumerate(drawn.t.quantile(torch.linspace(0, 1, knots, dtype=torch.float64))):
            level = self.path(t.expand(count))
            features = block_features(denoiser, level.mix(x0, noise), level, condition, critic.blocks)
            critic.heads.standardize(knot, float(CLOCKS[denoiser.clock](level, self.path)[0]), features)

    def clean(self, batch: Batch) -> Tensor:
        """As of any student; of prompts alone, where pictures of the data are neither noised nor judged, zeros."""
        reads_none = self.config.inputs == "simulated" and not self.config.adversarial_weight
        if reads_none and batch.latents is None and batch.images is None:
            return self.teacher.blank(batch)
        return super().clean(batch)

    def phases(self, step: int) -> tuple[Phase, ...]:
        critic = Phase("critic", "critic")
        return (critic,) if step < self.config.critic_warmup else (Phase("student", "student"), critic)

    def judge(
        self,
        critic: Any,
        x: Tensor,
        level: NoiseLevel,
        condition: Condition,
        scale: Scale,
        guidance: Scale = 1.0,
        interval: tuple[float, float] | None = None,
    ) -> tuple[Prediction, Tensor]:
        """(the critic's prediction at x, its logits (B, N): above 0 for real). guidance: scale of the critic's own guidance;
        interval: (low, high) of log-SNR in which it acts, None: everywhere."""
        logits: list[Tensor] = []

        def network(*args: Any) -> Tensor:
            raw, found = critic(*args)
            logits.append(found)
            return raw

        dtype = self.dtype if self.critic_lora is not None else None
        denoiser = self.teacher.denoiser(network, dtype, self.roles["critic"].network)  # type: ignore[arg-type]
        prediction = predict_guided(denoiser, x, level, self.with_guidance(condition, scale, x), guidance, interval)
        return prediction, logits[0][: len(x)]  # of the branch that has the condition

    def compared(self, draws: Draws, device: torch.device, step: int = 0) -> NoiseLevel:
        """The levels (B,) at which distributions are compared."""
        return self.within(self.config.time, draws, device)

    def within(self, time: TimeConfig, draws: Draws, device: torch.device) -> NoiseLevel:
        """Levels (B,) of a distribution, kept within the range."""
        low, high = (share * self.path.t_noise for share in self.config.range)
        return self.path(draw_levels(time, self.path, draws, device).t.double().clamp(low, high))

    def trained(self, draws: Draws, device: torch.device, step: int = 0) -> NoiseLevel:
        """The levels (B,) at which the critic trains."""
        return self.compared(draws, device, step)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if phase.name == "critic":
            return self.critic_loss(models, batch, draws, step)
        x0, data, condition, scale = self.rollout(models["student"], batch, draws)
        level = self.compared(draws, x0.device, step)
        x_t = level.mix(x0, draws.normal_like("noise", x0))
        critic = detached_weights(models["critic"])
        fake, logits = self.judge(critic, x_t, level, condition, scale)
        real = self.judged_real(models, x_t.detach(), level, condition, scale, step)
        seen = Compared(x0, x_t, level, condition, scale, fake.x0.detach(), real, logits)
        total = self.config.distribution_weight * self.matched(models, seen, draws).mean()
        logged = {"score_gap": (fake.x0 - real.x0).detach().abs().mean()}
        if self.config.adversarial_weight:
            ahead = self.ahead(critic, logits, data, level, condition, scale, draws)
            adversarial = F.softplus(-ahead).mean()  # arXiv 2405.14867, section 4.3
            total = total + self.config.adversarial_weight * adversarial
            logged["adversarial"] = adversarial.detach()
        loss, more = self.beside(x0, batch, step)
        return total + loss, logged | more

    def ahead(
        self, critic: Any, logits: Tensor, data: Tensor, level: NoiseLevel, condition: Condition, scale: Scale, draws: Draws
    ) -> Tensor:
        """How real (B, N) drawings with these logits are judged to be: as they are or, in pairs, more than noised data."""
        if not self.config.relativistic:
            return logits
        with torch.no_grad():
            z_t = level.mix(data, draws.normal_like("real noise", data))
            _, on_real = self.judge(critic, z_t, level, condition, scale)
        return logits - on_real

    def judged_real(
        self, models: Mapping[str, nn.Module], x_t: Tensor, level: NoiseLevel, condition: Condition, scale: Scale, step: int
    ) -> Guided:
        """What the distribution to be matched has at x_t: the guided teacher's prediction. No gradients."""
        return self.teacher_predict(models, x_t, level, condition, scale)

    def beside(self, x0: Tensor, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """A loss of the student's pictures x0 themselves beside the matching, and what to log."""
        return x0.new_zeros(()), {}

    def matched(self, models: Mapping[str, nn.Module], seen: Compared, draws: Draws) -> Tensor:
        """(B,): what moves each picture towards the teacher's distribution."""
        return matching(seen.x0, seen.fake, seen.real.x0)

    def critic_loss(
        self, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """To denoise what the student draws and, of drawings and data noised alike, to tell which is which: one call."""
        with torch.no_grad():
            x0, data, condition, scale = self.rollout(unwrap(models["student"]), batch, draws)
        level = self.trained(draws, x0.device, step)
        x_t = level.mix(x0, draws.normal_like("noise", x0))
        if not self.config.adversarial_weight:
            fake, _ = self.judge(models["critic"], x_t, level, condition, scale, self.critic_guidance)
            return self.denoising(fake.x0, x0, level)
        z_t = level.mix(data, draws.normal_like("real noise", x0))
        both, conditions, twice = self.path(twofold(level.t)), condition.map(twofold), twofold(scale)
        penalised = self.config.penalised and torch.is_grad_enabled()
        x_both = torch.cat([x_t, z_t]).requires_grad_(penalised)
        prediction, logits = self.judge(models["critic"], x_both, both, conditions, twice, self.critic_guidance)
        on_fake, on_real = logits.chunk(2)
        loss_disc = self.told_apart(on_fake, on_real, level)
        total, logged = self.denoising(prediction.x0.chunk(2)[0], x0, level)
        logged |= {"real": on_real.detach().mean(), "fake": on_fake.detach().mean(), "loss_disc": loss_disc.detach()}
        if penalised:
            at_fake, at_real = squared_gradients(logits.mean(1), [x_both]).chunk(2)
            penalty, more = weighted_penalties(self.config, at_real, at_fake)
            loss_disc, logged = loss_disc + penalty, logged | more
        return total + self.config.discriminator_weight * loss_disc, logged

    def told_apart(self, on_fake: Tensor, on_real: Tensor, level: NoiseLevel) -> Tensor:
        """The discriminator's loss of logits (B, N) on drawings and on data at their levels."""
        if self.config.relativistic:
            return relativistic(on_real, on_fake).mean()
        return F.softplus(on_fake).mean() + F.softplus(-on_real).mean()

    def denoising(self, found: Tensor, x0: Tensor, level: NoiseLevel) -> tuple[Tensor, dict[str, Tensor]]:
        weight = losses.level_weight(self.config.weight, level, self.config.max_weight)
        return losses.average(losses.squared(found, x0), weight)


def matching(x0: Tensor, fake: Tensor, real: Tensor) -> Tensor:
    """(B,) whose gradient in x0 (B, ...) is, up to 1 / numel, (fake - real) / mean |x0 - real|: the difference of the two
    distributions' denoised means at a noised x0, over how far the true one is, so that all levels count alike."""
    # arXiv 2311.18828, equation 8: the weight; equation 7: the difference of scores, here of denoised means
    return losses.along(x0, (fake - real) / expand(how_far(x0, real), x0))


@torch.no_grad()
def how_far(x0: Tensor, real: Tensor) -> Tensor:
    """(B,): the mean over pixels of |x0 - real|, at least 1e-8; no gradients."""
    return (x0 - real).abs().flatten(1).mean(1).clamp(min=1e-8)
