"""`--lora FILE[:WEIGHT]` of `fewstep image` and `fewstep replay`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.calls.adapters import load_files, load_one
from gen.calls.call import AdapterUse
from gen.cli.options import Lora, Model, PartOptions, PlaceOptions
from gen.cli.output import say
from gen.io.errors import printable

if TYPE_CHECKING:
    from gen.pipeline.recipe import Recipe


def parse_lora(text: str) -> tuple[Path, float | None]:
    """(file, weight, None where not given) of FILE or FILE:WEIGHT."""
    file, colon, tail = text.rpartition(":")
    if colon and file:
        try:
            return Path(file), float(tail)
        except ValueError:
            if Path(file).exists() and not Path(text).exists():
                raise ValueError(f"The weight of {file} is {tail!r}; give a number, as in {file}:0.8.") from None
    return Path(text), None


@dataclass(frozen=True)
class OpenOptions(PartOptions):
    """The model that a command draws with, and the LoRAs in force."""

    lora: Lora = None
    model: Model = "default"

    def opened(self, place: PlaceOptions) -> Any:
        """A `Generator`, where `place` says."""
        return open_with(self.lora or [], self.model, place.device, place.dtype, place.quiet, **self.arguments())


def open_with(lora: Sequence[str], model: str, device: str | None, dtype: str | None, quiet: bool, **parts: Any) -> Any:
    """The model of a command as a `Generator`, its --lora files in force. parts: further arguments of `from_pretrained`."""
    from gen.generator import Generator

    generator = Generator.from_pretrained(model, device, dtype, **parts)
    if lora:
        load(generator, lora, quiet)
    return generator


def load(generator: Any, specs: Sequence[str], quiet: bool, allow_nonfinite: bool = False) -> None:
    """Load adapters and say what matched. Two files of one name become name and name-2."""
    for spec in specs:
        path, weight = parse_lora(spec)
        use = AdapterUse(str(path), 1.0 if weight is None else weight)
        for text in load_files(generator, [use], allow_nonfinite):
            say(printable(text), quiet)


def load_recorded(generator: Any, recipe: Recipe, specs: Sequence[str], quiet: bool, allow_nonfinite: bool = False) -> None:
    """Load the adapters of a recipe under the names and weights that it has, each found by its content, in its order."""
    from gen.adapters import read_adapter

    adapters: dict[str, Any] = {}
    for spec in specs:
        path, weight = parse_lora(spec)
        adapter = read_adapter(path, allow_nonfinite=allow_nonfinite)
        names = [name for name, digest in (recipe.adapter_files or {}).items() if digest == adapter.sha256]
        if not names:
            raise ValueError(
                f"{path} is not one of the files that the picture was made with: no sha256 in its recipe is the same."
            )
        for name in names:
            recorded_weight = recipe.adapters.get(name, 0.0)
            if weight is not None and weight != recorded_weight:
                raise ValueError(f"The weight of {path} is the recipe's own, {recorded_weight:g}; leave :{weight:g} out.")
            adapters[name] = replace(adapter, name=name)
    order = [*recipe.adapters, *adapters]  # words of one name get their numbers as they did then
    for name in sorted(adapters, key=order.index):
        for text in load_one(generator, adapters[name], recipe.adapters.get(name, 0.0)):
            say(printable(text), quiet)
