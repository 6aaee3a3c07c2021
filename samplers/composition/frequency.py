"""How fine the changes are that adapters make: their order from fine detail to coarse form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samplers.composition.adapter_batch import active_adapters, check_known, predict_choices
from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel


def frequency(change: Tensor) -> Tensor:
    """Mean spatial frequency of a change (..., H, W), weighted by spectral amplitude: (...), in units of the Nyquist frequency.

    0 is constant; 1 alternates from pixel to pixel along one axis, sqrt(2) along both. In these units a pattern of so many
    pixels per wave has the same value at every resolution. A change of nothing has 0.
    """
    if change.ndim < 2:
        raise ValueError(f"A change of a picture is (..., H, W), got {tuple(change.shape)}.")
    wide = change if change.dtype == torch.float64 else change.float()
    amplitude = torch.fft.fft2(wide).abs()
    rows, columns = (2 * torch.fft.fftfreq(n, device=change.device, dtype=wide.dtype) for n in change.shape[-2:])
    radius = (rows[:, None] ** 2 + columns**2).sqrt()
    total = amplitude.sum((-2, -1))
    return (amplitude * radius).sum((-2, -1)) / total.clamp_min(torch.finfo(wide.dtype).tiny)


def frequency_order(
    denoiser: Denoiser, x: Tensor, level: NoiseLevel, condition: Condition, context: Context, names: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The adapters in force, or those named, from the one that changes the finest detail to the one that changes the coarsest.

    What adapter i changes is raw(x; adapter i) - raw(x; none), measured by `frequency` at one level, mean over batch and
    channels. Costs N + 1 evaluations per image of x (B, C, H, W), in one batch. Equal ones keep their order.
    """
    active = active_adapters(context, "The order by frequency")
    names = tuple(active) if names is None else tuple(names)
    check_known(names, active, "The order by frequency")
    base, *others = predict_choices(denoiser, x, level, condition, context, [{}, *({name: active[name]} for name in names)])
    scores = [frequency(p.raw - base.raw).mean().item() for p in others]
    return tuple(name for _, name in sorted(zip(scores, names, strict=True), key=lambda one: -one[0]))
