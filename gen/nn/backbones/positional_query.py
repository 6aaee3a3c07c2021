"""Positional queries: a backbone that paints one view of a scene, given another (PQDiff, arXiv 2401.15652).

An anchor view is known, and a target view is drawn: any window of the same plane, larger or smaller, inside of the anchor or
around it. The network sees the anchor at the target's own size, and where the target lies by one query for each patch,

    out = x + CrossAttention(sin-cos(position of the patch in the anchor's grid) + e, x)

in the middle of the backbone, through its hook "block", so that any backbone with one sequence will do. Positions continue the
grid that the anchor would have: patch i of n lies at n b + s i, where the target begins at b and is s times as large, in units
of the anchor. A target that is the anchor has the ordinary positions 0, 1, ..., n - 1.

Ours: cross-attention is added, where the published U-ViT goes on from it alone and has the rest from its long skips, and the
anchor's patches are added behind the first block.

Shapes: images (B, C, H, W); windows (B, 4), top, left, height and width of the target, of an anchor at 0, 0, 1, 1.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import BackboneConfig, CrossAttention
from gen.nn.backbones.dit import sincos
from gen.nn.initialisation import initialise, xavier_linears
from gen.nn.registry import Config, build, from_registry
from samplers.denoiser import NULL, Condition, Context
from samplers.hooks import with_hook
from samplers.path import wide_dtype

ANCHOR, WINDOW, ANCHORED = "anchor", "window", "anchored"  # of a condition's `extra`
Plain = bool | int | float | str


class PositionalQueryConfig(Config):
    """The backbone: its type and its sizes, as a config of that type has them."""

    backbone: Literal["dit", "uvit"] = "dit"
    sizes: dict[str, Plain] = Field(max_length=64)

    @model_validator(mode="after")
    def _fits(self) -> PositionalQueryConfig:
        if self.base.depth < 2:
            raise ValueError("a positional query goes between blocks of the backbone; give it a depth of 2 at least")
        return self

    @property
    def base(self) -> BackboneConfig:
        """The checked config of the backbone."""
        from gen.nn.registry import COMPONENTS

        return cast("BackboneConfig", from_registry(COMPONENTS, "backbone", {"type": self.backbone, **self.sizes})[1])

    @property
    def size(self) -> int:
        return self.base.size

    @property
    def patch(self) -> int:
        return self.base.patch

    @property
    def channels(self) -> int:
        return self.base.channels

    @property
    def num_classes(self) -> int:
        return self.base.num_classes

    @property
    def text_dim(self) -> int:
        return self.base.text_dim

    @property
    def text_tokens(self) -> int:
        return self.base.text_tokens


def query_positions(windows: Tensor, rows: int, columns: int, dim: int) -> Tensor:
    """(B, rows * columns, dim), float64 where there is one: the positions of a target's patches in its anchor's grid, which
    goes on, row by row; the column in the first half and the row in the second, as `sincos_positions` of a whole picture."""
    windows = windows.to(wide_dtype(windows.device))

    def axis(count: int, begin: Tensor, extent: Tensor) -> Tensor:
        # PQDiff's grid: bias (l - g) / k_g, and scale k_l / k_g for each further patch
        places = count * begin[:, None] + extent[:, None] * torch.arange(count, dtype=windows.dtype, device=windows.device)
        return sincos(places, dim // 2)

    row, column = axis(rows, windows[:, 0], windows[:, 2]), axis(columns, windows[:, 1], windows[:, 3])
    both = [column[:, None].expand(-1, rows, -1, -1), row[:, :, None].expand(-1, -1, columns, -1)]
    return torch.cat(both, dim=-1).flatten(1, 2)


def relative_window(target: Tensor, anchor: Tensor) -> Tensor:
    """The window (B, 4) of targets in units of their anchors, both given as (top, left, height, width) of one plane."""
    return torch.cat([(target[:, :2] - anchor[:, :2]) / anchor[:, 2:], target[:, 2:] / anchor[:, 2:]], dim=1)


def asks(anchor: Tensor, window: Tensor, anchored: Tensor | None = None) -> dict[str, Tensor]:
    """Of a condition's `extra`: the anchor (B, C, H, W), as the denoiser sees pictures, and where the target lies (B, 4).
    anchored: (B,), 0 for rows that do not see their anchor; 1 if None. Without a condition no row sees it."""
    anchored = anchor.new_ones(len(anchor)) if anchored is None else anchored
    return {ANCHOR: anchor, WINDOW: window, ANCHORED: anchored, NULL + ANCHORED: torch.zeros_like(anchored)}


class PositionalQuery(nn.Module):
    """See the module. A condition without an anchor is refused."""

    reads_anchor = True

    def __init__(self, config: PositionalQueryConfig):
        super().__init__()
        self.config, base = config, config.base
        self.base: Any = build({"type": config.backbone, **config.sizes})
        self.anchor_embed = nn.Conv2d(base.channels, base.dim, base.patch, stride=base.patch)
        self.query = nn.Parameter(torch.empty(base.dim))  # e: what is masked in MAE's words
        self.norm = nn.LayerNorm(base.dim, eps=1e-6)
        self.cross = CrossAttention(base.dim, base.heads, "rms")
        xavier_linears(self.cross)
        initialise(nn.init.xavier_uniform_, self.anchor_embed.weight.flatten(1))
        initialise(nn.init.zeros_, self.anchor_embed.bias)
        initialise(nn.init.normal_, self.query, std=0.02)
        initialise(nn.init.zeros_, self.cross.proj.weight)

    @property
    def blocks(self) -> Any:
        """Those of the backbone."""
        return self.base.blocks

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """As of the backbone, with `asks` in the condition; ValueError, in a sentence, without."""
        extra, patch = condition.extra, self.config.patch
        anchor, window, anchored = (extra.get(name) for name in (ANCHOR, WINDOW, ANCHORED))
        if anchor is None or window is None or anchored is None:
            raise ValueError(
                "This network paints around a picture, which it is to be given: use outpaint (fewstep outpaint), or give its "
                "condition an anchor and a window."
            )
        if anchor.shape != x.shape or window.shape != (len(x), 4):
            raise ValueError(
                f"The anchor must be {tuple(x.shape)} and the window {(len(x), 4)}; they are {tuple(anchor.shape)} and "
                f"{tuple(window.shape)}."
            )
        rows, columns = x.shape[2] // patch, x.shape[3] // patch
        dtype = self.query.dtype
        known = self.anchor_embed(anchor.to(dtype)).flatten(2).transpose(1, 2) * anchored.view(-1, 1, 1).to(dtype)
        places = query_positions(window, rows, columns, len(self.query)).to(dtype) + self.query

        def added(tokens: Tensor, patches: Tensor) -> Tensor:
            """Patches are the last tokens of the sequence."""
            extras = tokens.shape[1] - patches.shape[1]
            return torch.cat([tokens[:, :extras], tokens[:, extras:] + patches.to(tokens.dtype)], dim=1)

        def hook(index: int, count: int, x: Tensor, run: Any) -> Tensor:
            out = run()
            if index == 0:
                out = added(out, known)
            if index == (count - 1) // 2:
                out = added(out, self.cross(places.to(out.dtype), self.cross.keys_values(self.norm(out))))
            return out

        return self.base(x, time, condition, with_hook(context or Context(), "block", hook))
