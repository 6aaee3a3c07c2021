"""The table as JSON and markdown, and a sheet per task: rows are methods, columns requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.eval import metrics
from tests.benchmarks.guidance.measure import Cell, Setting
from tests.benchmarks.guidance.tasks import Subject, Task, World
from tests.benchmarks.sheet import sheet


def result(task: Task, name: str, setting: Setting, cell: Cell, world: World, real: Tensor) -> dict:
    """One row of the table, as plain values."""
    with torch.no_grad():
        features = torch.cat([world.evaluator.features(part * 2 - 1) for part in cell.images.split(64)])
    values = cell.values["score"]
    spread = torch.tensor(values).std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return {
        "task": task.name,
        "method": name,
        "setting": str(setting),
        "score": cell.mean(),
        "standard error": spread,
        "parts": {part: cell.mean(part) for part in cell.values if part != "score"},
        "frechet_distance": metrics.frechet_distance(features, real) if len(values) > 1 else float("nan"),
        "kernel_distance": metrics.kernel_distance(features, real) if len(values) > 1 else float("nan"),
        **{n: round(v, 2) for n, v in cell.cost.items()},
    }


def markdown(tasks: Sequence[Task], table: list[dict]) -> str:
    """The table, tasks one after another."""
    lines = [
        "| task, score | method | score | of which | FD | KID | evaluations | backward | energy | setting |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for task in tasks:
        rows = [row for row in table if row["task"] == task.name]
        guided = [row["score"] for row in rows if row["method"] not in ("unguided", "restore", "best of 3")]
        for i, row in enumerate(rows):
            score = f"{row['score']:.3g} +- {row['standard error']:.1g}"
            bold = row["score"] in guided and row["score"] >= max(guided) - 1e-9
            parts = ", ".join(f"{name} {value:.2g}" for name, value in row["parts"].items())
            cells = [
                f"{task.name}: {task.measure}" if i == 0 else "", row["method"], f"**{score}**" if bold else score, parts,
                f"{row['frechet_distance']:.1f}", f"{row['kernel_distance']:.2f}", f"{row['evaluations']:.0f}",
                f"{row['backward']:.0f}", f"{row['energy']:.0f}", row["setting"],
            ]  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_sheet(task: Task, rows: dict[str, Cell], path: Path, columns: int) -> None:
    """What was asked for (the truth, a measurement, a reference), then a row of pictures for each method."""
    subjects = task.subjects["table"]
    columns = min(columns, *(len(cell.images) for cell in rows.values()))
    chosen = [subjects[i % len(subjects)] for i in range(columns)]
    given = {"asked": [shown for s in chosen if (shown := asked(s)) is not None]} if chosen[0].shown is not None else {}
    methods = {name: cell.images[:columns].unbind() for name, cell in rows.items()}
    sheet({**given, **methods}, [s.caption for s in chosen], path, side=96, left=84)


def asked(subject: Subject) -> Tensor | None:
    """(3, 128, 128) in [0, 1]"""
    if subject.shown is None:
        return None
    return F.interpolate(subject.shown, (128, 128))[0] if subject.shown.shape[-1] != 128 else subject.shown[0]
