"""ADM: the U-Net of "Diffusion Models Beat GANs on Image Synthesis" (arXiv 2105.05233).

    x --> residual blocks, by halves, attention at some resolutions --> middle --> the way back, with what was seen before

Every residual block is modulated by time and class (adaptive group normalisation, equation 3). Its upsamplers read an enlarged
picture beside x. `gen.nn.backbones.adm_classifier` is the way down alone.

Shapes: pictures (B, C, H, W), time and labels (B,).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from gen.nn.attention import attention
from gen.nn.backbones.blocks import TimeMLP, check_condition, check_image, class_index, hooked, timestep_embedding
from gen.nn.backbones.recompute import checkpointed
from gen.nn.initialisation import initialise
from gen.nn.registry import Config
from samplers.denoiser import Condition, Context


class AdmShapeConfig(Config):
    """What U-Net and classifier have in common.

    size: height and width it is trained at. channels: of x. dim: channels at full resolution are multipliers[0] times this;
    time is embedded at 4 times it. multipliers: width of each resolution, from the finest, over dim. blocks: residual blocks at
    each. attention: downsampling rates (1, 2, 4, ...) at which pixels attend to one another. heads, or, if head_dim is not 0,
    that many channels a head. scale_shift: time scales and shifts what is normalised; else it is added before. resample_blocks:
    resolutions change inside of residual blocks, else by convolutions. heads_first: rows of q, k and v lie together by head.
    groups: of every normalisation. middle_attention: at the coarsest resolution, too, between its blocks.
    """

    size: PositiveInt
    channels: PositiveInt = 3
    dim: PositiveInt
    multipliers: tuple[PositiveFloat, ...] = Field(default=(1, 2, 3, 4), min_length=1, max_length=10)
    blocks: PositiveInt = 2
    attention: tuple[PositiveInt, ...] = ()
    heads: PositiveInt = 4
    head_dim: int = Field(default=0, ge=0)
    scale_shift: bool = True
    resample_blocks: bool = True
    heads_first: bool = True
    groups: PositiveInt = 32
    middle_attention: bool = True

    @model_validator(mode="after")
    def _fits(self) -> AdmShapeConfig:
        if self.size % self.patch:
            raise ValueError(
                f"size {self.size} must be a multiple of {self.patch}: it is halved {len(self.multipliers) - 1} times"
            )
        rates = [2**level for level in range(len(self.multipliers))]
        if wrong := sorted(set(self.attention) - set(rates)):
            raise ValueError(f"attention has the rates {wrong}; the resolutions are at {', '.join(map(str, rates))}")
        for level, width in enumerate(self.widths):
            if width % self.groups:
                raise ValueError(f"width {width} of resolution {level} is not a multiple of groups {self.groups}")
            attends = rates[level] in self.attention or (self.middle_attention and level == len(self.widths) - 1)
            if attends and width % (self.head_dim or self.heads):
                raise ValueError(f"width {width} of resolution {level} is not a whole number of heads")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(multiplier * self.dim) for multiplier in self.multipliers)

    @property
    def patch(self) -> int:
        """Height and width must be multiples of it."""
        return 2 ** (len(self.multipliers) - 1)

    @property
    def depth(self) -> int:
        """Steps on the way down, and on the way up."""
        return len(self.multipliers) * (self.blocks + 1)

    @property
    def text_dim(self) -> int:
        return 0

    @property
    def text_tokens(self) -> int:
        return 0

    def heads_of(self, width: int) -> int:
        return width // self.head_dim if self.head_dim else self.heads


class ADMConfig(AdmShapeConfig):
    """beside: channels of condition.image that are read beside x, of an upsampler. num_classes: 0 takes no label. null_label:
    the table of classes has a row for pictures without one; published ones have not. learned_variance: twice the channels come
    out, the second half tells the variance of a step, between its bounds."""

    beside: int = Field(default=0, ge=0)
    num_classes: int = Field(default=0, ge=0)
    null_label: bool = False
    learned_variance: bool = False

    @property
    def factor(self) -> int:
        """How many times as large an upsampler's pictures are as what it enlarges: 4, of those that are published."""
        return 4 if self.beside else 1

    @property
    def noise(self) -> tuple[float, float]:
        """The levels of noise that it knows on the picture that it enlarges: none."""
        return 0.0, 0.0

    @property
    def enlarging(self) -> str:
        """How that picture is enlarged, a mode of `torch.nn.functional.interpolate`."""
        return "bilinear"


Resample = Literal["same", "down", "up"]


