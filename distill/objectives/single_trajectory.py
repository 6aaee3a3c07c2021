"""Single trajectory distillation (STD): trajectory consistency for students that edit pictures which are partly noise.

Training starts at the noise that editing starts at (`start_at`), goes to levels not far below (`reach`), and follows one
trajectory of the teacher on from step to step: a bank keeps the point that each sample's teacher came to, and a share of the
next steps go on from there, so that the student is taught on the points that it will meet, not on noised data alone. An
asymmetric adversarial loss judges the student's x_s beside data at less noise, x_r, so that s may stay noisy and detail comes
out sharp.

Source: arXiv 2412.18945, section 3. As to its repository: the bank there is drawn from a generator without a seed, is
not saved and drops what comes while it is full; here it is a function of the run's seed and counters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.adversarial import AdversarialLossConfig
from distill.losses.levels import draw_index
from distill.losses.solver_steps import LevelTable, ddim
from distill.networks.discriminator import Noised, quarter_blocks
from distill.objectives.bases.feature_judge import FeatureJudge
from distill.objectives.bases.teacher import Scale
from distill.objectives.bases.trajectory_bank import TrajectoryBank
from distill.objectives.trajectory_consistency import TrajectoryConsistencyConfig, TrajectoryConsistencyObjective
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition
from samplers.path import NoiseLevel, expand


class SingleTrajectoryConfig(TrajectoryConsistencyConfig, AdversarialLossConfig):
    """bank_share: how often a sample goes on from its slot's point, where there is one, 0 for no bank; slots: of the bank, a
    multiple of the batch size. adversarial_weight: of the student's share of the hinge loss, 0 for none; blocks: those of the
    teacher whose tokens are judged. asymmetry: data are judged at this share of the number of the student's level."""

    start_at: float = Field(default=0.75, gt=0, le=1)
    reach: float = Field(default=0.3, gt=0, le=1)
    target_ema: float | None = Field(default=None, ge=0, lt=1)
    bank_share: float = Field(default=0.7, ge=0, lt=1)
    slots: int = Field(default=64, gt=0)
    adversarial_weight: float = Field(default=0.5, ge=0)
    blocks: tuple[int, ...] = ()
    asymmetry: float = Field(default=0.5, ge=0, lt=1)


class Jump(NamedTuple):
    """Where the student's step of a batch begins and ends: clean data and the point at t; the numbers of t and of the end on
    the ladder (B,); the condition, its scale, and the counters (B,) of the samples whose trajectories they are."""

    x0: Tensor
    z_t: Tensor
    t: Tensor
    end: Tensor
    condition: Condition
    scale: Scale
    counter: Tensor


