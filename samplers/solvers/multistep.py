"""The exponential-Adams core: every multistep solver as one formula.

Both the probability-flow ODE and the reverse SDE of noise strength tau have, from level s to level t, the exact solution

    x_t = (sigma_t / sigma_s) e^{-tau^2 h} x_s
          + alpha_t integral_s^t (1 + tau^2) e^{-(1 + tau^2)(logsnr_t - l)} x0(l) dl
          + sigma_t sqrt(1 - e^{-2 tau^2 h}) z,        h = logsnr_t - logsnr_s,  z ~ N(0, I)        (1)

(DPM-Solver++, arXiv 2211.01095, equations 9 and 18; SA-Solver, arXiv 2309.05019, equation 14). Replacing x0(l) by the
polynomial through the remembered predictions (logsnr_j, x0_j) turns the integral into sum_j b_j x0_j. One remembered value
gives Euler, DDIM and flow Euler; two give DPM-Solver++(2M) and RES; three the 3M; with noise their SDE forms; and the same
formula with the new prediction among the points is the corrector of UniPC and SA-Solver.

The same solution written with the noise prediction, in y = x / alpha and r = sigma / alpha, is

    y_t = y_s + (1 + tau^2) integral_s^t eps dr + tau sqrt(r_s^2 - r_t^2) z                                  (2)

(DPM-Solver, arXiv 2206.00927, equation 3.4; SA-Solver, Appendix A). A polynomial of eps in logsnr gives the multistep
DPM-Solver and DEIS in log-rho; in r, LMS, rho-DEIS and iPNDM with variable steps; in the index of the step, iPNDM and PLMS.

The b_j are host float64 numbers: moments of the kernel against Lagrange polynomials. Where a kernel is infinitely long (s is
pure noise, or t is clean data and the polynomial lives in logsnr) x0 taken as constant in (1) is the limit, so neither end of
a path needs an epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource, need_noise
from samplers.noise_ratio import noise_ratio
from samplers.path import NoiseLevel
from samplers.sample import Evaluation, State
from samplers.solvers.ending import check_ending, is_bounded
from samplers.solvers.evaluate import evaluate

RULES = ("exact", "midpoint", "bh1", "bh2", "published")
COORDINATES = ("logsnr", "ratio", "step")


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


def lagrange_weights(nodes: Sequence[float], moments: Sequence[float]) -> tuple[float, ...]:
    """b_j = sum_k moments_k [w^k] L_j(w), with L_j the Lagrange polynomials through `nodes`; one moment per node.

    Nodes are positions relative to the step, 0 at its start and 1 at its end, which keeps the system well scaled however
    small the step.
    """
    weights = []
    for j, node in enumerate(nodes):
        polynomial = [1.0]  # coefficients of L_j, lowest power first
        for other in (*nodes[:j], *nodes[j + 1 :]):
            shifted, scale = [0.0, *polynomial], node - other
            polynomial = [(a - other * b) / scale for a, b in zip(shifted, [*polynomial, 0.0], strict=True)]
        weights.append(math.fsum(m * c for m, c in zip(moments, polynomial, strict=True)))
    return tuple(weights)


@lru_cache(maxsize=1 << 14)
def adams_weights(h: float, nodes: tuple[float, ...], rule: str = "exact") -> tuple[float, ...]:
    """The b_j of nodes in logsnr. h is the step in the kernel's unit: (1 + tau^2)(logsnr_t - logsnr_s) for x0 in equation (1),
    logsnr_s - logsnr_t for eps in (2)."""
    return lagrange_weights(nodes, rule_moments(h, len(nodes), rule))


@lru_cache(maxsize=1 << 14)
def uniform_weights(nodes: tuple[float, ...]) -> tuple[float, ...]:
    """The b_j of nodes in a coordinate in which the kernel is constant: the Adams methods of textbooks."""
    return lagrange_weights(nodes, [1 / (k + 1) for k in range(len(nodes))])


@dataclass(frozen=True)
class Multistep:
    """Equation (1) or (2) through the `order` latest predictions: one evaluation per step.

    predict: what the polynomial interpolates, "x0" (1) or "eps" (2). coordinate: where it lives, "logsnr"; and for eps also
    "ratio", r = sigma / alpha, or "step", the index of the step, as if all steps were equally long.
    eta: noise strength, 0 = the ODE. noise="sde": tau^2 = eta, as in k-diffusion's SDE samplers; noise="ancestral": the eta
    of DDIM and Euler-ancestral (arXiv 2010.02502, equation 16), at most 1, for x0. The two agree at 0 and 1. s_noise scales z.
    rule: how the integral is taken in logsnr, see `rule_moments`.
    corrector_order: 0 for none, else the number of points of the corrector, the new one included: UniPC-p has order p and
    corrector_order p + 1. The corrector of a step uses the prediction made at the start of the next, so it costs nothing and
    the last step has none.
    ending: how many points a long step keeps, "full", "bounded" or "count": see `samplers.solvers.ending`.

    Source: the papers named at the top of this file. Every step is a pure function of the state.
    """

    order: int = 2
    eta: float = 0.0
    noise: str = "sde"
    rule: str = "exact"
    corrector_order: int = 0
    s_noise: float = 1.0
    predict: str = "x0"
    coordinate: str = "logsnr"
    ending: str = "full"

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4) or isinstance(self.order, bool):
            raise ValueError(f"Multistep got order={self.order!r}; choose 1, 2, 3 or 4.")
        if self.corrector_order not in (0, 2, 3, 4, 5):
            raise ValueError(f"Multistep got corrector_order={self.corrector_order!r}; choose 0 (none) or 2 to 5 points.")
        if self.rule not in RULES:
            raise ValueError(f"Unknown rule {self.rule!r}: choose one of {', '.join(RULES)}.")
        if self.noise not in ("sde", "ancestral"):
            raise ValueError(f"Unknown noise {self.noise!r}: choose sde or ancestral.")
        if self.predict not in ("x0", "eps"):
            raise ValueError(f"Multistep got predict={self.predict!r}; choose x0 or eps.")
        if self.coordinate not in COORDINATES:
            raise ValueError(f"Unknown coordinate {self.coordinate!r}: choose one of {', '.join(COORDINATES)}.")
        if self.coordinate != "logsnr" and (self.predict, self.rule) != ("eps", "exact"):
            raise ValueError(
                f"The coordinate {self.coordinate!r} is for predict='eps' and rule='exact', not predict={self.predict!r} and "
                f"rule={self.rule!r}: choose these, or the coordinate logsnr."
            )
        if self.predict == "eps" and self.eta and self.noise == "ancestral":
            raise ValueError("Ancestral noise is defined on x0: choose noise='sde' with predict='eps'.")
        largest = 1.0 if self.noise == "ancestral" else math.inf
        if not (0 <= self.eta <= largest and math.isfinite(self.eta)):
            raise ValueError(f"Multistep got eta={self.eta}; with noise={self.noise!r} give 0 <= eta <= {largest}, finite.")
        check_ending(self.ending, "Multistep")
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
        if spread:
            need_noise(noise, f"eta={self.eta}")
        prediction = evaluate(denoiser, state, s, condition, context)
        keep_last = max(self.order + (self.corrector_order > 0), self.corrector_order)
        history = state.remember(s, prediction.x0, keep_last, prediction.eps if self.predict == "eps" else None)

        left = max(context.steps - context.step, 1) if context.steps else None
        weights = self.weights(history, s, t, left)
        if all(e.step != state.step for e in state.history):  # a repeated step does not start from a predictor's output
            for step, change in self.correction(history, left and left + 1).items():
                weights[step] = weights.get(step, 0.0) + keep * change

        x = keep * state.x if keep else torch.zeros_like(state.x)  # equation (1) or (2), term by term
        for evaluation in history:
            if weight := weights.get(evaluation.step):
                x = torch.add(x, self._read(evaluation, s, t), alpha=weight)
        if spread and noise is not None:
            x = torch.add(x, noise(s, t), alpha=spread)
        return replace(state, x=x, prediction=prediction, history=history)

    def transition(self, s: NoiseLevel, t: NoiseLevel) -> tuple[float, float, float]:
        """(factor of x_s, amplitude of z, the kernel's h of `adams_weights`) of equation (1) or (2)."""
        if isinstance(s.sigma, Tensor) or isinstance(t.sigma, Tensor):
            raise TypeError("Solvers step between levels of plain floats; got tensors. Use path(t) with a float t.")
        h = t.logsnr - s.logsnr
        if not (h > 0 or (-math.inf < h < 0 and self.eta == 0 and s.sigma > 0)):
            raise ValueError(
                f"Cannot step from logsnr {s.logsnr} to {t.logsnr}: levels must differ and fall in noise from one to the next "
                "(only a solver without noise may go the other way, between finite levels)."
            )
        if self._interpolates(s, t) == "eps":
            spread = self.s_noise * t.sigma * math.sqrt(self.eta * math.expm1(2 * h)) if self.eta else 0.0
            return t.alpha / s.alpha, spread, -h
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

    def weights(self, history: Sequence[Evaluation], s: NoiseLevel, t: NoiseLevel, left: int | None = None) -> dict[int, float]:
        """Factors of the predictor's x0_j or eps_j from s to t, by the step that made them; history[-1] is the one at s.

        left: the steps of the run that are left, this one included; None where that is not known.
        """
        points, nodes = self._behind(history, s, t, self.order, left)
        return self._weigh(points, nodes, s, t)

    def correction(self, history: Sequence[Evaluation], left: int | None = None) -> dict[int, float]:
        """Corrector's factors less the predictor's of the step that ended at history[-1]: what to add to its result.

        left: the steps that were left at that step, itself included.
        """
        if not self.corrector_order or len(history) < 2 or history[-2].step != history[-1].step - 1:
            return {}
        *past, new = history
        s, t = past[-1].level, new.level
        if math.isinf(t.logsnr - s.logsnr):
            return {}
        # the corrector: the same integral through one point more
        points, nodes = self._behind(past, s, t, self.corrector_order - 1, left)
        change = self._weigh([*points, new], [*nodes, 1.0], s, t)
        for step, weight in self.weights(past, s, t, left).items():
            change[step] = change.get(step, 0.0) - weight
        return change

    def _interpolates(self, s: NoiseLevel, t: NoiseLevel) -> str:
        """What the polynomial of this step is of: x0 also for a step on which the kernel of equation (2) is infinitely long."""
        endless = s.alpha == 0 or (t.sigma == 0 and (self.coordinate == "logsnr" or self.eta > 0))
        return "x0" if endless else self.predict

    def _read(self, evaluation: Evaluation, s: NoiseLevel, t: NoiseLevel) -> Tensor:
        if self._interpolates(s, t) == "x0":
            return evaluation.x0
        if evaluation.eps is None:
            raise ValueError(
                "This history holds x0 predictions only: start a solver of eps from `init`, not from another's state."
            )
        return evaluation.eps

    def _weigh(self, points: Sequence[Evaluation], nodes: Sequence[float], s: NoiseLevel, t: NoiseLevel) -> dict[int, float]:
        kernel = self.transition(s, t)[2]
        if self._interpolates(s, t) == "x0":
            scale, b = t.alpha, adams_weights(kernel, tuple(nodes), self.rule)
        elif self.coordinate == "logsnr":
            scale, b = t.sigma * (1 + self.eta), adams_weights(kernel, tuple(nodes), self.rule)
        else:
            scale, b = t.alpha * (noise_ratio(t) - noise_ratio(s)) * (1 + self.eta), uniform_weights(tuple(nodes))
        return {e.step: scale * weight for e, weight in zip(points, b, strict=True)}

    def _behind(
        self, history: Sequence[Evaluation], s: NoiseLevel, t: NoiseLevel, count: int, left: int | None
    ) -> tuple[list[Evaluation], list[float]]:
        """The `count` latest evaluations a polynomial over the step may pass through, newest first, and their nodes.

        One where h is infinite, but for eps on the way to clean data in a coordinate in which that is near. Predictions at
        pure noise lie infinitely far away, where they have no weight, save in the index of the step; those ahead of s (left
        from before a jump back to a noisier level) belong to another trajectory. Of the rest, as many as `ending` allows.
        """
        if self.ending == "count" and left is not None:
            count = min(count, left)
        new = history[-1]
        points, nodes, last = [new], [0.0], 0.0
        if math.isinf(t.logsnr - s.logsnr) and self._interpolates(s, t) == "x0":
            return points, nodes
        for e in reversed(history[:-1]):
            if self.coordinate == "logsnr":
                place = (e.level.logsnr - s.logsnr) / (t.logsnr - s.logsnr)
            else:
                place = (noise_ratio(e.level) - noise_ratio(s)) / (noise_ratio(t) - noise_ratio(s))
            by_index = self.coordinate == "step"
            if len(points) < count and place < last and (by_index or place > -math.inf):
                points.append(e)
                nodes.append(float(e.step - new.step) if by_index else place)
                last = place
        if self.ending == "bounded":
            while not is_bounded(self._weigh(points, nodes, s, t).values(), t.logsnr - s.logsnr):
                del points[-1], nodes[-1]
        return points, nodes
