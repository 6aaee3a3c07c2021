"""Hooks: how a denoiser reaches into a network, by name, through `Context.hooks`.

    block      hook(index, count, x, run) -> x       in place of block `index` of `count`; run() evaluates it
    attention  hook(site, x, run) -> out             in place of an attention layer, projections included; run() evaluates it
    heads      hook(site, q, k, v, run) -> out       in place of self-attention proper; run(q, k, v) evaluates it
    cross      hook(site, q, k, v, mask, run) -> out  in place of cross-attention proper; run(q, k, v, mask) evaluates it
    text       hook(site, run) -> out                in place of what the patches' attention to text has come to, before its
                                                     projection; run(rows) evaluates it
    map        hook(index, count, run) -> map        in place of level `index` of `count` on the way down and in the middle of a
                                                     U-Net, a map (B, C, rows, columns); what skips carry is left as it is
    stage      hook(index, count, run) -> image      in place of what resolution `index` of `count` predicts; run() evaluates it

x and out are tokens (B, L, D), q, k, v and the output of `heads` and `cross` (B, L, H, D / H); mask is None or (B or 1, 1 or H,
1 or L, T), True where a token is seen, or a number to add to its score. out of `text` is (B, patches, D); rows (B,) are the
numbers of rows whose queries may stand in for each row's own, None for none: where they are ignored, queries are equal as soon
as patches are. A backbone that has such a place calls the hook there; without one it runs as if hooks did not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from samplers.denoiser import Context

NAMES = ("block", "attention", "heads", "cross", "text", "map", "stage")


@dataclass(frozen=True)
class Site:
    """Where an attention is: in block `index` of `count`, over `extras` tokens and then rows x columns patches, row by row."""

    index: int
    count: int
    extras: int
    rows: int
    columns: int
    kind: str = "self"  # or "cross"


def with_hook(context: Context, name: str, hook: Callable[..., Any]) -> Context:
    """The same run with one more hook. A hook that is already there is what the new one's `run` leads to.

    So the denoiser nearest to the network, which adds its hook last, is asked first and sees every call.
    """
    if name not in NAMES:
        raise ValueError(f"Unknown hook {name!r}: choose one of {', '.join(NAMES)}.")

    def marked(*args: Any) -> Any:
        context.store["hook", name] = True
        return hook(*args)

    inner = context.hooks.get(name)
    return replace(context, hooks={**context.hooks, name: marked if inner is None else _chain(marked, inner)})


def check_reached(context: Context, name: str, method: str) -> None:
    """Raises ValueError where the network has called no `name` hook in this run: the method would silently do nothing."""
    if not context.store.get(("hook", name)):
        raise ValueError(f"{method} works through the network's {name!r} hook, and this network has none: use another method.")


def _chain(outer: Callable[..., Any], inner: Callable[..., Any]) -> Callable[..., Any]:
    """A hook whose run() is another hook; what run is given takes the place of the last arguments."""

    def hook(*args: Any) -> Any:
        *given, run = args
        return outer(*given, lambda *changed: inner(*given[: len(given) - len(changed)], *changed, run))

    return hook
