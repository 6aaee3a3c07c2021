"""The exponential-Adams core: every multistep solver as one formula.

Both the probability-flow ODE and the reverse SDE of noise strength tau have, from level s to level t, the exact solution

    x_t = (sigma_t / sigma_s) e^{-tau^2 h} x_s
          + alpha_t integral_s^t (1 + tau^2) e^{-(1 + tau^2)(logsnr_t - l)} x0(l) dl
          + sigma_t sqrt(1 - e^{-2 tau^2 h}) z,        h = logsnr_t - logsnr_s,  z ~ N(0, I)        (1)

(DPM-Solver++, arXiv 2211.01095, equations 9 and 18; SA-Solver, arXiv 2305.18474, equation 14). Replacing x0(l) by the
polynomial through the remembered predictions (logsnr_j, x0_j) turns the integral into sum_j b_j x0_j. One remembered value
gives Euler, DDIM and flow Euler; two give DPM-Solver++(2M) and RES; three the 3M; with noise their SDE forms; and the same
formula with the new prediction among the points is the corrector of UniPC and SA-Solver.

The b_j are host float64 numbers: moments of the kernel against Lagrange polynomials. Where h is infinite (s is pure noise,
or t is clean data) a single value is the exact limit, so neither end of a path needs an epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.sample import Evaluation, State
from samplers.solvers.evaluate import evaluate

RULES = ("exact", "midpoint", "bh1", "bh2", "published")


def kernel_moments(h: float, count: int) -> list[float]:
    """m_k = integral_0^1 h e^{-h (1 - w)} w^k dw for k < count; h may be infinite."""
    moments = [-math.expm1(-h)]
    for k in range(1, count):
        if abs(h) >= 1:
            moments.append(1 - k / h * moments[-1])  # by parts; loses digits where h is small
        else:
            term = total = h / (k + 1)  # h k! sum_n (-h)^n / (n + k + 1)!
            for n in range(1, 20):
                term *= -h / (n + k + 1)
                total += term
            moments.append(total)
    return moments


def rule_moments(h: float, count: int, rule: str) -> list[float]:
    """The moments that a published coefficient rule puts in place of the exact ones, for a polynomial through `count` points.

    exact      the kernel's own: RES, SA-Solver, 2M-SDE "heun".
    midpoint   the polynomial is taken at the middle of the step: DPM-Solver++(2M) as published and in k-diffusion.
    bh1, bh2   UniPC (arXiv 2302.04867): exact, but with two points the first moment is B(h)/2, B = h or 1 - e^{-h}.
    published  exact, but with half the second moment: the 3M of DPM-Solver++ and k-diffusion's 3M-SDE.
    """
    moments = kernel_moments(h, count)
    if rule == "midpoint":
        return [moments[0] * 0.5**k for k in range(count)]
    if rule in ("bh1", "bh2") and count == 2:
        return [moments[0], 0.5 * (h if rule == "bh1" else moments[0])]
    if rule == "published" and count >= 3:
        moments[2] *= 0.5
    return moments


@lru_cache(maxsize=1 << 14)
def adams_weights(h: float, nodes: tuple[float, ...], rule: str = "exact") -> tuple[float, ...]:
    """b_j = sum_k m_k [w^k] L_j(w), with L_j the Lagrange polynomials through `nodes`.

    h is the step in the kernel's unit, (1 + tau^2)(logsnr_t - logsnr_s). Nodes are positions relative to the step, 0 at its
    start and 1 at its end, which keeps the system well scaled however small the step.
    """
    moments = rule_moments(h, len(nodes), rule)
    weights = []
    for j, node in enumerate(nodes):
        polynomial = [1.0]  # coefficients of L_j, lowest power first
        for other in (*nodes[:j], *nodes[j + 1 :]):
            shifted, scale = [0.0, *polynomial], node - other
            polynomial = [(a - other * b) / scale for a, b in zip(shifted, [*polynomial, 0.0], strict=True)]
        weights.append(math.fsum(m * c for m, c in zip(moments, polynomial, strict=True)))
    return tuple(weights)


@dataclass(frozen=True)
class Multistep:
    """Equation (1) through the `order` latest predictions: one evaluation per step.

    eta: noise strength, 0 = the ODE. noise="sde": tau^2 = eta, as in k-diffusion's SDE samplers; noise="ancestral": the eta
    of DDIM and Euler-ancestral (arXiv 2010.02502, equation 16), at most 1. The two agree at 0 and 1. s_noise scales z.
    rule: how the integral is taken, see `rule_moments`.
    corrector_order: 0 for none, else the number of points of the corrector, the new one included: UniPC-p has order p and
    corrector_order p + 1. The corrector of a step uses the prediction made at the start of the next, so it costs nothing and
    the last step has none.

    Source: the papers named at the top of this file. Every step is a pure function of the state.
    """

    order: int = 2
    eta: float = 0.0
    noise: str = "sde"
    rule: str = "exact"
    corrector_order: int = 0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4) or isinstance(self.order, bool):
            raise ValueError(f"Multistep got order={self.order!r}; choose 1, 2, 3 or 4.")
        if self.corrector_order not in (0, 2, 3, 4, 5):
            raise ValueError(f"Multistep got corrector_order={self.corrector_order!r}; choose 0 (none) or 2 to 5 points.")
        if self.rule not in RULES:
            raise ValueError(f"Unknown rule {self.rule!r}: choose one of {', '.join(RULES)}.")
        if self.noise not in ("sde", "ancestral"):
            raise ValueError(f"Unknown noise {self.noise!r}: choose sde or ancestral.")
        largest = 1.0 if self.noise == "ancestral" else math.inf
        if not (0 <= self.eta <= largest and math.isfinite(self.eta)):
            raise ValueError(f"Multistep got eta={self.eta}; with noise={self.noise!r} give 0 <= eta <= {largest}, finite.")
        if not 0 <= self.s_noise < math.inf:
            raise ValueError(f"Multistep got s_noise={self.s_noise}; give a finite factor of at least 0.")

    def init(self, x: Tensor) -> State:
        return State(x)

    def step(
        self,
        denoiser: Denoiser,
        state: State,
        s: NoiseLevel,
        t: NoiseLevel,
        condition: Condition,
        context: Context,
        noise: NoiseSource | None = None,
    ) -> State:
        keep, spread, _ = self.transition(s, t)
        if spread and noise is None:
            raise ValueError(f"This solver adds noise (eta={self.eta}): pass noise=, for instance seeded_noise(seeds, x).")
        prediction = evaluate(denoiser, state, s, condition, context)
        history = state.remember(s, prediction.x0, max(self.order + (self.corrector_order > 0), self.corrector_order))

        weights = self.weights(history, s, t)
        if all(e.step != state.step for e in state.history):  # a repeated step does not start from a predictor's output
            for step, change in self.correction(history).items():
                weights[step] = weights.get(step, 0.0) + keep * change

        x = keep * state.x if keep else torch.zeros_like(state.x)
        for evaluation in history:
            if weight := weights.get(evaluation.step):
                x = torch.add(x, evaluation.x0, alpha=weight)
        if spread and noise is not None:
            x = torch.add(x, noise(s, t), alpha=spread)
        return replace(state, x=x, prediction=prediction, history=history)

    def transition(self, s: NoiseLevel, t: NoiseLevel) -> tuple[float, float, float]:
        """(factor of x_s, amplitude of z, (1 + tau^2) h) of equation (1)."""
        if isinstance(s.sigma, Tensor) or isinstance(t.sigma, Tensor):
            raise TypeError("Solvers step between levels of plain floats; got tensors. Use path(t) with a float t.")
        h = t.logsnr - s.logsnr
        if not (h > 0 or (-math.inf < h < 0 and self.eta == 0 and s.sigma > 0)):
            raise ValueError(
                f"Cannot step from logsnr {s.logsnr} to {t.logsnr}: levels must differ and fall in noise from one to the next "
                "(only a solver without noise may go the other way, between finite levels)."
            )
        if self.eta == 0:
            return t.sigma / s.sigma, 0.0, h
        if self.noise == "sde":
            tau2_h = self.eta * h
            return (
                t.sigma / s.sigma * math.exp(-tau2_h),
                self.s_noise * t.sigma * math.sqrt(-math.expm1(-2 * tau2_h)),
                h + tau2_h,
            )
        decay2 = (1 - self.eta**2) + self.eta**2 * math.exp(-2 * h)  # e^{-2 tau^2 h}
        spread = self.s_noise * t.sigma * self.eta * math.sqrt(-math.expm1(-2 * h))
        return t.sigma / s.sigma * math.sqrt(decay2), spread, h - 0.5 * math.log(decay2) if decay2 else math.inf

    def weights(self, history: Sequence[Evaluation], s: NoiseLevel, t: NoiseLevel) -> dict[int, float]:
        """alpha_t b_j of the predictor from s to t, by the step that made x0_j; history[-1] is the prediction at s."""
        points, nodes = _behind(history, s, t, self.order)
        return self._weigh(points, nodes, s, t)

    def correction(self, history: Sequence[Evaluation]) -> dict[int, float]:
        """alpha_t (corrector b_j - predictor b_j) of the step that ended at history[-1]: what to add to its result."""
        if not self.corrector_order or len(history) < 2 or history[-2].step != history[-1].step - 1:
            return {}
        *past, new = history
        s, t = past[-1].level, new.level
        if math.isinf(t.logsnr - s.logsnr):
            return {}
        points, nodes = _behind(past, s, t, self.corrector_order - 1)
        change = self._weigh([*points, new], [*nodes, 1.0], s, t)
        for step, weight in self.weights(past, s, t).items():
            change[step] = change.get(step, 0.0) - weight
        return change

    def _weigh(self, points: Sequence[Evaluation], nodes: Sequence[float], s: NoiseLevel, t: NoiseLevel) -> dict[int, float]:
        stretched = self.transition(s, t)[2]
        b = adams_weights(stretched, tuple(nodes), self.rule)
        return {e.step: t.alpha * weight for e, weight in zip(points, b, strict=True)}


def _behind(history: Sequence[Evaluation], s: NoiseLevel, t: NoiseLevel, count: int) -> tuple[list[Evaluation], list[float]]:
    """The `count` latest evaluations a polynomial over the step may pass through, newest first, and their nodes.

    One if h is infinite. Predictions at pure noise lie infinitely far away, where they have no weight; those ahead of s (left
    from before a jump back to a noisier level) belong to another trajectory.
    """
    h = t.logsnr - s.logsnr
    points, nodes = [history[-1]], [0.0]
    if math.isinf(h):
        return points, nodes
    for e in reversed(history[:-1]):
        node = (e.level.logsnr - s.logsnr) / h
        if len(points) < count and -math.inf < node < nodes[-1]:
            points.append(e)
            nodes.append(node)
    return points, nodes
