"""The run's hooks (`samplers.hooks`) inside networks of diffusers.

For the length of one call, the forwards of blocks and attentions lead through the hooks; afterwards every module is as it was.
Blocks of attention are numbered in the order they run: of a U-Net those on the way down, in the middle, on the way up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.models.bridge.hook_layouts import INSTEAD, NEEDED_BY, BlockLayout, inside, layout_of
from samplers.denoiser import Context
from samplers.hooks import Site

# attention computed as a softmax over the same tokens, which the "heads" hook can take over
PLAIN_ATTENTION = ("AttnProcessor2_0", "AttnProcessor")


@contextmanager
def hooked(network: nn.Module, context: Context, rows: int, columns: int) -> Iterator[None]:
    """The hooks of a run act on a diffusers network inside; rows, columns: of its input's patches.

    ValueError for a hook that this network has no place for, with the reason.
    """
    hooks = {name: context.hooks[name] for name in NEEDED_BY if name in context.hooks}
    if not hooks:
        yield
        return
    layout, outer, network = layout_of(network), network, inside(network)
    if layout is None:
        names = " and ".join(NEEDED_BY[name].lower() for name in hooks)
        raise ValueError(f"A {type(network).__name__} has no known places for {names}; use caches of outputs: reuse or easy.")
    for name in hooks:
        if reason := (layout.without or {}).get(name):
            raise ValueError(f"{NEEDED_BY[name]} cannot work on this network: {reason}; use {INSTEAD[name]}.")
    if "map" in hooks and layout.maps is None:
        raise ValueError(f"{NEEDED_BY['map']} cannot work on this network: it has blocks of tokens; use {INSTEAD['map']}.")
    places = _Places()
    try:
        if outer is not network or any(module._compiled_call_impl is not None for module in network.modules()):
            places.enter(torch.compiler.set_stance("force_eager"))  # a compiled graph would not see the hooks
        levels = layout.maps(network) if layout.maps is not None and "map" in hooks else []
        for index, level in enumerate(levels):
            places.forward(level, _map(level.forward, hooks["map"], index, len(levels)))
        blocks, text = layout.blocks(network), dict[str, int]()
        for index, block in enumerate(blocks):
            if "block" in hooks:
                hook = hooks["block"]
                turned = _image_last(hook, layout.patches(network, rows, columns)) if layout.image_first else hook
                forward = _block(block.forward, turned, index, len(blocks))
                if layout.joint:
                    forward = _joint_block(block.forward, hook, index, len(blocks), forward, layout.image_first)
                places.forward(block, forward)
            for attention in _attentions(block) if hooks.keys() - {"block", "map", "text"} else ():
                _hook_attention(places, attention, hooks, index, len(blocks), rows, columns)
            if "text" in hooks:
                _hook_text(places, block, hooks["text"], index, len(blocks), (rows, columns), layout, text)
        yield
    finally:
        places.restore()


class _Places:
    """What was changed, and how to put it back."""

    def __init__(self) -> None:
        self.undo: list[Callable[[], Any]] = []

    def forward(self, module: nn.Module, function: Callable[..., Any]) -> None:
        instance_forward = vars(module).get("forward")  # offloading sets one too
        self.undo.append(
            lambda: delattr(module, "forward") if instance_forward is None else setattr(module, "forward", instance_forward)
        )
        setattr(module, "forward", function)  # noqa: B010 (a type checker forbids to assign a method)

    def before(self, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        """Change what a module is given, for adapters on it too, which look at what it is given."""
        handle = module.register_forward_pre_hook(lambda _, given: (change(given[0]), *given[1:]), prepend=True)
        self.undo.append(handle.remove)

    def enter(self, manager: AbstractContextManager) -> None:
        manager.__enter__()
        self.undo.append(lambda: manager.__exit__(None, None, None))

    def processor(self, module: Any, processor: Any) -> None:
        before = module.processor
        self.undo.append(lambda: setattr(module, "processor", before))
        module.processor = processor

    def restore(self) -> None:
        while self.undo:
            self.undo.pop()()


def _block(run: Callable[..., Tensor], hook: Callable[..., Tensor], index: int, count: int) -> Callable[..., Tensor]:
    def forward(*args: Any, **named: Any) -> Tensor:
        tokens = args[0] if args else named["hidden_states"]
        return hook(index, count, tokens, lambda: run(*args, **named))

    return forward


def _image_last(hook: Callable[..., Tensor], patches: int) -> Callable[..., Tensor]:
    def turned(index: int, count: int, tokens: Tensor, run: Callable[[], Tensor]) -> Tensor:
        return hook(index, count, tokens.roll(-patches, 1), lambda: run().roll(-patches, 1)).roll(patches, 1)

    return turned


def _map(run: Callable[..., Any], hook: Callable[..., Tensor], index: int, count: int) -> Callable[..., Any]:
    """A level on the way down returns what the skips carry as well."""

    def forward(*args: Any, **named: Any) -> Any:
        skips: list[Any] = []

        def alone() -> Tensor:
            out = run(*args, **named)
            if isinstance(out, tuple):
                skips.extend(out[1:])
                return out[0]
            return out

        out = hook(index, count, alone)
        return (out, *skips) if skips else out

    return forward


def _joint_block(
    run: Callable[..., Any],
    hook: Callable[..., Tensor],
    index: int,
    count: int,
    alone: Callable[..., Tensor],
    image_first: bool,
) -> Callable[..., Any]:
    """The hook sees text and then image as one sequence, in whichever order the block returns them. The last block may return
    no text; a block that is given no text of its own has it in the sequence already: `alone` runs it."""

    def forward(*args: Any, **named: Any) -> Any:
        image = args[0] if args else named["hidden_states"]
        text = args[1] if len(args) > 1 else named.get("encoder_hidden_states")
        if text is None:
            return alone(*args, **named)

        def together() -> Tensor:
            first, second = run(*args, **named)
            text_out, image_out = (second, first) if image_first else (first, second)
            return torch.cat([text if text_out is None else text_out, image_out], dim=1)

        out = hook(index, count, torch.cat([text, image], dim=1), together)
        text_out, image_out = out[:, : text.shape[1]], out[:, text.shape[1] :]
        return (image_out, text_out) if image_first else (text_out, image_out)

    return forward


def _attentions(block: nn.Module) -> list[tuple[str, nn.Module]]:
    """(kind, module) of the block's attentions."""
    attentions = []
    for name in ("attn1", "attn2"):
        module = getattr(block, name, None)
        if module is not None:
            attentions.append(("cross" if module.is_cross_attention else "self", module))
    return attentions


