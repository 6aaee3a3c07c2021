"""Samplers of consistency models: jump to the data, add noise, jump again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.noise_ratio import noise_ratio
from samplers.path import NoiseLevel, Path, VariancePreserving, check_falling, expand
from samplers.prediction import Prediction
from samplers.sample import State
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import DenoiserWrapper, PlainSolver, Step


def _need(noise: NoiseSource | None) -> NoiseSource:
    if noise is None:
        raise ValueError("This solver adds noise at every step but the last: pass noise=, for instance seeded_noise(seeds, x).")
    return noise


@dataclass(frozen=True)
class Consistency(PlainSolver):
    """x_t = alpha_t (x0 + sqrt(r_t^2 - sigma_min^2) z) with r = sigma / alpha: multistep consistency sampling, and LCM's.

    sigma_min is the noise level at which the model's own images lie: 0.002 for EDM-style consistency models, 0 where they are
    clean (latent consistency models). At or below it nothing is added. s_noise scales z.

    Source: arXiv 2303.01469, Algorithm 1; with sigma_min = 0 arXiv 2310.04378, Algorithm 3.
    """

    sigma_min: float = 0.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sigma_min", "s_noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Consistency got {name}={getattr(self, name)}; give a finite number of at least 0.")

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context, noise = step.denoiser, step.s, step.t, step.condition, step.context, step.noise
        check_falling(s, t)
        excess = max(noise_ratio(t) ** 2 - self.sigma_min**2, 0.0)
        spread = self.s_noise * t.alpha * math.sqrt(excess)
        z = _need(noise)(s, t) if spread else None
        prediction = evaluate(denoiser, state, s, condition, context)
        x = t.alpha * prediction.x0  # Algorithm 1 (arXiv 2303.01469)
        return replace(state, x=x if z is None else torch.add(x, z, alpha=spread), prediction=prediction)


@dataclass(frozen=True)
class TCD(PlainSolver):
    """Trajectory consistency: go down the trajectory past t, to the level s' at (1 - eta) of t's clock, then add noise up to t.

    eta (gamma in the paper) is in [0, 1]: 0 is DDIM's deterministic step, 1 goes down to the data's end. On a table of
    timesteps the clock counts from the first one, and s' is a whole timestep: floor((1 - eta) n).
    end: the last step goes to "clean" data, or to the level of "timestep 0" as diffusers' does, whose noise then stays.

    Source: arXiv 2402.19159, Algorithm 4 (strategic stochastic sampling).
    """

    eta: float = 0.3
    end: str = "clean"

    def __post_init__(self) -> None:
        if self.end not in ("clean", "timestep 0"):
            raise ValueError(f"TCD got end={self.end!r}; choose 'clean' or 'timestep 0'.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"TCD got eta={self.eta}; give 0 (deterministic) to 1 (all noise is new).")

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context, noise = step.denoiser, step.s, step.t, step.condition, step.context, step.noise
        check_falling(s, t)
        below = self.below(denoiser.path, t)
        spread = t.alpha * math.sqrt(max(noise_ratio(t) ** 2 - noise_ratio(below) ** 2, 0.0)) if below is not t else 0.0
        z = _need(noise)(s, t) if spread else None
        prediction = evaluate(denoiser, state, s, condition, context)
        x = below.mix(prediction.x0, prediction.eps)  # Algorithm 4 (arXiv 2402.19159): down to s'
        if z is not None:
            x = torch.add(t.alpha / below.alpha * x, z, alpha=spread)  # and up to t
        return replace(state, x=x, prediction=prediction)

    def below(self, path: Path, t: NoiseLevel) -> NoiseLevel:
        """The level s' to which a step to t goes down first."""
        if t.sigma == 0 and self.end == "timestep 0":
            if not isinstance(path, VariancePreserving):
                raise ValueError(f"{type(path).__name__} has no table of timesteps to end on: use end='clean'.")
            return path.discrete(0.0)
        if self.eta == 0 or t.sigma == 0:
            return t
        if not isinstance(path, VariancePreserving):
            return path((1 - self.eta) * t.t)
        n = len(path.table) * t.t - 1
        if n <= 0:
            return t
        return path.discrete(float(math.floor((1 - self.eta) * n + 1e-4)))  # a whole timestep, whatever the rounding of n


@dataclass(frozen=True)
class BoundaryScaled(DenoiserWrapper):
    """The consistency function of a latent consistency model: x0 <- c_skip x + c_out x0, which is x itself at timestep 0.

    c_skip = sigma_data^2 / (u^2 + sigma_data^2) and c_out = u / sqrt(u^2 + sigma_data^2) with u = timestep_scaling n for the
    model's timestep n. It belongs to how a model was trained, not to how it is sampled, so it is a denoiser around the
    network's. For variance-preserving tables only.

    Source: arXiv 2310.04378, equation 9.
    """

    denoiser: Denoiser
    timestep_scaling: float = 10.0
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.denoiser.path, VariancePreserving):
            raise ValueError(
                f"Boundary scalings are functions of a table's timestep, and {type(self.denoiser.path).__name__} has no table: "
                "use them on a VariancePreserving path."
            )
        if not (self.timestep_scaling > 0 and self.sigma_data > 0):
            raise ValueError(
                f"Boundary scalings got timestep_scaling={self.timestep_scaling} and sigma_data={self.sigma_data}; "
                "both must be above 0."
            )

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        prediction = self.denoiser(x, level, condition, context)
        u = self.timestep_scaling * (len(self.denoiser.path.table) * level.t - 1)  # type: ignore[attr-defined]
        total = u**2 + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / total, u / total**0.5
        return prediction.with_x0(expand(c_skip, x) * x + expand(c_out, x) * prediction.x0)  # equation 9 (arXiv 2310.04378)
