"""What a training method is: which networks take part, and the loss of each phase of a step.

The trainer owns everything else (data order, optimisers, precision, EMA, checkpoints, launch). An objective draws all of
its randomness from the `Draws` it is handed and changes nothing but what `after_step` says it changes, so that a run
resumed at step N continues exactly as if it had never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from distill.types import Batch, Draws, Phase, Preview, Role
from gen.models.components import save_component


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

    # ---- what an evaluation asks of methods that draw pictures (distill/eval/during_training.py) ----

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
        """A hash of everything about the teacher that `teacher_sample` depends on; None without a teacher."""
        return None

    def inputs(self) -> dict[str, str]:
        """What it reads besides the data, by name ("teacher"), each with a hash: a run that goes on says what has changed."""
        return {}

    def teacher_sample(self, batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
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