def _hook_attention(
    places: _Places, attention: tuple[str, Any], hooks: Mapping[str, Any], index: int, count: int, rows: int, columns: int
) -> None:
    kind, module = attention

    def site(tokens: Tensor) -> Site:
        return Site(index, count, 0, *_grid(tokens.shape[1], rows, columns), kind)

    proper = "heads" if kind == "self" else "cross"
    if proper in hooks:
        name = type(module.processor).__name__
        if name not in PLAIN_ATTENTION:
            raise ValueError(
                f"{NEEDED_BY[proper]} cannot work on this network: its attention is computed by {name}; call "
                "set_attn_processor(AttnProcessor2_0()) on the network first."
            )
        places.processor(module, Heads(hooks[proper], site))
    if "attention" in hooks:
        run, hook = module.forward, hooks["attention"]

        def forward(*args: Any, **named: Any) -> Tensor:
            tokens = args[0] if args else named["hidden_states"]
            return hook(site(tokens), tokens, lambda: run(*args, **named))

        places.forward(module, forward)


def _hook_text(
    places: _Places,
    block: Any,
    hook: Callable[..., Tensor],
    index: int,
    count: int,
    grid: tuple[int, int],
    layout: BlockLayout,
    text: dict[str, int],
) -> None:
    """The hook gets what goes into the projection of attention over text, or what an attention without one returns: the
    patches of it, with those of pictures that are edited, where text is in the same sequence. text: how many tokens of text
    the last block was given."""
    attention = next((a for kind, a in _attentions(block) if kind == "cross"), None)
    together = attention is None
    for name in ("attn", "attention", *(("attn1",) if layout.joint else ())):
        attention = getattr(block, name, None) if attention is None else attention
    if attention is None:
        return
    if layout.joint:
        places.forward(block, _counting(block.forward, text))

    def led(tokens: Tensor) -> Tensor:
        length, patches = tokens.shape[1], grid[0] * grid[1]
        if not together:
            begin, end = 0, length
        elif layout.joint:  # text, where it is there, comes before the image
            begin, end = (0 if length == text["image"] else text["text"]), length
        else:
            begin, end = (0, patches) if layout.image_first else (length - patches, length)
        site = Site(index, count, begin, *_grid(min(patches, end - begin), *grid), "self" if together else "cross")
        guided = hook(site, lambda rows: tokens[:, begin:end])
        return torch.cat([tokens[:, :begin], guided, tokens[:, end:]], dim=1)

    projections = getattr(attention, "to_out", None)
    if projections is not None:
        places.before(projections[0], led)
    else:
        run = attention.forward
        places.forward(attention, lambda *args, **named: led(run(*args, **named)))


