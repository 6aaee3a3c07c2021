"""Inception v3 up to its 2,048 pooled features, for Fréchet distances that compare with published ones.

The network of arXiv 1512.00567 with the differences of the weights that published FIDs were measured with (Heusel et al. 2017,
arXiv 1706.08500): averages over 3 x 3 places leave the border out of their count, and the last block's pool takes maxima.
Weights are not shipped: give a safetensors file of them under their usual names (`Mixed_5b.branch1x1.conv.weight`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.io.weights import CheckpointError, listed, read_weights

SIDE = 299
IGNORED = ("fc.", "AuxLogits.")  # heads that features do not need
Kernel = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution, normalisation, ReLU."""

    def __init__(self, inputs: int, width: int, kernel: Kernel = 1, stride: int = 1, padding: Kernel = 0):
        super().__init__()
        self.conv = nn.Conv2d(inputs, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side. Each is a chain of layers: (name, width, kernel), or "average", "maximum" for a pool; a chain may
    end in two layers that both read what comes before. stride: of every branch's last layer, which then has no padding."""

    def __init__(self, inputs: int, *branches: Sequence[Any], stride: int = 1):
        super().__init__()
        self.branches, self.stride, self.width = [], stride, 0
        for branch in branches:
            width, steps = inputs, []
            for number, step in enumerate(branch):
                last = number == len(branch) - 1
                parts = step if isinstance(step, list) else [step]
                for part in parts:
                    if not isinstance(part, str):
                        name, out, kernel = part
                        reduces = stride > 1 and last
                        pad = 0 if reduces else (kernel // 2 if isinstance(kernel, int) else tuple(k // 2 for k in kernel))
                        setattr(self, name, Conv(width, out, kernel, stride if reduces else 1, pad))
                steps.append([part if isinstance(part, str) else part[0] for part in parts])
                width = width if isinstance(parts[0], str) else sum(part[1] for part in parts)
            self.branches.append(steps)
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for steps in self.branches:
            h = x
            for names in steps:
                h = torch.cat([self._run(name, h) for name in names], 1)
            outputs.append(h)
        return torch.cat(outputs, 1)

    def _run(self, name: str, x: Tensor) -> Tensor:
        if name == "average":
            return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        if name == "maximum":
            return F.max_pool2d(x, 3, self.stride, 1 if self.stride == 1 else 0)
        return getattr(self, name)(x)


def _a(inputs: int, pooled: int) -> Mixed:
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    five = [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)]
    return Mixed(inputs, [("branch1x1", 64, 1)], five, double, ["average", ("branch_pool", pooled, 1)])


def _c(width: int) -> Mixed:
    seven = [("branch7x7_1", width, 1), ("branch7x7_2", width, (1, 7)), ("branch7x7_3", 192, (7, 1))]
    kernels = [1, (7, 1), (1, 7), (7, 1), (1, 7)]
    double = [(f"branch7x7dbl_{i + 1}", 192 if i == 4 else width, kernel) for i, kernel in enumerate(kernels)]
    return Mixed(768, [("branch1x1", 192, 1)], seven, double, ["average", ("branch_pool", 192, 1)])


def _e(inputs: int, pool: str) -> Mixed:
    three = [("branch3x3_1", 384, 1), [("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))]]
    ends = [("branch3x3dbl_3a", 384, (1, 3)), ("branch3x3dbl_3b", 384, (3, 1))]
    double = [("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3), ends]
    return Mixed(inputs, [("branch1x1", 320, 1)], three, double, [pool, ("branch_pool", 192, 1)])


class Inception(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] -> features (B, 2048)."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Conv(32, 64, 3, 1, 1), Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
        self.Mixed_6a = Mixed(288, [("branch3x3", 384, 3)], double, ["maximum"], stride=2)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = _c(128), _c(160), _c(160), _c(192)
        seven = [("branch7x7x3_1", 192, 1), ("branch7x7x3_2", 192, (1, 7)), ("branch7x7x3_3", 192, (7, 1))]
        three = [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)]
        self.Mixed_7a = Mixed(768, three, [*seven, ("branch7x7x3_4", 192, 3)], ["maximum"], stride=2)
        self.Mixed_7b, self.Mixed_7c = _e(1280, "average"), _e(2048, "maximum")

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))


def load_inception(path: Path | str) -> Inception:
    """The network with weights from a safetensors file; CheckpointError where one is missing, too many, or of another shape."""
    tensors = {n: t for n, t in read_weights(path).items() if not n.startswith(IGNORED)}
    with torch.device("meta"):
        network = Inception()
    wanted = network.state_dict()
    counters = {name for name in wanted if name.endswith("num_batches_tracked")}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in counters}
    different = sorted(wanted.keys() - counters ^ tensors.keys())
    different = different or [n for n, t in tensors.items() if t.shape != wanted[n].shape]
    if different:
        raise CheckpointError(path, f"does not hold Inception v3 as it is used for FID: it differs in {listed(different)}.")
    ready = {name: tensor.float() for name, tensor in tensors.items()} | {
        n: torch.zeros((), dtype=torch.long) for n in counters
    }
    network.load_state_dict(ready, assign=True)
    return network.eval().requires_grad_(False)
