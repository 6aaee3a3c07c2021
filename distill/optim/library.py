"""Optimisers of the package pytorch-optimizer whose updates are those of their papers, with decoupled weight decay, and their
state as tensors.

AdEMAMix (Pagliardini et al. 2024, arXiv 2409.03137), Grams (Cao et al. 2024, arXiv 2412.17107), Lion (Chen et al. 2023,
arXiv 2302.06675), schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682), SOAP (Vyas et al. 2024, arXiv 2409.11321).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor

from distill.optim.kept_state import KeptState
from distill.optimizer_config import AdEMAMixOptions, OptimizerConfig, ScheduleFreeOptions, SOAPOptions
from distill.parallel.shards import is_sharded


def _settings(config: OptimizerConfig) -> dict[str, Any]:
    return {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay}


def _many_at_once(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups whose tensors are updated together where they are whole; the package has no such update of shards."""
    return [{**group, "foreach": not any(map(is_sharded, group["params"]))} for group in groups]


class AdEMAMix(KeptState, pytorch_optimizer.AdEMAMix):
    """AdamW whose momentum is a fast average of gradients and, `alpha` times, a slow one."""

    shared = ("step",)
    slots = 3


def ademamix(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    """The paper's alpha and beta3 rise over the whole run, where no warm-up is given."""
    own: AdEMAMixOptions = config.own()
    warmup = steps if own.warmup is None else own.warmup
    settings = _settings(config) | {"betas": (*config.betas, own.beta3), "eps": config.eps}
    return AdEMAMix(_many_at_once(groups), **settings, weight_decouple=True, alpha=own.alpha, t_alpha_beta3=warmup or None)


class Grams(KeptState, pytorch_optimizer.Grams):
    """Adam's update in size, the gradient's sign in direction."""

    shared = ("step",)


def grams(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    return Grams(_many_at_once(groups), **_settings(config), eps=config.eps, weight_decouple=True)


class Lion(KeptState, pytorch_optimizer.Lion):
    """The sign of a momentum: one number kept of each weight."""

    shared = ("step",)
    slots = 1


def lion(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    return Lion(_many_at_once(groups), **_settings(config), weight_decouple=True)


class ScheduleFree(KeptState, pytorch_optimizer.ScheduleFreeAdamW):
    """AdamW that trains at y, between an average x of its weights and the weights z that it steps; x is what it is for.

    Its average weighs a step by the square of its rate, in which the package leaves out Adam's correction of bias.
    """

    shared = ("step", "weight_sum", "lr_max")

    def evaluated(self, group: Mapping[str, Any], weights: Tensor, stepped: Tensor) -> Tensor:
        """x, from y = (1 - beta1) z + beta1 x (eq. 4)."""
        return weights.lerp(stepped, 1 - 1 / group["betas"][0])


def schedule_free(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    own: ScheduleFreeOptions = config.own()
    settings = _settings(config) | {"eps": config.eps}
    return ScheduleFree(_many_at_once(groups), **settings, r=own.r, weight_lr_power=own.rate_power)


class SOAP(KeptState, pytorch_optimizer.SOAP):
    """Adam in the bases of Shampoo's preconditioners: two square matrices for each side of a matrix.

    Its first step makes the bases, and moves nothing.
    """

    shared = ("step",)
    options: SOAPOptions

    # A product rounds by how its factors lie in memory, and a checkpoint gives back contiguous ones
    def get_orthogonal_matrix(self, mat: Any) -> list[Any]:  # type: ignore[override]
        return _contiguous(super().get_orthogonal_matrix(mat))

    def get_orthogonal_matrix_qr(self, *given: Any, **named: Any) -> list[Any]:
        return _contiguous(super().get_orthogonal_matrix_qr(*given, **named))

    def tensors(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        kept = {name: state[name] for name in ("exp_avg", "exp_avg_sq")}
        sides = {f"{name}.{i}": matrix for name in ("GG", "Q") for i, matrix in enumerate(state[name])}
        return {**kept, **{name: matrix for name, matrix in sides.items() if len(matrix)}}

    def put(self, slots: Mapping[str, Tensor], parameter: Tensor) -> None:
        own: SOAPOptions = self.options
        lists: dict[str, list[Any]] = {
            name: [slots.get(f"{name}.{i}", []) for i in range(parameter.ndim)] for name in ("GG", "Q")
        }
        kept = {name: slots[name] for name in ("exp_avg", "exp_avg_sq") if name in slots}
        beta = self.defaults["betas"][1] if own.beta is None else own.beta
        self.state[parameter].update({**kept, **lists, "precondition_frequency": own.every, "shampoo_beta": beta})

    def bytes_of(self, parameter: Tensor) -> int:
        sides = [n for n in parameter.shape if parameter.ndim > 1 and n <= self.options.largest]
        return 2 * parameter.nbytes + sum(2 * n * n * parameter.element_size() for n in sides)


def _contiguous(bases: list[Any]) -> list[Any]:
    return [basis.contiguous() if isinstance(basis, Tensor) else basis for basis in bases]


def soap(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    own: SOAPOptions = config.own()
    made = SOAP(
        groups,
        **_settings(config),
        eps=config.eps,
        shampoo_beta=own.beta,
        precondition_frequency=own.every,
        max_precondition_dim=own.largest,
    )
    made.options = own
    return made
