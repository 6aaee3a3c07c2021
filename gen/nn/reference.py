"""References: pictures that a denoiser attends to beside the text, as conditions, and the denoiser that does it.

Of a condition, for references NAME: `extra["resembled:NAME"]` (B, G, M, D), the tokens of G groups of pictures, all pictures
together or each by itself; `extra["resembled seen:NAME"]` (B, G, M) bool, the tokens that are there;
`extra["resembled scale:NAME"]` (B, G), how strongly each group acts, 0 behind "null:", as without a condition there are none;
and `extra["map:resembled:NAME"]` (B, G, h, w) in [0, 1], where each group counts, if it is not everywhere.

    out = Attention(Q, K_text, V_text) + sum over groups of scale mask Attention(Q, K_group, V_group)

(arXiv 2308.06721, equation 5). It is done through the network's hooks, so any network that has them will do: "cross" where
patches attend to text, "heads" where text and patches are one sequence, of which the patches alone are added to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.nn.attention import attention
from gen.nn.learned_tokens import LearnedTokens
from gen.nn.reference_encoder import KeysValues, ReferenceEncoder
from samplers.denoiser import MAP, NULL, Condition, Context, Denoiser
from samplers.hooks import Site, check_reached, with_hook
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper

TOKENS, SEEN, SCALE = "resembled:", "resembled seen:", "resembled scale:"  # "reference" begins pictures to edit
MASK = f"{MAP}{TOKENS}"
PREFIXES = (TOKENS, SEEN, SCALE, MASK, NULL + SCALE)
WORD = "<ref>"  # of a prompt, for the pictures


@dataclass(frozen=True)
class Group:
    """References as a run attends to them. tokens (B, M, D), seen (B, M) bool, scale (B,), mask (B, h, w) or None."""

    tokens: Tensor
    seen: Tensor
    scale: Tensor
    mask: Tensor | None = None


def groups_of(name: str, condition: Condition) -> list[Group]:
    """The groups of references NAME in a condition."""
    tokens, seen, scale = (condition.extra[prefix + name] for prefix in (TOKENS, SEEN, SCALE))
    masks = condition.extra.get(MASK + name)
    return [
        Group(tokens[:, g], seen[:, g], scale[:, g], None if masks is None else masks[:, g]) for g in range(tokens.shape[1])
    ]


def names_in(condition: Condition) -> list[str]:
    """The references of a condition."""
    return [key.removeprefix(TOKENS) for key in condition.extra if key.startswith(TOKENS)]


@dataclass(frozen=True)
class AddedAttention:
    """What an encoder adds to the attentions of a network.

    groups: of the references. keys_values(layer, group): their keys and values, (B, M, heads, width) each.
    """

    encoder: ReferenceEncoder
    groups: list[Group]
    keys_values: Callable[[int, int], KeysValues]

    def hooked(self, context: Context) -> Context:
        """The run with this in its network's attentions."""
        if not self.encoder.config.layers:
            return context
        if self.encoder.config.attention == "cross":
            return with_hook(context, "cross", self.cross)
        return with_hook(context, "heads", self.heads)

    def cross(self, site: Site, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, run: Callable[..., Tensor]) -> Tensor:
        """A hook "cross" (`samplers.hooks`)."""
        return run(q, k, v, mask) + self.added(site, q)

    def heads(self, site: Site, q: Tensor, k: Tensor, v: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """A hook "heads": patches come after the text."""
        out, extras = run(q, k, v), site.extras
        return torch.cat([out[:, :extras], out[:, extras:] + self.added(site, q[:, extras:])], dim=1)

    def added(self, site: Site, q: Tensor) -> Tensor:
        """What the queries (B, L, heads, width) of rows x columns patches find in the references."""
        config = self.encoder.config
        if site.count != config.layers or tuple(q.shape[2:]) != (config.layer_heads, config.layer_dim // config.layer_heads):
            raise ValueError(
                f"The reference encoder is for {config.layers} attentions of {config.layer_heads} heads and width "
                f"{config.layer_dim}, and this network has {site.count} of {q.shape[2]} and {q.shape[2] * q.shape[3]}; it is "
                "for another model."
            )
        total = torch.zeros_like(q)
        for number, group in enumerate(self.groups):
            k, v = self.keys_values(site.index, number)
            found = attention(q, k.to(q.dtype), v.to(q.dtype), group.seen[:, None, None])
            weight = group.scale.to(q.dtype)[:, None]
            if group.mask is not None:
                weight = weight * F.adaptive_avg_pool2d(group.mask, (site.rows, site.columns)).flatten(1).to(q.dtype)
            total = total + weight[..., None, None] * found
        return total


@dataclass(frozen=True)
class WithReferences(DenoiserWrapper):
    """Attends to the references of its condition. Put it around the network and its caches, under guidance.

    encoders: name -> the encoder of references of that name.
    Needs the network's "cross" hook, or "heads" for text and patches in one sequence. Keys and values are made once a run.
    """

    denoiser: Denoiser
    encoders: Mapping[str, ReferenceEncoder]

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        inside, reached = context, ""
        for name in names_in(condition):
            encoder, groups = self.encoders[name], groups_of(name, condition)
            tokens = condition.extra[TOKENS + name]

            def keys_values(
                layer: int, group: int, name: str = name, encoder: Any = encoder, tokens: Tensor = tokens
            ) -> KeysValues:
                def compute() -> KeysValues:
                    return encoder.keys_values(layer, tokens[:, group])

                if torch.is_grad_enabled():
                    return compute()
                return context.memo(f"reference {layer} {group} {name}", (encoder, tokens), compute)

            inside = AddedAttention(encoder, groups, keys_values).hooked(inside)
            if encoder.config.layers:
                reached = "cross" if encoder.config.attention == "cross" else "heads"
        prediction = self.denoiser(x, level, condition, inside)
        if reached:
            check_reached(inside, reached, "A reference encoder")
        return prediction


@dataclass(frozen=True)
class WeakerReferences(DenoiserWrapper):
    """A denoiser whose condition's references act `factor` times as strongly."""

    denoiser: Denoiser
    factor: float

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        def compute() -> Condition:
            scaled = {key: value * self.factor for key, value in condition.extra.items() if key.startswith(SCALE)}
            return replace(condition, extra={**condition.extra, **scaled})

        weaker = context.memo("weaker references", (condition,), compute)
        return self.denoiser(x, level, weaker, context)


class SubjectTokens(LearnedTokens):
    """Words of a prompt whose vectors differ from row to row of a batch. vectors: word -> (B, n, D), or (1, n, D) for all."""

    rows: Tensor

    def __init__(self, vectors: Mapping[str, Tensor], first: int):
        super().__init__({name: value[0].detach() for name, value in vectors.items()}, first)
        rows = max(len(value) for value in vectors.values())
        object.__setattr__(self, "rows", torch.cat([value.expand(rows, -1, -1) for value in vectors.values()], dim=1))

    def fill(self, embedded: Tensor, ids: Tensor) -> Tensor:
        """As of learned words, row by row; differentiable in the vectors."""
        learned, rows = ids >= self.first, self.rows.to(embedded)
        index = (ids - self.first).clamp_min(0)[..., None].expand(-1, -1, embedded.shape[-1])
        return torch.where(learned[..., None], rows.expand(len(ids), -1, -1).gather(1, index), embedded)
