"""A small discriminator of pictures: convolutions without norms that judge overlapping patches at three sizes.

Every logit sees a patch of the picture, as in PatchGAN (Isola et al. 2016, arXiv 1611.07004, section 3.2.2): 10, 24 and 52
pixels wide, so that edges, corners and small parts are judged wherever they stand.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks.discriminator import start_weights


class PatchDiscriminator(nn.Module):
    """Pictures (B, 3, H, W), H and W divisible by 8, in [-1, 1] -> logits (B, P_k), one tensor for each size of patch, the
    smallest first.

    widths: channels at 1/2, 1/4 and 1/8 of the resolution; pixels are rearranged to the first.
    """

    def __init__(self, widths: tuple[int, int, int] = (24, 48, 64)):
        super().__init__()
        self.enter = nn.ModuleList([nn.Conv2d(12, widths[0], 3, padding=1)])
        self.enter += [nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in itertools.pairwise(widths)]
        self.same = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)
        start_weights(self)
        with torch.no_grad():  # layers before a rectifier keep their input's variance (arXiv 1502.01852, equation 10)
            for layer in (*self.enter, *self.same):
                layer.weight.mul_(6**0.5)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last)
        found = []
        for enter, same, head in zip(self.enter, self.same, self.heads, strict=True):
            x = F.leaky_relu(same(F.leaky_relu(enter(x), 0.2)), 0.2)
            found.append(head(x).flatten(1).float())
        return found
