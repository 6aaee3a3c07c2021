"""FLUX.1: joint blocks, then single blocks on text and patches as one sequence, rotary positions (Black Forest Labs, 2024).

    patches --.                                  .-- single blocks on both --> patches --> modulated norm, head
               >-- joint blocks: two streams ---<
    text -----'            (time + pooled text + guidance scale modulate all)

Editing networks read more: Kontext the patches of pictures to edit, beside those of what is made (`pictures`), Fill a picture
and its mask as further channels (`beside`).

No table limits the size: queries and keys turn with the row and the column of their patch (RoPE, arXiv 2104.09864); text stands
at position 0 and is not turned. `dev` reads a guidance scale (`scalars: [guidance]`), `schnell` does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import check_condition, check_image, hooked, memoize, run_block
from gen.nn.backbones.editing import PICTURES, embedded, kontext_size, read_pictures, side_by_side
from gen.nn.backbones.joint_blocks import JointBlock, SingleBlock, angles, run_joint, with_added
from gen.nn.backbones.joint_network import JointConfig, JointNetwork, ModulatedHead
from samplers.denoiser import Condition, Context

THETA = 10000.0


class RotaryConfig(JointConfig):
    """A network with rotary positions along three axes: the picture's number, row and column."""

    axes: tuple[int, int, int] = Field(default=(16, 56, 56), description="channels of a head that turn with each axis")

    @model_validator(mode="after")
    def _check_axes(self) -> RotaryConfig:
        if sum(self.axes) != self.dim // self.heads or any(channels % 2 or channels < 0 for channels in self.axes):
            raise ValueError(
                f"axes {self.axes} must be even numbers that add up to the width of a head, {self.dim // self.heads}"
            )
        return self


class FluxConfig(RotaryConfig):
    """Sizes of a FLUX; `depth` counts joint blocks."""

    single_depth: int = Field(ge=1, description="blocks on one sequence, after the joint ones")
    pictures: int = PICTURES
    beside: int = Field(default=0, ge=0, description="channels of condition.image that it reads beside x; 0: none")
    usual_guidance: float | None = Field(
        default=None, description="the scale that it reads where none is given; None: an error"
    )


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, patches, C * patch * patch), channels first."""
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The inverse of `patchify`."""
    x = tokens.unflatten(1, (rows, columns)).unflatten(3, (-1, patch, patch))
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def grid_positions(rows: Tensor, columns: Tensor, first: float = 0.0) -> Tensor:
    """(patches, 3): `first`, the row, the column of every patch."""
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.full_like(row, first), row, column], dim=-1).flatten(0, 1)


