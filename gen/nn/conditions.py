"""Conditions of several prompts side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from samplers.denoiser import Condition


class Sized(Protocol):
    """A network and where it runs, as of a `gen.models.model.Model`."""

    network: Any
    device: torch.device


def pad_tokens(condition: Condition, length: int) -> Condition:
    """Tokens (B, L, D) and mask up to `length`, with tokens that the mask hides."""
    if condition.tokens is None or condition.tokens.shape[1] == length:
        return condition
    missing = length - condition.tokens.shape[1]
    mask = condition.mask
    if mask is None:
        mask = condition.tokens.new_ones(condition.tokens.shape[:2], dtype=torch.bool)
    return replace(condition, tokens=F.pad(condition.tokens, (0, 0, 0, missing)), mask=F.pad(mask, (0, missing)))


def join(conditions: Sequence[Condition]) -> Condition:
    """Conditions as one batch; shorter texts get tokens that the mask hides."""
    padded = pad_to_longest(conditions)
    return padded[0].cat(padded[1:])


def pad_to_longest(conditions: Sequence[Condition]) -> list[Condition]:
    """Conditions with the same number of tokens, so that a batch can hold them all."""
    length = max((c.tokens.shape[1] for c in conditions if c.tokens is not None), default=0)
    return [pad_tokens(condition, length) for condition in conditions]


def with_picture_size(condition: Condition, model: Sized, count: int, sides: tuple[int, int]) -> Condition:
    """With height, width and height / width of `count` pictures in pixels, for a network that asks for them."""
    if not getattr(model.network.config, "size_conditions", False):
        return condition
    size = torch.tensor([sides] * count, dtype=torch.float32, device=model.device)
    return replace(condition, extra={**condition.extra, "size": size, "aspect": size[:, :1] / size[:, 1:]})
