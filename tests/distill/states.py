"""What two runs left behind, compared."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from distill.checkpointing import folder as checkpoints
from distill.trainer import Trainer
from tests.distill.processes import on_processes


def everything(run: Path) -> dict[str, Tensor]:
    """The tensors of a run's newest checkpoint."""
    saved = checkpoints.load_latest(run)
    return {f"{group}/{name}": value for group, tensors in saved.tensors.items() for name, value in tensors.items()}


def close(a: Mapping[str, Tensor], b: Mapping[str, Tensor], atol: float = 1e-6, rtol: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, atol=atol, rtol=rtol, msg=lambda text, name=name: f"{name}: {text}")


def close_exports(a: Path, b: Path, atol: float, rtol: float) -> None:
    """What two runs wrote for use, file by file."""
    files = sorted(path.relative_to(a) for path in (a / "export").rglob("*.safetensors"))
    assert files
    for file in files:
        close(load_file(a / file), load_file(b / file), atol, rtol)


def equals_one(folder: Path, alone: Trainer, together: Callable, *arguments, world: int = 2) -> None:
    """The run of one process, whose trainer is given and writes to folder / "one", is that of together(folder / "two",
    *arguments) in `world` processes: weights, averages and optimiser state."""
    alone.train()
    on_processes(world, together, folder / "two", *arguments)
    close(everything(folder / "one"), everything(folder / "two"))


def stop_after(trainer: Trainer, steps: int, here: bool = True) -> None:
    """Train until SIGTERM reaches a process, this one if `here`, within step `steps`."""
    trainer.objective.after_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if here and step == steps - 1 else None
    with pytest.raises(SystemExit) as stop:
        trainer.train()
    assert stop.value.code == 143 and trainer.step == steps
