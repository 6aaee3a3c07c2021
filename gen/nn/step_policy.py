"""A policy of steps (AdaDiff): how many steps a picture gets, by what it should show.

Source: arXiv 2311.14768, section 3.2: a light network on the text's features, a choice among a few numbers of steps.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import class_index
from gen.nn.registry import Config
from samplers.denoiser import Condition


class StepPolicyConfig(Config):
    """choices: the numbers of steps, rising. text_dim: width of the text's tokens, 0 for a model without text; num_classes: of
    a model of classes. dim, heads: of the attention that gathers the tokens."""

    choices: tuple[int, ...] = Field(default=(10, 20, 30, 40, 50), min_length=2, max_length=64)
    text_dim: int = Field(default=0, ge=0)
    num_classes: int = Field(default=0, ge=0)
    dim: int = Field(default=128, gt=0, le=4096)
    heads: int = Field(default=4, gt=0)

    @model_validator(mode="after")
    def _possible(self) -> StepPolicyConfig:
        if self.choices[0] < 1 or self.choices[-1] > 1000 or any(a >= b for a, b in pairwise(self.choices)):
            raise ValueError(f"choices {self.choices} must be rising numbers of steps from 1 to 1000")
        if bool(self.text_dim) == bool(self.num_classes):
            raise ValueError("a policy reads text or classes: give text_dim or num_classes")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        return self


class StepPolicy(nn.Module):
    """Condition -> logits (B, choices). At first all choices are alike. What is unconditional reads a learned token."""

    def __init__(self, config: StepPolicyConfig):
        super().__init__()
        self.config = config
        self.text_embed = nn.Linear(config.text_dim, config.dim) if config.text_dim else None
        self.label_embed = nn.Embedding(config.num_classes + 1, config.dim) if config.num_classes else None
        self.query = nn.Parameter(0.02 * torch.randn(1, 1, config.dim))
        self.null = nn.Parameter(0.02 * torch.randn(1, 1, config.dim))
        self.attention = nn.MultiheadAttention(config.dim, config.heads, batch_first=True)
        self.norm = nn.LayerNorm(config.dim)
        self.mlp = nn.Sequential(nn.Linear(config.dim, 2 * config.dim), nn.GELU())
        self.head = nn.Linear(2 * config.dim, len(config.choices))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, condition: Condition, batch: int) -> Tensor:
        null = self.null.expand(batch, -1, -1)
        hidden = None
        if self.label_embed is not None:
            label = class_index(condition.label, self.config.num_classes, batch, null.device)
            tokens = torch.cat([null, self.label_embed(label)[:, None]], 1)
        else:
            assert self.text_embed is not None
            if condition.tokens is None:
                tokens = null + 0 * self.text_embed.bias  # nothing; but every weight is part of the graph, as replicas need it
            else:
                tokens = torch.cat([null, self.text_embed(condition.tokens.to(null.dtype))], 1)
                if condition.mask is not None:
                    hidden = torch.cat([condition.mask.new_zeros(batch, 1), ~condition.mask], 1)
        read, _ = self.attention(self.query.expand(batch, -1, -1), tokens, tokens, key_padding_mask=hidden, need_weights=False)
        return self.head(self.mlp(self.norm(read[:, 0])))

    @torch.no_grad()
    def choose(self, condition: Condition, batch: int) -> list[int]:
        """The likeliest number of steps for each picture."""
        return [self.config.choices[i] for i in self(condition, batch).argmax(1).tolist()]
