"""Blocks in which text and patches attend to one another as one sequence: MMDiT's of two streams, FLUX's of one.

    joint   text  -> norm, modulate -> q, k, v --.                          .--> project, gate -> MLP, gate -> text
                                                 one attention over both --<
            image -> norm, modulate -> q, k, v --'                          '--> project, gate -> MLP, gate -> image
    single  (text, image) -> norm, modulate -> attention beside MLP -> project both at once, gate

The streams of a joint block have weights of their own and meet in attention only (arXiv 2403.03206, Figure 2); a single block
is a parallel transformer block over what were the two (FLUX.1). Text comes first in every sequence, as hooks expect it.

Shapes: text (B, T, D), image (B, P, D), both (B, L, D) with L = T + P; q, k, v (B, L, heads, D / heads).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.nn.attention import attention
from gen.nn.backbones.blocks import MLP, Hooked, run_block
from gen.nn.backbones.fused import linear_gelu
from gen.nn.backbones.recompute import checkpointed
from gen.nn.batch_invariance import call_in_mode, without_mode
from samplers.denoiser import Context

Rotation = Tensor | None  # angles (L, width / 2), or (B, L, width / 2), as complex numbers of length 1; None: not turned
LARGEST_HALF = 65504.0  # the largest number of float16


class RMSNorm(nn.Module):
    """x / sqrt(mean x^2 + eps), times a weight, over the last axis. trained False: a stored weight that gets no gradient."""

    weight: Tensor

    def __init__(self, width: int, eps: float = 1e-6, trained: bool = True):
        super().__init__()
        self.eps = eps
        if trained:
            self.weight = nn.Parameter(torch.ones(width))
        else:
            self.register_buffer("weight", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # vector_norm, as F.rms_norm has no fused kernel on a CPU: see `normalize_heads`
        with without_mode():
            wide = torch.float64 if x.dtype == torch.float64 else torch.float32
            square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square()
            scale = call_in_mode(torch.rsqrt, square / x.shape[-1] + self.eps)
            return x * scale.to(x.dtype) * self.weight.to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


def angles(positions: Tensor, axes: Sequence[int], theta: float, dtype: torch.dtype) -> Tensor:
    """Rotary angles (L, sum of axes / 2) of positions (L, number of axes) on the host, as complex numbers.

    axes: how many channels of a head turn with each axis, at frequencies theta^(-2 i / channels).
    dtype: of what will be turned. Source: RoFormer, arXiv 2104.09864; by axes as in FLUX.1.
    """
    parts, places = [], positions.double()
    for axis, channels in enumerate(axes):
        exponents = torch.arange(0, channels, 2, dtype=torch.float64) / channels
        parts.append(torch.outer(places[:, axis], theta**-exponents))
    turns = torch.cat(parts, dim=-1)
    return torch.polar(torch.ones_like(turns), turns).to(torch.complex128 if dtype == torch.float64 else torch.complex64)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring pairs of channels of (B, L, heads, width) by their angles."""
    if rotation is None:
        return x
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation.unsqueeze(-2)).flatten(-2).to(x.dtype)


class StreamAttention(nn.Module):
    """What a stream has of attention: one fused projection to q, k and v, their norms, and the projection of what comes back.

    projects: has a `proj` of its own. asks: what its queries find is read; otherwise they are there because files have them.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        qk_norm: bool,
        projects: bool = True,
        asks: bool = True,
        bias: bool = True,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.q_norm = RMSNorm(dim // heads, eps, trained=asks) if qk_norm else None
        self.k_norm = RMSNorm(dim // heads, eps) if qk_norm else None
        self.proj = nn.Linear(dim, dim, bias=bias) if projects else None

    def heads_of(self, x: Tensor, rotation: Rotation = None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of (B, L, D), normed and turned."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, rotation), rotate(k, rotation), v


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, backend: str, hooks: Hooked | None) -> Tensor:
    """Attention proper over one sequence, (B, L, D), through the run's "heads" and "text" hooks. visible: (B, 1, 1, L)."""

    def proper(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, visible, backend=backend)

    if hooks is None:
        return proper(q, k, v).flatten(2)
    out = (proper(q, k, v) if hooks.heads is None else hooks.heads(hooks.site, q, k, v, proper)).flatten(2)
    if hooks.text is not None:
        begin = hooks.site.extras - hooks.pictures
        out = torch.cat([out[:, :begin], hooks.text(hooks.site, lambda rows: out[:, begin:])], dim=1)
    return out


