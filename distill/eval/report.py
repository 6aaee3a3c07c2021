"""Showing an evaluation: a contact sheet as PNG, and a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor


def write_sheet(images: Tensor, captions: Sequence[str], path: Path, most: int = 400, columns: int | None = None) -> None:
    """A contact sheet of at most `most` pictures, evenly chosen, `columns` wide (near a square if None)."""
    from gen.io.contact_sheet import contact_sheet, to_pictures, write_png

    chosen = [i * len(images) // min(most, len(images)) for i in range(min(most, len(images)))]
    write_png(contact_sheet(to_pictures(images[chosen]), [captions[i] for i in chosen], columns), path)


def print_table(report: dict[str, Any], title: str) -> None:
    """The report as a table, sections indented; `by_split`, measure -> value of each split, as one with a column for each."""
    from rich.console import Console
    from rich.table import Table

    table = Table("measure", "value", title=title)

    def add(values: dict[str, Any], indent: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict):
                table.add_row(f"{indent}{name.replace('_', ' ')}", "")
                add(value, indent + "  ")
            else:
                table.add_row(f"{indent}{name.replace('_', ' ')}", _shown(value))

    add({name: value for name, value in report.items() if name != "by_split"}, "")
    Console().print(table)
    if splits := report.get("by_split"):
        columns = dict.fromkeys(column for row in splits.values() for column in row)
        table = Table("drawings", *(column.replace("_", " ") for column in columns), title="training and held-out drawings")
        for name, row in splits.items():
            table.add_row(name, *(_shown(row[column]) if column in row else "" for column in columns))
        Console().print(table)


def _shown(value: Any) -> str:
    value = ", ".join(map(str, value)) if isinstance(value, list) else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)