def resampled(x: Tensor, kind: Resample) -> Tensor:
    """By squares of four pixels: their mean, or each pixel four times."""
    if kind == "same":
        return x
    return F.avg_pool2d(x, 2) if kind == "down" else F.interpolate(x, scale_factor=2, mode="nearest")


class AdmBlock(nn.Module):
    """skip(x) + conv(silu(modulate(norm(conv(silu(norm(x))), c)))), at the same resolution, half or twice it."""

    def __init__(self, before: int, after: int, config: AdmShapeConfig, resample: Resample = "same"):
        super().__init__()
        self.resample, self.scale_shift = resample, config.scale_shift
        self.norm1 = nn.GroupNorm(config.groups, before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.modulation = nn.Linear(4 * config.dim, after * (2 if config.scale_shift else 1))
        self.norm2 = nn.GroupNorm(config.groups, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """c: (B, 4 dim), time and class through SiLU."""
        y = self.conv1(resampled(F.silu(self.norm1(x)), self.resample))
        told = self.modulation(c).to(y.dtype)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            y = self.norm2(y) * (1 + scale) + shift  # equation 3
        else:
            y = self.norm2(y + told)
        return self.skip(resampled(x, self.resample)) + self.conv2(F.silu(y))


class AdmAttention(nn.Module):
    """x + proj(attention(norm(x))) between all pixels."""

    def __init__(self, width: int, config: AdmShapeConfig):
        super().__init__()
        self.heads, self.heads_first = config.heads_of(width), config.heads_first
        self.place = 0, 1  # its number among those of the network, and how many there are
        self.norm = nn.GroupNorm(config.groups, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, backend: str, context: Context | None = None) -> Tensor:
        hooks = hooked(context, *self.place, 0, x.shape[2], x.shape[3])
        heads = None if hooks is None or hooks.heads is None else hooks
        if hooks is not None and hooks.attention is not None:  # which sees tokens (B, L, D)

            def tokens() -> Tensor:
                return self.change(x, backend, heads).transpose(1, 2)

            changed = hooks.attention(hooks.site, self.norm(x.flatten(2)).transpose(1, 2), tokens).transpose(1, 2)
            return x + changed.reshape(x.shape)
        return x + self.change(x, backend, heads).reshape(x.shape)

    def change(self, x: Tensor, backend: str, hooks=None) -> Tensor:
        """(B, C, H W): what is added to x."""
        q, k, v = split_heads(self.qkv(self.norm(x.flatten(2))), self.heads, self.heads_first)

        def proper(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attention(q, k, v, backend=backend)

        out = proper(q, k, v) if hooks is None else hooks.heads(hooks.site, q, k, v, proper)
        return self.proj(out.flatten(2).transpose(1, 2))


def split_heads(qkv: Tensor, heads: int, heads_first: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3 D, L) -> q, k and v, each (B, L, heads, D / heads)."""
    parts = qkv.unflatten(1, (heads, 3, -1)).transpose(1, 2) if heads_first else qkv.unflatten(1, (3, heads, -1))
    q, k, v = parts.permute(1, 0, 4, 2, 3).unbind(0)
    return q, k, v


class Convolution(nn.Module):
    """A change of resolution by a convolution with weights."""

    def __init__(self, width: int, resample: Resample):
        super().__init__()
        self.resample = resample
        self.conv = nn.Conv2d(width, width, 3, stride=2 if resample == "down" else 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(resampled(x, "up") if self.resample == "up" else x)


class AdmStep(nn.ModuleList):
    """Parts one after another, of which residual blocks are told the time and attention may be hooked. `recompute`: in
    training, nothing but the input is kept for the backward pass."""

    recompute = False

    def forward(self, x: Tensor, c: Tensor, backend: str, context: Context | None) -> Tensor:
        for part in self:
            if isinstance(part, AdmBlock):
                x = part(x, c)
            else:
                x = part(x, backend, context) if isinstance(part, AdmAttention) else part(x)
        return x

    def run(self, x: Tensor, c: Tensor, backend: str, context: Context | None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpointed(self, x, c, backend, context)
        return self(x, c, backend, context)


class WayDown(nn.Module):
    """Time and class, the way down, and the middle: what U-Net and classifier share."""

    attention_backend: str = "auto"

    def __init__(self, config: AdmShapeConfig, channels: int):
        super().__init__()
        self.time_embed = TimeMLP(config.dim, 4 * config.dim, 4 * config.dim)
        width = config.widths[0]
        self.down_blocks, self.seen = nn.ModuleList([AdmStep([nn.Conv2d(channels, width, 3, padding=1)])]), [width]
        for level, after in enumerate(config.widths):
            for _ in range(config.blocks):
                parts: list[nn.Module] = [AdmBlock(width, after, config)]
                if 2**level in config.attention:
                    parts.append(AdmAttention(after, config))
                self.down_blocks.append(AdmStep(parts))
                self.seen.append(width := after)
            if level + 1 < len(config.widths):
                self.down_blocks.append(AdmStep([self._resample(width, config, "down")]))
                self.seen.append(width)
        middle: list[nn.Module] = [AdmBlock(width, width, config), AdmBlock(width, width, config)]
        if config.middle_attention:
            middle.insert(1, AdmAttention(width, config))
        self.mid_block = AdmStep(middle)

    @staticmethod
    def _resample(width: int, config: AdmShapeConfig, kind: Resample) -> nn.Module:
        return AdmBlock(width, width, config, kind) if config.resample_blocks else Convolution(width, kind)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As published: torch's own rules, and zero for the last layer of what is added to x."""
        attention = [module for module in self.modules() if isinstance(module, AdmAttention)]
        for number, layer in enumerate(attention):
            layer.place = number, len(attention)
        for module in self.modules():
            if isinstance(module, AdmBlock | AdmAttention):
                last = module.conv2 if isinstance(module, AdmBlock) else module.proj
                initialise(nn.init.zeros_, last.weight)
                initialise(nn.init.zeros_, last.bias)

    def steps_of(self, name: str) -> Sequence[AdmStep]:
        return cast("Sequence[AdmStep]", list(getattr(self, name)))


class ADM(WayDown):
    """See the module. `attention_backend` may be set to any name that `gen.nn.attention` knows, for this network alone."""

    def __init__(self, config: ADMConfig):
        super().__init__(config, config.channels + config.beside)
        self.config = config
        widths, seen = config.widths, list(self.seen)
        rows = config.num_classes + config.null_label
        self.label_embed = nn.Embedding(rows, 4 * config.dim) if config.num_classes else None
        self.up_blocks, width = nn.ModuleList(), widths[-1]
        for level, after in reversed(list(enumerate(widths))):
            for block in range(config.blocks + 1):
                parts: list[nn.Module] = [AdmBlock(width + seen.pop(), after, config)]
                width = after
                if 2**level in config.attention:
                    parts.append(AdmAttention(width, config))
                if level and block == config.blocks:
                    parts.append(self._resample(width, config, "up"))
                self.up_blocks.append(AdmStep(parts))
        self.norm = nn.GroupNorm(config.groups, width)
        self.head = nn.Conv2d(width, config.channels * (2 if config.learned_variance else 1), 3, padding=1)
        self.reset_parameters()
        initialise(nn.init.zeros_, self.head.weight)
        initialise(nn.init.zeros_, self.head.bias)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, channels or twice that, H, W), of any size that the resolutions divide.

        An upsampler reads the enlarged picture from condition.image (B, beside, H, W). Raises ValueError for a size or a
        condition that does not fit, and for a missing label where the table has no row for none.
        """
        config = self.config
        check_image(x, config.channels, config.patch)
        check_condition(condition, len(x), config)
        c = self.time_embed(timestep_embedding(time, config.dim).to(x.dtype))
        if self.label_embed is not None:
            rows = class_index(condition.label, config.num_classes, len(x), x.device, config.null_label)
            c = c + self.label_embed(rows)
        c, backend = F.silu(c), self.attention_backend
        y, seen = with_picture(x, condition, config.beside), []
        for step in self.steps_of("down_blocks"):
            seen.append(y := step.run(y, c, backend, context))
        y = self.mid_block.run(y, c, backend, context)
        for step in self.steps_of("up_blocks"):
            y = step.run(torch.cat([y, seen.pop()], dim=1), c, backend, context)
        return self.head(F.silu(self.norm(y)))


def with_picture(x: Tensor, condition: Condition, beside: int) -> Tensor:
    """x with the channels of the picture that is enlarged, if any are read; ValueError where it is missing."""
    if not beside:
        return x
    needed = (len(x), beside, *x.shape[2:])
    if condition.image is None or condition.image.shape != needed:
        given = "nothing" if condition.image is None else tuple(condition.image.shape)
        raise ValueError(
            f"This network enlarges a picture, which it reads beside the noise: give condition.image {needed}, not {given} "
            "(Generator.upscale and `fewstep upscale` do)."
        )
    return torch.cat([x, condition.image.to(x.dtype)], dim=1)
