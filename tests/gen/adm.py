"""ADM's networks written out a second time, from dictionaries of weights under their published names: names, shapes, values.

The structure is that of guided-diffusion's UNetModel, SuperResModel and EncoderUNetModel, part by part as their constructors
number them. `flags` are those of its README and of script_util.py's defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.gen.published import Shapes, linear, norm

MULTIPLIERS = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}


def flags(size: int, dim: int, blocks: int = 2, attention=(32, 16, 8), upsampler: bool = False, **more: Any) -> dict[str, Any]:
    """A network by its flags; attention: sides of the pictures at which pixels attend."""
    multipliers = MULTIPLIERS[256] if upsampler else MULTIPLIERS[size]
    own = {"size": size, "dim": dim, "blocks": blocks, "attention": [size // side for side in attention], "read": 3}
    usual = {"multipliers": multipliers, "heads": 4, "head_dim": -1, "new_order": False, "updown": True, "scale_shift": True}
    return {**own, **usual, "out": 6, "classes": 1000, **({"read": 6} if upsampler else {}), **more}


PUBLISHED: dict[str, dict[str, Any]] = {
    "64": flags(64, 192, blocks=3, head_dim=64, new_order=True),
    "128": flags(128, 256),
    "256": flags(256, 256, head_dim=64),
    "256 without classes": flags(256, 256, head_dim=64, classes=0),
    "512": flags(512, 256, head_dim=64),
    "64 to 256": flags(256, 192, upsampler=True),
    "128 to 512": flags(512, 192, attention=(32, 16), head_dim=64, upsampler=True),
}
CLASSIFIERS = {f"{size}": flags(size, 128, blocks=4 if size == 64 else 2, head_dim=64) for size in (64, 128, 256, 512)}


def conv(name: str, rows: int, columns: int, side: int = 3) -> Shapes:
    return {f"{name}.weight": (rows, columns, side, side), f"{name}.bias": (rows,)}


def line(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns, 1), f"{name}.bias": (rows,)}


class Published:
    """Walks over a network's parts, numbered as published; `visit(kind, name, ...)` says what is done at each."""

    def __init__(self, f: Mapping[str, Any]):
        self.f, self.shapes = f, Shapes()

    def res(self, name: str, before: int, after: int) -> None:
        f, told = self.f, after * (2 if self.f["scale_shift"] else 1)
        self.shapes |= norm(f"{name}.in_layers.0", before) | conv(f"{name}.in_layers.2", after, before)
        self.shapes |= linear(f"{name}.emb_layers.1", told, 4 * f["dim"])
        self.shapes |= norm(f"{name}.out_layers.0", after) | conv(f"{name}.out_layers.3", after, after)
        self.shapes |= conv(f"{name}.skip_connection", after, before, 1) if before != after else {}

    def attend(self, name: str, width: int) -> None:
        self.shapes |= (
            norm(f"{name}.norm", width) | line(f"{name}.qkv", 3 * width, width) | line(f"{name}.proj_out", width, width)
        )


