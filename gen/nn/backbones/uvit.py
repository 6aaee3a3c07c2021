"""U-ViT (arXiv 2209.12152): a plain transformer over [label, time, text, patches] with long skips between its halves.

    patches --in--> in_blocks --> mid_block --> out_blocks --norm, head--> patches
                        |                           ^
                        +---- long skips (concat) --+

Everything that the image depends on is a token: there is no modulation. Parameter shapes and the order of the sequence are
the published ones. Ours on top: scaled skips, task routing, qk-norm, zero-initialised residuals, learned null tokens, other
sizes, a refining head.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import (
    MLP,
    BackboneConfig,
    Hooked,
    SelfAttention,
    TimeMLP,
    check_condition,
    check_image,
    class_index,
    hooked,
    init_truncated,
    memoize,
    resize_positions,
    run_block,
    timestep_embedding,
    unpatchify,
)
from gen.nn.backbones.extra_scalars import ExtraScalars, ScalarName
from gen.nn.backbones.routing import Routing, route
from gen.nn.initialisation import initialise
from samplers.denoiser import Condition, Context


class UViTConfig(BackboneConfig):
    """Sizes of a U-ViT: depth // 2 blocks down, one in the middle, depth // 2 up. `text_tokens` is the length of the text
    part of the sequence. The defaults of the switches are those of the published checkpoints."""

    out_channels: int | None = Field(default=None, gt=0, description="channels, unless given")
    null_label: bool = Field(default=True, description="the table of labels has a last row for images without one")
    text_norm: bool = Field(default=False, description="LayerNorm on text features before their projection")
    time_mlp: bool = False
    qkv_bias: bool = False
    qk_norm: Literal["none", "rms", "layer"] = "none"
    gelu: Literal["exact", "tanh"] = "exact"
    skip_scale: float = Field(default=1.0, gt=0, le=1, description="kappa of ScaleLong (arXiv 2310.13545); 1: plain skips")
    skip_scaling: Literal["power", "sqrt2", "learned", "learned_each"] = Field(
        default="power", description="skips times powers of skip_scale, 1 / sqrt(2), or a learned gate (shared, or one each)"
    )
    routing: Routing | None = Field(default=None, description="task routing (arXiv 2310.07138)")
    zero_init: bool = Field(default=False, description="every residual branch starts at zero")
    final_conv: bool = True
    refine_channels: int = Field(default=0, ge=0, description="width of a residual two-convolution head; 0: none")
    scalars: tuple[ScalarName, ...] = Field(default=(), description="numbers it receives beside the time: see ExtraScalars")

    @model_validator(mode="after")
    def _check_skips(self) -> UViTConfig:
        if self.skip_scale != 1 and self.skip_scaling != "power":
            raise ValueError(f"skip_scale is for skip_scaling 'power'; with {self.skip_scaling!r} leave it out")
        return self

    @model_validator(mode="after")
    def _one_output(self) -> UViTConfig:
        if self.policy is not None and (self.out_channels or self.refine_channels):
            raise ValueError("a policy decides the channels that come out: leave out_channels and refine_channels out")
        return self

    @property
    def extras(self) -> int:
        """Tokens before the patches: label, time, text."""
        return bool(self.num_classes) + 1 + self.text_tokens


class UViTBlock(nn.Module):
    """Pre-norm transformer block; on the way up it first merges the long skip."""

    def __init__(self, config: UViTConfig, skip: bool = False):
        super().__init__()
        dim = config.dim
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, config.heads, config.qkv_bias, config.qk_norm)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio), dim, config.gelu)

    def forward(
        self, x: Tensor, skip: Tensor | None, backend: str, hooks: Hooked | None = None, active: Tensor | None = None
    ) -> Tensor:
        """active: (B, 1, dim), the channels that the block works on once it has merged the skip."""
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x, rest = route(x, active)
        x = x + self.attn(self.norm1(x), backend, hooks)
        x = x + self.mlp(self.norm2(x))
        return x if rest is None else x + rest


class SkipGate(nn.Module):
    """ScaleLong's learned scaling (arXiv 2310.13545): sigmoid(W2 relu(W1 m)), a number in 0 .. 1 for every token,
    from all tokens' means m over the channels. It is made for one grid; others are resized to it and back.
    """

    def __init__(self, extras: int, grid: int, reduction: int = 16):
        super().__init__()
        self.extras, self.grid = extras, grid
        tokens = extras + grid**2
        self.fc1 = nn.Linear(tokens, max(1, tokens // reduction))
        self.fc2 = nn.Linear(max(1, tokens // reduction), tokens)

    def forward(self, skip: Tensor, rows: int, columns: int) -> Tensor:
        """(B, extras + rows * columns, D) -> the same, scaled."""
        means = self.resize(skip.mean(-1), (rows, columns), (self.grid, self.grid))
        gate = self.fc2(F.relu(self.fc1(means))).sigmoid()
        return skip * self.resize(gate, (self.grid, self.grid), (rows, columns))[..., None].to(skip.dtype)

    def resize(self, values: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
        """Numbers of tokens (B, extras + patches) at another grid."""
        if old == new:
            return values
        patches = values[:, None, self.extras :].unflatten(-1, old)
        patches = F.interpolate(patches, size=new, mode="bilinear", align_corners=False)
        return torch.cat([values[:, : self.extras], patches.flatten(1)], dim=1)


class Refine(nn.Module):
    """A residual correction at full resolution, against visible patch borders; zero at the start."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1)
        initialise(nn.init.zeros_, self.conv2.weight)
        initialise(nn.init.zeros_, self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.gelu(self.conv1(x), approximate="tanh"))


