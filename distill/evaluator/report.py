"""Showing an evaluation: a contact sheet as PNG, and a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def to_pil(images: Tensor) -> list[Image]:
    """Pictures (N, 3, H, W) in [-1, 1] as PIL images."""
    from PIL import Image

    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(picture) for picture in pixels]


def write_sheet(images: Tensor, captions: Sequence[str], path: Path, most: int = 400) -> None:
    """A contact sheet of at most `most` pictures, evenly chosen."""
    from gen.grid import contact_sheet

    chosen = [i * len(images) // min(most, len(images)) for i in range(min(most, len(images)))]
    temporary = path.with_suffix(".tmp")
    contact_sheet(to_pil(images[chosen]), [captions[i] for i in chosen]).save(temporary, format="PNG")
    temporary.replace(path)


def print_table(report: dict[str, Any], title: str) -> None:
    """The report as a table, sections indented."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", title=title)

    def add(values: dict[str, Any], indent: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                table.add_row(f"{indent}{name.replace('_', ' ')}", "")
                add(value, indent + "  ")
            else:
                shown = ", ".join(map(str, value)) if isinstance(value, list) else value
                table.add_row(f"{indent}{name.replace('_', ' ')}", f"{shown:.4g}" if isinstance(shown, float) else str(shown))

    add(report, "")
    Console().print(table)
