"""Optimisers by name, made when a run asks for one, and what is said of settings that they are not meant for."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from distill.config import OptimizerConfig, ScheduleConfig
from distill.run_folder import TrainingError

WITHOUT_RATE = ("prodigy", "dog")  # they find their own, and lr is a factor on it
CUT = {"zero": "ZeRO", "shards": "FSDP2"}


def make(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    """What updates the parameters of some groups. steps: of the run. TrainingError where its package is missing."""
    module, _, name = config.kind.make.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "pytorch_optimizer":
            raise
        raise TrainingError(
            f"optimizer.type={config.type} needs the package pytorch-optimizer: .venv/bin/pip install -e '.[optimizers]', or "
            "use optimizer.type=adamw."
        ) from None
    return made(groups, config, steps)


def check_cut(config: OptimizerConfig, how: str) -> None:
    """TrainingError where this optimiser cannot work on parameters that are cut: `zero` in flat shares, `shards` by FSDP2."""
    reason = getattr(config.kind, how)
    if reason is None:
        return
    from distill.optimizer_config import KINDS

    others = ", ".join(name for name, kind in KINDS.items() if getattr(kind, how) is None)
    instead = "configs/accelerate/fsdp2.yaml or ddp.yaml" if config.kind.shards is None else "configs/accelerate/ddp.yaml"
    raise TrainingError(
        f"optimizer.type={config.type} does not work under {CUT[how]}, which cuts parameters in pieces: {reason}. Launch with "
        f"{instead}, or use one of {others}."
    )


def advice(config: OptimizerConfig, schedule: ScheduleConfig) -> Iterator[str]:
    """A sentence for each setting that is allowed and hardly ever meant."""
    if config.type in WITHOUT_RATE and config.lr != 1:
        yield (
            f"optimizer.lr is {config.lr:g}; {config.type} finds its own learning rate, which lr multiplies: leave it at 1"
            + (", and tune optimizer.options.d_coef instead." if config.type == "prodigy" else ".")
        )
    if config.type == "schedule_free" and schedule.type != "constant":
        yield (
            f"schedule.type is {schedule.type}; schedule_free averages weights in the place of a falling rate: use "
            "schedule.type=constant, with its warm-up."
        )
