"""Policies: what a network may say about a whole stretch of a trajectory in one evaluation (pi-Flow).

A policy gives a clean image at every later point of the stretch, from the network's one output and without the network, so that
a solver may follow it in many small steps. Policies are written in z = x / (alpha + sigma) and tau = sigma / (alpha + sigma),
where every path is the straight one: z = (1 - tau) x0 + tau eps, dz/dtau = (z - x0) / tau.

Shapes: x and z (B, C, H, W); tau a float or (B,); components (B, N, C, H, W).

Source: pi-Flow, arXiv 2510.14974, section 3; the mixture, GMFlow, arXiv 2504.05304.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.path import NoiseLevel, Scalar, expand
from samplers.prediction import Prediction, Row

KINDS = ("grid", "mixture")
SMALLEST = 1e-4  # of tau, by which velocities are divided
FIRST_SPREAD = 0.05  # of a mixture's components, where the network says 0
Clean = Callable[[Tensor, Scalar], Tensor]  # (z, tau) -> x0


def straight_time(level: NoiseLevel) -> Scalar:
    """tau = sigma / (alpha + sigma): 0 at clean data, 1 at pure noise."""
    return level.sigma / (level.alpha + level.sigma)


@dataclass(frozen=True)
class Policy:
    """How the outputs of a network that predicts policies are read.

    kind: "grid", x0 at `count` times of a stretch, linear in between (DX), or "mixture", `count` Gaussians of x0 at every
    pixel, with one spread for the picture (GMFlow).
    segment: the length of a grid's stretch in time, whatever step is taken.
    shift: times of a stretch are even in tau / (shift + (1 - shift) tau), its inverse that of the grid `shift`.
    """

    kind: str = "grid"
    count: int = 8
    segment: float = 1.0
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"Unknown kind of policy {self.kind!r}: choose one of {', '.join(KINDS)}.")
        if self.count < 1 or not 0 < self.segment <= 1 or not self.shift > 0:
            raise ValueError(
                f"A policy got count={self.count}, segment={self.segment}, shift={self.shift}; give at least one component, a "
                "segment above 0 and up to 1, and a shift above 0."
            )

    def outputs(self, channels: int) -> int:
        """How many channels the network gives for an image of `channels`: components, and of a mixture their weights and the
        spread."""
        return self.count * channels + (self.count + 1 if self.kind == "mixture" else 0)

    def time(self, tau: Scalar) -> Scalar:
        """The time in which a stretch is even, of tau."""
        return tau / (self.shift + (1 - self.shift) * tau)

    def tau(self, time: Scalar) -> Scalar:
        """The inverse of `time`."""
        return self.shift * time / (1 + (self.shift - 1) * time)

    def read(self, x: Tensor, level: NoiseLevel, raw: Tensor, row: Row) -> PolicyPrediction:
        """The prediction that a network's output (B, outputs, H, W) is. row: of its components, as of `Prediction`."""
        start, z = straight_time(level), x / expand(level.alpha + level.sigma, x)
        said, rest = raw[:, : self.count * x.shape[1]], raw[:, self.count * x.shape[1] :]
        components = Prediction(x[:, None], level, said.unflatten(1, (self.count, x.shape[1])), row).x0
        if self.kind == "grid":
            clean: Clean = GridPolicy(self, components, start)
        else:
            spread = FIRST_SPREAD * rest[:, -1:].mean((2, 3), keepdim=True).exp() * expand(start, x)
            clean = MixturePolicy(components, rest[:, :-1].log_softmax(1), spread, z, start)
        return PolicyPrediction(x, level, clean(z, start), (1.0, 0.0), clean=clean, policy=self)


@dataclass(frozen=True)
class GridPolicy:
    """x0 linear in time between components (B, N, C, H, W), which lie evenly from the end of the stretch (the first) to its
    start (the last); beyond its ends it stays as it is there."""

    policy: Policy
    components: Tensor
    start: Scalar

    def __call__(self, z: Tensor, tau: Scalar) -> Tensor:
        count = self.components.shape[1]
        first = self.policy.time(self.start)
        end = first - self.policy.segment
        end = end.clamp(min=0) if isinstance(end, Tensor) else max(end, 0.0)
        share = (self.policy.time(tau) - end) / (first - end)
        if not isinstance(share, Tensor):
            place = min(max(share, 0.0), 1.0) * (count - 1)
            below = min(int(place), max(count - 2, 0))
            above = min(below + 1, count - 1)
            return torch.lerp(self.components[:, below], self.components[:, above], place - below)
        places = share.clamp(0, 1) * (count - 1)
        first_of_two = places.floor().long().clamp(0, max(count - 2, 0))
        second = (first_of_two + 1).clamp(max=count - 1)
        rows, weight = torch.arange(len(z), device=z.device), places - first_of_two
        said = self.components[rows, first_of_two], self.components[rows, second]
        return torch.lerp(*said, expand(weight, z))  # type: ignore[arg-type]

    def detached(self) -> GridPolicy:
        return GridPolicy(self.policy, self.components.detach(), self.start)


