"""Exponential Runge-Kutta: every step evaluates at levels of its own and leaves no memory to the next.

With span = logsnr_t - logsnr_s the probability-flow ODE has two exact solutions over a step,

    x_t = (sigma_t / sigma_s) x_s + alpha_t integral_0^1 span e^{-span (1 - w)} x0(w) dw                       (1)
    x_t = (alpha_t / alpha_s) x_s - sigma_t integral_0^1 span e^{span (1 - w)} eps(w) dw                       (2)

with w the position in the step, in log-SNR. (1) is the form of DPM-Solver++ (arXiv 2211.01095, equation 9), (2) that of
DPM-Solver (arXiv 2206.00927, equation 3.4). A method of order p evaluates at p nodes 0 < r1 < r2, each reached by the same
formula through the nodes before it, and integrates the polynomial through what it has read there. Noise as in `Multistep`
stretches (1) to the span (1 + tau^2) h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource, need_noise
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.sample import State
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import Multistep, adams_weights
from samplers.wrappers import PlainSolver, Step

NOISES = ("sde", "ancestral", "overlapping")


def read_prediction(prediction: Prediction, predict: str) -> Tensor:
    """What the polynomial goes through: x0 or eps."""
    return prediction.x0 if predict == "x0" else prediction.eps


def step_weights(span: float, nodes: Sequence[float], predict: str, rule: str) -> tuple[float, ...]:
    """Weights of the readings at `nodes` (1 to 3, the first 0) in the integral of (1) or (2) over a whole step.

    rule "exact": the polynomial through all nodes. "published": with two nodes its value at the middle of the step stands for
    all of it (DPM-Solver-2, DPM-Solver++(2S)); of three nodes the middle one only serves to reach the last (DPM-Solver-3, 3S).
    """
    signed = span if predict == "x0" else -span
    if rule == "exact" or len(nodes) == 1:
        return adams_weights(signed, tuple(nodes))
    if len(nodes) == 2:
        return adams_weights(signed, tuple(nodes), "midpoint")
    first, last = adams_weights(signed, (nodes[0], nodes[2]))
    return first, 0.0, last


def stage_weights(span: float, nodes: Sequence[float], node: float, predict: str) -> tuple[float, ...]:
    """The exact weights that reach the next `node` through the `nodes` before it; `span` is that of the part step."""
    return adams_weights(span if predict == "x0" else -span, tuple(c / node for c in nodes))


def advance(
    x: Tensor, s: NoiseLevel, t: NoiseLevel, keep: float, predict: str, readings: Sequence[Tensor], weights: Sequence[float]
) -> Tensor:
    """Equation (1) or (2) from s to t. `keep` is the factor of x_s in (1): sigma_t / sigma_s, less if noise is to be added."""
    kept, scale = (keep, t.alpha) if predict == "x0" else (t.alpha / s.alpha, keep * s.sigma)
    x = kept * x if kept else torch.zeros_like(x)  # equation (1) or (2), term by term
    for reading, weight in zip(readings, weights, strict=True):
        if weight:
            x = torch.add(x, reading, alpha=scale * weight)
    return x


def join_draws(noise: NoiseSource) -> NoiseSource:
    """Noise for ever longer parts of one step from a source of independent draws.

    The first part is drawn; the next is what was there and a draw for the rest, weighted as increments of one Brownian path in
    the clock alpha^2 / sigma^2. Drawn afresh instead, DPM++ SDE would lose an eighth of its samples' spread.
    """
    known: list[tuple[NoiseLevel, Tensor]] = []

    def draw(s: NoiseLevel, t: NoiseLevel) -> Tensor:
        if not known:
            z = noise(s, t)
        else:
            middle, before = known[-1]
            share = math.expm1(2 * (middle.logsnr - s.logsnr)) / math.expm1(2 * (t.logsnr - s.logsnr))
            z = math.sqrt(share) * before + math.sqrt(1 - share) * noise(middle, t)
        known.append((t, z))
        return z

    return draw


@dataclass(frozen=True)
class Singlestep(PlainSolver):
    """DPM-Solver++ 2S and 3S (predict="x0"), DPM-Solver 1 to 3 (predict="eps"), and with noise: `order` evaluations a step.

    Nodes r1 and r2 are fractions of the step in log-SNR, by default 1/2 (order 2) or 1/3 and 2/3 (order 3). A step of infinite
    length, from pure noise or to clean data, is the exact first-order one, with one evaluation.

    eta is the noise strength, s_noise scales the noise, and `noise` says where it enters:
    sde          at every node, as one path of the reverse SDE with tau^2 = eta: SEEDS (arXiv 2305.14267, Algorithms 2 and 4).
    ancestral    once: the ODE is solved to a lower level and noise brings it up to t; eta as in DDIM. DPM++ 2S a.
    overlapping  at every node for the whole way from s, with eta as in DDIM: DPM++ SDE. Its draws (s, node) and (s, t) share
                 the way to the node, so it wants `brownian_noise`; with that of clock "snr" and eta = 1 it is "sde". Of
                 `seeded_noise`, whose draws are independent, the longer one is put together from its parts.
    Noise at the nodes needs predict="x0".

    rule: see `step_weights`.
    """

    order: int = 2
    predict: str = "x0"
    eta: float = 0.0
    noise: str = "sde"
    rule: str = "published"
    r1: float | None = None
    r2: float | None = None
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3) or isinstance(self.order, bool):
            raise ValueError(f"Singlestep got order={self.order!r}; choose 1, 2 or 3.")
        if self.predict not in ("x0", "eps"):
            raise ValueError(f"Singlestep got predict={self.predict!r}; choose x0 (DPM-Solver++) or eps (DPM-Solver).")
        if self.rule not in ("published", "exact"):
            raise ValueError(f"Singlestep got rule={self.rule!r}; choose published or exact.")
        if self.noise not in NOISES:
            raise ValueError(f"Unknown noise {self.noise!r}: choose one of {', '.join(NOISES)}.")
        if self.eta and self.predict == "eps" and self.noise != "ancestral":
            raise ValueError(f"Singlestep of eps cannot add noise={self.noise!r}: choose noise='ancestral', or predict='x0'.")
        unused = (self.r1 is not None and self.order < 2) or (self.r2 is not None and self.order < 3)
        if unused or any(not a < b for a, b in pairwise((*self.nodes, 1.0))):
            raise ValueError(
                f"Singlestep of order {self.order} got r1={self.r1} and r2={self.r2}; order 2 takes 0 < r1 < 1, order 3 takes "
                "0 < r1 < r2 < 1, and order 1 neither."
            )
        largest = math.inf if self.noise == "sde" else 1.0
        if not (0 <= self.eta <= largest and math.isfinite(self.eta)):
            raise ValueError(f"Singlestep got eta={self.eta}; with noise={self.noise!r} give 0 <= eta <= {largest}, finite.")
        if not 0 <= self.s_noise < math.inf:
            raise ValueError(f"Singlestep got s_noise={self.s_noise}; give a finite factor of at least 0.")

    @property
    def nodes(self) -> tuple[float, ...]:
        """(0, r1, r2) as far as the order goes."""
        default = (1 / 2,) if self.order == 2 else (1 / 3, 2 / 3)
        inner = [d if r is None else r for d, r in zip(default, (self.r1, self.r2), strict=False)]
        return (0.0, *inner[: self.order - 1])

    @cached_property
    def process(self) -> Multistep:
        """The first-order solver whose transition is that of this solver's noise."""
        return Multistep(1, eta=self.eta, noise="sde" if self.noise == "sde" else "ancestral", s_noise=self.s_noise)

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context, noise = step.denoiser, step.s, step.t, step.condition, step.context, step.noise
        keep, spread, span = self.process.transition(s, t)
        if spread:
            need_noise(noise, f"eta={self.eta}")
        if noise is not None and self.noise == "overlapping" and getattr(noise, "independent", False):
            noise = join_draws(noise)
        first = evaluate(denoiser, state, s, condition, context)
        gathered, last = None, s
        if math.isinf(span):
            x = advance(state.x, s, t, keep, "x0", [first.x0], (1.0,))
        else:
            inside = noise if spread and self.noise != "ancestral" else None
            length = span if inside is None else t.logsnr - s.logsnr
            readings, gathered, last = self.stages(denoiser, state.x, first, s, length, condition, context, inside)
            x = advance(state.x, s, t, keep, self.predict, readings, step_weights(span, self.nodes, self.predict, self.rule))
        if spread and noise is not None:
            x = x + self._noise_up_to(t, gathered, last, noise)
        return replace(state, x=x, prediction=first)

    def stages(
        self,
        denoiser: Denoiser,
        x: Tensor,
        first: Prediction,
        s: NoiseLevel,
        length: float,
        condition: Condition,
        context: Context,
        noise: NoiseSource | None = None,
    ) -> tuple[list[Tensor], Tensor | None, NoiseLevel]:
        """(readings at the nodes of a step `length` long in log-SNR, noise gathered on the way, the level it is gathered to).

        Without noise the nodes are reached along the ODE.
        """
        process = Multistep(1) if noise is None else self.process
        nodes, readings, last = self.nodes, [read_prediction(first, self.predict)], s
        gathered: Tensor | None = None
        for i, node in enumerate(nodes[1:], 1):
            level = denoiser.path.at_logsnr(s.logsnr + node * length)
            keep, _, part = process.transition(s, level)
            u = advance(x, s, level, keep, self.predict, readings, stage_weights(part, nodes[:i], node, self.predict))
            if noise is not None:
                added = self._noise_up_to(level, gathered, last, noise)
                u = u + added
                if self.noise == "sde":
                    gathered, last = added, level
            readings.append(read_prediction(denoiser(u, level, condition, context), self.predict))
        return readings, gathered, last

    def _noise_up_to(self, t: NoiseLevel, gathered: Tensor | None, last: NoiseLevel, noise: NoiseSource) -> Tensor:
        """The noise in x_t of a path with `gathered` at the level `last`: it fades by the transition, a draw adds to it."""
        keep, spread, _ = self.process.transition(last, t)
        fresh = spread * noise(last, t)
        return fresh if gathered is None else torch.add(fresh, gathered, alpha=keep)
