"""Caches by name: the closed table that command lines, recipes and documentation read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from samplers.cache.easy_cache import EasyCache
from samplers.cache.first_block import FirstBlockCache
from samplers.cache.pyramid_broadcast import PyramidBroadcast
from samplers.cache.reuse import Reuse
from samplers.cache.taylor_seer import TaylorSeer
from samplers.denoiser import Denoiser
from samplers.lookup import build, check_options, find, register


@dataclass(frozen=True)
class CacheInfo:
    """What the tables say about a cache. `factory(denoiser, **options)` builds it; `saves` is what runs less often."""

    name: str
    factory: Callable[..., Denoiser]
    description: str
    saves: str
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


CACHES: dict[str, CacheInfo] = {
    info.name: info
    for info in (
        CacheInfo(
            "reuse",
            Reuse,
            "extrapolates the output at skipped steps",
            "evaluations",
            options=("stride", "order", "interval", "reading"),
        ),
        CacheInfo(
            "easy",
            EasyCache,
            "repeats the output until its estimated change is too large",
            "evaluations",
            aliases=("EasyCache",),
            options=("threshold", "interval"),
        ),
        CacheInfo(
            "first_block",
            FirstBlockCache,
            "repeats all blocks but the first while that changes little",
            "blocks",
            aliases=("FirstBlockCache", "fbcache"),
            options=("threshold", "interval"),
        ),
        CacheInfo(
            "taylor",
            TaylorSeer,
            "forecasts what the blocks add",
            "blocks",
            aliases=("TaylorSeer",),
            options=("stride", "order", "interval"),
        ),
        CacheInfo(
            "pyramid",
            PyramidBroadcast,
            "repeats attention outputs",
            "attention",
            aliases=("PyramidAttentionBroadcast", "pab"),
            options=("self_stride", "cross_stride", "interval"),
        ),
    )
}


def cache_names() -> tuple[str, ...]:
    return tuple(CACHES)


def cache_info(name: str) -> CacheInfo:
    """The record of a cache, by name or alias."""
    return find(CACHES, name, "cache")


def register_cache(
    name: str,
    factory: Callable[..., Denoiser],
    description: str = "",
    options: tuple[str, ...] = (),
    *,
    saves: str = "evaluations",
    aliases: tuple[str, ...] = (),
) -> None:
    """Make a cache of your own known by name, in this process.

    name: what users type; any spelling of it is found. Files can use it, but never register one.
    factory: factory(denoiser, **options) -> a denoiser around that one; what it remembers goes into the run's context
    (`samplers.step_cache`).
    options: the names of the options that it may be given.
    Raises ValueError where the name is taken.
    """
    register(CACHES, CacheInfo(name, factory, description, saves, tuple(aliases), tuple(options)), "cache")


def get_cache(name: str | Callable[..., Denoiser], denoiser: Denoiser, **options: Any) -> Denoiser:
    """A cache around a denoiser, by name or alias, or by a function (denoiser, **options) -> denoiser.

    Raises ValueError for an unknown name or option.
    """
    if callable(name):
        return name(denoiser, **options)
    info = cache_info(name)
    check_options(info, options, "cache")
    return build(info, "cache", info.factory, denoiser, options=options)
