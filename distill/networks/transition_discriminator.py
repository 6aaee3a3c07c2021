"""A discriminator of steps: did x_t come from x_s, as noised data do, or was it drawn from it?

A convolutional network of its own on both, told the level of x_s and what the picture is to show. Source: denoising diffusion
GANs, arXiv 2112.07804, section 3.2 and appendix C, whose residual blocks these are; labels and texts join by projection (arXiv
1802.05637). Left out is their feature of the batch's spread, by which a sample would be judged by its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks.discriminator import prompt_vector, start_weights
from gen.nn.backbones.blocks import TimeMLP, class_index, timestep_embedding
from samplers.denoiser import Condition

TIME_FREQUENCIES = 128  # width of the sinusoids of a level


class DownBlock(nn.Module):
    """(B, before, H, W) -> (B, after, H, W): two convolutions with the level between them, beside a projection.

    halve: the picture comes out half as high and wide, rounded up.
    """

    def __init__(self, before: int, after: int, time: int, halve: bool):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, padding=1)
        self.told = nn.Linear(time, after)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.skip = nn.Conv2d(before, after, 1, bias=False)
        self.halve = halve

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.first(F.leaky_relu(x, 0.2)) + self.told(time)[..., None, None]
        h = F.leaky_relu(h, 0.2)
        if self.halve:
            h, x = (F.avg_pool2d(part, 2, ceil_mode=True) for part in (h, x))
        return (self.second(h) + self.skip(x)) / 2**0.5


class TransitionDiscriminator(nn.Module):
    """D(x_t, x_s, s): logits (B, 1), above 0 for data.

    channels: of x. widths: of the residual blocks; all but the first halve the picture. classes: how many labels there are; a
    negative one is none. prompt: the width of texts' vectors (`prompt_vector`). 0: the network is not told.
    """

    def __init__(self, channels: int, widths: Sequence[int], classes: int = 0, prompt: int = 0):
        super().__init__()
        first, *_, last = widths
        self.time = TimeMLP(TIME_FREQUENCIES, first, first)
        self.enter = nn.Conv2d(2 * channels, first, 1)
        befores = [first, *widths[:-1]]
        self.blocks = nn.ModuleList(
            DownBlock(before, after, first, halve=number > 0)
            for number, (before, after) in enumerate(zip(befores, widths, strict=True))
        )
        self.leave = nn.Conv2d(last, last, 3, padding=1)
        self.head = nn.Linear(last, 1)
        self.labels = nn.Linear(classes + 1, last, bias=False) if classes else None
        self.prompts = nn.Linear(prompt, last, bias=False) if prompt else None
        start_weights(self)

    def forward(self, x_t: Tensor, x_s: Tensor, s: Tensor, condition: Condition) -> Tensor:
        """x_t, x_s: (B, C, H, W). s: (B,), the share of the clock at x_s, 1 for pure noise."""
        frequencies = timestep_embedding(1000 * s, TIME_FREQUENCIES).to(self.head.weight.dtype)
        time = F.leaky_relu(self.time(frequencies), 0.2)
        h = self.enter(torch.cat([x_t, x_s], 1))
        for block in self.blocks:
            h = block(h, time)
        # the mean over places, so that a logit does not grow with the picture
        h = F.leaky_relu(self.leave(F.leaky_relu(h, 0.2)), 0.2).flatten(2).mean(2).float()
        logit = self.head(h)
        for name, told in (("labels", self._label(condition, len(h), h.device)), ("prompts", prompt_vector(condition))):
            projection = cast("nn.Linear | None", getattr(self, name))
            if projection is not None and told is not None:
                # arXiv 1802.05637, equation 3: an inner product of what is wanted and what is seen
                fit = (projection(told.to(h)).float() * h).sum(1, keepdim=True)
                logit = logit + fit / h.shape[1] ** 0.5
        return logit.float()

    def _label(self, condition: Condition, count: int, device: torch.device) -> Tensor | None:
        """(B, classes + 1): 1 at the label, the last for none."""
        if self.labels is None:
            return None
        classes = self.labels.in_features - 1
        return F.one_hot(class_index(condition.label, classes, count, device), classes + 1)
