"""A trainer's state as named groups of tensors, and back: whole tensors, whatever the number of processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill import checkpoint as checkpoints
from distill.checkpoint import Checkpoint
from distill.parallel import full, laid_out, local
from distill.run_folder import TrainingError

if TYPE_CHECKING:
    from distill.trainer import Trainer


def whole_state(network: nn.Module) -> dict[str, Tensor]:
    """A network's state dict with every shard collected; every process must call this alike."""
    return {name: full(tensor.detach()) for name, tensor in network.state_dict().items()}


def fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors into a network, in place; ValueError where names or shapes are not the network's."""
    own = network.state_dict()
    different = sorted(own.keys() ^ tensors.keys()) or [n for n in own if own[n].shape != tensors[n].shape]
    if different:
        raise ValueError(f"weights and network differ in {', '.join(different[:5])}")
    with torch.no_grad():
        for name, tensor in own.items():
            local(tensor.detach()).copy_(local(laid_out(tensors[name], tensor)))


def copy_on_cpu(network: nn.Module) -> nn.Module:
    """A copy to fill and export later."""
    return copy.deepcopy(network).to("cpu").eval()


def gather(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    """Every group of tensors that the run needs to go on."""
    groups = {name: whole_state(trainer.networks[name]) for name in trainer.optimizers}
    groups |= {f"ema-{name}{s}": whole_state(e.network) for name, emas in trainer.emas.items() for s, e in emas.items()}
    groups |= {f"optim-{name}": optimizer.state_dict() for name, optimizer in trainer.optimizers.items()}
    groups |= {f"scaler-{name}": state for name, scaler in trainer.scalers.items() if (state := scaler.state_dict())}
    if own := trainer.objective.state_dict():
        groups["objective"] = {name: full(value) for name, value in own.items()}
    return groups


def restore(trainer: Trainer, saved: Checkpoint, folder: Path) -> None:
    """Put a checkpoint's tensors where they belong."""
    tensors = saved.tensors
    try:
        for name in trainer.optimizers:
            fill(trainer.networks[name], tensors[name])
            trainer.optimizers[name].load_state_dict(tensors[f"optim-{name}"])
            trainer.scalers[name].load_state_dict(tensors.get(f"scaler-{name}", {}))
        for name, emas in trainer.emas.items():
            for suffix, ema in emas.items():
                fill(ema.network, tensors[f"ema-{name}{suffix}"])
        trainer.objective.load_state_dict(tensors.get("objective", {}))
    except KeyError as error:
        raise TrainingError(f"{folder} does not fit this config: it holds no {error}.") from None
    except (RuntimeError, ValueError) as error:
        raise TrainingError(f"{folder} does not fit this config: {error}") from None


def find(trainer: Trainer) -> tuple[Checkpoint, Path] | None:
    """The checkpoint that the config's `resume` means; None to start anew. TrainingError where it cannot be used."""
    run, wanted = trainer.run, trainer.config.resume
    existing = checkpoints.folders(run)
    if wanted == "never":
        if existing:
            raise TrainingError(
                f"{run} already holds {existing[0].name}, and resume is never; give another output, or resume=auto to go on."
            )
        return None
    if wanted != "auto":
        start = Path(wanted)
        if start.resolve().parent != run.resolve():
            if not existing:  # only where another run's step is the start; afterwards the run goes on from its own
                return checkpoints.load(start), start
        else:
            later = [f.name for f in existing if checkpoints.step_of(f) > checkpoints.step_of(start)]
            if later:
                raise TrainingError(f"{run} also holds {later[0]}, which is later than {start.name}; move it away first.")
            return checkpoints.load(start), start
    saved = checkpoints.load_latest(run)
    return None if saved is None else (saved, checkpoints.folder_of(run, saved.step))


def resume(trainer: Trainer) -> int:
    """Restore what there is to go on from; returns the step to go on at."""
    found = find(trainer)
    if found is None:
        return 0
    saved, folder = found
    changes = differences(saved.state.get("config", {}), trainer.config.model_dump(mode="json"))
    if other := [text for name, text in changes.items() if name.startswith("network.")]:
        raise TrainingError(
            f"{folder} is of another network ({'; '.join(other[:5])}). Give another output, or the network section it was "
            "begun with."
        )
    restore(trainer, saved, folder)
    if trainer.accelerator.is_main_process:
        # a key that the checkpoint lacks is one that did not exist when it was written
        told = {name: text for name, text in changes.items() if f": {NOT_GIVEN} ->" not in text}
        shown = [text for name, text in told.items() if name.partition(".")[0] not in ("output", "resume", "max_steps")]
        note = f" with changes: {'; '.join(shown[:8])}" if shown else ""
        tqdm.write(f"Resuming {trainer.run} at step {saved.step}{note}.")
    return saved.step


NOT_GIVEN = "(not given)"
_MISSING = object()


def differences(old: Any, new: Any, name: str = "") -> dict[str, str]:
    """What changed between two nested settings, by dotted key: "optimizer.lr: 0.001 -> 0.0005"."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for key in [*new, *(key for key in old if key not in new)]:
            path = f"{name}.{key}" if name else str(key)
            found |= differences(old.get(key, _MISSING), new.get(key, _MISSING), path)
        return found
    if old == new:
        return {}

    def show(value: Any) -> str:
        return NOT_GIVEN if value is _MISSING else str(value)

    return {name: f"{name}: {show(old)} -> {show(new)}"}
