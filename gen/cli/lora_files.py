"""`fewstep lora inspect` and `fewstep lora convert`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from gen.cli.output import say
from gen.io.errors import printable
from samplers.lookup import nearest

SHOWN = 20


def inspect(file: Path, *, model: str | None, as_json: bool, allow_nonfinite: bool) -> int:
    """Exit code 1 if a model is given and not every layer fits it."""
    from gen.adapters import read_adapter
    from gen.adapters.inspect import describe, match

    adapter = read_adapter(file, strict=False, allow_nonfinite=allow_nonfinite)
    description = describe(adapter, _weights(file))
    if model is not None:
        from gen.models.pretrained import find_model
        from gen.models.skeleton import skeleton

        name, folder = find_model(model)
        description["model"] = {"name": name, **match(adapter, skeleton(folder))}
    if as_json:
        print(json.dumps(description, indent=2, ensure_ascii=False))
    else:
        _show(description)
    return 0 if model is None or description["model"]["complete"] else 1


def _weights(file: Path) -> Path:
    from gen.adapters.files import IN_FOLDER

    return next((file / name for name in IN_FOLDER if (file / name).is_file()), file)


def _show(description: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 140)
    facts = Table(show_header=False, box=None, pad_edge=False)
    rows = {
        "name": description["name"],
        "format": description["format"],
        "size": f"{description['bytes']:,} bytes, {description['parameters']:,} numbers ({', '.join(description['dtypes'])})",
        "sha256": description["sha256"],
        "title": description["title"],
        "base model": description["base_model"],
        "trained from": description["trained_from"],
        "trained with": description["trained_with"],
        "author": description["author"],
        "license": description["license"],
        "trained words": ", ".join(description["trained_words"]),
        "learned words": ", ".join(f"{word} ({count})" for word, count in description["learned_words"].items()),
        **{f"note {i + 1}": note for i, note in enumerate(description["notes"])},
    }
    for name, value in rows.items():
        if value:
            facts.add_row(name, printable(str(value)).replace("\n", " "))
    console.print(facts)
    layers = Table()
    for name in ("part", "kind", "rank", "alpha", "scale", "layers"):
        layers.add_column(name, justify="left" if name in ("part", "kind") else "right")
    for group in description["groups"]:
        cells = ["" if group[name] is None else group[name] for name in ("part", "kind", "rank", "alpha", "scale", "layers")]
        layers.add_row(*[f"{cell:g}" if isinstance(cell, float) else printable(str(cell)) for cell in cells])
    console.print(layers)
    if "model" in description:
        _show_match(console, description)


def _show_match(console: Any, description: dict[str, Any]) -> None:
    from rich.table import Table

    report = description["model"]
    console.print(f"{printable(report['name'])}: {len(report['matched'])} of {description['layers']} layers fit.")
    left = [(layer, "no module", hint) for layer, hint in report["unmatched"].items()]
    left += [(layer, "does not fit", why) for layer, why in report["mismatched"].items()]
    if not left:
        if not report["complete"]:
            console.print(printable(report["problems"]))
        return
    table = Table("layer", "why", "")
    for row in left[:SHOWN]:
        table.add_row(*map(printable, row))
    if len(left) > SHOWN:
        table.add_row(f"and {len(left) - SHOWN} more", "", "")
    console.print(table)


def convert(
    source: Path,
    target: Path,
    *,
    to: str | None,
    model: str | None,
    fold: bool,
    dtype: str | None,
    rename_word: list[str],
    allow_nonfinite: bool,
    quiet: bool,
) -> int:
    from gen.adapters import FORMATS, read_adapter, renamed, write_adapter
    from gen.adapters.words import rename_words
    from gen.models.options import DTYPES
    from gen.models.pretrained import find_model

    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} exists, and nothing is overwritten; give another name.")
    if to is not None and to not in FORMATS:
        near = nearest(to, FORMATS)
        hint = f"; did you mean {near!r}?" if near else ""
        raise ValueError(f"Unknown adapter format {to!r}{hint} Known: {', '.join(FORMATS)}.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}; give {', '.join(DTYPES)}, or leave it out to keep the file's.")
    adapter = read_adapter(source, allow_nonfinite=allow_nonfinite)
    to = to or adapter.format
    if model is not None:
        from gen.adapters.model import other_names
        from gen.models.skeleton import skeleton

        parts = skeleton(find_model(model)[1])
        adapter = renamed(adapter, parts, other_names(parts))
    elif adapter.format == "kohya" and to != "kohya":
        raise ValueError(
            f"{source} names its layers with underscores, as kohya does; give the model that it is for with --model, "
            f"whose names {to} needs."
        )
    if rename_word:
        adapter = rename_words(adapter, dict(_renaming(text) for text in rename_word))
    if fold:
        adapter = replace(adapter, layers={layer: delta.folded() for layer, delta in adapter.layers.items()})
    for note in adapter.notes:
        say(f"Note: {printable(note)}.", quiet)
    write_adapter(adapter, target, to, DTYPES[dtype] if dtype else None)
    print(target)
    return 0


def _renaming(text: str) -> tuple[str, str]:
    """(old, new) of OLD=NEW."""
    old, equals, new = text.partition("=")
    if not equals or not old or not new:
        raise ValueError(f"--rename-word {text!r} is not OLD=NEW, such as '<new>=<cat>'.")
    return old, new
