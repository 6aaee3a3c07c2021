"""A small discriminator of pictures: convolutions without norms that judge overlapping patches at three sizes.

Every logit sees a patch of the picture, as in PatchGAN (Isola et al. 2016, arXiv 1611.07004, section 3.2.2): 10, 24 and 52
pixels wide, so that edges, corners and small parts are judged wherever they stand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.adversarial import AdversarialLossConfig, relativistic, squared_gradients, weighted_penalties
from distill.networks.discriminator import loss_with_logs, start_weights

PENALISED = 4  # one in so many real pictures has its gradient penalised


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


def fooling_loss(config: AdversarialLossConfig, judge: Callable[..., Any], fake: Tensor, real: Tensor) -> Tensor:
    """The loss of who drew pictures `fake` (B, 3, H, W): by themselves or, in pairs, beside the data's (B, 3, H, W). judge: a
    discriminator of patches with weights that do not train here."""
    judged = judge(fake)
    if config.relativistic:
        with torch.no_grad():
            beside = judge(real)
        judged = [-relativistic(one, other) for one, other in zip(judged, beside, strict=True)]
    return -torch.stack([logits.mean() for logits in judged]).mean()


def telling_loss(
    config: AdversarialLossConfig, judge: Callable[..., Any], real: Tensor, fake: Tensor, penalty: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a discriminator of patches, over every size of patch, and what is logged.

    real, fake: pictures (B, 3, H, W) of the data and drawn. penalty: weight gamma of gamma / 2 |grad D|^2 at every fourth real
    picture (arXiv 1801.04406, equation 9), beside the config's own penalties.
    """
    penalised, count = config.penalised, len(real)
    real = real.detach().clone().requires_grad_(penalty > 0 or penalised)
    fake = fake.detach().requires_grad_(penalised)
    some = -(-count // PENALISED) if penalty else 0  # rows apart, as a second gradient costs as much again
    parts = [judge(part) for part in (real[:some], torch.cat([real[some:], fake])) if len(part)]
    judged = [torch.cat(each) for each in zip(*parts, strict=True)]
    found = [loss_with_logs(config, logits[:count], logits[count:]) for logits in judged]
    total = torch.stack([loss for loss, _ in found]).mean()
    logs = {name: torch.stack([values[name] for _, values in found]).mean() for name in found[0][1]}
    if penalty and torch.is_grad_enabled():
        on_real: Any = sum(logits.sum() / logits.shape[1] ** 0.5 for logits in parts[0])
        (gradient,) = torch.autograd.grad(on_real, real, create_graph=True)
        squared = gradient[:some].float().square().flatten(1).sum(1).mean()
        total = total + penalty / 2 * squared
        logs["penalty"] = squared.detach()
    if penalised and torch.is_grad_enabled():
        scores = torch.stack([logits.mean(1) for logits in judged]).mean(0)
        squares = [squared_gradients(half, [x]) for half, x in zip(scores.chunk(2), (real, fake), strict=True)]
        both, more = weighted_penalties(config, *squares)
        total, logs = total + both, logs | more
    return total, logs
