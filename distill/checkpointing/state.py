"""The state of a run as named groups of tensors, and back: whole tensors, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

from distill.checkpointing.folder import Checkpoint
from distill.optim.ema import Ema
from distill.optim.optimizer import Optimizer
from distill.optim.precision import LossScaler
from distill.parallel.data_parallel import Parallel
from distill.parallel.shards import collected, fill, whole_state
from distill.run_folder import TrainingError
from gen.io.weights import finite, listed


class Stateful(Protocol):
    """What a method keeps besides its networks."""

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class RunState:
    """Everything that a run needs to go on, but the number of its step.

    networks, optimizers, scalers: of the roles that train, by role.
    averages: role -> suffix of the file's name -> average.
    objective: the method, whose own state is saved beside.
    """

    networks: Mapping[str, nn.Module]
    optimizers: Mapping[str, Optimizer]
    scalers: Mapping[str, LossScaler]
    averages: Mapping[str, Mapping[str, Ema]]
    objective: Stateful
    parallel: Parallel

    def gather(self, step: int) -> dict[str, dict[str, Tensor]]:
        """The groups of tensors of a checkpoint: whole on the main process, and empty on the others, which take part in
        collecting them. TrainingError, on all of them, where a number is not finite."""
        keep = self.parallel.accelerator.is_main_process
        groups = {name: whole_state(network, keep) for name, network in self.networks.items()}
        groups |= {
            f"ema-{name}{suffix}": whole_state(ema.network, keep)
            for name, averages in self.averages.items()
            for suffix, ema in averages.items()
        }
        groups |= {f"optim-{name}": optimizer.state_dict(keep) for name, optimizer in self.optimizers.items()}
        groups |= {f"scaler-{name}": state for name, scaler in self.scalers.items() if (state := scaler.state_dict())}
        if own := self.objective.state_dict():
            groups["objective"] = collected(own, keep)
        bad = [f"{group}/{name}" for group, tensors in groups.items() for name, value in tensors.items() if not finite(value)]
        if self.parallel.any(bool(bad)):
            raise TrainingError(
                f"At step {step} the run holds NaN or infinite values ({listed(bad) or 'found by the main process'}), so "
                "nothing was saved or exported; earlier checkpoints are as they were. Lower the learning rate, and run again "
                "to go on from the last of them."
            )
        return groups

    def restore(self, saved: Checkpoint, folder: Path) -> None:
        """Put a checkpoint's tensors where they belong. TrainingError where the checkpoint of `folder` does not fit."""
        tensors = saved.tensors
        try:
            for name, network in self.networks.items():
                fill(network, tensors[name])
                self.optimizers[name].load_state_dict(tensors[f"optim-{name}"])
                self.scalers[name].load_state_dict(tensors.get(f"scaler-{name}", {}))
            for name, averages in self.averages.items():
                for suffix, ema in averages.items():
                    fill(ema.network, tensors[f"ema-{name}{suffix}"])
            self.objective.load_state_dict(tensors.get("objective", {}))
        except KeyError as error:
            raise TrainingError(f"{folder} does not fit this config: it holds no {error}.") from None
        except (RuntimeError, ValueError) as error:
            raise TrainingError(f"{folder} does not fit this config: {error}") from None
