"""Diffusion transformer: DiT (arXiv 2212.09748) and PixArt-alpha (arXiv 2310.00426) as two settings of one network.

    patches + positions --> blocks: modulated self-attention, cross-attention to text, modulated MLP --> modulated norm, head

Two choices are independent. Modulation by c = time + label: "adaln" gives every block its own projection of c to shift, scale
and gate; "adaln_single" one projection for all blocks plus a table per block. Conditions: labels, text, both or neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.backbones.blocks import (
    MLP,
    BackboneConfig,
    CrossAttention,
    Hooked,
    SelfAttention,
    TimeMLP,
    check_condition,
    check_image,
    class_index,
    hooked,
    mean_token,
    memoize,
    run_block,
    timestep_embedding,
    unpatchify,
)
from samplers.denoiser import Condition, Context

FREQUENCIES = 256  # width of the timestep embedding
KeysValues = tuple[Tensor, Tensor]


class DiTConfig(BackboneConfig):
    """Sizes of a DiT. The defaults of the switches are those of the published checkpoints."""

    learned_variance: bool = Field(default=False, description="twice the channels come out; the second half is a variance")
    modulation: Literal["adaln", "adaln_single"] = "adaln"
    position_scale: float = Field(default=1.0, gt=0, description="divides positions (PixArt: 0.5, 1, 2 at 256, 512, 1024)")
    qkv_bias: bool = True
    qk_norm: Literal["none", "rms", "layer"] = "none"
    gelu: Literal["exact", "tanh"] = "tanh"
    freq_shift: Literal[0, 1] = Field(default=0, description="as in timestep_embedding; diffusers' class-conditional DiT has 1")
    mlp_norm_eps: float = Field(default=1e-6, gt=0, description="of the norm before the MLP; diffusers' DiT has 1e-5")
    pooled_text: bool = Field(default=False, description="the mean token, through an MLP, joins the time in the modulation")

    @model_validator(mode="after")
    def _check_pooled(self) -> DiTConfig:
        if self.pooled_text and not self.text_dim:
            raise ValueError("pooled_text is the mean of text tokens, but text_dim is 0: this network reads no text")
        return self


# Published sizes: DiT (Table 1) and PixArt-alpha.
PRESETS: dict[str, dict] = {
    "S": {"dim": 384, "depth": 12, "heads": 6},
    "B": {"dim": 768, "depth": 12, "heads": 12},
    "L": {"dim": 1024, "depth": 24, "heads": 16},
    "XL": {"dim": 1152, "depth": 28, "heads": 16},
    "PixArt": {"dim": 1152, "depth": 28, "heads": 16, "modulation": "adaln_single", "text_tokens": 120, "text_dim": 4096},
}


def sincos_positions(rows: int, columns: int, dim: int, trained: int, scale: float) -> Tensor:
    """(1, rows * columns, dim) float64: the column in the first half, the row in the second, each sine then cosine.

    Other sizes than the trained one cover the same range of positions, more or less finely.
    """
    frequencies = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def axis(count: int) -> Tensor:
        angles = (torch.arange(count, dtype=torch.float64) * (trained / count) / scale)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    column = axis(columns)[None, :].expand(rows, -1, -1)
    row = axis(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1)[None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class Block(nn.Module):
    """Transformer block under adaLN-Zero; cross-attention, where there is text, has neither norm nor gate, as in PixArt."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(dim, config.heads, config.qkv_bias, config.qk_norm)
        self.cross = CrossAttention(dim, config.heads, config.qk_norm) if config.text_dim else None
        self.norm2 = nn.LayerNorm(dim, eps=config.mlp_norm_eps, elementwise_affine=False)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio), dim, config.gelu)
        if config.modulation == "adaln":
            self.modulation = nn.Linear(dim, 6 * dim)
        else:
            self.table = nn.Parameter(torch.empty(6, dim))

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        keys_values: KeysValues | None,
        mask: Tensor | None,
        backend: str = "auto",
        hooks: Hooked | None = None,
    ) -> Tensor:
        """c: (B, dim), through SiLU, for adaln; (B, 6, dim), the shared projection, for adaln_single."""
        c = self.modulation(c).unflatten(-1, (6, -1)) if c.ndim == 2 else self.table + c
        shift1, scale1, gate1, shift2, scale2, gate2 = c.to(x.dtype).unsqueeze(2).unbind(1)
        x = x + gate1 * self.attn(modulate(self.norm1(x), shift1, scale1), backend, hooks)
        if self.cross is not None:
            x = x + self.cross(x, keys_values, mask, backend, hooks)
        return x + gate2 * self.mlp(modulate(self.norm2(x), shift2, scale2))


