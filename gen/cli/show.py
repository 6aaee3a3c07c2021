"""`fewstep info`, `env` and `samplers`: plain tables."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gen.io.errors import printable

UNCOUNTED = (
    "offload",
    "vae_tile",
    "attention_backend",
    "preview_decoder",
    "decoder",
    "compile",
    "cuda_graphs",
)  # how it is kept, beside its weights


def aligned(rows: Mapping[str, object]) -> str:
    """name  value, the values in one column."""
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows.items())


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in (header, *rows))


COLUMN, INDENT = 45, 4  # characters: least width of a column of text; what goes below a row instead is moved in


def catalogue(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> str:
    """A table of rows that end with options and a description.

    width: of the terminal, in characters; None: each row is one line, as programs read it. Texts are broken, in a column of
    their own where that has room, else below their row."""
    if width is None:
        return table((*header, "options", "description"), rows)
    cells = [row[: len(header)] for row in rows]
    short = table(header, cells).splitlines()
    begin = max(map(len, short)) + 2
    beside = width - begin >= COLUMN
    lines = [f"{short[0]:<{begin}}description" if beside else short[0]]
    for line, (*_, options, description) in zip(short[1:], rows, strict=True):
        indent = begin if beside else INDENT
        texts = [description, *([f"options: {options}"] if options else [])]
        below = [part for text in texts for part in textwrap.wrap(text, width - indent, break_on_hyphens=False)]
        if beside:
            lines.append(f"{line:<{begin}}{below.pop(0)}" if below else line)
        else:
            lines.append(line)
        lines += [" " * indent + part for part in below]
    return "\n".join(lines)


def info(path: Path, as_json: bool) -> str:
    """The recipe in a picture, ours or in AUTOMATIC1111's grammar."""
    from gen.io.errors import RecipeError
    from gen.pipeline.png import read_recipe

    if as_json:
        return read_recipe(path).to_json()
    rows = recipe_rows(path)
    if not rows:
        raise RecipeError(f"{path} holds no recipe.")
    return aligned({printable(name): printable(value) for name, value in rows.items()})


def recipe_rows(path: Path) -> dict[str, str]:
    """Names and values of the recipe in a picture, ours or AUTOMATIC1111's, as they stand there; none where it has none."""
    from gen.pipeline.infotext import from_infotext
    from gen.pipeline.png import CHUNK, read_chunks, read_recipe

    chunks = read_chunks(path)
    if CHUNK in chunks:
        recipe = read_recipe(path)
        rows = {name: value for name, value in recipe.named_values().items() if value not in ({}, (), "")}
        machine, model, batch = rows.pop("machine"), rows.pop("model"), rows.pop("batch")
        rows |= {"model": model["name"]} | {f"{part} sha256": digest for part, digest in model["weights"].items()}
        rows |= {"batch": f"picture {batch['row'] + 1} of {batch['size']}", **machine}
        return {name.replace("_", " "): str(value) for name, value in rows.items()}
    fields = from_infotext(chunks["parameters"]) if "parameters" in chunks else {}
    return {name: value for name, value in fields.items() if value}


def is_model(name: str) -> bool:
    """Is this a model rather than a picture: the name of a packaged one, a folder, a file of weights, or a hub id?"""
    from gen.models.hub import is_hub_id
    from gen.models.pretrained import FILES, PACKAGED

    path = Path(name)
    return (
        name in PACKAGED or path.is_dir() or name.endswith(FILES) or (not path.exists() and not path.suffix and is_hub_id(name))
    )


def model_memory(
    model: str, parts: Mapping[str, Any], device: str | None, dtype: str | None, *, batch: int, **size: Any
) -> str:
    """What a model needs in memory (`gen.models.memory`). parts: of the arguments of `Generator.from_pretrained`."""
    from gen.models.memory import plan
    from gen.models.options import ModelOptions
    from gen.models.pretrained import resolve_device, resolve_dtype

    where = resolve_device(device)
    options = ModelOptions(**{name: value for name, value in parts.items() if name not in UNCOUNTED})
    size["vae_tile"] = parts.get("vae_tile")
    planned = plan(model, resolve_dtype(dtype, where), where, batch=batch, options=options, **size)
    return "\n".join(planned.lines())


def env() -> str:
    from gen.cli.env import environment

    return aligned(environment())


def samplers(width: int | None = None) -> str:
    """All samplers, schedules, guidance rules and caches; width: see `catalogue`."""
    from samplers.cache import CACHES
    from samplers.guidance import GUIDANCE
    from samplers.registry import GRIDS, SOLVERS

    reserved = ("scale", "negative", "interval")  # by options of the call's own
    solvers = [
        (s.name, str(s.order), str(s.evaluations), "yes" if s.stochastic else "no", ", ".join(s.options), s.description)
        for s in SOLVERS.values()
    ]
    grids = [(g.name, ", ".join(g.options), g.description) for g in GRIDS.values()]
    rules = [
        (
            g.name,
            "inside another" if g.inner else "around another" if g.modifier else str(g.evaluations),
            ", ".join(o for o in g.options if o not in reserved),
            g.description,
        )
        for g in GUIDANCE.values()
    ]
    caches = [(c.name, c.saves, ", ".join(c.options), c.description) for c in CACHES.values()]
    return "\n\n".join(
        (
            catalogue(("sampler", "order", "nfe/step", "noise"), solvers, width),
            catalogue(("schedule",), grids, width),
            catalogue(("guidance", "nfe/step"), rules, width),
            catalogue(("cache", "spares"), caches, width),
        )
    )
