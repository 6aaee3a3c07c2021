"""Compositions by name: the closed table that command lines, recipes and documentation read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samplers.composition.cached import DECAY, FINE_UNTIL, CachedComposite, plan
from samplers.composition.composite import Composite
from samplers.composition.contrast import Contrast
from samplers.composition.switch import EVERY, Switch, taking_turns
from samplers.denoiser import Denoiser
from samplers.lookup import build, check_options, find
from samplers.path import NoiseLevel


@dataclass(frozen=True)
class CompositionInfo:
    """What the tables say about a composition. `build(denoiser, names, levels, **options)` makes it for one run.

    evaluations: per image and call, for N adapters. ordered: it reads `order`, the adapters from fine to coarse.
    """

    name: str
    build: Callable[..., Denoiser]
    description: str
    evaluations: str
    ordered: bool = False
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def _merge(denoiser: Denoiser, names: Sequence[str], levels: Sequence[NoiseLevel]) -> Denoiser:
    return denoiser


def _switch(denoiser: Denoiser, names: Sequence[str], levels: Sequence[NoiseLevel], every: int = EVERY) -> Denoiser:
    return Switch(denoiser, taking_turns(names, levels, every))


def _composite(denoiser: Denoiser, names: Sequence[str], levels: Sequence[NoiseLevel]) -> Denoiser:
    return Composite(denoiser)


def _contrast(
    denoiser: Denoiser, names: Sequence[str], levels: Sequence[NoiseLevel], strengths: Sequence[float] | float = 1.0
) -> Denoiser:
    strength_list: list[Any] = list(strengths) if isinstance(strengths, list | tuple) else [strengths] * len(names)
    if len(strength_list) != len(names):
        raise ValueError(
            f"strengths has {len(strength_list)} numbers for {len(names)} adapters; give one for each, or one for all."
        )
    return Contrast(denoiser, dict(zip(names, strength_list, strict=True)))


def _cached(
    denoiser: Denoiser,
    names: Sequence[str],
    levels: Sequence[NoiseLevel],
    order: Sequence[int] | None = None,
    stride: int | None = None,
    fine_until: float = FINE_UNTIL,
    shallow: int = 1,
    decay: float = DECAY,
) -> Denoiser:
    strides: Mapping[str, Any] = {} if stride is None else {"strides": ((0.0, stride),)}
    return CachedComposite(denoiser, plan(order_of(order, names), levels, fine_until=fine_until, **strides), shallow, decay)


def order_of(order: Sequence[int] | None, names: Sequence[str]) -> tuple[str, ...]:
    """The adapters in the order of positions in `names`; as they are where that is None."""
    if order is None:
        return tuple(names)
    positions: list[Any] = list(order) if isinstance(order, list | tuple) else [order]
    if not all(type(i) is int for i in positions) or sorted(positions) != list(range(len(names))):
        raise ValueError(f"order is {order!r}; give the positions 0 to {len(names) - 1} of the adapters, each once.")
    return tuple(names[i] for i in positions)


COMPOSITIONS: dict[str, CompositionInfo] = {
    info.name: info
    for info in (
        CompositionInfo("merge", _merge, "all adapters at once, their changes of the weights added", "1"),
        CompositionInfo(
            "switch",
            _switch,
            "one adapter at a time, in turns of `every` steps",
            "1",
            aliases=("lora_switch",),
            options=("every",),
        ),
        CompositionInfo(
            "composite", _composite, "each adapter by itself, the predictions averaged", "N", aliases=("lora_composite",)
        ),
        CompositionInfo(
            "contrast",
            _contrast,
            "each adapter's effect by itself, times a strength of its own, added to the model's prediction",
            "1 + N",
            options=("strengths",),
        ),
        CompositionInfo(
            "cached",
            _cached,
            "a composite in which one adapter leads and the others repeat their deep blocks between refreshes",
            "1 to N",
            ordered=True,
            aliases=("cmlora", "cached_composite"),
            options=("order", "stride", "fine_until", "shallow", "decay"),
        ),
    )
}


def composition_names() -> tuple[str, ...]:
    return tuple(COMPOSITIONS)


def composition_info(name: str) -> CompositionInfo:
    """The record of a composition, by name or alias."""
    return find(COMPOSITIONS, name, "composition")


def get_composition(
    name: str, denoiser: Denoiser, adapters: Mapping[str, float], levels: Sequence[NoiseLevel], **options: Any
) -> Denoiser:
    """A denoiser that composes the adapters in force (name -> weight) over a run along `levels`, by name or alias.

    Adapters of weight 0 take no part. Raises ValueError for an unknown name or option.
    """
    info = composition_info(name)
    check_options(info, options, "composition")
    names = [name for name, weight in adapters.items() if weight != 0]
    alone = len(names) < (1 if info.name == "contrast" else 2)
    return denoiser if alone else build(info, "composition", info.build, denoiser, names, levels, options=options)
