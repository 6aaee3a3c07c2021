"""DoG, distance over gradients (Ivgi, Hinder and Carmon 2023, arXiv 2302.12022): SGD that finds its own learning rate."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from distill.optim.kept_state import KeptState
from distill.optim.sums import total
from distill.optimizer_config import DoGOptions, OptimizerConfig
from distill.parallel.shards import local


class DoG(KeptState, torch.optim.Optimizer):
    """x <- x - lr eta g, with eta_t = max_{i <= t} |x_i - x_0| / sqrt(sum_{i <= t} |g_i|^2 + eps) (eq. DoG), norms over all
    weights as one vector. The first distance is relative_start (1 + |x_0|).

    lr: of a group, as a factor on eta; 1 is the method.
    weight_decay: decoupled, so that it is no part of the gradients whose size sets the rate, as it is in the authors' code:
        x <- x - lr eta weight_decay x.
    """

    shared: ClassVar[tuple[str, ...]] = ("distance", "squares")
    slots = 1

    def __init__(self, groups: Any, lr: float, weight_decay: float, eps: float, relative_start: float):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "eps": eps, "relative_start": relative_start})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        members = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not members:
            return
        terms = []
        for _, parameter in members:
            weights, gradient, state = local(parameter), local(parameter.grad), self.state[parameter]
            if "start" not in state:
                state["start"] = parameter.detach().clone()
            moved = weights - local(state["start"])
            terms.append((parameter, torch.stack([_square(moved), _square(gradient), _square(weights)])))
        moved_square, gradient_square, square = total(terms, self.over_shares)
        first = self.param_groups[0]
        if "distance" not in first:
            first["distance"] = first["relative_start"] * (1 + square.sqrt())
            first["squares"] = torch.full_like(gradient_square, first["eps"])
        distance = torch.maximum(first["distance"], moved_square.sqrt())
        squares = first["squares"] + gradient_square
        for group in self.param_groups:
            group["distance"], group["squares"] = distance, squares
        for group, parameter in members:
            weights = local(parameter)
            rate = (group["lr"] * distance / squares.sqrt()).to(weights.dtype)
            weights.mul_(1 - rate * group["weight_decay"])
            weights.sub_(rate * local(parameter.grad))

    def number(self, value: Tensor, parameter: Tensor) -> Tensor:
        return value.to(parameter.device)


def _square(x: Tensor) -> Tensor:
    return x.double().square().sum()


def dog(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    own: DoGOptions = config.own()
    return DoG(groups, config.lr, config.weight_decay, config.eps, own.relative_start)