class FluxTransformer(JointNetwork):
    """FLUX.1 backbone; the time runs from 0 to 1."""

    config: FluxConfig
    time_scale: ClassVar[float] = 1000.0
    head_channels_first: ClassVar[bool] = True  # among the numbers of a patch
    scalar_scales: ClassVar[Mapping[str, float]] = {"guidance": 1000.0}

    def __init__(self, config: FluxConfig):
        super().__init__()
        self.config = config
        dim, hidden, numbers = config.dim, int(config.dim * config.mlp_ratio), config.patch**2 * config.channels
        self.controlled_by = () if config.pictures or config.beside else ("FluxControlNetModel",)
        self.patch_embed = nn.Linear(numbers + config.patch**2 * config.beside, dim)
        self.add_conditions(config, dim)
        self.blocks = nn.ModuleList(JointBlock(dim, config.heads, hidden, qk_norm=True) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(dim, config.heads, hidden) for _ in range(config.single_depth))
        self.head = ModulatedHead(dim, config.patch**2 * config.predicted_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        zero = [self.head.modulation, self.head.linear]
        for block in cast("list[JointBlock]", list(self.blocks)):
            zero += [layer for layer in (block.text.modulation, block.image.modulation) if layer is not None]
        zero += [block.modulation for block in cast("list[SingleBlock]", list(self.single_blocks))]
        self.start_weights(zero)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, channels, H, W), of any size that patches divide.

        Text rows without a real token and missing text are unconditional. condition.pooled (B, pooled_dim),
        condition.extra["guidance"] (B,), condition.image (B, beside, H, W) and pictures to edit (`gen.nn.backbones.editing`)
        are read where the config says so. Raises ValueError for what does not fit.
        """
        config = self.config
        rows, columns = check_image(x, config.channels, config.patch)
        check_condition(condition, len(x), config)
        condition = self.with_guidance(condition, len(x))
        added = self.controlled(x, time, condition, context)
        pictures = read_pictures(condition, config.pictures)
        image, before = embedded(pictures, self.embed_patches, self.embed_patches(self.with_channels(x, condition)))
        read = self.text(condition, len(x), context)
        c = F.silu(self.embed(time, condition, read))
        text, visible = read.tokens, read.visible(image.shape[1])
        length, backend = text.shape[1], self.attention_backend
        sides = tuple((one.shape[2] // config.patch, one.shape[3] // config.patch) for one in pictures)
        of_image, of_both = self.rotations((rows, columns), sides, length, x, context)

        count, extras = config.depth + config.single_depth, length + before
        for i, block in enumerate(self.blocks):
            hooks = hooked(context, i, count, extras, rows, columns, before)
            run = with_added(block, added.behind(i, config.depth))
            text, image = run_joint(context, i, count, run, text, image, c, (None, of_image), visible, backend, hooks)
        both = torch.cat([text, image], dim=1)
        for i, block in enumerate(self.single_blocks):
            hooks = hooked(context, config.depth + i, count, extras, rows, columns, before)
            run = with_added(block, added.behind(i, config.single_depth, single=True), length)
            both = run_block(context, config.depth + i, count, run, both, c, of_both, visible, backend, hooks)
        return unpatchify(self.head(both[:, extras:], c), rows, columns, config.patch)

    def picture_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width at which it reads a picture to edit."""
        return kontext_size(height, width)

    def embed_patches(self, x: Tensor) -> Tensor:
        """Latents (B, C, H, W) as tokens."""
        return self.patch_embed(patchify(x, self.config.patch))

    def with_channels(self, x: Tensor, condition: Condition) -> Tensor:
        """x with the channels that are read beside it, if any."""
        beside, image = self.config.beside, condition.image
        if not beside:
            return x
        needed = (len(x), beside, *x.shape[2:])
        if image is None or image.shape != needed:
            given = "nothing" if image is None else tuple(image.shape)
            raise ValueError(
                "This model fills in what a mask opens; give it a picture as image and the mask as mask (condition.image "
                f"{needed}, and {given} was given)."
            )
        return torch.cat([x, image.to(x.dtype)], dim=1)

    def with_guidance(self, condition: Condition, batch: int) -> Condition:
        """With the usual scale, where the network reads one and none is given."""
        usual = self.config.usual_guidance
        if usual is None or not self.embeds or "guidance" in condition.extra:
            return condition
        scale = torch.full((batch,), usual, device=self.null_text.device)
        return replace(condition, extra={**condition.extra, "guidance": scale})

    def rotations(
        self, made: tuple[int, int], pictures: Sequence[tuple[int, int]], length: int, x: Tensor, context: Context | None
    ) -> tuple[Tensor, Tensor]:
        """Angles of patches, and of text and then patches: those of pictures to edit come before those of what is made.

        made, pictures: rows and columns of patches.
        """

        def compute() -> tuple[Tensor, Tensor]:
            corners = side_by_side(pictures)
            places = [_grid(sides, corner, 1.0) for sides, corner in zip(pictures, corners, strict=True)]
            image = torch.cat([*places, _grid(made)])
            both = torch.cat([image.new_zeros(length, 3), image])
            turned = angles(both, self.config.axes, THETA, x.dtype).to(x.device)
            return turned[length:], turned

        return memoize(self, context, f"rotations {made} {pictures} {length} {x.dtype}", (), compute)


def _grid(sides: tuple[int, int], corner: tuple[int, int] = (0, 0), first: float = 0.0) -> Tensor:
    row, column = (torch.arange(begin, begin + side, dtype=torch.float64) for side, begin in zip(sides, corner, strict=True))
    return grid_positions(row, column, first)