class Stream(nn.Module):
    """One side of a joint block. last: only its keys and values are needed, as nothing reads its tokens any more."""

    def __init__(self, dim: int, heads: int, hidden: int, qk_norm: bool, last: bool = False, dual: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = StreamAttention(dim, heads, qk_norm, projects=not last, asks=not last)
        self.attn2 = StreamAttention(dim, heads, qk_norm) if dual else None
        self.modulation = None if last else nn.Linear(dim, (9 if dual else 6) * dim)
        self.last_modulation = nn.Linear(dim, 2 * dim) if last else None
        self.norm2 = None if last else nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.mlp = None if last else MLP(dim, hidden, dim, "tanh")

    def terms(self, c: Tensor, dtype: torch.dtype) -> list[Tensor]:
        """Shift, scale and gate of attention, of the MLP, and of the second attention, as far as they are there: (B, 1, D)."""
        modulation = self.modulation or self.last_modulation
        assert modulation is not None
        return list(modulation(c).to(dtype).unsqueeze(1).chunk(modulation.out_features // c.shape[-1], dim=-1))

    def finish(self, x: Tensor, attended: Tensor, terms: Sequence[Tensor]) -> Tensor:
        """The residual stream after attention, whose projection is `attended`, and the MLP."""
        assert self.norm2 is not None and self.mlp is not None
        gate1, shift2, scale2, gate2 = terms[2:6]
        x = torch.addcmul(x, gate1, attended)
        x = torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))
        return x.clip(-LARGEST_HALF, LARGEST_HALF) if x.dtype == torch.float16 else x


class JointBlock(nn.Module):
    """Two streams that attend to one another. dual: patches attend to themselves beside, as in SD3.5 medium; last: text is read
    and not written."""

    def __init__(self, dim: int, heads: int, hidden: int, qk_norm: bool, dual: bool = False, last: bool = False):
        super().__init__()
        self.text = Stream(dim, heads, hidden, qk_norm, last=last)
        self.image = Stream(dim, heads, hidden, qk_norm, dual=dual)

    def forward(
        self,
        text: Tensor,
        image: Tensor,
        c: Tensor,
        rotations: tuple[Rotation, Rotation] = (None, None),
        visible: Tensor | None = None,
        backend: str = "auto",
        hooks: Hooked | None = None,
        still: tuple[Tensor, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(text, image) after the block.

        c: (B, D), through SiLU. rotations: of text and of patches. visible: (B, 1, 1, L). still: another c, which modulates the
        first so many patches.
        """
        text_terms, image_terms = self.text.terms(c, text.dtype), self.image.terms(c, image.dtype)
        if still is not None:
            others, count = self.image.terms(still[0], image.dtype), still[1]
            rest = image.shape[1] - count
            pairs = zip(others, image_terms, strict=True)
            image_terms = [torch.cat([a.expand(-1, count, -1), b.expand(-1, rest, -1)], dim=1) for a, b in pairs]
        normed = self.image.norm1(image)
        read = modulate(self.text.norm1(text), *text_terms[:2])
        seen = modulate(normed, *image_terms[:2])
        from_text, from_image = self.attend(read, seen, rotations, visible, backend, hooks)
        if self.image.attn2 is not None and self.image.attn2.proj is not None:
            shift, scale, gate = image_terms[6:]
            q, k, v = self.image.attn2.heads_of(modulate(normed, shift, scale))
            image = torch.addcmul(image, gate, self.image.attn2.proj(attention(q, k, v, backend=backend).flatten(2)))
        image = self.image.finish(image, from_image, image_terms)
        return (text if from_text is None else self.text.finish(text, from_text, text_terms)), image

    def attend(
        self,
        text: Tensor,
        image: Tensor,
        rotations: tuple[Rotation, Rotation],
        visible: Tensor | None,
        backend: str,
        hooks: Hooked | None,
    ) -> tuple[Tensor | None, Tensor]:
        """What attention comes to for text, None where it has no projection, and for patches."""
        length = text.shape[1]
        if hooks is not None and hooks.attention is not None:
            rest = replace(hooks, attention=None)

            def together() -> Tensor:
                first, second = self.attend(text, image, rotations, visible, backend, rest)
                return torch.cat([text if first is None else first, second], dim=1)

            out = hooks.attention(hooks.site, torch.cat([text, image], dim=1), together)
            return (None if self.text.attn.proj is None else out[:, :length]), out[:, length:]
        of_text, of_image = self.text.attn.heads_of(text, rotations[0]), self.image.attn.heads_of(image, rotations[1])
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(of_text, of_image, strict=True))
        assert self.image.attn.proj is not None
        if self.text.attn.proj is None and hooks is None:  # nothing reads what the queries of text find
            return None, self.image.attn.proj(attend(of_image[0], k, v, visible, backend, None))
        # contiguous, so that a batch of one and a larger one have the same kernel, the one with packed weights
        first, second = (part.contiguous() for part in attend(q, k, v, visible, backend, hooks).tensor_split([length], dim=1))
        return None if self.text.attn.proj is None else self.text.attn.proj(first), self.image.attn.proj(second)


class SingleBlock(nn.Module):
    """Attention and MLP side by side on one modulated sequence; one projection of both (FLUX.1)."""

    def __init__(self, dim: int, heads: int, hidden: int):
        super().__init__()
        self.modulation = nn.Linear(dim, 3 * dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = StreamAttention(dim, heads, qk_norm=True, projects=False)
        self.fc1 = nn.Linear(dim, hidden)
        self.proj = nn.Linear(dim + hidden, dim)

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        rotation: Rotation = None,
        visible: Tensor | None = None,
        backend: str = "auto",
        hooks: Hooked | None = None,
    ) -> Tensor:
        """(B, L, D) of text and then patches; the rest as in `JointBlock`."""
        shift, scale, gate = self.modulation(c).to(x.dtype).unsqueeze(1).chunk(3, dim=-1)
        normed = modulate(self.norm(x), shift, scale)
        hidden = linear_gelu(self.fc1, normed, "tanh")
        x = torch.addcmul(
            x, gate, self.proj(torch.cat([self.attend(normed, rotation, visible, backend, hooks), hidden], dim=-1))
        )
        return x.clip(-LARGEST_HALF, LARGEST_HALF) if x.dtype == torch.float16 else x

    def attend(self, x: Tensor, rotation: Rotation, visible: Tensor | None, backend: str, hooks: Hooked | None) -> Tensor:
        """What attention comes to, before the projection that it shares with the MLP."""
        if hooks is not None and hooks.attention is not None:
            rest = replace(hooks, attention=None)
            return hooks.attention(hooks.site, x, lambda: self.attend(x, rotation, visible, backend, rest))
        return attend(*self.attn.heads_of(x, rotation), visible, backend, hooks)


def with_added(block: Callable[..., Any], added: Tensor | None, length: int | None = None) -> Callable[..., Any]:
    """A block with what controls add to the patches that it returns (B, P, D), if anything, as a part of it, so that a cache of
    blocks keeps the two together. length: of the sequence before those patches, of a block of one sequence."""
    if added is None:
        return block

    def joint(text: Tensor, image: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        text, image = block(text, image, *args)
        return text, image + added

    def single(x: Tensor, *args: Any) -> Tensor:
        out: Tensor = block(x, *args)
        return torch.cat([out[:, :length], out[:, length:] + added], dim=1)

    return joint if length is None else single


def run_joint(
    context: Context | None,
    index: int,
    count: int,
    block: Callable[..., tuple[Tensor, Tensor]],
    text: Tensor,
    image: Tensor,
    *args: Any,
) -> tuple[Tensor, Tensor]:
    """A joint block through the run's "block" hook, which sees text and then patches as one sequence: see `run_block`."""
    if context is None or "block" not in context.hooks:
        if isinstance(block, nn.Module) and getattr(block, "recompute", False) and torch.is_grad_enabled():
            return checkpointed(block, text, image, *args)
        return block(text, image, *args)
    length = text.shape[1]

    def together(x: Tensor, *args: Any) -> Tensor:
        return torch.cat(block(x[:, :length], x[:, length:], *args), dim=1)

    out = run_block(context, index, count, together, torch.cat([text, image], dim=1), *args)
    return out[:, :length], out[:, length:]
