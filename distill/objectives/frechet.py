"""Fréchet distance as a loss: what the student draws is to be distributed as the data, in the eyes of frozen networks.

The student's features, remembered over many batches, and the data's are fitted by Gaussians; every sample of a batch is drawn
towards where the optimal transport map between the two takes it, which is the gradient of the Fréchet distance of the whole
population (distill/networks/feature_moments.py). Beside it stands the loss of a latent consistency model, which ties a picture
to its prompt and its noise; without it (consistency_weight 0) no teacher is asked anything. There is no discriminator to train
or to lose to.

A population lags behind the student: far from the data the loss must not outweigh the one beside it, or a run diverges.

A network that pictures are then measured by is flattered: measure by another. Several may be matched at once, of which the
frozen teacher itself is one that sees latents at their full resolution.

Only what the student draws from pure noise, in one step, is matched: where it starts from noised data its pictures are nearly
the data's, and what pushed them there would push again at every step of several.

Sources: arXiv 2604.28190 (the loss, decoupled populations, several representations); arXiv 2310.04378 (the loss beside it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from tqdm import tqdm

from distill.networks.feature_moments import Population
from distill.objectives.bases.representations import TEACHER, Representations
from distill.objectives.latent_consistency import LatentConsistencyConfig, LatentConsistencyObjective
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition


class FrechetConfig(LatentConsistencyConfig):
    """representations: the networks in whose features distributions are matched: those of distill/networks/features.py, and
    `teacher`, the mean and deviation over places of its tokens after `block` (none given: half way through) at sigma / alpha =
    e^judged, each brought to the data's deviation. frechet_weight: of the mean over networks of the Fréchet distance. balance:
    `variance`, as a share of the data's variance, or `own`, each over its own present value, so that a network counts alike
    however far its distance has come down. consistency_weight: of the latent consistency loss. population: how many of the
    samples drawn from the noisiest level are remembered; no map is used before as many were drawn. reference: how many samples
    of the data are looked at, once. refresh: steps between maps. shrinkage: see `Population`. noisiest_share: of the samples
    that start at the noisiest level."""

    representations: tuple[str, ...] = Field(default=("evaluator",), min_length=1)
    frechet_weight: float = Field(default=1.0, gt=0)
    balance: Literal["variance", "own"] = "variance"
    consistency_weight: float = Field(default=1.0, ge=0)
    population: int = Field(default=2048, gt=1)
    reference: int = Field(default=4096, gt=1)
    refresh: int = Field(default=8, gt=0)
    shrinkage: float = Field(default=0.01, ge=0)
    judged: float = Field(default=-2.0, ge=-10, le=10)
    block: int | None = Field(default=None, ge=0)
    noisiest_share: float = Field(default=0.5, ge=0, le=1)


class FrechetObjective(LatentConsistencyObjective):
    """See the module."""

    config: FrechetConfig
    source: ClassVar[str] = "arXiv 2604.28190"

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        if source is None:
            raise ValueError("Fréchet training compares pictures with the data's; give a data section.")
        self.represent = Representations(self, config.representations, config.block, config.judged)
        self.of = self._populations(source)

    # ---- the data ----

    @torch.no_grad()
    def _populations(self, source: Any, size: int = 32) -> dict[str, Population]:
        config = self.config
        found: dict[str, list[Tensor]] = {name: [] for name in self.represent.names}
        for start in tqdm(range(0, config.reference, size), desc="features of the data", unit="batch"):
            batch = source.batch(range(start, min(start + size, config.reference)))
            draws, x0 = Draws(0, batch.index, "reference"), self.clean(batch)
            condition, noise = self.condition(batch, x0.device), draws.normal_like("noise", x0)
            for name, features in self.represent(x0, condition, noise).items():
                found[name].append(features)
        return {
            name: Population(torch.cat(parts), config.population, config.shrinkage, unit=name.startswith(TEACHER))
            for name, parts in found.items()
        }

    # ---- the loss ----

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        z_t, i, condition, scale = self.noised(batch, draws)
        if config.consistency_weight:
            prediction, total, logged = self.consistency(models, z_t, i, condition, scale)
        else:
            level = self.teacher_levels.to(z_t.device)[i + 1]
            prediction, total, logged = self.predict(models["student"], z_t, level, condition, scale), z_t.new_zeros(()), {}
        frechet, apart = self.frechet(prediction.x0, i + 1 == self.teacher_levels.steps, condition, draws)
        return config.consistency_weight * total + config.frechet_weight * frechet, {**logged, **apart}

    def frechet(self, x0: Tensor, drawn: Tensor, condition: Condition, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        """(the loss of those rows (B,) that are drawn from pure noise, what to log)."""
        noise = draws.normal_like("noise", x0)
        logged: dict[str, Tensor] = {}
        if not drawn.any():
            return 0 * x0.sum(), logged  # with a gradient: nothing else may have one
        errors = []
        for name, features in self.represent(x0[drawn], condition[drawn], noise[drawn]).items():
            population = self.of[name].to(x0.device)
            if torch.is_grad_enabled():  # a measurement leaves it as it is
                population.drawn(features)
            error = population.error(features).mean()
            if self.config.balance == "own" and population.known:
                # arXiv 2604.28190: FD / sg(FD) of every representation, whose gradient is that of log FD
                error = error / (population.apart / population.total + 0.01)
            errors.append(error)
            if population.known:
                logged[f"frechet_{name}"] = population.apart / population.total
        return torch.stack(errors).mean().to(x0), logged

    def after_step(self, step: int) -> None:
        super().after_step(step)
        for population in self.of.values():
            population.learn()
            if (step + 1) % self.config.refresh == 0:
                population.refresh()

    def kept(self) -> dict[str, nn.Module]:
        return {**super().kept(), **{f"of_{name}": population for name, population in self.of.items()}}
