"""Prodigy (Mishchenko and Defazio 2023, arXiv 2306.06101): Adam that estimates the distance to its solution, and from it the
learning rate."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from distill.optim.kept_state import KeptState
from distill.optim.sums import total
from distill.optimizer_config import OptimizerConfig, ProdigyOptions
from distill.parallel.shards import local


class Prodigy(KeptState, torch.optim.Optimizer):
    """Algorithm 4. With distance d, rate gamma and c = d gamma (times Adam's correction of bias, if asked for):

        r <- beta3 r + (d / d0) c <g, x_0 - x>        over all weights
        s <- beta3 s + (d / d0) c g                   with d in the place of c if `safeguard_warmup`
        m <- beta1 m + (1 - beta1) d g
        v <- beta2 v + (1 - beta2) d^2 g^2
        d <- max(d, d_coef r / |s|_1)                 at most growth_rate d
        x <- x - c (m / (sqrt(v) + d eps) + weight_decay x)

    The new d is that of eps and of the next step.
    """

    shared: ClassVar[tuple[str, ...]] = ("d", "d_max", "numerator", "step")
    slots = 4

    def __init__(self, groups: Any, config: OptimizerConfig):
        self.options: ProdigyOptions = config.own()
        shared = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay, "eps": config.eps}
        super().__init__(groups, shared)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        members = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not members:
            return
        own, first = self.options, self.param_groups[0]
        beta1, beta2 = first["betas"]
        beta3 = beta2**0.5 if own.beta3 is None else own.beta3
        one = torch.ones((), dtype=torch.float64, device=members[0][1].device)
        d, d_max = first.get("d", one * own.d0), first.get("d_max", one * own.d0)
        numerator, step = first.get("numerator", one * 0), first.get("step", one * 0) + 1
        corrected = ((1 - beta2**step).sqrt() / (1 - beta1**step)) if own.bias_correction else 1.0
        terms = []
        for group, parameter in members:
            terms.append((parameter, self._gather(group, parameter, d, d * group["lr"] * corrected, (beta1, beta2, beta3))))
        aligned, size = total(terms, self.over_shares)
        numerator = beta3 * numerator + aligned
        found = own.d_coef * numerator / size  # NaN while every gradient was zero, which `where` leaves out
        higher = torch.where(size > 0, torch.maximum(d_max, found), d_max)
        start = torch.where((d == own.d0) & (size > 0), torch.maximum(d, found), d)
        grown = higher if own.growth_rate is None else torch.minimum(higher, start * own.growth_rate)
        new = torch.where(size > 0, grown, d)
        for group, parameter in members:
            state, weights = self.state[parameter], local(parameter)
            rate = (d * group["lr"] * corrected).to(weights.dtype)
            deep = local(state["exp_avg_sq"]).sqrt().add_((new * group["eps"]).to(weights.dtype))
            weights.mul_(1 - rate * group["weight_decay"])
            weights.sub_(rate * local(state["exp_avg"]) / deep)
        for group in self.param_groups:
            group.update({"d": new, "d_max": higher, "numerator": numerator, "step": step})

    def _gather(
        self, group: dict[str, Any], parameter: Any, d: Tensor, rate: Tensor, betas: tuple[float, float, float]
    ) -> Tensor:
        """Update a parameter's averages; returns its shares of (d / d0) c <g, x_0 - x> and of |s|_1."""
        beta1, beta2, beta3 = betas
        own, state = self.options, self.state[parameter]
        if "start" not in state:
            state["start"] = parameter.detach().clone()
            state |= {name: torch.zeros_like(parameter) for name in ("s", "exp_avg", "exp_avg_sq")}
        gradient, weights = local(parameter.grad), local(parameter)
        start, s, m, v = (local(state[name]) for name in ("start", "s", "exp_avg", "exp_avg_sq"))
        scale = d / own.d0 * rate
        aligned = scale * (gradient.double() * (start.double() - weights.double())).sum()
        s.mul_(beta3).add_((d / own.d0 * (d if own.safeguard_warmup else rate)).to(s.dtype) * gradient)
        m.mul_(beta1).add_(((1 - beta1) * d).to(m.dtype) * gradient)
        v.mul_(beta2).add_(((1 - beta2) * d * d).to(v.dtype) * gradient * gradient)
        return torch.stack([aligned, s.double().abs().sum()])

    def number(self, value: Tensor, parameter: Tensor) -> Tensor:
        return value.to(parameter.device)


def prodigy(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    return Prodigy(groups, config)
