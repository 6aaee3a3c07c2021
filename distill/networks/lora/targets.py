"""Which layers of a network an adapter changes: those whose names end as asked, or all inside the repeated blocks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from samplers.lookup import nearest


def ends_in(name: str, ends: Iterable[str]) -> bool:
    """Does a dotted name end in one of these, whole parts of names? "blocks.0.attn.qkv" ends in "attn.qkv" and in "qkv"."""
    return any(f".{name}".endswith(f".{end}") for end in ends)


def find_layers(
    network: nn.Module,
    targets: Sequence[str] = (),
    exclude: Sequence[str] = (),
    kinds: tuple[type[nn.Module], ...] = (nn.Linear,),
    what: str = "network",
    key: str = "targets",
) -> list[str]:
    """The names of a network's layers that an adapter changes, in the network's order.

    targets: ends of names; none: every layer inside the repeated blocks. exclude: ends of those that are left out.
    kinds: of layers. what, key: what messages call the network, and the setting `targets`.
    ValueError where an end fits no layer, or no layer is left.
    """
    known = [name for name, module in network.named_modules() if isinstance(module, kinds) and name]
    for setting, ends in ((key, targets), ("exclude", exclude)):
        for end in ends:
            if not any(ends_in(name, [end]) for name in known):
                raise ValueError(f"{setting} names {end!r}, but no layer of the {what} ends in it; {hint(end, known)}")
    if targets:
        chosen = [name for name in known if ends_in(name, targets)]
    else:
        chosen = [name for name in known if any(part.isdigit() for part in name.split("."))]
    chosen = [name for name in chosen if not ends_in(name, exclude)]
    if not chosen:
        raise ValueError(f"No layer of the {what} is left to train; name some in {key}: {hint('', known)}")
    return chosen


def hint(end: str, names: Sequence[str]) -> str:
    """What was meant by an end of a layer's name, or what ends there are."""
    ends = sorted({e for name in names for e in (name, name.rpartition(".")[2], ".".join(name.split(".")[-2:]))}, key=len)
    near = nearest(end, ends) if end else None
    return f"did you mean {near!r}?" if near else f"its layers end in {', '.join(ends[:8])}."