class UViT(nn.Module):
    """U-ViT backbone. `attention_backend` may be set to any name that `gen.nn.attention` knows."""

    attention_backend: str = "auto"

    def __init__(self, config: UViTConfig):
        super().__init__()
        self.config = config
        dim, out = config.dim, config.out_channels or config.predicted_channels
        self.patch_embed = nn.Conv2d(config.channels, dim, config.patch, stride=config.patch)
        self.time_embed = TimeMLP(dim, dim, 4 * dim) if config.time_mlp else None
        self.scalar_embeds = ExtraScalars(config.scalars, dim)
        self.label_embed = nn.Embedding(config.num_classes + config.null_label, dim) if config.num_classes else None
        if config.text_dim:
            self.text_norm = nn.LayerNorm(config.text_dim) if config.text_norm else nn.Identity()
            self.text_embed = nn.Linear(config.text_dim, dim)
            self.null_tokens = nn.Parameter(torch.empty(config.text_tokens, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, config.extras + config.grid**2, dim))
        half = config.depth // 2
        self.in_blocks = nn.ModuleList(UViTBlock(config) for _ in range(half))
        self.mid_block = UViTBlock(config)
        self.out_blocks = nn.ModuleList(UViTBlock(config, skip=True) for _ in range(half))
        gates = {"learned": 1, "learned_each": half}.get(config.skip_scaling, 0)
        self.skip_gates = nn.ModuleList(SkipGate(config.extras, config.grid) for _ in range(gates))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, config.patch**2 * out)
        self.final_conv = nn.Conv2d(out, out, 3, padding=1) if config.final_conv else None
        self.refine = Refine(out, config.refine_channels) if config.refine_channels else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Truncated normals of 0.02 as published; the final convolution starts as the identity."""
        for module in self.modules():
            init_truncated(module)
        initialise(nn.init.trunc_normal_, self.pos_embed, std=0.02)
        if self.config.text_dim:
            initialise(nn.init.trunc_normal_, self.null_tokens, std=0.02)
        if self.final_conv is not None:
            initialise(nn.init.dirac_, self.final_conv.weight)
            initialise(nn.init.zeros_, self.final_conv.bias)
        self.scalar_embeds.reset_parameters()
        if self.config.zero_init:
            for block in self.blocks:
                initialise(nn.init.zeros_, block.attn.proj.weight)
                initialise(nn.init.zeros_, block.mlp.fc2.weight)

    @property
    def blocks(self) -> list[UViTBlock]:
        """All blocks in the order they run."""
        return [*self.in_blocks, self.mid_block, *self.out_blocks]

    @property
    def embeds(self) -> bool:
        """It reads a guidance scale."""
        return "guidance" in self.config.scalars

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, out_channels, H, W). H and W may differ from the trained size.

        Labels that are negative or missing, text rows without a real token and missing text are unconditional. Raises
        ValueError for a size that patches do not divide, for more text tokens than the network has room for, and for a label
        or text that this network does not take.
        """
        rows, columns = check_image(x, self.config.channels, self.config.patch)
        check_condition(condition, len(x), self.config)
        patches = self.patch_embed(x).flatten(2).transpose(1, 2)
        # every token takes the dtype of the patches, so under autocast the whole residual stream stays in half precision
        extras = [token.to(patches.dtype) for token in self.extra_tokens(patches, time, condition, context)]
        x = torch.cat([*extras, patches], dim=1) + self.positions(rows, columns, context).to(patches.dtype)

        count, half = len(self.in_blocks) * 2 + 1, len(self.in_blocks)
        hooks = [hooked(context, i, count, self.config.extras, rows, columns) for i in range(count)]
        backend, skips = self.attention_backend, list[Tensor]()
        active = None if self.config.routing is None else self.config.routing.mask(time, self.config.dim, x.dtype)
        for i, block in enumerate(self.in_blocks):
            x = run_block(context, i, count, block, x, None, backend, hooks[i], active)
            skips.append(x)
        x = run_block(context, half, count, self.mid_block, x, None, backend, hooks[half], active)
        for i, block in enumerate(self.out_blocks):
            skip = self.scaled(skips.pop(), i, rows, columns)
            x = run_block(context, half + 1 + i, count, block, x, skip, backend, hooks[half + 1 + i], active)

        x = self.head(self.norm(x[:, self.config.extras :]))
        x = unpatchify(x, rows, columns, self.config.patch)
        if self.final_conv is not None:
            x = self.final_conv(x)
        return x if self.refine is None else self.refine(x)

    def scaled(self, skip: Tensor, i: int, rows: int, columns: int) -> Tensor:
        """The skip that out block i merges (ScaleLong): 0 is the deepest."""
        if self.skip_gates:
            return self.skip_gates[i % len(self.skip_gates)](skip, rows, columns)
        if self.config.skip_scaling == "sqrt2":
            return skip * 0.5**0.5
        kappa = self.config.skip_scale ** (len(self.out_blocks) - 1 - i)  # the deepest is scaled most
        return skip if kappa == 1 else kappa * skip

    def extra_tokens(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None) -> list[Tensor]:
        """The tokens before the patches, in the published order: label, time, text."""
        tokens = []
        if self.label_embed is not None:
            null = self.config.null_label
            index = class_index(condition.label, self.config.num_classes, len(x), x.device, null)
            tokens.append(self.label_embed(index)[:, None])

        embed = timestep_embedding(time, self.config.dim).to(self.pos_embed.dtype)
        embed = embed if self.time_embed is None else self.time_embed(embed)
        tokens.append((embed + self.scalar_embeds(condition, len(x)))[:, None])

        if self.config.text_dim:
            owners, batch = (condition.tokens, condition.mask), len(x)
            tokens.append(memoize(self, context, f"text tokens {batch}", owners, lambda: self.text_tokens(condition, batch)))
        return tokens

    def text_tokens(self, condition: Condition, batch: int) -> Tensor:
        """(B, text_tokens, dim): projected features where there is a real token, learned null tokens everywhere else."""
        null = self.null_tokens.expand(batch, -1, -1)
        tokens = condition.tokens
        if tokens is None:
            return null
        length = tokens.shape[1]
        text = self.text_embed(self.text_norm(tokens.to(self.text_embed.weight.dtype)))
        if condition.mask is not None:
            text = torch.where(condition.mask[..., None], text, null[:, :length].to(text.dtype))
        return torch.cat([text, null[:, length:].to(text.dtype)], dim=1)

    def positions(self, rows: int, columns: int, context: Context | None = None) -> Tensor:
        """(1, extras + rows * columns, dim): learned; interpolated for another grid than the trained one."""
        extras, grid = self.config.extras, self.config.grid
        if (rows, columns) == (grid, grid):
            return self.pos_embed

        def compute() -> Tensor:
            patches = resize_positions(self.pos_embed[:, extras:], grid, rows, columns)
            return torch.cat([self.pos_embed[:, :extras], patches], dim=1)

        return memoize(self, context, f"positions {rows} {columns}", (), compute)
