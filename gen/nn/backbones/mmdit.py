"""MMDiT: the network of Stable Diffusion 3 and 3.5 (arXiv 2403.03206).

    patches + positions --.
                           >-- blocks: a stream of text and one of patches, joined in attention --> modulated norm, head
    text -----------------'            (time + pooled text modulate both)

Stable Diffusion 3.5 has qk-norm, and 3.5 medium a second attention over patches alone in its first blocks. The last block's
text is read and not written. Positions are one table of sine and cosine, out of whose middle every size is cut.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import check_condition, check_image, hooked, unpatchify
from gen.nn.backbones.dit import sincos_positions
from gen.nn.backbones.joint_blocks import JointBlock, run_joint, with_added
from gen.nn.backbones.joint_network import JointConfig, JointNetwork, ModulatedHead
from gen.nn.initialisation import initialise
from samplers.denoiser import Condition, Context


class MMDiTConfig(JointConfig):
    """Sizes of an MMDiT. Published ones have 64 channels a head and a head for every block."""

    qk_norm: Literal["none", "rms"] = "rms"
    dual_blocks: int = Field(
        default=0, ge=0, description="the first so many blocks have a second attention, over patches alone"
    )
    position_grid: int = Field(default=0, ge=0, description="side of the table of positions, in patches; 0: the trained grid")

    @model_validator(mode="after")
    def _check_tables(self) -> MMDiTConfig:
        if self.dual_blocks > self.depth:
            raise ValueError(f"dual_blocks is {self.dual_blocks}, more than the {self.depth} blocks")
        if self.position_grid and self.position_grid < self.grid:
            raise ValueError(f"position_grid is {self.position_grid}, smaller than the trained grid of {self.grid} patches")
        return self


class MMDiT(JointNetwork):
    """MMDiT backbone."""

    config: MMDiTConfig
    pos_embed: Tensor
    controlled_by = ("SD3ControlNetModel",)
    even_controls: ClassVar[bool] = True

    def __init__(self, config: MMDiTConfig):
        super().__init__()
        self.config = config
        dim, hidden, qk_norm = config.dim, int(config.dim * config.mlp_ratio), config.qk_norm == "rms"
        self.patch_embed = nn.Conv2d(config.channels, dim, config.patch, stride=config.patch)
        self.add_conditions(config, dim)
        self.blocks = nn.ModuleList(
            JointBlock(dim, config.heads, hidden, qk_norm, dual=i < config.dual_blocks, last=i == config.depth - 1)
            for i in range(config.depth)
        )
        self.head = ModulatedHead(dim, config.patch**2 * config.predicted_channels)
        side = config.position_grid or config.grid
        positions = sincos_positions(side, side, dim, config.grid, 1.0)
        # part of the weights, as published files hold it and may hold another
        self.register_buffer("pos_embed", positions.to(torch.get_default_dtype()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        zero = [self.head.modulation, self.head.linear]
        for block in cast("list[JointBlock]", list(self.blocks)):
            for stream in (block.text, block.image):
                zero += [layer for layer in (stream.modulation, stream.last_modulation) if layer is not None]
        self.start_weights(zero)
        initialise(nn.init.xavier_uniform_, self.patch_embed.weight.flatten(1))
        initialise(nn.init.zeros_, self.patch_embed.bias)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, channels, H, W). H and W may differ from the trained size, within the table of
        positions.

        Text rows without a real token and missing text are unconditional; a network with a pooled_dim reads condition.pooled
        (B, pooled_dim) beside. Raises ValueError for a size that patches do not divide or that the table does not cover, and
        for text or labels that this network does not take.
        """
        config = self.config
        rows, columns = check_image(x, config.channels, config.patch)
        check_condition(condition, len(x), config)
        added = self.controlled(x, time, condition, context)
        image = self.patch_embed(x).flatten(2).transpose(1, 2).contiguous()
        image = image + self.positions(rows, columns).to(image.dtype)
        read = self.text(condition, len(x), context)
        c = F.silu(self.embed(time, condition, read))
        text, visible = read.tokens, read.visible(rows * columns)

        backend, count = self.attention_backend, config.depth
        for i, block in enumerate(self.blocks):
            hooks = hooked(context, i, count, text.shape[1], rows, columns)
            # nothing is added behind the last block, which is diffusers' rule
            run = with_added(block, added.behind(i, count) if i < count - 1 else None)
            text, image = run_joint(context, i, count, run, text, image, c, (None, None), visible, backend, hooks)
        return unpatchify(self.head(image, c), rows, columns, config.patch)

    def positions(self, rows: int, columns: int) -> Tensor:
        """(1, rows * columns, dim): the middle of the table."""
        side = self.config.position_grid or self.config.grid
        if rows > side or columns > side:
            raise ValueError(
                f"The network's table of positions covers {side} by {side} patches, and the picture has {rows} by {columns}: "
                f"at most {side * self.config.patch} latent pixels a side."
            )
        top, left = (side - rows) // 2, (side - columns) // 2
        table = self.pos_embed.unflatten(1, (side, side))[:, top : top + rows, left : left + columns]
        return table.flatten(1, 2)
