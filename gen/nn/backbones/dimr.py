"""DiMR (arXiv 2406.09416): a multi-resolution network with time-dependent layer norms.

    patches of the coarsest grid --> transformer stage --> image at 1/2   (for a multi-resolution loss)
                                          | all of its features, concatenated, pixel-shuffled up
    patches of a finer grid ---(+)--> ConvNeXt stage --> image

Every stage is a U: long skips join its halves. Time enters through the norms alone: their gains and offsets move along a line
between two learned points. The label is a token of the transformer stages.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import (
    Hooked,
    SelfAttention,
    check_condition,
    check_image,
    class_index,
    hooked,
    init_truncated,
    memoize,
    resize_positions,
    run_block,
)
from gen.nn.initialisation import initialise
from gen.nn.registry import Config
from samplers.denoiser import Condition, Context

RMS_EPS = 1e-8  # added to the root mean square itself


class StageConfig(Config):
    """One resolution. It sees the image averaged over pool x pool pixels and cut into patch x patch ones."""

    kind: Literal["transformer", "convnext"]
    dim: int = Field(gt=0)
    hidden: int = Field(gt=0, description="width of the gated MLP")
    depth: int = Field(gt=0, description="depth // 2 blocks down, one in the middle, depth // 2 up")
    heads: int = Field(default=1, gt=0)
    kernel: int = Field(default=7, gt=0, description="of the depthwise convolution")
    patch: int = Field(gt=0)
    pool: int = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> StageConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel {self.kernel} must be odd")
        return self

    @property
    def blocks(self) -> int:
        return self.depth // 2 * 2 + 1


class DiMRConfig(Config):
    """Stages from the coarsest to the finest. It takes labels, and no text."""

    size: int = Field(gt=0, description="height and width it is trained at, in pixels or latent pixels")
    channels: int = Field(gt=0)
    num_classes: int = Field(default=0, ge=0, description="0: takes no label")
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    unit_noise: bool = Field(
        default=False, description="noise has a standard deviation of 1 in what every stage sees (Layered Diffusion)"
    )
    time_range: float = Field(default=1000.0, gt=0, description="the time of pure noise, on the network's own clock")

    @model_validator(mode="after")
    def _fits(self) -> DiMRConfig:
        steps = [stage.patch * stage.pool for stage in self.stages]
        if any(coarse % fine for coarse, fine in pairwise(steps)):
            raise ValueError(f"every stage's grid must be a multiple of the one before; patch * pool are {steps}")
        if self.size % steps[0]:
            raise ValueError(f"size {self.size} must be a multiple of {steps[0]}, a patch of the coarsest stage")
        if self.num_classes and all(stage.kind != "transformer" for stage in self.stages):
            raise ValueError("the label is a token of the transformer stages, and there is none")
        return self

    @property
    def patch(self) -> int:
        """What height and width must be multiples of."""
        return self.stages[0].patch * self.stages[0].pool

    @property
    def text_dim(self) -> int:
        return 0

    @property
    def text_tokens(self) -> int:
        return 0

    # of the first stage, where attention is
    @property
    def dim(self) -> int:
        return self.stages[0].dim

    @property
    def heads(self) -> int:
        return self.stages[0].heads

    @property
    def extras(self) -> int:
        """Tokens before the patches of a transformer stage: the label."""
        return int(bool(self.num_classes))


def layer(x: Tensor, pool: int, unit_noise: bool = False) -> Tensor:
    """x (B, C, H, W) averaged over pool x pool pixels.

    unit_noise: times pool, so that noise of a standard deviation of 1 has it again, as averages of independent pixels have
    1 / pool. Of x = alpha x0 + sigma eps it is then pool alpha (average of x0) + sigma (unit noise): what a coarser layer sees
    at the log-SNR of x, shifted by log(pool). Source: Layered Diffusion, arXiv 2407.06079, whose layers are noised at shifted
    schedules by one noise; here averages stand in the place of its sinc interpolation.
    """
    if pool == 1:
        return x
    return F.avg_pool2d(x, pool) * (pool if unit_noise else 1)


class TimeDependent(nn.Module):
    """p(tau) = p1 + sigmoid((1 + w) tau + b) (p0 - p1), element by element: one norm parameter of TD-LN."""

    def __init__(self, dim: int, start: float):
        super().__init__()
        self.p0, self.p1 = nn.Parameter(torch.full((dim,), start)), nn.Parameter(torch.full((dim,), start))
        self.w, self.b = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, tau: Tensor) -> Tensor:
        """(B,) -> (B, 1, dim)."""
        return torch.lerp(self.p1, self.p0, torch.sigmoid((1 + self.w) * tau[:, None, None] + self.b))


class TimeLayerNorm(nn.Module):
    """Layer norm whose gain and offset depend on the time; tokens (B, L, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.weight, self.bias = TimeDependent(dim, 1.0), TimeDependent(dim, 0.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        weight, bias = self.weight(tau).to(x.dtype), self.bias(tau).to(x.dtype)
        return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), weight)


