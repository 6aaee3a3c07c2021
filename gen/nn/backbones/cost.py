"""What a backbone costs, from its config alone: parameters, and floating-point operations of one evaluation.

A product of (m, k) and (k, n) counts 2 m k n, as torch's counter does; tables that count a multiply-add as one (DiT's, U-ViT's
and DiMR's "Gflops") show half. Element-wise work counts nothing. One image at the trained size with a text of full length; what
a run computes once, the projections of the text, is not in an evaluation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen.nn.backbones.dimr import DiMRConfig
    from gen.nn.backbones.dit import DiTConfig
    from gen.nn.backbones.joint_network import JointConfig
    from gen.nn.backbones.uvit import UViTConfig


@dataclass
class Cost:
    """Adds up what a network is made of."""

    parameters: int = 0
    flops: int = 0

    def linear(self, tokens: int, inside: int, out: int, bias: bool = True) -> None:
        self.parameters += inside * out + bias * out
        self.flops += 2 * tokens * inside * out

    def conv(self, pixels: int, inside: int, out: int, kernel: int, groups: int = 1) -> None:
        """pixels: of the output."""
        weights = inside // groups * out * kernel**2
        self.parameters += weights + out
        self.flops += 2 * pixels * weights

    def self_attention(self, tokens: int, dim: int, bias: bool) -> None:
        self.linear(tokens, dim, 3 * dim, bias)
        self.flops += 4 * tokens * tokens * dim
        self.linear(tokens, dim, dim)

    def mlp(self, tokens: int, inside: int, hidden: int, out: int) -> None:
        self.linear(tokens, inside, hidden)
        self.linear(tokens, hidden, out)


def cost(config: DiTConfig | UViTConfig | DiMRConfig | JointConfig) -> Cost:
    """Parameters and operations of a backbone with this config."""
    from gen.nn.backbones.joint_cost import JOINT_COSTS

    return {**COSTS, **JOINT_COSTS}[type(config).__name__](config)


def preset_cost(name: str) -> Cost:
    """Of a published size."""
    from gen.nn.backbones.presets import preset
    from gen.nn.registry import COMPONENTS, from_registry

    return cost(from_registry(COMPONENTS, "network type", preset(name))[1])


def _uvit(config: UViTConfig) -> Cost:
    total, dim, out = Cost(), config.dim, config.out_channels or config.predicted_channels
    patches, pixels = config.grid**2, config.size**2
    tokens = config.extras + patches
    total.conv(patches, config.channels, dim, config.patch)
    if config.time_mlp:
        total.mlp(1, dim, 4 * dim, dim)
    if config.num_classes:
        total.parameters += (config.num_classes + config.null_label) * dim
    if config.text_dim:
        total.linear(0, config.text_dim, dim)
        total.parameters += 2 * config.text_dim * config.text_norm + config.text_tokens * dim
    total.parameters += tokens * dim + 2 * dim  # positions, the last norm
    half = config.depth // 2
    for block in range(2 * half + 1):
        if block > half:
            total.linear(tokens, 2 * dim, dim)
        total.parameters += 4 * dim  # two norms
        total.self_attention(tokens, dim, config.qkv_bias)
        total.mlp(tokens, dim, int(dim * config.mlp_ratio), dim)
    gates = {"learned": 1, "learned_each": half}.get(config.skip_scaling, 0)
    for skip in range(half if gates else 0):
        before = total.parameters
        total.mlp(1, tokens, max(1, tokens // 16), tokens)
        if skip >= gates:
            total.parameters = before  # the gate is shared
    total.linear(patches, dim, config.patch**2 * out)
    if config.final_conv:
        total.conv(pixels, out, out, 3)
    if config.refine_channels:
        total.conv(pixels, out, config.refine_channels, 3)
        total.conv(pixels, config.refine_channels, out, 3)
    return total


def _dit(config: DiTConfig) -> Cost:
    from gen.nn.backbones.dit import FREQUENCIES

    total, dim, tokens = Cost(), config.dim, config.grid**2
    out = config.predicted_channels * (2 if config.learned_variance else 1)
    total.conv(tokens, config.channels, dim, config.patch)
    total.mlp(1, FREQUENCIES, dim, dim)
    if config.num_classes:
        total.parameters += (config.num_classes + 1) * dim
    if config.size_conditions:
        total.mlp(2, FREQUENCIES, dim // 3, dim // 3)
        total.mlp(1, FREQUENCIES, dim // 3, dim // 3)
    if config.text_dim:
        total.mlp(0, config.text_dim, dim, dim)
        total.parameters += config.text_tokens * config.text_dim
        if config.pooled_text:
            total.mlp(0, config.text_dim, dim, dim)
    for _ in range(config.depth):
        total.self_attention(tokens, dim, config.qkv_bias)
        if config.text_dim:
            total.linear(tokens, dim, dim)
            total.linear(0, dim, 2 * dim)
            total.flops += 4 * tokens * config.text_tokens * dim
            total.linear(tokens, dim, dim)
        total.mlp(tokens, dim, int(dim * config.mlp_ratio), dim)
        if config.modulation == "adaln":
            total.linear(1, dim, 6 * dim)
        else:
            total.parameters += 6 * dim
    if config.modulation == "adaln":
        total.linear(1, dim, 2 * dim)
    else:
        total.linear(1, dim, 6 * dim)
        total.parameters += 2 * dim
    total.linear(tokens, dim, config.patch**2 * out)
    return total


def _dimr(config: DiMRConfig) -> Cost:
    total, below = Cost(), 0
    for number, stage in enumerate(config.stages):
        dim, step = stage.dim, stage.patch * stage.pool
        patches = (config.size // step) ** 2
        total.conv(patches, config.channels, dim, stage.patch)
        total.parameters += patches * dim
        if number:
            total.parameters += 8 * below + 8 * dim  # two norms, eight numbers per channel each
            ratio = config.stages[number - 1].patch * config.stages[number - 1].pool // step
            total.linear(patches // ratio**2, below, dim * ratio**2)
        tokens = patches
        if config.num_classes and stage.kind == "transformer":
            total.parameters += (config.num_classes + 1) * dim
            tokens += 1
        for block in range(stage.blocks):
            if block > stage.depth // 2:
                total.linear(tokens, 2 * dim, dim)
            if stage.kind == "transformer":
                total.parameters += 4 * dim
                total.self_attention(tokens, dim, bias=False)
            else:
                total.conv(tokens, dim, dim, stage.kernel, groups=dim)
            total.parameters += 4 * dim
            total.mlp(tokens, dim, stage.hidden, dim)
            total.linear(tokens, dim, stage.hidden)  # the gate
        total.parameters += 8 * dim
        total.conv(patches, dim, config.channels, 3)
        below = dim * (stage.blocks + 1)
    return total


COSTS: dict[str, Callable[[Any], Cost]] = {"UViTConfig": _uvit, "DiTConfig": _dit, "DiMRConfig": _dimr}