class DiT(nn.Module):
    """DiT backbone. `attention_backend` may be set to any name that `gen.attention` knows."""

    attention_backend: str = "auto"

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        dim, out = config.dim, config.channels * (2 if config.learned_variance else 1)
        self.patch_embed = nn.Conv2d(config.channels, dim, config.patch, stride=config.patch)
        self.time_embed = TimeMLP(FREQUENCIES, dim, dim)
        self.label_embed = nn.Embedding(config.num_classes + 1, dim) if config.num_classes else None
        if config.text_dim:
            self.text_embed = MLP(config.text_dim, dim, dim, "tanh")
            self.null_text = nn.Parameter(torch.empty(config.text_tokens, config.text_dim))
            self.pooled_embed = MLP(config.text_dim, dim, dim, "tanh") if config.pooled_text else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        if config.modulation == "adaln":
            self.final_modulation = nn.Linear(dim, 2 * dim)
        else:
            self.shared_modulation = nn.Linear(dim, 6 * dim)
            self.final_table = nn.Parameter(torch.empty(2, dim))
        self.head = nn.Linear(dim, config.patch**2 * out)
        positions = sincos_positions(config.grid, config.grid, dim, config.grid, config.position_scale)
        self.register_buffer("pos_embed", positions.to(torch.get_default_dtype()), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: every block starts as the identity (adaLN-Zero; cross-attention too) and the head at zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.flatten(1))
        nn.init.zeros_(self.patch_embed.bias)
        config, small, zero = self.config, [self.time_embed[0], self.time_embed[2]], [self.head]
        if config.num_classes:
            small.append(self.label_embed)
        if config.text_dim:
            small += [self.text_embed.fc1, self.text_embed.fc2]
            zero += [block.cross.proj for block in self.blocks]
            zero += [self.pooled_embed.fc2] if config.pooled_text else []
            nn.init.normal_(self.null_text, std=config.text_dim**-0.5)
        if config.modulation == "adaln":
            zero += [block.modulation for block in self.blocks] + [self.final_modulation]
        else:
            small.append(self.shared_modulation)
            for table in [block.table for block in self.blocks] + [self.final_table]:
                nn.init.normal_(table, std=config.dim**-0.5)
        for module in small:
            nn.init.normal_(module.weight, std=0.02)
        for module in zero:
            nn.init.zeros_(module.weight)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, channels or twice that, H, W). H and W may differ from the trained size.

        Labels that are negative or missing, text rows without a real token and missing text are unconditional. Raises
        ValueError for a size that patches do not divide and for a label or text that this network does not take.
        """
        config = self.config
        rows, columns = check_image(x, config.channels, config.patch)
        check_condition(condition, len(x), config)
        # contiguous, or the residual stream keeps the order of the convolution, and every product copies its weights
        x = self.patch_embed(x).flatten(2).transpose(1, 2).contiguous()
        x = x + self.positions(rows, columns, context).to(x.dtype)

        frequencies = timestep_embedding(time, FREQUENCIES, config.freq_shift)
        c = self.time_embed(frequencies.to(self.time_embed[0].weight.dtype))
        if self.label_embed is not None:
            c = c + self.label_embed(class_index(condition.label, config.num_classes, len(x), x.device))
        keys_values, mask = [None] * config.depth, None
        if config.text_dim:
            owners, batch = (condition.tokens, condition.mask), len(x)
            read = memoize(self, context, f"text keys {batch}", owners, lambda: self.read_text(condition, batch))
            keys_values, mask, pooled = read
            c = c if pooled is None else c + pooled
        activated = F.silu(c)
        shared = activated if config.modulation == "adaln" else self.shared_modulation(activated).unflatten(-1, (6, -1))

        for i, block in enumerate(self.blocks):
            hooks = hooked(context, i, config.depth, 0, rows, columns)
            x = run_block(context, i, config.depth, block, x, shared, keys_values[i], mask, self.attention_backend, hooks)

        if config.modulation == "adaln":
            final = self.final_modulation(activated).unflatten(-1, (2, -1))
        else:
            final = self.final_table + c[:, None]
        shift, scale = final.to(x.dtype).unsqueeze(2).unbind(1)
        return unpatchify(self.head(modulate(self.norm(x), shift, scale)), rows, columns, config.patch)

    def read_text(self, condition: Condition, batch: int) -> tuple[Sequence[KeysValues], Tensor | None, Tensor | None]:
        """(every block's keys and values, which of them may be attended to (B, 1, 1, L), the pooled text's share of the
        modulation (B, dim)); None for all of them, and for a network without pooled text.

        Rows without a real token, and all rows where there is no text, read the learned null text instead.
        """
        tokens, mask, null = condition.tokens, condition.mask, self.null_text
        if tokens is None:
            tokens, mask = null.expand(batch, -1, -1), None
        elif mask is not None:
            missing = self.config.text_tokens - tokens.shape[1]
            tokens, mask = F.pad(tokens.to(null.dtype), (0, 0, 0, missing)), F.pad(mask, (0, missing))
            real = mask.any(1, keepdim=True)
            tokens, mask = torch.where(real[..., None], tokens, null), (mask | ~real)
        tokens = tokens.to(null.dtype)
        pooled = None
        if self.pooled_embed is not None:
            pooled = self.pooled_embed(tokens.mean(1) if mask is None else mean_token(tokens, mask))
        text = self.text_embed(tokens)
        keys_values = [block.cross.keys_values(text) for block in self.blocks]
        return keys_values, None if mask is None else mask[:, None, None], pooled

    def positions(self, rows: int, columns: int, context: Context | None) -> Tensor:
        """(1, rows * columns, dim)."""
        config = self.config
        if (rows, columns) == (config.grid, config.grid):
            return self.pos_embed

        def compute() -> Tensor:
            return sincos_positions(rows, columns, config.dim, config.grid, config.position_scale).to(self.pos_embed)

        return memoize(self, context, f"positions {rows} {columns}", (), compute)