def _counting(run: Callable[..., Any], text: dict[str, int]) -> Callable[..., Any]:
    """A joint block that notes how many tokens of text and of the image it is given; one without text of its own has both in
    one sequence, as many as before."""

    def forward(*args: Any, **named: Any) -> Any:
        image = args[0] if args else named["hidden_states"]
        own = args[1] if len(args) > 1 else named.get("encoder_hidden_states")
        if own is not None:
            text["text"] = own.shape[1]
        text["image"] = image.shape[1] - (text["text"] if own is None else 0)
        return run(*args, **named)

    return forward


def _grid(length: int, rows: int, columns: int) -> tuple[int, int]:
    """The patches at the resolution where there are so many: each level of a U-Net halves both sides, rounded up."""
    while rows * columns > length:
        rows, columns = -(-rows // 2), -(-columns // 2)
    return rows, columns


@dataclass(frozen=True)
class Heads:
    """A processor of diffusers' attention (B, L, D), to itself or to text, that leaves attention proper to a hook."""

    hook: Callable[..., Tensor]
    site: Callable[[Tensor], Site]

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **named: Any,
    ) -> Tensor:
        x, text = hidden_states, encoder_hidden_states
        if text is not None and attention.norm_cross:
            text = attention.norm_encoder_hidden_states(text)
        context_tokens = x if text is None else text
        q, k, v = (
            project(tokens).unflatten(-1, (attention.heads, -1))
            for project, tokens in ((attention.to_q, x), (attention.to_k, context_tokens), (attention.to_v, context_tokens))
        )
        q = q if attention.norm_q is None else attention.norm_q(q)
        k = k if attention.norm_k is None else attention.norm_k(k)
        if attention_mask is not None:
            attention_mask = attention.prepare_attention_mask(attention_mask, context_tokens.shape[1], len(x))
            attention_mask = attention_mask.view(len(x), attention.heads, -1, attention_mask.shape[-1])

        def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = attention_mask) -> Tensor:
            q, k, v = (part.transpose(1, 2) for part in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

        arguments = (q, k, v) if text is None else (q, k, v, attention_mask)
        out = self.hook(self.site(x), *arguments, run).flatten(2).to(q.dtype)
        out = attention.to_out[1](attention.to_out[0](out))
        out = out + x if attention.residual_connection else out
        return out / attention.rescale_output_factor
