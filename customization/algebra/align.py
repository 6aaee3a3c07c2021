"""The layers of several adapters side by side, by name and shape, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from customization.algebra.factors import flat
from gen.adapters import Adapter, AdapterError, Delta


@dataclass(frozen=True)
class Aligned:
    """One layer: what each adapter has there (None for nothing), and the shape (out, in, k, ...) of its weight."""

    layer: str
    shape: tuple[int, ...]
    deltas: tuple[Delta | None, ...]
    present: tuple[Delta, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "present", tuple(delta for delta in self.deltas if delta is not None))


def names_of(adapters: Sequence[Adapter]) -> list[str]:
    """A name for each adapter; later ones of the same name get a number."""
    names: list[str] = []
    for adapter in adapters:
        name, n = adapter.name, 1
        while name in names:
            n += 1
            name = f"{adapter.name}-{n}"
        names.append(name)
    return names


def align(adapters: Sequence[Adapter], disjoint: bool = False) -> list[Aligned]:
    """Every layer of any of the adapters. Where some are spelled with underscores, as kohya does, all are compared so.

    AdapterError for none, for the same file twice, for layers of different shapes (adapters of different models), for two names
    that are one with underscores, and, but for disjoint=True, for an adapter that shares no layer with any other.
    """
    if not adapters:
        raise AdapterError("There are no adapters to merge; give at least one.")
    names = names_of(adapters)
    for i, adapter in enumerate(adapters):
        if adapter.sha256 is not None and adapter.sha256 in [other.sha256 for other in adapters[:i]]:
            raise AdapterError(f"{adapter.name} is given twice; give it once, with the sum of its weights.")
        if not adapter.layers and (not adapter.words or len(adapters) == 1):
            raise AdapterError(f"{adapter.name} has no layers; there is nothing to merge.")
    if not any(adapter.layers for adapter in adapters):
        raise AdapterError(f"{' and '.join(names)} have learned words and no layers; give a LoRA to merge them with.")
    underscored = any(adapter.format == "kohya" for adapter in adapters)
    tables = [_table(adapter, underscored) for adapter in adapters]
    if sum(bool(table) for table in tables) > 1 and not disjoint:
        for i, table in enumerate(tables):
            if not table:  # learned words alone
                continue
            others = set().union(*(other.keys() for j, other in enumerate(tables) if j != i))
            if not table.keys() & others:
                raise AdapterError(
                    f"{names[i]} has no layer in common with {' or '.join(names[:i] + names[i + 1 :])}: it is for another "
                    f"model, or its layers have other names ({next(iter(table))} here, {min(others)} there); give the model, "
                    "whose names all of them then get, or ask for a merge of disjoint layers."
                )
    order = list(dict.fromkeys(layer for table in tables for layer in table))
    return [_aligned(layer, [table.get(layer) for table in tables], names, adapters) for layer in order]


def _table(adapter: Adapter, underscored: bool) -> dict[str, Delta]:
    if not underscored:
        return dict(adapter.layers)
    table: dict[str, Delta] = {}
    for layer, delta in adapter.layers.items():
        part, _, path = layer.partition(".")
        plain = f"{part}.{path.replace('.', '_')}"
        if plain in table:
            raise AdapterError(
                f"Two layers of {adapter.name} are {plain} with underscores; give the model, whose names they get."
            )
        table[plain] = delta
    return table


def _aligned(layer: str, deltas: list[Delta | None], names: list[str], adapters: Sequence[Adapter]) -> Aligned:
    shape: tuple[int, ...] = ()
    first = ""
    for delta, name in zip(deltas, names, strict=True):
        if delta is None or delta.kind == "bias":
            continue
        if shape and flat(delta.dims) != flat(shape):
            bases = {base for adapter in adapters if (base := adapter.metadata.get("ss_base_model_version"))}
            bases_text = f" (trained on {' and '.join(sorted(bases))})" if len(bases) > 1 else ""
            raise AdapterError(
                f"{layer} is {delta.dims} in {name} and {shape} in {first}: they are for different models{bases_text} and "
                "cannot be merged."
            )
        if len(delta.dims) > len(shape):  # a 1 x 1 convolution may be stored as a matrix
            shape, first = delta.dims, name
    if not shape:
        shape = next(delta.dims for delta in deltas if delta is not None)
    return Aligned(layer, shape, tuple(deltas))
