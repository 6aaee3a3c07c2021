"""A trainer's state as named groups of tensors, and back: whole tensors, whatever the number of processes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill.checkpointing import folder as checkpoints
from distill.checkpointing.folder import Checkpoint
from distill.parallel.data_parallel import full, is_sharded, laid_out, local
from distill.run_folder import TrainingError
from gen.io.weights import finite, listed, write_bytes

if TYPE_CHECKING:
    from distill.trainer import Trainer


def whole_state(network: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """A network's state dict with every shard collected; every process must call this alike, and those that do not `keep` let
    go of each tensor before the next."""
    return collected(network.state_dict(), keep)


def collected(state: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Tensors with every shard collected, on the CPU where they were in shards; nothing where they are not to be kept."""
    whole = {}
    for name, tensor in state.items():
        value = full(tensor.detach())  # all processes take part
        if keep:
            whole[name] = value.cpu() if is_sharded(tensor) else value
        del value
    return whole


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
    """Every group of tensors that the run needs to go on: whole on the main process, and empty on the others, which take part
    in collecting them. TrainingError, on all of them, where a number is not finite."""
    keep = trainer.accelerator.is_main_process
    groups = {name: whole_state(trainer.networks[name], keep) for name in trainer.optimizers}
    groups |= {
        f"ema-{name}{s}": whole_state(ema.network, keep) for name, emas in trainer.emas.items() for s, ema in emas.items()
    }
    groups |= {f"optim-{name}": optimizer.state_dict(keep) for name, optimizer in trainer.optimizers.items()}
    groups |= {f"scaler-{name}": state for name, scaler in trainer.scalers.items() if (state := scaler.state_dict())}
    if own := trainer.objective.state_dict():
        groups["objective"] = collected(own, keep)
    bad = [f"{group}/{name}" for group, tensors in groups.items() for name, value in tensors.items() if not finite(value)]
    if trainer.parallel.any(bool(bad)):
        raise TrainingError(
            f"At step {trainer.step} the run holds NaN or infinite values ({listed(bad) or 'found by the main process'}), so "
            "nothing was saved or exported; earlier checkpoints are as they were. Lower the learning rate, and run again to go "
            "on from the last of them."
        )
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


def find(trainer: Trainer) -> Path | None:
    """The checkpoint folder that the config's `resume` means, the same on all processes; None to start anew. An error, on all
    of them, where it cannot be used. Damaged ones that are passed over are set aside."""
    if not trainer.accelerator.is_main_process:
        folder, error = trainer.parallel.gather(None)[0]
        if error:
            raise TrainingError(error)
        return folder
    folder, error = None, None
    try:
        folder = _find(trainer)
    except (TrainingError, ValueError, OSError) as problem:
        error = str(problem)
        raise
    finally:
        trainer.parallel.gather((folder, error))
    return folder


def _find(trainer: Trainer) -> Path | None:
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
                return start
        else:
            later = [f.name for f in existing if checkpoints.step_of(f) > checkpoints.step_of(start)]
            if later:
                raise TrainingError(f"{run} also holds {later[0]}, which is later than {start.name}; move it away first.")
            return start
    folder, _, damaged = checkpoints.newest_good(run)
    for bad in damaged:
        tqdm.write(f"{bad} is damaged, and was moved to {checkpoints.set_aside(bad).name}.")
    return folder


def resume(trainer: Trainer) -> int:
    """Restore what there is to go on from; returns the step to go on at."""
    folder = find(trainer)
    if folder is None:
        return 0
    saved = checkpoints.load(folder)
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
        for text in changed_inputs(saved.state.get("inputs") or {}, trainer.inputs()):
            tqdm.write(text)
        if folder.parent.resolve() == trainer.run.resolve():
            forget_after(trainer.run, saved.step)
    return saved.step


def changed_inputs(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for everything that a run reads and that is not what it was when a checkpoint was written."""
    said = []
    for name, was in old.items():
        now = new.get(name)
        if not isinstance(was, dict) or now is None or now.get("digest") == was.get("digest"):
            continue
        if name == "data":
            counts = was.get("count"), now.get("count")
            how = f"{counts[0]} pictures then, {counts[1]} now" if counts[0] != counts[1] else (
                f"{counts[1]} pictures as then, but not the same ones, or with other captions or labels"
            )  # fmt: skip
            said.append(f"The data are not what they were at that step: {how}. Samples from here on are of the new data.")
        else:
            said.append(f"The {name} is not what it was at that step: its weights or settings have changed.")
    return said


def forget_after(run: Path, step: int) -> None:
    """Take out of a run's logs what was written after a step, for it happens again: rows of later steps, and one half written.
    A row of nonfinite.jsonl is of the update after its step."""
    for name, last in (("log.jsonl", step), ("nonfinite.jsonl", step - 1)):
        path = run / name
        if not path.is_file():
            continue
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and _step_in(line) <= last]
        if kept != lines:
            write_bytes(path, b"".join(kept))


def _step_in(line: bytes) -> float:
    """The step that a row of a log is of; rows of another kind are older than every step, and stay."""
    try:
        step = json.loads(line).get("step", -1)
    except (ValueError, RecursionError, AttributeError):
        return math.inf
    return step if isinstance(step, int | float) else -1


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
