"""What the networks of text and patches cost: the counterpart of `cost` for them, with a text of full length."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gen.nn.backbones.cost import Cost
from gen.nn.backbones.joint_network import FREQUENCIES

if TYPE_CHECKING:
    from gen.nn.backbones.flux import FluxConfig
    from gen.nn.backbones.joint_network import JointConfig
    from gen.nn.backbones.mmdit import MMDiTConfig
    from gen.nn.backbones.qwen_image import QwenImageConfig
    from gen.nn.backbones.z_image import ZImageConfig


def _conditions(total: Cost, config: JointConfig, time_dim: int, time_hidden: int | None = None) -> None:
    """Layers that read conditions; text and pooled text are read once per run."""
    total.mlp(1, FREQUENCIES, time_hidden or time_dim, time_dim)
    for _ in config.scalars:
        total.mlp(1, FREQUENCIES, time_dim, time_dim)
    if config.num_classes:
        total.parameters += (config.num_classes + 1) * time_dim
    total.linear(0, config.text_dim, config.dim)
    total.parameters += config.text_tokens * config.text_dim + config.pooled_dim
    if config.pooled_dim or config.pooled_text:
        total.mlp(0, config.pooled_dim or config.text_dim, time_dim, time_dim)


def _head(total: Cost, config: JointConfig, patches: int) -> None:
    total.linear(1, config.dim, 2 * config.dim)
    total.linear(patches, config.dim, config.patch**2 * config.channels)


def _stream(total: Cost, config: JointConfig, tokens: int, norms: bool, parts: int = 6) -> None:
    """One side of a joint block without attention proper."""
    dim = config.dim
    total.linear(1, dim, parts * dim)
    total.linear(tokens, dim, 3 * dim)
    total.linear(tokens, dim, dim)
    total.parameters += 2 * (dim // config.heads) * norms
    total.mlp(tokens, dim, int(dim * config.mlp_ratio), dim)


def _mmdit(config: MMDiTConfig) -> Cost:
    total, dim, patches, text = Cost(), config.dim, config.grid**2, config.text_tokens
    norms = config.qk_norm == "rms"
    total.conv(patches, config.channels, dim, config.patch)
    _conditions(total, config, dim)
    for i in range(config.depth):
        dual, last = i < config.dual_blocks, i == config.depth - 1
        _stream(total, config, patches, norms, 9 if dual else 6)
        if dual:
            total.self_attention(patches, dim, bias=True)
            total.parameters += 2 * (dim // config.heads) * norms
        if last:
            total.linear(1, dim, 2 * dim)
            total.linear(text, dim, 3 * dim)
            total.parameters += (dim // config.heads) * norms  # the norm of queries that nothing reads is no parameter
        else:
            _stream(total, config, text, norms)
        total.flops += 4 * (patches if last else patches + text) * (patches + text) * dim
    _head(total, config, patches)
    return total


def _flux(config: FluxConfig) -> Cost:
    total, dim, patches, text = Cost(), config.dim, config.grid**2, config.text_tokens
    both, hidden = patches + text, int(config.dim * config.mlp_ratio)
    total.linear(patches, config.patch**2 * (config.channels + config.beside), dim)
    _conditions(total, config, dim)
    for _ in range(config.depth):
        _stream(total, config, patches, norms=True)
        _stream(total, config, text, norms=True)
    for _ in range(config.single_depth):
        total.linear(1, dim, 3 * dim)
        total.linear(both, dim, 3 * dim)
        total.parameters += 2 * (dim // config.heads)
        total.linear(both, dim, hidden)
        total.linear(both, dim + hidden, dim)
    total.flops += (config.depth + config.single_depth) * 4 * both * both * dim
    _head(total, config, patches)
    return total


def _qwen_image(config: QwenImageConfig) -> Cost:
    total, patches, text = Cost(), config.grid**2, config.text_tokens
    total.linear(patches, config.patch**2 * config.channels, config.dim)
    _conditions(total, config, config.dim)
    total.parameters += config.text_dim  # the norm of text
    for _ in range(config.depth):
        _stream(total, config, patches, norms=True)
        _stream(total, config, text, norms=True)
    total.flops += config.depth * 4 * (patches + text) ** 2 * config.dim
    _head(total, config, patches)
    return total


def _z_image(config: ZImageConfig) -> Cost:
    from gen.nn.backbones.z_image import TIME_DIM, TIME_HIDDEN, WHOLE

    total, dim, hidden, time_dim = Cost(), config.dim, int(config.dim * config.mlp_ratio), min(config.dim, TIME_DIM)
    patches, text = (-(-count // WHOLE) * WHOLE for count in (config.grid**2, config.text_tokens))

    def blocks(count: int, tokens: int, modulated: bool) -> None:
        for _ in range(count):
            if modulated:
                total.linear(1, time_dim, 4 * dim)
            total.parameters += 4 * dim + 2 * (dim // config.heads)
            total.linear(tokens, dim, 3 * dim, bias=False)
            total.linear(tokens, dim, dim, bias=False)
            total.linear(tokens, dim, 2 * hidden, bias=False)
            total.linear(tokens, hidden, dim, bias=False)
            total.flops += 4 * tokens * tokens * dim

    total.linear(config.grid**2, config.patch**2 * config.channels, dim)
    _conditions(total, config, time_dim, TIME_HIDDEN)
    total.parameters += config.text_dim + 2 * dim  # the norm of text, what fills up text and patches
    blocks(config.refiner_depth, patches, modulated=True)
    blocks(config.refiner_depth, 0, modulated=False)  # once per run
    blocks(config.depth, patches + text, modulated=True)
    total.linear(1, time_dim, dim)
    total.linear(config.grid**2, dim, config.patch**2 * config.channels)
    return total


JOINT_COSTS: dict[str, Callable[[Any], Cost]] = {
    "MMDiTConfig": _mmdit,
    "FluxConfig": _flux,
    "QwenImageConfig": _qwen_image,
    "ZImageConfig": _z_image,
}
