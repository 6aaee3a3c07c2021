"""What a training method is: which networks take part, and the loss of each phase of a step.

The trainer owns everything else (data order, optimisers, precision, EMA, checkpoints, launch). An objective draws all of
its randomness from the `Draws` it is handed and changes nothing but what `after_step` says it changes, so that a run
resumed at step N continues exactly as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.nn.registry import save_component
from samplers.noise import fold


@dataclass
class Batch:
    """One batch from a data source; what a source does not have stays None.

    index (B,) int64: the samples' global counters, from which every random number about them is drawn.
    images (B, 3, H, W) in [-1, 1] or latents (B, C, h, w); captions: B strings; labels (B,) class or concept indices.
    """

    index: Tensor
    images: Tensor | None = None
    latents: Tensor | None = None
    captions: Sequence[str] | None = None
    labels: Tensor | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def to(self, device: torch.device) -> Batch:
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return Batch(**{**vars(self), **moved})


# pictures (N, 3, H, W) in [-1, 1] and their captions, None for none
Preview = tuple[Tensor, Sequence[str] | None]


@dataclass(frozen=True)
class Draws:
    """Counter-based random numbers for the samples of one batch: row i is a function of (seed, index[i], purpose).

    A sample counter is used once in a run, so neither the step nor the rank enters: one process or many, a long run or one
    resumed, the same sample gets the same numbers.
    """

    seed: int
    index: Tensor  # (B,) int64 on the CPU
    phase: str = ""

    def _rows(self, fill, purpose: str, device) -> Tensor:
        rows = []
        for counter in self.index.tolist():
            generator = torch.Generator().manual_seed(fold(self.seed, counter, self.phase, purpose))
            rows.append(fill(generator))
        return torch.stack(rows).to(device)

    def normal(self, purpose: str, shape: Sequence[int] = (), device=None) -> Tensor:
        """(B, *shape) unit normal."""
        return self._rows(lambda g: torch.randn(tuple(shape), generator=g), purpose, device)

    def normal_like(self, purpose: str, x: Tensor) -> Tensor:
        """Unit normal, of the shape, device and type of a batch x (B, ...)."""
        return self.normal(purpose, x.shape[1:], x.device).to(x)

    def uniform(self, purpose: str, shape: Sequence[int] = (), device=None) -> Tensor:
        """(B, *shape) uniform in [0, 1)."""
        return self._rows(lambda g: torch.rand(tuple(shape), generator=g), purpose, device)


def drop_labels(batch: Batch, share: float, draws: Draws, group: int = 1) -> Batch:
    """The batch with a share of its labels dropped (-1), so that the row of a network's table which stands for no label, and
    which guidance asks for, is trained as well (arXiv 2207.12598, Algorithm 1). group: so many samples, one after another, are
    dropped together."""
    if batch.labels is None or not share:
        return batch
    return replace(batch, labels=torch.where(unlabelled(batch, share, draws, group), -1, batch.labels))


def unlabelled(batch: Batch, share: float, draws: Draws, group: int = 1) -> Tensor:
    """(B,) bool: the samples to train without a condition."""
    chance = draws.uniform("null", device=None if batch.labels is None else batch.labels.device)
    return chance.unflatten(0, (-1, group))[:, :1].expand(-1, group).flatten() < share


def knows_no_label(network: nn.Module) -> bool:
    """Does a network take labels and have a row for images without one?"""
    config: Any = getattr(network, "config", None)
    return bool(getattr(config, "num_classes", 0)) and bool(getattr(config, "null_label", True))


@dataclass(frozen=True)
class Role:
    """A network's part in a method: does it train, and is an averaged copy of it kept.

    follows: it is a frozen copy of one that trains, moved towards it or back, and cut into shards like that. second_order: its
    loss differentiates gradients (an exact gradient penalty), which shards drop without a word; it stays whole.
    """

    network: nn.Module
    trains: bool = True
    ema: bool = True
    follows: bool = False
    second_order: bool = False


@dataclass(frozen=True)
class Phase:
    """One optimiser update within a step: its name and the role whose weights it changes."""

    name: str
    role: str


class Objective:
    """Base of every method. Subclasses set `roles` and write `loss`; the rest has working defaults."""

    roles: dict[str, Role]
    makes_network = False  # can do without a network section: it makes the network that it trains

    def phases(self, step: int) -> tuple[Phase, ...]:
        """The updates of a step, in order. A pure function of the step."""
        return tuple(Phase(name, name) for name, role in self.roles.items() if role.trains)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(scalar mean loss over the batch, detached scalars to log). `models` holds the callable networks by role,
        wrapped for distributed training and in the trainer's autocast; no global random numbers, no side effects."""
        raise NotImplementedError

    def after_step(self, step: int) -> None:
        """Called once per step after all updates and averages."""

    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview | None:
        """A contact sheet of progress, made by the averaged networks; None for none."""
        return None

    # ---- what an evaluation asks of methods that draw pictures (distill/evaluation.py) ----

    draws_pictures: bool = False

    def check_steps(self, steps: int) -> None:
        """ValueError where the method cannot draw in so many steps."""

    def pictures(self, models: Mapping[str, nn.Module], batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] by the averaged networks in `steps` steps, of what the captions or labels of a batch
        say, from the noise of B seeds."""
        raise NotImplementedError

    def decoded(self, batch: Batch) -> Tensor:
        """The pictures (B, 3, H, W) in [-1, 1] of a batch, from latents where it has no others."""
        raise NotImplementedError

    def clean(self, batch: Batch) -> Tensor:
        """What is denoised (B, C, h, w), without noise."""
        raise NotImplementedError

    def teacher_digest(self) -> str | None:
        """A hash of everything about the teacher that `taught` depends on; None without a teacher."""
        return None

    def inputs(self) -> dict[str, str]:
        """What it reads besides the data, by name ("teacher"), each with a hash: a run that goes on says what has changed."""
        return {}

    def taught(self, batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
        """As `pictures`, by the teacher."""
        raise NotImplementedError

    def measure(self, models: Mapping[str, nn.Module]) -> dict[str, float]:
        """Numbers worth logging now and then, from the averaged networks (a held-out score, for instance)."""
        return {}

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """Write the result of a finished run where it can be used: by default one component folder per trained role."""
        trained = [name for name, role in self.roles.items() if role.trains]
        for name in trained:
            save_component(models[name], folder if len(trained) == 1 else folder / name)

    def state_dict(self) -> dict[str, Tensor]:
        """What else the method must have to resume."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but the checkpoint holds {sorted(state)}.")
