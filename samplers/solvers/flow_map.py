"""The sampler of flow maps: networks that predict where a whole step ends, and receive the time of its end."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from samplers.noise_ratio import at_ratio, noise_ratio, renoise_coefficients
from samplers.path import NoiseLevel, Path, check_falling
from samplers.sample import State
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import PlainSolver, Step


@dataclass(frozen=True)
class FlowMap(PlainSolver):
    """x_t = alpha_t x0 + sigma_t eps; the network predicts x0 and eps at s, and receives t's clock in extra["target_time"].

    On straight paths it is x_t = x_s - (s - t) u(x_s, t, s), with u the mean velocity of the step.

    gamma: in [0, 1]. Above 0 a step goes past t, to sqrt(1 - gamma^2) of its noise ratio sigma / alpha, and noise takes it up
    to t again: 1 goes to clean data each time, as consistency models are sampled.

    Source: MeanFlow, arXiv 2505.13447, equation 12; IMM, arXiv 2503.07565, section 3 (pushforward sampling); gamma: consistency
    trajectory models, arXiv 2310.02279, section 3 (gamma-sampling).
    """

    gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"FlowMap got gamma={self.gamma}; give 0 (deterministic) to 1 (all noise is new).")

    def below(self, path: Path, t: NoiseLevel) -> NoiseLevel:
        """The level that the network is to go to on a step that ends at t."""
        if self.gamma == 0 or t.sigma == 0:
            return t
        return at_ratio(path, math.sqrt(1 - self.gamma**2) * noise_ratio(t)) if self.gamma < 1 else path(0.0)

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context = step.denoiser, step.s, step.t, step.condition, step.context
        check_falling(s, t)
        below = self.below(denoiser.path, t)
        z = None
        if below is not t:
            if step.noise is None:
                raise ValueError("With gamma above 0 flow_map adds noise: pass noise=, for instance seeded_noise(seeds, x).")
            z = step.noise(s, t)
        end = torch.full((len(state.x),), float(below.t), device=state.x.device)
        with_target = replace(condition, extra={**condition.extra, "target_time": end})
        prediction = evaluate(denoiser, state, s, with_target, context)
        x = below.mix(prediction.x0, prediction.eps)  # equation 12 (arXiv 2505.13447)
        if z is not None:
            keep, spread = renoise_coefficients(below, t)
            x = torch.add(keep * x, z, alpha=spread)  # gamma-sampling (arXiv 2310.02279)
        return replace(state, x=x, prediction=prediction)
