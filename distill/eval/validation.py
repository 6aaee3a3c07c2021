"""The loss of pictures that are held out: where it rises while the training loss falls, a run learns by heart.

The same samples with the same noise every time, so that numbers of different steps compare. Nothing here draws from a global
generator or keeps a gradient, so a run with validation has the weights of one without, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.config import TrainConfig, ValidationConfig
from distill.objectives.bases.objective import Objective
from distill.optim.precision import autocast
from distill.parallel.data_parallel import Parallel
from distill.types import Draws

if TYPE_CHECKING:
    from distill.data.source import Source


def hold_out(config: TrainConfig, source: Any, make: Any = None) -> tuple[Any, Source | None]:
    """(what is trained on, what is held out): a share of the source's pictures, or a source of their own; None without a
    section validation. make: a source from a data section. ValueError for a source that cannot be split."""
    wanted = config.validation
    if wanted is None:
        return source, None
    if wanted.data is not None:
        return source, make(wanted.data)
    if not hasattr(source, "split"):
        raise ValueError(
            f"Data of type {config.data.get('type')!r} cannot be split; give validation.data, a data section of other pictures."
        )
    return source.split(wanted.share)


class Validation:
    """Measures the loss of held-out samples. Every process must call `measure` alike."""

    def __init__(
        self, run: TrainConfig, config: ValidationConfig, objective: Objective, source: Source, parallel: Parallel, micro: int
    ):
        self.run, self.config, self.objective, self.source, self.parallel = run, config, objective, source, parallel
        self.micro, self.device = micro, parallel.accelerator.device

    @torch.no_grad()
    def measure(self, networks: Mapping[str, nn.Module], averaged: Mapping[str, nn.Module], step: int) -> dict[str, float]:
        """By name, the mean over held-out samples of each phase's loss and of what it logs, with the averaged weights of the
        phase's own network. A phase whose loss differentiates gradients (`Role.second_order`) has none here."""
        phases = [p for p in self.objective.phases(step) if not self.objective.roles[p.role].second_order]
        single = len(self.objective.roles) == 1
        found: dict[str, float] = {}
        for phase in phases:
            totals: dict[str, Tensor] = {}
            rows = 0
            for batch in self._batches():
                draws = Draws(self.run.seed, batch.index, f"validation {phase.name}")
                models = {**networks, phase.role: averaged[phase.role]}
                with autocast(self.device, self.run.precision):
                    loss, scalars = self.objective.loss(phase, models, batch.to(self.device), draws, step)
                for name, value in {"loss": loss, **scalars}.items():
                    totals[name] = totals.get(name, torch.zeros(())) + value.detach().float().cpu().mean() * len(batch)
                rows += len(batch)
            prefix = "validation/" if single else f"validation/{phase.name}/"
            everyone = self.parallel.gather({name: float(value) / rows for name, value in totals.items()})
            for name in totals:
                values = [one[name] for one in everyone if name in one]
                found[prefix + name] = sum(values) / len(values)
        return found

    def _batches(self):
        """This process's part of the held-out batches, always the same."""
        group, share = self.run.batch_size, self.micro * self.run.accumulate
        for number in range(self.config.batches):
            start = number * group + self.parallel.rank * share
            for micro in range(self.run.accumulate):
                yield self.source.batch(range(start + micro * self.micro, start + (micro + 1) * self.micro))