@dataclass(frozen=True)
class MixturePolicy:
    """E[x0 | z_tau] of data that is, given z at the start, a mixture of Gaussians at every pixel.

    components (B, K, C, H, W), log_weights (B, K, H, W), spread (B, 1, 1, 1): its means, weights and standard deviation at the
    start, where z was `z`.
    """

    components: Tensor
    log_weights: Tensor
    spread: Tensor
    z: Tensor
    start: Scalar

    def __call__(self, z: Tensor, tau: Scalar) -> Tensor:
        # p(x0 | z_tau) is p(x0 | z_start) exp(nu x0 - zeta x0^2 / 2), by Bayes' rule (arXiv 2504.05304, section 3.3)
        now, first = expand(tau, z), expand(self.start, z)
        zeta = ((1 - now) / now) ** 2 - ((1 - first) / first) ** 2
        nu = (1 - now) / now**2 * z - (1 - first) / first**2 * self.z
        zeta = zeta.to(z.dtype) if isinstance(zeta, Tensor) else zeta
        nu = nu.to(z.dtype)
        variance = self.spread.square().to(z.dtype)
        shrink = 1 + variance * zeta
        middle = self.components.mean(1)  # what is common to all components is left out: small numbers lose fewer digits
        off = self.components - middle[:, None]
        zeta_each = zeta[:, None] if isinstance(zeta, Tensor) else zeta
        gain = off * (nu - zeta * middle)[:, None] - zeta_each * off.square() / 2
        weights = (self.log_weights + (gain / shrink[:, None]).sum(2)).softmax(1)
        return ((weights[:, :, None] * self.components).sum(1) + variance * nu) / shrink

    def detached(self) -> MixturePolicy:
        return MixturePolicy(
            self.components.detach(), self.log_weights.detach(), self.spread.detach(), self.z.detach(), self.start
        )

    def without(self, dropped: Tensor) -> MixturePolicy:
        """Without the components that `dropped` (B, K) names; a row of which nothing would be left keeps all."""
        dropped = dropped & ~dropped.all(1, keepdim=True)
        return MixturePolicy(
            self.components, self.log_weights.masked_fill(dropped[:, :, None, None], -math.inf), self.spread, self.z, self.start
        )


@dataclass(frozen=True)
class PolicyPrediction(Prediction):
    """A prediction that goes on: `clean(z, tau)` is x0 at a later point. Its own x0 is the policy's at x."""

    clean: Clean = None  # type: ignore[assignment]
    policy: Policy = None  # type: ignore[assignment]

    def with_raw(self, raw: Tensor) -> Prediction:
        """Plain: what has been changed at x says nothing of later points."""
        return Prediction(self.x, self.level, raw, self.row)

    def with_x0(self, x0: Tensor) -> Prediction:
        return Prediction(self.x, self.level, x0, (1.0, 0.0))


def follow(clean: Clean, policy: Policy, z: Tensor, start: float, end: float, steps: int) -> Tensor:
    """z at tau = `end` from z at tau = `start` by Euler steps, even in the policy's time."""
    first, last = policy.time(start), policy.time(end)
    for i in range(steps):
        tau = policy.tau(first + (last - first) * i / steps)
        then = end if i == steps - 1 else policy.tau(first + (last - first) * (i + 1) / steps)
        z = torch.lerp(clean(z, max(tau, SMALLEST)), z, then / tau)  # z + (tau' - tau) (z - x0) / tau
    return z


def follow_rows(clean: Clean, policy: Policy, z: Tensor, first: Tensor, last: Tensor, substeps: int) -> Tensor:
    """As `follow`, from the times `first` to the times `last`, (B,) in the policy's time, every row in as many steps as its
    stretch has of `substeps` a unit of time, at least one."""
    count = ((first - last) * substeps).round().clamp(min=1)
    for i in range(int(count.max())):
        now = torch.lerp(first, last, (i / count).clamp(max=1))
        tau, then = policy.tau(now).clamp(min=SMALLEST), policy.tau(torch.lerp(first, last, ((i + 1) / count).clamp(max=1)))
        moved = torch.lerp(clean(z, tau), z, expand(then / tau, z).to(z.dtype))
        z = torch.where(expand(i < count, z).bool(), moved, z)
    return z
