"""Diffusion training against error propagation: what the network makes of its own points is to be noised data.

Half of a batch is noised to random levels and taken down a few ancestral steps by the network, with gradients; the other half
is noised to the levels that those came to; and the maximum mean discrepancy of both is added to the loss. A run logs the
cumulative error as well, the discrepancy along the whole chain from noise, which is what propagation adds up to.

Source: arXiv 2308.05021, section 4 (the bootstrap of the bound).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.levels import draw_index
from distill.losses.propagation import cumulative_errors, mmd, roll
from distill.losses.solver_steps import LevelTable
from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective
from distill.types import Batch, Draws, Phase
from samplers.denoiser import Condition, Context
from samplers.noise import fold
from samplers.path import NoiseLevel
from samplers.registry import get_grid


class ErrorPropagationConfig(DiffusionConfig):
    """levels: how many the chain has, even on the path's clock. reach: at most so many steps of it are taken with gradients;
    how many is one number for a step of the run. propagation_weight: of the discrepancy. measured: samples of the data that
    the logged errors are of, 0 for none."""

    levels: int = Field(default=100, ge=2)
    reach: int = Field(default=5, ge=1)
    propagation_weight: float = Field(default=0.2, ge=0)
    measured: int = Field(default=64, ge=0)


class ErrorPropagationObjective(DiffusionObjective):
    """See the module."""

    config: ErrorPropagationConfig

    def __init__(self, config: ErrorPropagationConfig, network: nn.Module, source: Any = None):
        super().__init__(config, network, source)
        self.ladder = LevelTable.of(get_grid("uniform", self.path, config.levels))
        self.data = source

    def clean_of(self, network: nn.Module, condition: Condition):
        """A denoiser's x0 of x at a level per sample."""

        def clean(x: Tensor, level: NoiseLevel) -> Tensor:
            return self.denoiser(network)(x, level, condition, Context()).x0

        return clean

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        total, logged = super().loss(phase, models, batch, draws, step)
        if not self.config.propagation_weight or len(batch) < 2:
            return total, logged
        apart = self.propagated(models["denoiser"], self.known_inputs(batch), draws, step)
        return total + self.config.propagation_weight * apart, {**logged, "propagation": apart.detach()}

    def propagated(self, network: nn.Module, batch: Batch, draws: Draws, step: int) -> Tensor:
        """The discrepancy of what the network came to from one half of the batch and of the noised other half."""
        x0, half = self.clean(batch), len(batch) // 2
        ladder = self.ladder.to(x0.device)
        chance = torch.Generator().manual_seed(fold(draws.seed, step, "propagated steps"))
        steps = 1 + int(torch.randint(self.config.reach, (1,), generator=chance))
        head = 1 + draw_index(draws, "head", ladder.steps - 1, x0.device)
        tail = (head[:half] - steps).clamp(min=0)
        condition = self.condition(batch, x0.device)[:half]
        start = ladder[head[:half]].mix(x0[:half], draws.normal_like("head eps", x0)[:half])

        def noise(taken: int) -> Tensor:
            return draws.normal_like(f"step {taken}", x0)[:half]

        rolled = roll(self.clean_of(network, condition), start, head[:half], steps, ladder, noise)
        other = slice(half, 2 * half)
        return mmd(rolled, ladder[tail].mix(x0[other], draws.normal_like("tail eps", x0)[other]))

    @torch.no_grad()
    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """Cumulative errors of the averaged network at a quarter, half and three quarters of the chain, and its end."""
        if not self.config.measured or self.data is None:
            return {}
        network = models["denoiser"]
        device = next(network.parameters()).device
        batch = self.known_inputs(self.data.batch(range(self.config.measured)).to(device))
        x0, steps = self.clean(batch), self.config.levels
        numbers = [steps * share // 4 for share in (3, 2, 1, 0)]
        clean = self.clean_of(network, self.condition(batch, device))
        generator = torch.Generator().manual_seed(0)
        errors = cumulative_errors(clean, x0, numbers, self.ladder.to(device), generator)
        return {f"cumulative_error/{number}": error for number, error in zip(numbers, errors, strict=True)}