def shapes_of(f: Mapping[str, Any], classifier: bool = False) -> Shapes:
    """Every name and shape of a file."""
    w, dim = Published(f), f["dim"]
    w.shapes |= linear("time_embed.0", 4 * dim, dim) | linear("time_embed.2", 4 * dim, 4 * dim)
    widths = [int(m * dim) for m in f["multipliers"]]
    seen, width, rate, step = [widths[0]], widths[0], 1, 1
    w.shapes |= conv("input_blocks.0.0", width, f["read"])
    for level, after in enumerate(widths):
        for _ in range(f["blocks"]):
            w.res(f"input_blocks.{step}.0", width, after)
            if rate in f["attention"]:
                w.attend(f"input_blocks.{step}.1", after)
            width, step = after, step + 1
            seen.append(width)
        if level + 1 < len(widths):
            if f["updown"]:
                w.res(f"input_blocks.{step}.0", width, width)
            else:
                w.shapes |= conv(f"input_blocks.{step}.0.op", width, width)
            seen.append(width)
            step, rate = step + 1, 2 * rate
    w.res("middle_block.0", width, width), w.attend("middle_block.1", width), w.res("middle_block.2", width, width)
    if classifier:
        w.shapes |= norm("out.0", width) | {"out.2.positional_embedding": (width, (f["size"] // rate) ** 2 + 1)}
        w.shapes |= line("out.2.qkv_proj", 3 * width, width) | line("out.2.c_proj", f["classes"], width)
        return w.shapes
    w.shapes |= {"label_emb.weight": (f["classes"], 4 * dim)} if f["classes"] else {}
    step = 0
    for level in reversed(range(len(widths))):
        for block in range(f["blocks"] + 1):
            w.res(f"output_blocks.{step}.0", width + seen.pop(), widths[level])
            width, part = widths[level], 1
            if rate in f["attention"]:
                w.attend(f"output_blocks.{step}.1", width)
                part = 2
            if level and block == f["blocks"]:
                if f["updown"]:
                    w.res(f"output_blocks.{step}.{part}", width, width)
                else:
                    w.shapes |= conv(f"output_blocks.{step}.{part}.conv", width, width)
                rate //= 2
            step += 1
    w.shapes |= norm("out.0", width) | conv("out.2", f["out"], width)
    return w.shapes


def random_weights(shapes: Shapes, seed: int = 0, dtype=torch.float64) -> dict[str, Tensor]:
    """Values with which every term counts."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        spread = 0.3 if len(shape) < 2 or "embedding" in name else math.prod(shape[1:]) ** -0.5
        weights[name] = (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)
        if len(shape) == 1 and name.endswith("weight"):
            weights[name] += 1
    return weights


class Computed:
    """The forward pass of weights under their published names."""

    def __init__(self, w: Mapping[str, Tensor], f: Mapping[str, Any]):
        self.w, self.f = w, f

    def has(self, name: str) -> bool:
        return f"{name}.weight" in self.w

    def conv(self, name: str, x: Tensor, **options: Any) -> Tensor:
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2, **options)

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), 32, -1)
        groups = (groups - groups.mean(2, keepdim=True)) / (groups.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
        shape = (1, -1, *[1] * (x.ndim - 2))
        return groups.reshape(x.shape) * self.w[f"{name}.weight"].view(shape) + self.w[f"{name}.bias"].view(shape)

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.w[f"{name}.weight"].flatten(1).T + self.w[f"{name}.bias"]

    def time(self, time: Tensor) -> Tensor:
        half = self.f["dim"] // 2
        angles = time[:, None] * torch.exp(-math.log(10000) * torch.arange(half, dtype=time.dtype) / half)
        return self.linear("time_embed.2", F.silu(self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1))))

    def scaled(self, x: Tensor, way: str) -> Tensor:
        if way == "down":
            return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if way == "up" else x

    def res(self, name: str, x: Tensor, emb: Tensor, way: str = "") -> Tensor:
        h = self.conv(f"{name}.in_layers.2", self.scaled(F.silu(self.norm(f"{name}.in_layers.0", x)), way))
        told = self.linear(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        if self.f["scale_shift"]:
            scale, shift = told.chunk(2, 1)
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{name}.out_layers.0", h + told)
        x = self.scaled(x, way)
        x = self.conv(f"{name}.skip_connection", x) if self.has(f"{name}.skip_connection") else x
        return x + self.conv(f"{name}.out_layers.3", F.silu(h))

    def heads(self, qkv: Tensor, width: int, new_order: bool) -> Tensor:
        """(L, 3 width) -> (L, width): attention head by head."""
        count = self.f["heads"] if self.f["head_dim"] == -1 else width // self.f["head_dim"]
        size, out = width // count, []
        for head in range(count):
            starts = (
                [part * width + head * size for part in range(3)] if new_order else [(3 * head + p) * size for p in range(3)]
            )
            q, k, v = (qkv[:, start : start + size] for start in starts)
            out.append(torch.softmax(q @ k.T / math.sqrt(size), -1) @ v)
        return torch.cat(out, 1)

    def attend(self, name: str, x: Tensor) -> Tensor:
        rows = self.norm(f"{name}.norm", x.flatten(2))
        out = [self.linear(f"{name}.proj_out", self.heads(self.linear(f"{name}.qkv", row.T), x.shape[1], self.f["new_order"])).T
               for row in rows]  # fmt: skip
        return x + torch.stack(out).reshape(x.shape)

    def down(self, x: Tensor, emb: Tensor) -> tuple[Tensor, list[Tensor]]:
        seen = [self.conv("input_blocks.0.0", x)]
        step = 1
        while any(name.startswith(f"input_blocks.{step}.") for name in self.w):
            y, name = seen[-1], f"input_blocks.{step}.0"
            between = step % (self.f["blocks"] + 1) == 0
            if self.has(f"{name}.op"):
                y = self.conv(f"{name}.op", y, stride=2)
            else:
                y = self.res(name, y, emb, "down" if between else "")
            seen.append(self.attend(f"input_blocks.{step}.1", y) if self.has(f"input_blocks.{step}.1.qkv") else y)
            step += 1
        y = self.res("middle_block.0", seen[-1], emb)
        return self.res("middle_block.2", self.attend("middle_block.1", y), emb), seen

    def unet(self, x: Tensor, time: Tensor, label: Tensor | None = None, low: Tensor | None = None) -> Tensor:
        emb = self.time(time)
        if label is not None:
            emb = emb + self.w["label_emb.weight"][label]
        if low is not None:
            x = torch.cat([x, F.interpolate(low, x.shape[2:], mode="bilinear")], 1)
        y, seen = self.down(x, emb)
        for step in range(len(seen)):
            y = self.res(f"output_blocks.{step}.0", torch.cat([y, seen.pop()], 1), emb)
            for part in (1, 2):
                name = f"output_blocks.{step}.{part}"
                if self.has(f"{name}.qkv"):
                    y = self.attend(name, y)
                elif self.has(f"{name}.conv"):
                    y = self.conv(f"{name}.conv", self.scaled(y, "up"))
                elif self.has(f"{name}.in_layers.0"):
                    y = self.res(name, y, emb, "up")
        return self.conv("out.2", F.silu(self.norm("out.0", y)))

    def classifier(self, x: Tensor, time: Tensor) -> Tensor:
        y, _ = self.down(x, self.time(time))
        y = F.silu(self.norm("out.0", y)).flatten(2)
        y = torch.cat([y.mean(2, keepdim=True), y], 2) + self.w["out.2.positional_embedding"]
        rows = [self.heads(self.linear("out.2.qkv_proj", row.T), y.shape[1], new_order=True)[:1] for row in y]
        return self.linear("out.2.c_proj", torch.cat(rows))
