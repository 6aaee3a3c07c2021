"""Qwen-Image: joint blocks over patches and the text of a language model, with rotary positions (arXiv 2508.02324).

    patches --.
               >-- joint blocks: two streams (the time modulates both) --> patches --> modulated norm, head
    text -----'

Positions count from the middle of the picture, so that sizes share their centre; text goes on along the diagonal, beyond the
picture's longer side (MSRoPE). The time is all that modulates, as the text's own features say enough.
"""

from __future__ import annotations

from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.nn.backbones.blocks import check_condition, check_image, hooked, memoize
from gen.nn.backbones.flux import THETA, RotaryConfig, grid_positions, patchify, unpatchify
from gen.nn.backbones.joint_blocks import JointBlock, RMSNorm, angles, run_joint
from gen.nn.backbones.joint_network import JointNetwork, ModulatedHead
from samplers.denoiser import Condition, Context


class QwenImageConfig(RotaryConfig):
    """Sizes of a Qwen-Image."""


class QwenImageTransformer(JointNetwork):
    """Qwen-Image backbone; the time runs from 0 to 1."""

    config: QwenImageConfig
    time_scale: ClassVar[float] = 1000.0

    def __init__(self, config: QwenImageConfig):
        super().__init__()
        self.config = config
        dim, hidden, numbers = config.dim, int(config.dim * config.mlp_ratio), config.patch**2 * config.channels
        self.patch_embed = nn.Linear(numbers, dim)
        self.add_conditions(config, dim, nn.Sequential(RMSNorm(config.text_dim), nn.Linear(config.text_dim, dim)))
        self.blocks = nn.ModuleList(JointBlock(dim, config.heads, hidden, qk_norm=True) for _ in range(config.depth))
        self.head = ModulatedHead(dim, numbers)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        zero = [self.head.modulation, self.head.linear]
        for block in cast("list[JointBlock]", list(self.blocks)):
            zero += [layer for layer in (block.text.modulation, block.image.modulation) if layer is not None]
        self.start_weights(zero)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, channels, H, W), of any size that patches divide.

        Text rows without a real token and missing text are unconditional. Raises ValueError for what does not fit.
        """
        config = self.config
        rows, columns = check_image(x, config.channels, config.patch)
        check_condition(condition, len(x), config)
        image = self.patch_embed(patchify(x, config.patch))
        read = self.text(condition, len(x), context)
        c = F.silu(self.embed(time, condition, read))
        text, visible = read.tokens, read.visible(rows * columns)
        rotations = self.rotations(rows, columns, text.shape[1], x, context)

        backend, count = self.attention_backend, config.depth
        for i, block in enumerate(self.blocks):
            hooks = hooked(context, i, count, text.shape[1], rows, columns)
            text, image = run_joint(context, i, count, block, text, image, c, rotations, visible, backend, hooks)
        if torch.is_grad_enabled():
            image = image + text[:, :0].sum()  # nothing; but every weight is part of the graph, as replicas need it
        return unpatchify(self.head(image, c), rows, columns, config.patch)

    def rotations(self, rows: int, columns: int, length: int, x: Tensor, context: Context | None) -> tuple[Tensor, Tensor]:
        """Angles of text and of patches."""

        def compute() -> tuple[Tensor, Tensor]:
            row, column = (torch.arange(side, dtype=torch.float64) - (side - side // 2) for side in (rows, columns))
            after = max(rows // 2, columns // 2)
            text = torch.arange(after, after + length, dtype=torch.float64)[:, None].expand(-1, 3)
            both = (angles(places, self.config.axes, THETA, x.dtype) for places in (text, grid_positions(row, column)))
            of_text, of_image = (turned.to(x.device) for turned in both)
            return of_text, of_image

        return memoize(self, context, f"rotations {rows} {columns} {length} {x.dtype}", (), compute)
