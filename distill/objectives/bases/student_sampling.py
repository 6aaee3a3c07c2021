"""Pictures by a student's own sampler, by its teacher's, and by a finished model's: latents x0 (B, C, h, w) from noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from distill.objectives.bases.teacher import TeacherConfig
from gen.models.folder import Defaults
from gen.pipeline.guidance_stack import GuidanceStack
from samplers.denoiser import Condition, Context, Denoiser, NetworkDenoiser
from samplers.noise import normal, seeded_noise
from samplers.path import NoiseLevel
from samplers.path import Path as NoisePath
from samplers.prediction import Prediction
from samplers.registry import get_grid, get_solver, solver_info
from samplers.sample import Solver, sample

Predict = Callable[[Tensor, NoiseLevel, Condition], Prediction]


@dataclass(frozen=True)
class PredictDenoiser:
    """A denoiser that is a function of (x, level, condition)."""

    path: NoisePath
    predict: Predict

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        return self.predict(x, level, condition)


def sample_as_exported(
    predict: Predict,
    path: NoisePath,
    settings: Defaults,
    noise: Tensor,
    condition: Condition,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
) -> Tensor:
    """x0 by the sampler of an exported model's settings, or in `steps` steps.

    noise: (B, C, h, w), unit normal. seeds: one per row, for a sampler that adds noise; None: the rows' numbers.
    """
    count = settings.num_inference_steps if steps is None else steps
    levels = get_grid(settings.schedule, path, count, **settings.schedule_options)
    solver = get_solver(settings.sampler, **settings.sampler_options)
    added = seeded_noise(seeds or range(len(noise)), noise) if solver_info(settings.sampler).stochastic else None
    return sample(PredictDenoiser(path, predict), solver, noise * levels[0].sigma, levels, condition, noise=added)


def as_exported(denoiser: Denoiser, settings: Defaults, scale: float | None = None) -> tuple[Denoiser, Solver]:
    """(the denoiser under the guidance of an exported model's settings, their solver). scale: another than theirs."""
    stack = GuidanceStack.of(settings.guidance, settings.guidance_options, None, None)
    scale = stack.effective_scale(settings.guidance_scale if scale is None else scale)
    solver = get_solver(settings.sampler, **settings.sampler_options)
    return stack.build(denoiser, solver, scale, None, settings.guidance_interval, scale != stack.neutral_scale)


def sample_by(
    denoiser: NetworkDenoiser,
    settings: Defaults,
    noise: Tensor,
    condition: Condition,
    seeds: Sequence[int] | None = None,
    steps: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """x0 (B, C, h, w) as a model draws it by its settings, guidance included, or in `steps` steps at `scale`.

    noise: unit normal. seeds: one per row, for a sampler that adds noise; None: the rows' numbers.
    """
    guided, solver = as_exported(denoiser, settings, scale)
    count = settings.num_inference_steps if steps is None else steps
    levels = get_grid(settings.schedule, denoiser.path, count, **settings.schedule_options)
    added = seeded_noise(seeds or range(len(noise)), noise) if solver_info(settings.sampler).stochastic else None
    return sample(guided, solver, noise * levels[0].sigma, levels, condition, noise=added)


def sample_as_teacher(
    predict: Predict, path: NoisePath, config: TeacherConfig, noise: Tensor, condition: Condition, steps: int
) -> Tensor:
    """x0 by the teacher's own solver and grid in `steps` steps."""
    levels = get_grid(config.schedule, path, steps, **config.schedule_options)
    return sample(PredictDenoiser(path, predict), get_solver(config.solver), noise * levels[0].sigma, levels, condition)


def unit_noise(seeds: Sequence[int], like: Tensor) -> Tensor:
    """One row per seed, of the shape, device and type of the rows of a batch (B, ...)."""
    return normal(seeds, like.shape[1:], device=like.device, dtype=like.dtype)
