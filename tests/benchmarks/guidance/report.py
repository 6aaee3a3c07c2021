"""The table as JSON and markdown, and a sheet per task: rows are methods, columns requests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from distill import metrics
from gen.grid import to_pictures, write_png
from tests.benchmarks.guidance.measure import Cell, Setting
from tests.benchmarks.guidance.tasks import Subject, Task, World

CELL, LEFT, GAP, LINE = 96, 84, 3, 14


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


def sheet(task: Task, rows: dict[str, Cell], path: Path, columns: int) -> None:
    """What was asked for (the truth, a measurement, a reference), then a row of pictures for each method; 256 colours."""
    subjects = task.subjects["table"]
    columns = min(columns, *(len(cell.images) for cell in rows.values()))
    chosen = [subjects[i % len(subjects)] for i in range(columns)]
    shown = {"asked": [picture for s in chosen if (picture := asked(s)) is not None]} if chosen[0].shown is not None else {}
    strips = {**shown, **{name: to_pictures(cell.images[:columns] * 2 - 1) for name, cell in rows.items()}}
    width, height = LEFT + columns * (CELL + GAP), LINE + len(strips) * (CELL + GAP)
    page = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for column, subject in enumerate(chosen):
        draw.text((LEFT + column * (CELL + GAP), 1), subject.caption[:18], fill="black", font=font)
    for row, (name, pictures) in enumerate(strips.items()):
        top = LINE + row * (CELL + GAP)
        draw.text((2, top + CELL // 2 - 6), name, fill="black", font=font)
        for column, picture in enumerate(pictures):
            page.paste(picture.resize((CELL, CELL), Image.Resampling.BOX), (LEFT + column * (CELL + GAP), top))
    write_png(page.quantize(256, dither=Image.Dither.NONE), path)


def asked(subject: Subject) -> Image.Image | None:
    if subject.shown is None:
        return None
    picture = F.interpolate(subject.shown, (128, 128)) if subject.shown.shape[-1] != 128 else subject.shown
    return to_pictures(picture * 2 - 1)[0]
