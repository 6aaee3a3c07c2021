"""Names and shapes of the published checkpoints, written out from the papers' own modules, and small random files of them."""

from __future__ import annotations

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, rows: int, columns: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def norm(name: str, dim: int) -> Shapes:
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def uvit(
    dim=512, depth=12, patch=2, size=32, channels=4, rows=0, text=False, conv=True, tokens=77, clip=768, time_mlp=False
) -> Shapes:
    extras = 1 + bool(rows) + (tokens if text else 0)
    shapes: Shapes = {"pos_embed": (1, extras + (size // patch) ** 2, dim)}
    shapes |= {"patch_embed.proj.weight": (dim, channels, patch, patch), "patch_embed.proj.bias": (dim,)}
    if time_mlp:
        shapes |= linear("time_embed.0", 4 * dim, dim) | linear("time_embed.2", dim, 4 * dim)
    if rows:
        shapes["label_emb.weight"] = (rows, dim)
    if text:
        shapes |= linear("context_embed", dim, clip)
    half = depth // 2
    for name in [*(f"in_blocks.{i}" for i in range(half)), "mid_block", *(f"out_blocks.{i}" for i in range(half))]:
        shapes |= norm(f"{name}.norm1", dim) | norm(f"{name}.norm2", dim)
        shapes |= linear(f"{name}.attn.qkv", 3 * dim, dim, bias=False) | linear(f"{name}.attn.proj", dim, dim)
        shapes |= linear(f"{name}.mlp.fc1", 4 * dim, dim) | linear(f"{name}.mlp.fc2", dim, 4 * dim)
        if name.startswith("out"):
            shapes |= linear(f"{name}.skip_linear", dim, 2 * dim)
    shapes |= norm("norm", dim) | linear("decoder_pred", patch**2 * channels, dim)
    if conv:
        shapes |= {"final_layer.weight": (channels, channels, 3, 3), "final_layer.bias": (channels,)}
    return shapes


def _transformer(dim: int, depth: int, patch: int, size: int, channels: int) -> Shapes:
    shapes: Shapes = {"pos_embed": (1, (size // patch) ** 2, dim)}
    shapes |= {"x_embedder.proj.weight": (dim, channels, patch, patch), "x_embedder.proj.bias": (dim,)}
    shapes |= linear("t_embedder.mlp.0", dim, 256) | linear("t_embedder.mlp.2", dim, dim)
    for i in range(depth):
        name = f"blocks.{i}"
        shapes |= linear(f"{name}.attn.qkv", 3 * dim, dim) | linear(f"{name}.attn.proj", dim, dim)
        shapes |= linear(f"{name}.mlp.fc1", 4 * dim, dim) | linear(f"{name}.mlp.fc2", dim, 4 * dim)
    return shapes | linear("final_layer.linear", patch**2 * 2 * channels, dim)


def dit(dim=1152, depth=28, patch=2, size=32, channels=4, rows=1001) -> Shapes:
    shapes = _transformer(dim, depth, patch, size, channels)
    shapes["y_embedder.embedding_table.weight"] = (rows, dim)
    for i in range(depth):
        shapes |= linear(f"blocks.{i}.adaLN_modulation.1", 6 * dim, dim)
    return shapes | linear("final_layer.adaLN_modulation.1", 2 * dim, dim)


def pixart(dim=1152, depth=28, patch=2, size=32, channels=4, tokens=120, text_dim=4096, conditions=False) -> Shapes:
    shapes = _transformer(dim, depth, patch, size, channels) | linear("t_block.1", 6 * dim, dim)
    shapes |= linear("y_embedder.y_proj.fc1", dim, text_dim) | linear("y_embedder.y_proj.fc2", dim, dim)
    shapes["y_embedder.y_embedding"] = (tokens, text_dim)
    for name in ("csize_embedder", "ar_embedder") if conditions else ():
        shapes |= linear(f"{name}.mlp.0", dim // 3, 256) | linear(f"{name}.mlp.2", dim // 3, dim // 3)
    for i in range(depth):
        name = f"blocks.{i}.cross_attn"
        shapes |= linear(f"{name}.q_linear", dim, dim) | linear(f"{name}.kv_linear", 2 * dim, dim)
        shapes |= linear(f"{name}.proj", dim, dim) | {f"blocks.{i}.scale_shift_table": (6, dim)}
    return shapes | {"final_layer.scale_shift_table": (2, dim)}


def sincos(size: int, patch: int, dim: int, scale: float = 1.0) -> Tensor:
    """(1, grid^2, dim) float32: the column's angles in the first half, the row's in the second; each sines, then cosines."""
    grid, quarter = size // patch, dim // 4
    rows = []
    for row in range(grid):
        for column in range(grid):
            angles = [
                torch.tensor([v / scale / 10000 ** (k / quarter) for k in range(quarter)]).double() for v in (column, row)
            ]
            rows.append(torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)]))
    return torch.stack(rows)[None].float()


def tensors(shapes: Shapes, seed: int = 0, dtype: torch.dtype = torch.float32, positions: Tensor | None = None):
    """Random values of a size at which every tensor matters."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...]) -> Tensor:
        spread = 0.3 if len(shape) < 2 else torch.Size(shape[1:]).numel() ** -0.5
        return (torch.randn(shape, generator=generator) * spread + 0.1 * (len(shape) == 1)).to(dtype)

    values = {name: draw(shape) for name, shape in shapes.items()}
    return values | ({} if positions is None else {"pos_embed": positions.to(dtype)})


def count(shapes: Shapes) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())
