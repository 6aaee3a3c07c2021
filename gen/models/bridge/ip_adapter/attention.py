"""Image prompts inside a U-Net: attention to a picture's tokens, added to what attention to text gives. In FLUX's joint blocks
it is added to the patches behind the block, and its queries are those before they are turned by their positions. Adapters for
all of FLUX's blocks (InstantX) divide each head of their keys by its root mean square, and add to what attention gives before
it is projected: to the patches in joint blocks, to text and patches in those of one stream.

Conditions of an image prompt NAME: `extra["image prompt:NAME"]` (B, N, L, D), the tokens of N pictures, and what stands in for
them without a condition behind "null:"; `extra["image scale:NAME"]`, (B, 1) for all pictures, or (B, N) where
`extra["map:image prompt:NAME"]` (B, N f^2, h, w) says where each of them counts: the f x f pixels of its mask under every
latent. Which adapter NAME is, is known to the denoiser's network (`BridgedNetwork.image_prompts`).

out = Attention(Q, K_text, V_text) + sum over pictures of scale mask Attention(Q, K_image, V_image) (arXiv 2308.06721,
equation 5): one attention over the tokens of all pictures where they have no masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.models.bridge.hook_layouts import inside
from gen.models.bridge.ip_adapter.file import IPAdapter, attentions, is_joint, places, projection_of
from samplers.denoiser import MAP, NULL, Condition

TOKENS, SCALE = "image prompt:", "image scale:"
MASK = f"{MAP}{TOKENS}"
PREFIXES = (TOKENS, SCALE, MASK, NULL + TOKENS)
_KEYS, _VALUES, _LEVELS = "image keys:", "image values:", "image mask:"


@dataclass(frozen=True)
class ImagePrompt:
    """An adapter as a run uses it. layers: factors on what it adds, by layer of attention to text; () for 1 everywhere."""

    adapter: IPAdapter
    layers: tuple[float, ...] = ()

    def factor(self, layer: int) -> float:
        return self.layers[layer] if self.layers else 1.0


def names_in(condition: Condition) -> list[str]:
    """The image prompts of a condition."""
    return [key.removeprefix(TOKENS) for key in condition.extra if key.startswith(TOKENS)]


def prepared(prompts: Mapping[str, ImagePrompt], condition: Condition, levels: int) -> Condition:
    """With what every layer needs, made once for a condition: keys and values (B, N, L, inner), and masks (B, N, h, w) at the
    resolutions of a U-Net's `levels`."""
    extra = dict(condition.extra)
    for name in names_in(condition):
        prompt, tokens, masked = prompts[name], extra[TOKENS + name], MASK + name in extra
        for layer in range(len(prompt.adapter.keys)):
            if prompt.factor(layer):
                k, v = prompt.adapter.projected(layer, tokens)
                extra[f"{_KEYS}{layer}:{name}"], extra[f"{_VALUES}{layer}:{name}"] = _apart(k, masked), _apart(v, masked)
        if masked:
            count, (height, width) = tokens.shape[1], extra[MASK + name].shape[-2:]
            pixels = F.pixel_shuffle(extra[MASK + name], round((extra[MASK + name].shape[1] / count) ** 0.5))
            for _ in range(levels):
                extra[f"{_LEVELS}{height} {width}:{name}"] = F.interpolate(pixels.float(), (height, width), mode="bicubic")
                height, width = -(-height // 2), -(-width // 2)
    return replace(condition, extra=extra)


def _apart(tokens: Tensor, masked: bool) -> Tensor:
    """(B, N, L, D) of pictures that are attended to each by itself, else (B, 1, N L, D)."""
    return tokens if masked else tokens.flatten(1, 2)[:, None]


@contextmanager
def image_prompted(network: nn.Module, prompts: Mapping[str, ImagePrompt], condition: Condition, size: Any) -> Iterator[None]:
    """Inside, a U-Net or FLUX attends to the image prompts of a prepared condition. size: height and width of its latents."""
    names = names_in(condition)
    if not names:
        yield
        return
    with ExitStack() as stack:
        if network is not inside(network) or any(m._compiled_call_impl is not None for m in network.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # a compiled graph would not see the hooks
        joint = is_joint(network)
        everyone = attentions(network) if not joint and any(prompts[name].adapter.lora for name in names) else []
        for number, (_, module) in enumerate(everyone):
            for name in names:
                for row, pair in prompts[name].adapter.lora.get(number, {}).items():
                    stack.callback(projection_of(module, row).register_forward_hook(_Lora(*pair)).remove)
        for everywhere in (False, True) if joint else (False,):
            own = [name for name in names if prompts[name].adapter.in_all_blocks is everywhere]
            for layer, (_, _, module) in enumerate(places(prompts[own[0]].adapter, network) if own else ()):
                factors = {name: factor for name in own if (factor := prompts[name].factor(layer))}
                if factors:
                    added = _Added(module.attn if joint else module, condition, layer, factors, tuple(size), joint)
                    _add(stack, module, added, everywhere)
        yield


def _add(stack: ExitStack, module: nn.Module, added: _Added, everywhere: bool) -> None:
    """Have a layer add its part. module: an attention to text, or a block of FLUX."""
    attention: Any = added.attention
    if added.attention is module:  # behind the LoRAs' own hooks, which change the query
        stack.callback(attention.to_q.register_forward_hook(added.keep_query).remove)
        stack.callback(attention.to_out[0].register_forward_pre_hook(added).remove)
        return
    stack.callback(attention.norm_q.register_forward_hook(added.keep_query).remove)
    if not everywhere:
        stack.callback(module.register_forward_hook(added.after_block).remove)
    elif hasattr(attention, "to_out"):
        stack.callback(attention.to_out[0].register_forward_pre_hook(added).remove)
    else:  # of one stream, whose attention is projected with what stands beside it
        stack.callback(attention.register_forward_hook(added.after_attention).remove)


@dataclass(frozen=True)
class _Lora:
    down: Tensor
    up: Tensor

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + F.linear(F.linear(given[0], self.down.to(given[0])), self.up.to(given[0]))


@dataclass
class _Added:
    """What goes into the projection of one attention to text, with the pictures' part. factors: by image prompt. joint: it is
    FLUX's."""

    attention: Any
    condition: Condition
    layer: int
    factors: Mapping[str, float]
    size: tuple[int, int]
    joint: bool = False
    query: Tensor | None = None

    def keep_query(self, module: nn.Module, given: Any, out: Tensor) -> None:
        self.query = out

    def after_block(self, module: nn.Module, given: Any, out: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(text, patches) of a joint block; as they are where a cache has left the block out."""
        query, self.query = self.query, None
        return out if query is None else (out[0], self.added_to(out[1], query.transpose(1, 2)))

    def after_attention(self, module: nn.Module, given: Any, out: Tensor) -> Tensor:
        """What attention gives, of text and patches."""
        query, self.query = self.query, None
        return out if query is None else self.added_to(out, query.transpose(1, 2))

    def __call__(self, module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        query, self.query = self.query, None
        assert query is not None
        apart = query if query.ndim == 4 else query.unflatten(-1, (self.attention.heads, -1))
        return (self.added_to(given[0], apart.transpose(1, 2)), *given[1:])

    def added_to(self, tokens: Tensor, q: Tensor) -> Tensor:
        """Tokens (B, L, D) with what queries (B, H, L, D / H) find in the pictures."""
        heads = self.attention.heads
        extra = self.condition.extra
        for name, factor in self.factors.items():
            keys, values = extra[f"{_KEYS}{self.layer}:{name}"], extra[f"{_VALUES}{self.layer}:{name}"]
            scale = factor * extra[SCALE + name]
            masks = self._masks(name, tokens.shape[1])
            for i in range(keys.shape[1]):
                k, v = (part[:, i].unflatten(-1, (heads, -1)).transpose(1, 2) for part in (keys, values))
                seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
                weight = scale[:, i, None, None].to(seen)
                tokens = tokens + (seen * weight if masks is None else seen * (weight * masks[:, i, :, None].to(seen)))
        return tokens

    def _masks(self, name: str, length: int) -> Tensor | None:
        """(B, N, length) at this layer's resolution; for text before the patches, which is nowhere, the masks' mean."""
        if MASK + name not in self.condition.extra:
            return None
        height, width = self.size
        while height * width > length or (self.joint and (height, width) == self.size):  # FLUX's patches are 2 x 2
            height, width = -(-height // 2), -(-width // 2)
        mask = self.condition.extra[f"{_LEVELS}{height} {width}:{name}"].flatten(2)
        text = length - mask.shape[-1]
        return torch.cat([mask.mean(-1, keepdim=True).expand(-1, -1, text), mask], dim=-1) if text else mask
