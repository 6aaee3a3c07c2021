"""DDPM ancestral sampling, with fixed and with learned variance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.noise import noise_numbers
from samplers.path import NoiseLevel, check_falling
from samplers.sample import State
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import PlainSolver, Step

MAX_LATENT = 4096
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


@dataclass(frozen=True)
class DDPM(PlainSolver):
    """x_t from the posterior of the noising process, given x_s and the predicted x0, between any two levels.

    variance: "fixed_small", the posterior's own beta-tilde (arXiv 2006.11239, equation 7: Euler-ancestral); "fixed_large",
    the forward step's beta; "learned_range", exp of the mix of their logarithms that the network asks for: its second
    output v, -1 for beta-tilde to 1 for beta (arXiv 2102.09672, equation 15). Written on sigma / alpha, so that all paths take
    the steps of the variance-preserving one. No noise is added at clean data. s_noise scales the noise.

    latent: so many numbers of unit normal noise are handed to the network at every step, in extra["latent"] (B, latent). A
    network that draws x0 by them, instead of predicting its mean, takes large steps: denoising diffusion GANs, arXiv
    2112.07804, equation 4.

    Raises ValueError where learned_range meets a model without a variance output.
    """

    variance: str = "fixed_small"
    s_noise: float = 1.0
    latent: int = 0

    def __post_init__(self) -> None:
        if self.variance not in VARIANCES:
            raise ValueError(f"Unknown variance {self.variance!r}: choose one of {', '.join(VARIANCES)}.")
        if not 0 <= self.s_noise < math.inf:
            raise ValueError(f"DDPM got s_noise={self.s_noise}; give a finite factor of at least 0.")
        if isinstance(self.latent, bool) or not isinstance(self.latent, int) or not 0 <= self.latent <= MAX_LATENT:
            raise ValueError(
                f"DDPM got latent={self.latent!r}; give how many numbers the network receives, 0 (none) to {MAX_LATENT}."
            )

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context, noise = step.denoiser, step.s, step.t, step.condition, step.context, step.noise
        check_falling(s, t)
        if noise is None and ((t.sigma and self.s_noise) or self.latent):
            raise ValueError("DDPM adds noise: pass noise=, for instance seeded_noise(seeds, x).")
        if noise is not None and self.latent:
            told = noise_numbers(noise, self.latent, s, t, "latent").to(state.x)
            condition = replace(condition, extra={**condition.extra, "latent": told})
        prediction = evaluate(denoiser, state, s, condition, context)
        x = t.alpha * prediction.x0
        if t.sigma:
            forget = -math.expm1(2 * (s.logsnr - t.logsnr))  # 1 - (r_t / r_s)^2, the share of x0 in the mean
            x = forget * x
            if s.alpha:
                # equation 7 (arXiv 2006.11239): the posterior mean
                x = torch.add(x, state.x, alpha=(t.sigma / s.sigma) ** 2 * s.alpha / t.alpha)
            if noise is not None and self.s_noise:
                x = x + self.s_noise * self._std(prediction.variance, s, t, forget) * noise(s, t)
        return replace(state, x=x, prediction=prediction)

    def _std(self, learned: Tensor | None, s: NoiseLevel, t: NoiseLevel, forget: float) -> float | Tensor:
        """Standard deviation of the added noise: beta-tilde = sigma_t^2 forget; beta = beta-tilde over (r_t / r_s)^2
        (1 + r_s^2) / (1 + r_t^2), which is the ratio of sigma^2 on the variance-preserving path."""
        small = t.sigma * math.sqrt(forget)
        if self.variance == "fixed_small":
            return small
        spread_s, spread_t = (math.hypot(v.alpha, v.sigma) / v.sigma for v in (s, t))
        large = small * spread_t / spread_s
        if self.variance == "fixed_large":
            return large
        if learned is None:
            raise ValueError(
                "variance='learned_range' needs a network with a variance output (twice x's channels) and this one has none: "
                "choose fixed_small or fixed_large."
            )
        return math.sqrt(small * large) * (0.5 * math.log(large / small) * learned).exp()  # equation 15 (arXiv 2102.09672)
