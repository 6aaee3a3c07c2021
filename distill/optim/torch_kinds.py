"""Optimisers that torch has: AdamW, RAdam, and Adafactor (Shazeer and Stern 2018, arXiv 1804.04235)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distill.optim.kept_state import KeptState
from distill.optimizer_config import AdafactorOptions, OptimizerConfig


def _shared(config: OptimizerConfig) -> dict[str, Any]:
    return {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay, "eps": config.eps}


def adamw(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, **_shared(config), fused=True)


def radam(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    return torch.optim.RAdam(groups, **_shared(config), decoupled_weight_decay=True, foreach=True)


class Adafactor(KeptState, torch.optim.Adafactor):
    """torch's, whose state is a number for each row and column of a matrix."""

    def bytes_of(self, parameter: Tensor) -> int:
        *front, rows, columns = parameter.shape if parameter.ndim > 1 else (1, parameter.numel())
        numbers = torch.Size(front).numel() * (rows + columns) if parameter.ndim > 1 else columns
        return 4 * numbers + 4  # and the step


def adafactor(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    """Algorithm 5 with the relative step min(lr, 1 / sqrt(t)); weight decay is decoupled, as AdamW's."""
    own: AdafactorOptions = config.own()
    return Adafactor(
        groups,
        lr=config.lr,
        beta2_decay=-own.decay,
        eps=(None, own.smallest_scale),
        d=own.clip_threshold,
        weight_decay=config.weight_decay,
    )
