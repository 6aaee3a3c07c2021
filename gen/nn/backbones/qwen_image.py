"""Qwen-Image: joint blocks over patches and the text of a language model, with rotary positions (arXiv 2508.02324).

    patches --.
               >-- joint blocks: two streams (the time modulates both) --> patches --> modulated norm, head
    text -----'

Positions count from the middle of the picture, so that sizes share their centre; text goes on along the diagonal, beyond the
picture's longer side (MSRoPE). The time is all that modulates, as the text's own features say enough. Qwen-Image-Edit reads the
patches of pictures to edit beside those of what is made (`pictures`), each at its number along the first axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gen.nn.backbones.blocks import check_condition, check_image, hooked, memoize
from gen.nn.backbones.editing import PICTURES, embedded, qwen_size, read_pictures
from gen.nn.backbones.flux import THETA, RotaryConfig, grid_positions, patchify, unpatchify
from gen.nn.backbones.joint_blocks import JointBlock, RMSNorm, angles, run_joint, with_added
from gen.nn.backbones.joint_network import JointNetwork, ModulatedHead
from samplers.denoiser import Condition, Context


class QwenImageConfig(RotaryConfig):
    """Sizes of a Qwen-Image."""

    pictures: int = PICTURES
    still_pictures: bool = Field(default=False, description="pictures to edit are modulated as at time 0, not as the noise is")


class QwenImageTransformer(JointNetwork):
    """Qwen-Image backbone; the time runs from 0 to 1."""

    config: QwenImageConfig
    time_scale: ClassVar[float] = 1000.0
    head_channels_first: ClassVar[bool] = True
    controls_read_prompt: ClassVar[bool] = True  # in both branches of guidance, as in diffusers' pipeline

    def __init__(self, config: QwenImageConfig):
        super().__init__()
        self.config = config
        dim, hidden, numbers = config.dim, int(config.dim * config.mlp_ratio), config.patch**2 * config.channels
        self.controlled_by = () if config.pictures else ("QwenImageControlNetModel",)
        self.patch_embed = nn.Linear(numbers, dim)
        self.add_conditions(config, dim, nn.Sequential(RMSNorm(config.text_dim), nn.Linear(config.text_dim, dim)))
        self.blocks = nn.ModuleList(JointBlock(dim, config.heads, hidden, qk_norm=True) for _ in range(config.depth))
        self.head = ModulatedHead(dim, config.patch**2 * config.predicted_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        zero = [self.head.modulation, self.head.linear]
        for block in cast("list[JointBlock]", list(self.blocks)):
            zero += [layer for layer in (block.text.modulation, block.image.modulation) if layer is not None]
        self.start_weights(zero)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, channels, H, W), of any size that patches divide.

        Text rows without a real token and missing text are unconditional; pictures to edit (`gen.nn.backbones.editing`) are
        read where the config says so. Raises ValueError for what does not fit.
        """
        config = self.config
        rows, columns = check_image(x, config.channels, config.patch)
        check_condition(condition, len(x), config)
        added = self.controlled(x, time, condition, context)
        pictures = read_pictures(condition, config.pictures)
        image, before = embedded(pictures, self.embed_patches, self.embed_patches(x))
        read = self.text(condition, len(x), context)
        c = F.silu(self.embed(time, condition, read))
        still = (F.silu(self.embed(0 * time, condition, read)), before) if before and config.still_pictures else None
        text, visible = read.tokens, read.visible(image.shape[1])
        sides = tuple((one.shape[2] // config.patch, one.shape[3] // config.patch) for one in pictures)
        rotations = self.rotations((rows, columns), sides, text.shape[1], x, context)

        backend, count = self.attention_backend, config.depth
        for i, block in enumerate(self.blocks):
            hooks = hooked(context, i, count, text.shape[1] + before, rows, columns, before)
            run = with_added(block, added.behind(i, count))
            text, image = run_joint(context, i, count, run, text, image, c, rotations, visible, backend, hooks, still)
        if torch.is_grad_enabled():
            image = image + text[:, :0].sum()  # nothing; but every weight is part of the graph, as replicas need it
        return unpatchify(self.head(image[:, before:], c), rows, columns, config.patch)

    def picture_size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width at which it reads a picture to edit."""
        return qwen_size(height, width)

    def embed_patches(self, x: Tensor) -> Tensor:
        """Latents (B, C, H, W) as tokens."""
        return self.patch_embed(patchify(x, self.config.patch))

    def rotations(
        self, made: tuple[int, int], pictures: Sequence[tuple[int, int]], length: int, x: Tensor, context: Context | None
    ) -> tuple[Tensor, Tensor]:
        """Angles of text and of patches: those of pictures to edit come before those of what is made.

        made, pictures: rows and columns of patches.
        """

        def compute() -> tuple[Tensor, Tensor]:
            grids = []
            for number, sides in enumerate((made, *pictures)):
                row, column = (torch.arange(side, dtype=torch.float64) - (side - side // 2) for side in sides)
                grids.append(grid_positions(row, column, float(number)))
            after = max(side // 2 for sides in (made, *pictures) for side in sides)
            text = torch.arange(after, after + length, dtype=torch.float64)[:, None].expand(-1, 3)
            image = torch.cat([*grids[1:], grids[0]])
            of_text, of_image = (angles(places, self.config.axes, THETA, x.dtype).to(x.device) for places in (text, image))
            return of_text, of_image

        return memoize(self, context, f"rotations {made} {pictures} {length} {x.dtype}", (), compute)
