"""Pictures, configs and tiny models for tests of teaching."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from customization.base.config import CustomizationConfig, open_model
from customization.base.objective import CustomizationObjective
from customization.train import make_trainer
from distill.config import TrainConfig
from distill.trainer import Trainer

BASE: dict[str, Any] = {
    "network": {},
    "max_steps": 4,
    "batch_size": 2,
    "device": "cpu",
    "precision": "fp32",
    "log_every": 1,
    "checkpoint_every": 100,
    "schedule": {"warmup": 1},
    "optimizer": {"lr": 1e-2},
}


def pictures(folder: Path, count: int = 3, size: int = 32, captions: bool = False, alpha: bool = False) -> Path:
    """A folder of noise pictures 0.png, 1.png, ..."""
    folder.mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng(i)
        array = rng.integers(0, 256, (size, size, 4 if alpha else 3), dtype=np.uint8)
        if alpha:
            array[:, :, 3] = 0
            array[:, : size // 2, 3] = 255
        Image.fromarray(array).save(folder / f"{i}.png")
        if captions:
            (folder / f"{i}.txt").write_text(f"a red cat {i}")
    return folder


def config(output: Path, images: Path, model: Path | str, **changes: Any) -> TrainConfig:
    objective = {"model": str(model), "adapter": {"rank": 2}, **changes.pop("objective", {})}
    data = {"type": "concept", "images": str(images), "prompt": "a cat", **changes.pop("data", {})}
    return TrainConfig(**{**BASE, "output": output, "objective": objective, "data": data, **changes})


def trainer(output: Path, images: Path, model: Path | str, average: bool = False, **changes: Any):
    return make_trainer(config(output, images, model, **changes), average)


def objective(model: Path | str, **settings: Any) -> CustomizationObjective:
    checked = CustomizationConfig(**{"model": str(model), "adapter": {"rank": 2}, **settings})
    return CustomizationObjective(checked, open_model(checked, "cpu"))


def shake(network: torch.nn.Module, scale: float = 0.2) -> None:
    """Values other than those of the start, where an adapter changes nothing."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=random) * scale)


def train_until(made: Trainer, number: int) -> None:
    """Train until sample `number` is asked for: then Ctrl-C."""
    batches = made.source.batch

    def stop(numbers):
        if min(numbers) >= number:
            raise KeyboardInterrupt
        return batches(numbers)

    made.source.batch = stop
    with contextlib.suppress(KeyboardInterrupt):
        made.train()
