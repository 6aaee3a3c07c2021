"""What a pipeline's scheduler says of noise: the path, what the network predicts, the timesteps, and the pipeline's own grid.

A sigma of diffusers is sigma / alpha on tables (x = x0 + sigma eps up to a factor) and sigma itself on flows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import Any

from gen.io.weights import CheckpointError
from gen.models.bridge.schedule import UNSCALED, sampling
from gen.models.folder import ModelConfig, model_config
from samplers.denoiser import CLOCKS
from samplers.path import NoiseLevel, Path
from samplers.prediction import Row, prediction_row
from samplers.registry import get_grid

OWN_GRID = "pipeline"  # the name of the grid that the pipeline's own call has
SAME = 1e-3  # timesteps that differ by less are the same


@dataclass(frozen=True)
class SchedulerNoise:
    """A scheduler's config as ours.

    config: path, prediction, clock, and the sampler that computes what the scheduler does.
    steps: how many timesteps the network was trained at.
    unscaled: the scheduler's own latents are x0 + sigma eps, though the network sees them scaled.
    """

    config: ModelConfig
    steps: int
    unscaled: bool = False

    @cached_property
    def path(self) -> Path:
        return self.config.path.build()

    @property
    def flow(self) -> bool:
        return self.config.path.type == "rectified_flow"

    def row(self, level: NoiseLevel) -> Row:
        return prediction_row(self.config.prediction, level, self.path, self.config.sigma_data)

    def timestep(self, level: NoiseLevel) -> float:
        """What the network is told at a level."""
        return float(self.steps * level.t if self.flow else CLOCKS[self.config.clock](level, self.path))

    def level(self, timestep: float) -> NoiseLevel:
        """The level of a timestep."""
        if self.flow:
            return self.path(timestep / self.steps)
        if self.config.clock == "index":
            return self.path(min(max((timestep + 1) / self.steps, 0.0), 1.0))
        return self.path.at_logsnr(-4 * timestep)

    @property
    def clean(self) -> NoiseLevel:
        return self.path(0.0)

    def sigma(self, level: NoiseLevel) -> float:
        """A level as the scheduler writes it."""
        return float(level.sigma if self.flow else level.sigma / level.alpha if level.alpha else math.inf)

    def input_scale(self, level: NoiseLevel) -> float:
        """What latents are multiplied by on their way into the network."""
        return float((level.sigma**2 + self.config.sigma_data**2) ** -0.5) if self.config.input_scale == "edm" else 1.0

    def own_levels(self, scheduler: Any, steps: int | None) -> tuple[NoiseLevel, ...]:
        """The levels of a scheduler that a pipeline has set to its timesteps, clean data last.

        steps: as many were asked for, and nothing else; None where the pipeline gave timesteps or sigmas of its own.
        """
        timesteps = [float(t) for t in scheduler.timesteps]
        if self.flow:
            sigmas = [float(sigma) for sigma in scheduler.sigmas]
            pairs = list(zip(sigmas, timesteps, strict=False))
            pairs = [pair for i, pair in enumerate(pairs) if i == 0 or pair[0] < pairs[i - 1][0]]  # Heun has them twice
            # the network is told the scheduler's timesteps, which may be whole numbers
            levels = [replace(self.path(sigma), t=timestep / self.steps) for sigma, timestep in pairs]
            return (*levels, self.clean if sigmas[-1] == 0 else self.path(sigmas[-1]))
        timesteps = [t for i, t in enumerate(timesteps) if i == 0 or t < timesteps[i - 1]]
        if steps is not None:
            defaults = self.config.defaults
            levels = list(get_grid(defaults.schedule, self.path, steps, **defaults.schedule_options))
            told = [self.timestep(level) for level in levels[:-1]]
            if len(told) == len(timesteps) and all(abs(a - b) < SAME for a, b in zip(told, timesteps, strict=True)):
                return tuple(levels)
        return (*(self.level(t) for t in timesteps), self.clean)


def scheduler_noise(scheduler: Any, pipeline: str) -> SchedulerNoise:
    """Of a diffusers scheduler; ValueError for one that we have no equal of. pipeline: its pipeline's name, for errors."""
    name = type(scheduler).__name__
    values: Mapping[str, Any] = {**scheduler.config, "_class_name": name}
    if values.get("invert_sigmas"):
        raise ValueError(
            f"The scheduler of this {pipeline} inverts its sigmas, which cannot be followed; use another scheduler."
        )
    try:
        settings = sampling(FilePath(name), dict(values))
    except CheckpointError as error:
        raise ValueError(f"The scheduler of this {pipeline} cannot be followed: {error}") from None
    if name == "SCMScheduler" or settings["path"]["type"] not in (
        "rectified_flow",
        "variance_preserving",
        "variance_exploding",
    ):
        raise ValueError(f"The scheduler of this {pipeline}, {name}, has noise that only models opened natively have here.")
    config = model_config({"clock": "1000t", **_clock(settings), **settings, "sample_size": 1024})
    return SchedulerNoise(
        config, int(values.get("num_train_timesteps", 1000)), name.startswith(UNSCALED) and not values.get("use_flow_sigmas")
    )


def _clock(settings: Mapping[str, Any]) -> dict[str, str]:
    return {"clock": "index"} if settings["path"]["type"] == "variance_preserving" else {}