class SingleTrajectoryObjective(FeatureJudge, TrajectoryConsistencyObjective):
    """See the module. Role `discriminator` beside the student's, where it has weight."""

    config: SingleTrajectoryConfig
    source: ClassVar[str] = "arXiv 2412.18945"

    def __init__(self, config: Any, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        self.data, self.bank = source, None
        if config.bank_share:
            if source is None:
                raise ValueError("The bank asks the data for earlier samples; give a data section, or bank_share: 0.")
            self.bank = TrajectoryBank(config.slots, tuple(self.clean(source.batch(range(1))).shape[1:]))
        if config.adversarial_weight:
            self.add_discriminator(quarter_blocks)

    # ---- the point that a step begins at ----

    def jump(self, batch: Batch, draws: Draws) -> Jump:
        """Of each sample a new trajectory, or the one of its slot, which is another sample's."""
        device, own = self.clean(batch).device, batch.index
        ladder = self.teacher_levels.to(device)
        goes_on, number, latent = self.found(draws, own, device)
        counter = own.clone()
        if self.bank is not None and bool(goes_on.any()):
            counter = torch.where(goes_on.cpu(), self.bank.find(own)[0].cpu(), own.cpu())
            batch = replace(self.data.batch(counter), index=counter).to(device)
        its = Draws(draws.seed, counter, draws.phase)
        x0 = self.clean(batch)
        condition, scale = self.condition(batch, device, its), self.scale(its, device)
        first = draw_index(its, "step", max(round(self.config.start_at * ladder.steps), 1), device) + 1
        t = torch.where(goes_on, number, first)
        z_t = torch.where(expand(goes_on.to(x0), x0) != 0, latent.to(x0), ladder[t].mix(x0, its.normal_like("eps", x0)))
        return Jump(x0, z_t, t, self.ends(draws, t, ladder), condition, scale, counter)

    def found(self, draws: Draws, own: Tensor, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """(which samples go on from their slots (B,), the numbers and the latents there)."""
        if self.bank is None or not torch.is_grad_enabled():  # a measurement is of its own samples
            return (
                torch.zeros(len(own), dtype=torch.bool, device=device),
                torch.zeros_like(own, device=device),
                own.new_zeros(()),
            )
        _, number, latent = self.bank.to(device).find(own)
        return (draws.uniform("bank", device=device) < self.config.bank_share) & (number > 0), number, latent

    def ends(self, draws: Draws, t: Tensor, ladder: LevelTable) -> Tensor:
        """The number of the level s (B,) that the student goes to: at least one below t, at most `reach` of the ladder."""
        lowest = (t - max(round(self.config.reach * ladder.steps), 1)).clamp(min=0)
        share = draws.uniform("end", device=t.device).double()
        return torch.minimum(lowest + (share * (t - lowest)).long(), t - 1)

    # ---- losses ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        own = Draws(draws.seed, draws.index, "student")  # both phases see the same points
        at, ladder = self.jump(batch, own), self.teacher_levels.to(self.clean(batch).device)
        t, s, e = ladder[at.t], ladder[at.t - 1], ladder[at.end]
        if phase.name == "discriminator":
            with torch.no_grad():
                mine = ddim(self.predict(unwrap(models["student"]), at.z_t, t, at.condition, at.scale).x0, at.z_t, t, e)
            return self.discriminator_loss(models, mine, at, ladder, draws)
        z_s = self.teacher_step(models, at.z_t, t, s, at.condition, at.scale)
        if self.bank is not None and torch.is_grad_enabled():  # a measurement leaves it as it is
            self.bank.remember(batch.index, at.counter, at.t - 1, z_s)
        mine = ddim(self.predict(models["student"], at.z_t, t, at.condition, at.scale).x0, at.z_t, t, e)
        total, logged = self.error(mine, self.onward(models, z_s, at.t - 1, at.end, ladder, at.condition, at.scale), t)
        if not self.config.adversarial_weight:
            return total, logged
        drawn = self.shown(mine, at.end, ladder, draws, "fake")
        adversarial = self.fooling(models, lambda: self.shown_data(at, ladder, draws), drawn, at.condition)
        return total + self.config.adversarial_weight * adversarial, {**logged, "adversarial": adversarial.detach()}

    def judged_level(self, number: Tensor, ladder: LevelTable) -> NoiseLevel:
        """The level of a number, or the first with noise: networks are not asked about clean data."""
        return ladder[number.clamp(min=1)]

    def shown(self, x: Tensor, number: Tensor, ladder: LevelTable, draws: Draws, name: str) -> Noised:
        """x at the level of a number, as it is; clean x at the first level with noise."""
        level = self.judged_level(number, ladder)
        noised = level.mix(x, draws.normal_like(name, x))
        return Noised(torch.where(expand((number == 0).to(x), x) != 0, noised, x), level)

    def shown_data(self, at: Jump, ladder: LevelTable, draws: Draws) -> Noised:
        """Data x_r at less noise than the student's x_s: r = asymmetry s."""
        r = (self.config.asymmetry * at.end).long()
        x_r = ladder[r].mix(at.x0, draws.normal_like("real eps", at.x0))
        return self.shown(x_r, r, ladder, draws, "real")

    def discriminator_loss(
        self, models: Mapping[str, nn.Module], mine: Tensor, at: Jump, ladder: LevelTable, draws: Draws
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """To tell the student's x_s from data x_r at less noise."""
        drawn = self.shown(mine, at.end, ladder, draws, "fake")
        return self.told_apart(models, self.shown_data(at, ladder, draws), drawn, at.condition)

    # ---- the bank ----

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if self.bank is not None:
            self.bank.learn()

    def kept(self) -> dict[str, nn.Module]:
        return super().kept() if self.bank is None else {**super().kept(), "bank": self.bank}
