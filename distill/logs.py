"""What a run says of itself: a progress bar, `log.jsonl`, and trackers through accelerate."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from torch import Tensor
from tqdm import tqdm

from distill.config import TrainConfig
from distill.parallel.data_parallel import Parallel
from distill.run_folder import TrainingError
from samplers.lookup import nearest


def check_trackers(names: tuple[str, ...]) -> None:
    """TrainingError for a tracker that accelerate does not know, or whose package is missing: accelerate itself only leaves it
    out."""
    available = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            near = nearest(name, LOGGER_TYPE_TO_CLASS)
            hint = f"did you mean {near!r}? " if near else ""
            raise TrainingError(f"Unknown tracker {name!r}: {hint}Known: {', '.join(LOGGER_TYPE_TO_CLASS)}.")
        if name not in available:
            raise TrainingError(f"trackers names {name!r}, whose package is not installed; install {name}, or leave it out.")


class Log:
    """Collects every step's scalars, and writes their means over steps and processes once per window."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, parallel: Parallel):
        self.config, self.accelerator, self.parallel = config, accelerator, parallel
        self.window: list[dict[str, Tensor]] = []
        self.bar: tqdm | None = None
        self.shown: dict[str, str] = {}  # of the last evaluation, in the progress bar
        self.since = time.perf_counter()

    def start(self, step: int) -> None:
        main = self.accelerator.is_main_process
        self.bar = tqdm(total=self.config.max_steps, initial=step, disable=not main, unit="step", smoothing=0.05)
        if self.config.trackers:
            settings = _flat(self.config.model_dump(mode="json"))
            self.accelerator.init_trackers(Path(self.config.output).resolve().name, settings)
        self.since = time.perf_counter()

    def add(self, scalars: dict[str, Tensor]) -> None:
        self.window.append(scalars)
        if self.bar is not None:
            self.bar.update()

    def write_window(self, step: int) -> None:
        """Every process must call this alike. A scalar that some steps or processes lack, because its role was not updated or
        their samples gave none, is averaged over those that have it."""
        rows, self.window = self.window, []
        elapsed, self.since = time.perf_counter() - self.since, time.perf_counter()
        mine: dict[str, tuple[float, int]] = {}  # sum and count
        for name in {name for row in rows for name in row}:
            column = torch.stack([row[name].detach().float().cpu() for row in rows if name in row])
            mine[name] = float(column.sum(dtype=torch.float64)), len(column)
        everyone = self.parallel.gather(mine)
        names = sorted({name for found in everyone for name in found}, key=lambda name: (name != "loss", name))
        values = {}
        for name in names:
            totals, counts = zip(*(found[name] for found in everyone if name in found), strict=True)
            values[name] = sum(totals) / sum(counts)
        speed = len(rows) * self.config.batch_size / elapsed
        if self.bar is not None and values:
            first = next((name for name in names if name.rpartition("/")[2] == "loss"), names[0])
            self.bar.set_postfix(loss=f"{values[first]:.4f}", samples=f"{speed:.0f}/s", **self.shown)
        self.write({"step": step, "samples_per_second": round(speed, 2), **values})

    def write(self, row: dict[str, float]) -> None:
        """One line of log.jsonl, and the same to every tracker; the main process writes."""
        if not self.accelerator.is_main_process:
            return
        with open(Path(self.config.output) / "log.jsonl", "a") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **row}) + "\n")
        if self.config.trackers:
            self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

    def write_evaluation(self, step: int, scores: Mapping[int, Mapping[str, float]]) -> None:
        """The numbers of each number of sampling steps, in one line; the Fréchet distances stay in the progress bar."""
        self.shown = {"FD": " ".join(f"{n}:{found['frechet_distance']:.4g}" for n, found in scores.items())}
        flat = {f"evaluation/{n}/{name}": value for n, found in scores.items() for name, value in found.items()}
        self.write({"step": step, **flat})

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.config.trackers:
            self.accelerator.end_training()


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, str | float | int | bool]:
    """Nested settings as the one level that trackers show; lists become text."""
    flat: dict[str, str | float | int | bool] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str | float | int | bool) else str(value)
    return flat