class TimeRMSNorm(nn.Module):
    """x / (root mean square + 1e-8) with a gain that depends on the time; tokens (B, L, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.scale = TimeDependent(dim, 1.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        norm = norm if norm.dtype == torch.float64 else norm.float()
        return x * (norm * x.shape[-1] ** -0.5 + RMS_EPS).reciprocal().to(x.dtype) * self.scale(tau).to(x.dtype)


class GatedMLP(nn.Module):
    """w2(gelu(w0 x) * w1 x)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w0, self.w1, self.w2 = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w0(x)) * self.w1(x))


class DiMRBlock(nn.Module):
    """Tokens mix by attention after a norm, or by a depthwise convolution without one; then a gated MLP after a norm."""

    attn: SelfAttention | None

    def __init__(self, stage: StageConfig, skip: bool):
        super().__init__()
        dim = stage.dim
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None
        if stage.kind == "transformer":
            self.norm1 = TimeRMSNorm(dim)
            self.attn = SelfAttention(dim, stage.heads, qkv_bias=False, qk_norm="none")
        else:
            self.attn = None
            self.conv = nn.Conv2d(dim, dim, stage.kernel, padding=stage.kernel // 2, groups=dim)
        self.norm2 = TimeRMSNorm(dim)
        self.mlp = GatedMLP(dim, stage.hidden)

    def forward(
        self, x: Tensor, skip: Tensor | None, tau: Tensor, grid: tuple[int, int], backend: str, hooks: Hooked | None
    ) -> Tensor:
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        if self.attn is not None:
            x = x + self.attn(self.norm1(x, tau), backend, hooks)
        else:
            x = x + to_tokens(self.conv(to_image(x, grid)))
        return x + self.mlp(self.norm2(x, tau))


def to_image(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, rows * columns, D) -> (B, D, rows, columns), without a copy."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(image: Tensor) -> Tensor:
    """(B, D, rows, columns) -> (B, rows * columns, D)."""
    return image.flatten(2).transpose(1, 2)


class Upsample(nn.Module):
    """All features of the stage below, projected and pixel-shuffled to this one's grid, between two norms."""

    def __init__(self, below: int, dim: int, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.norm1, self.norm2 = TimeLayerNorm(below), TimeLayerNorm(dim)
        self.linear = nn.Linear(below, dim * ratio**2)

    def forward(self, x: Tensor, tau: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, rows * columns, below) -> (B, rows * columns * ratio^2, dim)."""
        x = self.linear(self.norm1(x, tau)).unflatten(2, (self.ratio, self.ratio, -1)).unflatten(1, grid)
        return self.norm2(x.transpose(2, 3).flatten(1, 4).contiguous(), tau)


class Stage(nn.Module):
    """One resolution of the network: input, blocks with long skips, an image out."""

    def __init__(self, config: DiMRConfig, index: int):
        super().__init__()
        stage = config.stages[index]
        self.stage, self.grid = stage, config.size // (stage.patch * stage.pool)
        dim, half = stage.dim, stage.depth // 2
        self.patch_embed = nn.Conv2d(config.channels, dim, stage.patch, stride=stage.patch)
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid**2, dim))
        labelled = config.num_classes and stage.kind == "transformer"
        self.label_embed = nn.Embedding(config.num_classes + 1, dim) if labelled else None
        self.upsample = None
        if index:
            below = config.stages[index - 1]
            ratio = below.patch * below.pool // (stage.patch * stage.pool)
            self.upsample = Upsample(below.dim * (below.blocks + 1), dim, ratio)
        self.blocks = nn.ModuleList(DiMRBlock(stage, skip=i > half) for i in range(stage.blocks))
        self.norm = TimeLayerNorm(dim)
        self.head = nn.Conv2d(dim, config.channels, 3, padding=1)


class DiMR(nn.Module):
    """DiMR backbone. `attention_backend` may be set to any name that `gen.nn.attention` knows."""

    attention_backend: str = "auto"

    def __init__(self, config: DiMRConfig):
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, i) for i in range(len(config.stages)))
        self.reset_parameters()

    def stage(self, number: int) -> Stage:
        """Of the stages, the coarsest first."""
        return cast("Stage", self.stages[number])

    def reset_parameters(self) -> None:
        """Truncated normals of 0.02 for linear layers, labels and positions as published; norms start as constants in time."""
        for module in self.modules():
            init_truncated(module)
            if isinstance(module, Stage):
                initialise(nn.init.trunc_normal_, module.pos_embed, std=0.02)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, channels, H, W). H and W may differ from the trained size. A negative label is
        unconditional. Raises ValueError for a size that patches do not divide and for a label that it does not know."""
        return self.predictions(x, time, condition, context)[-1]

    def predictions(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> list[Tensor]:
        """What every stage predicts, coarsest first: (B, channels, rows, columns) on its own grid.

        Training compares each with the target averaged to that grid (distill/objectives/diffusion.py), which it asks for by
        the "stage" hook.
        """
        config = self.config
        check_image(x, config.channels, config.patch)
        check_condition(condition, len(x), config)  # type: ignore[arg-type]
        tau = (2 * time / config.time_range - 1).to(self.stage(0).pos_embed.dtype)  # the published log-SNR / 4
        index, count = 0, sum(stage.blocks for stage in config.stages)
        features: list[Tensor] = []
        outputs: list[Tensor] = []
        below = (0, 0)
        for number in range(len(self.stages)):
            net = self.stage(number)
            stage = net.stage
            pooled = layer(x, stage.pool, config.unit_noise)
            image = net.patch_embed(pooled)
            grid = (image.shape[2], image.shape[3])
            tokens = to_tokens(image).contiguous() + self.positions(number, *grid, context).to(image.dtype)
            if net.upsample is not None:
                tokens = tokens + net.upsample(torch.cat(features, dim=-1), tau, below)
            extras = 0
            if net.label_embed is not None:
                label = class_index(condition.label, config.num_classes, len(x), x.device)
                tokens, extras = torch.cat([net.label_embed(label)[:, None].to(tokens.dtype), tokens], dim=1), 1

            features, half = [tokens], stage.depth // 2
            for i, block in enumerate(net.blocks):
                skip = features[2 * half + 1 - i] if i > half else None
                hooks = hooked(context, index, count, extras, *grid)
                tokens = run_block(context, index, count, block, tokens, skip, tau, grid, self.attention_backend, hooks)
                features.append(tokens)
                index += 1
            features, below = [f[:, extras:] for f in features], grid
            outputs.append(run_stage(context, number, len(self.stages), net, features[-1], tau, grid))
        return outputs

    def unread(self) -> list[nn.Parameter]:
        """The parameters that what the network returns does not depend on: the outputs of all stages but the finest."""
        unread = [self.stage(number) for number in range(len(self.stages) - 1)]
        return [p for stage in unread for module in (stage.norm, stage.head) for p in module.parameters()]

    def positions(self, number: int, rows: int, columns: int, context: Context | None = None) -> Tensor:
        """(1, rows * columns, dim) of a stage: learned; interpolated for another grid than the trained one."""
        net = self.stage(number)
        if (rows, columns) == (net.grid, net.grid):
            return net.pos_embed
        name = f"positions {number} {rows} {columns}"
        return memoize(self, context, name, (), lambda: resize_positions(net.pos_embed, net.grid, rows, columns))


def run_stage(
    context: Context | None, index: int, count: int, stage: Stage, tokens: Tensor, tau: Tensor, grid: tuple[int, int]
) -> Tensor:
    """What a stage predicts (B, channels, rows, columns), through the run's "stage" hook if there is one."""

    def run() -> Tensor:
        return stage.head(to_image(stage.norm(tokens, tau), grid))

    hook = context.hooks.get("stage") if context is not None else None
    return run() if hook is None else hook(index, count, run)
