"""Normalised attention guidance: negative prompts inside of attention, for networks of few steps too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import check_scale, count_conditional_rows
from samplers.hooks import Site, check_reached, with_hook
from samplers.interval import EVERYWHERE, Interval, check_interval
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.rows import stack_conditions, take_prediction, take_rows
from samplers.wrappers import DenoiserWrapper

METHOD = "Normalised attention guidance"


def guide_attention(positive: Tensor, negative: Tensor, scale: float, tau: float, alpha: float) -> Tensor:
    """What attention to the prompt came to (..., D), led away from what attention to the negative prompt came to.

    z = positive + (scale - 1) (positive - negative)    extrapolated
    z = z min(r, tau) / r,  r = |z|_1 / |positive|_1    at most tau times as long, token by token
    alpha z + (1 - alpha) positive                      blended

    Source: arXiv 2505.21179, section 3.3 (scale is 1 + phi there, as in the published code).
    """
    led = positive + (scale - 1) * (positive - negative)
    wide = torch.promote_types(positive.dtype, torch.float32)  # sums of half precision overflow
    lengths = [z.to(wide).abs().sum(-1, keepdim=True) for z in (led, positive)]
    limit = (tau * lengths[1] / lengths[0].clamp_min(torch.finfo(wide).tiny)).clamp_max(1.0)  # min(r, tau) / r
    return torch.lerp(positive, led * limit.to(led.dtype), alpha)


@dataclass(frozen=True)
class NormalizedAttention(DenoiserWrapper):
    """The network with `guide_attention` wherever patches attend to text. Put it around the network and its caches, under all
    other guidance: it acts on rows with a condition and leaves the unconditional branch alone.

    negative: the negative prompt, batch of x's, or a part of it, which is repeated; the empty one if None. It acts through
        attention alone: its pooled vector is the prompt's own.
    scale: 1 is none. tau, alpha: as in `guide_attention`, by default the published ones.
    interval: (lowest, highest) log-SNR where it acts.
    Each conditional row costs one more evaluation where it acts. Needs the network's "text" hook.

    Source: arXiv 2505.21179.
    """

    denoiser: Denoiser
    negative: Condition | None = None
    scale: float = 5.0
    tau: float = 2.5
    alpha: float = 0.25
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        check_scale(self.scale, f"{METHOD.lower()} scale")
        check_interval(self.interval)
        if not self.tau > 0 or not 0 <= self.alpha <= 1:
            raise ValueError(f"{METHOD} got tau={self.tau} and alpha={self.alpha}; give tau above 0, and alpha from 0 to 1.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        low, high = self.interval
        led = count_conditional_rows(context, len(x))
        if self.scale == 1 or not led or isinstance(level.logsnr, Tensor) or not low <= level.logsnr <= high:
            return self.denoiser(x, level, condition, context)
        rows = len(x)
        everyone = context.memo("nag conditions", (condition, self.negative), lambda: self._conditions(condition, led))
        inside = with_hook(context.fork("nag"), "text", self._hook(rows, led, x.device))
        levels = NoiseLevel(*(_with_first(v, led) for v in (level.t, level.alpha, level.sigma)))
        joint = self.denoiser(torch.cat([x, x[:led]]), levels, everyone, inside)
        check_reached(inside, "text", METHOD)
        return take_prediction(joint, x, level, slice(rows))

    def _hook(self, rows: int, led: int, device: torch.device) -> Callable[[Site, Callable[[Tensor | None], Tensor]], Tensor]:
        """Rows 0 .. led - 1 have the prompt, the last `led` the negative one, with the queries of those."""
        queries = torch.cat([torch.arange(rows, device=device), torch.arange(led, device=device)])

        def hook(site: Site, run: Callable[[Tensor | None], Tensor]) -> Tensor:
            z = run(queries)
            guided = guide_attention(z[:led], z[rows:], self.scale, self.tau, self.alpha)
            return torch.cat([guided, z[led:rows], guided])

        return hook

    def _conditions(self, condition: Condition, led: int) -> Condition:
        """The rows' conditions, then the negative ones."""
        own = condition[:led]
        negative = own.null() if self.negative is None else self.negative
        negative = negative.map(lambda v: v.repeat(led // len(v), *[1] * (v.ndim - 1)) if len(v) < led else v[:led])
        negative = replace(negative, pooled=own.pooled, image=own.image, extra=own.extra)
        return stack_conditions(equally_long([condition, negative]))


def _with_first(value: float | Tensor, led: int) -> float | Tensor:
    return torch.cat([value, take_rows(value, slice(led))]) if isinstance(value, Tensor) and value.ndim else value  # type: ignore[list-item]


def equally_long(conditions: Sequence[Condition]) -> list[Condition]:
    """With tokens that a mask hides where one has fewer than another."""
    length = max((c.tokens.shape[1] for c in conditions if c.tokens is not None), default=0)
    padded = []
    for c in conditions:
        if c.tokens is not None and (missing := length - c.tokens.shape[1]):
            mask = c.tokens.new_ones(c.tokens.shape[:2], dtype=torch.bool) if c.mask is None else c.mask
            c = replace(c, tokens=F.pad(c.tokens, (0, 0, 0, missing)), mask=F.pad(mask, (0, missing)))
        padded.append(c)
    return padded
