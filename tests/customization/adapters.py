"""Adapters with factors drawn at random in float64, of every kind."""

from __future__ import annotations

import torch
from torch import Tensor

from gen.adapters import Adapter, Delta


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lora(seed: int, out: int = 10, width: int = 12, rank: int = 3, kernel: tuple[int, ...] = (), scale: float = 0.5) -> Delta:
    return Delta({"down": normal(seed, rank, width, *kernel), "up": normal(seed + 1, out, rank, *[1] * len(kernel))}, scale)


def _draw(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: normal(seed + i, *shape) for i, (name, shape) in enumerate(shapes.items())}


# name -> a change of a weight (12, 8), or (12, 8, 3, 3) for those that begin with conv
KINDS = {
    "lora": lambda: lora(1, 12, 8, 2),
    "loha": lambda: Delta(_draw(2, hada_w1_a=(12, 2), hada_w1_b=(2, 8), hada_w2_a=(12, 3), hada_w2_b=(3, 8)), 0.7),
    "lokr whole": lambda: Delta(_draw(3, lokr_w1=(3, 2), lokr_w2=(4, 4))),
    "lokr pairs": lambda: Delta(_draw(4, lokr_w1_a=(3, 1), lokr_w1_b=(1, 2), lokr_w2_a=(4, 2), lokr_w2_b=(2, 4)), 1.5),
    "full": lambda: Delta(_draw(5, weight=(12, 8))),
    "conv": lambda: lora(6, 12, 8, 3, (3, 3), 0.25),
    "conv core": lambda: Delta(_draw(7, down=(3, 8, 1, 1), mid=(3, 3, 3, 3), up=(12, 3, 1, 1)), 0.3),
    "conv loha core": lambda: Delta(
        _draw(8, hada_w1_a=(2, 12), hada_w1_b=(2, 8), hada_t1=(2, 2, 3, 3), hada_w2_a=(2, 12), hada_w2_b=(2, 8),
              hada_t2=(2, 2, 3, 3)), 0.9),
    "conv lokr core": lambda: Delta(_draw(9, lokr_w1=(3, 2), lokr_w2_a=(2, 4), lokr_w2_b=(2, 4), lokr_t2=(2, 2, 3, 3)), 0.8),
    "conv lokr": lambda: Delta(_draw(10, lokr_w1=(3, 2), lokr_w2=(4, 4, 3, 3))),
}  # fmt: skip


def adapter(name: str, **layers: Delta) -> Adapter:
    """An adapter of the denoiser; _ in a layer's name stands for a dot."""
    return Adapter(name, {f"denoiser.{layer.replace('_', '.')}": delta for layer, delta in layers.items()})


def change(delta: Delta, shape: tuple[int, ...] | None = None) -> Tensor:
    """The whole change in float64."""
    return delta.delta(torch.zeros(delta.dims if shape is None else shape, dtype=torch.float64))


def changes(one: Adapter) -> dict[str, Tensor]:
    return {layer: change(delta) for layer, delta in one.layers.items()}
