"""A call as a Python program that makes the same pictures to the byte."""

from __future__ import annotations

from typing import Any

from gen.calls.call import Call
from gen.calls.run import PAIRS


def as_python(call: Call, output: str = "picture.png", energies: bool = False, quality: int | None = None) -> str:
    """The text of a program.

    output: the file that it saves to; several pictures get -0, -1, ... before the ending.
    quality: of a format that loses some, the usual one if None.
    energies: its guide is one of those that the command line adds (`gen.cli.energies`).
    """
    lines = ["from gen import Generator", "", f"generator = Generator.from_pretrained({call.model!r})"]
    if energies:
        lines.insert(1, "from gen.cli.image import add_energies")
        lines.append("add_energies(generator)")
    names: list[str] = []
    for use in call.adapters:
        lines.append(f"generator.load_adapter({_adapter(use.file, names)}, weight={use.weight!r})")
    arguments = dict(call.arguments)
    first = [arguments.pop("prompt")] if call.method == "image" and "prompt" in arguments else []
    method = "generator" if call.method == "image" else f"generator.{call.method}"
    given = [*map(repr, first), *(f"{name}={_written(name, value)}" for name, value in arguments.items())]
    one_line = f"output = {method}({', '.join(given)})"
    if len(one_line) <= 100:
        lines.append(one_line)
    else:
        lines += [f"output = {method}(", *(f"    {argument}," for argument in given), ")"]
    saved = repr(output) if quality is None else f"{output!r}, quality={quality}"
    return "\n".join([*lines, f"output.save({saved})", ""])


def _adapter(file: str, names: list[str]) -> str:
    """The file, with a name where another file before it has its own: the same as `gen.calls.adapters` gives."""
    from gen.adapters import read_adapter

    try:
        own = read_adapter(file).name
    except (ValueError, OSError):  # which the program will say
        return repr(file)
    name, n = own, 1
    while name in names:
        n += 1
        name = f"{own}-{n}"
    names.append(name)
    return repr(file) if name == own else f"{file!r}, {name!r}"


def _written(name: str, value: Any) -> str:
    return repr(_tuple(value) if name in PAIRS else value)


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
