"""Between two noises or latents: straight, or along the sphere that unit noise lives on."""

from __future__ import annotations

import torch
from torch import Tensor

from samplers.path import Scalar, expand


def lerp(a: Tensor, b: Tensor, u: Scalar, keep_variance: bool = False) -> Tensor:
    """(1 - u) a + u b, for u a float or (B,). keep_variance: divided by sqrt((1 - u)^2 + u^2), so that independent unit
    noises give unit noise. Exact at u = 0 and 1."""
    u = expand(u, a)
    mixed = (1 - u) * a + u * b
    return mixed / ((1 - u) ** 2 + u**2) ** 0.5 if keep_variance else mixed


def slerp(a: Tensor, b: Tensor, u: Scalar) -> Tensor:
    """Turn each image of a (B, ...) towards its counterpart in b by the part u, a float or (B,), of the angle between them.

    The direction moves at constant speed along the great circle and the norm linearly from |a| to |b|, each per image; for
    unit noise in many dimensions the result is distributed like unit noise. Exact at u = 0 and 1. Parallel images are
    interpolated straight, and so is an image of zeros, which has no direction; between exactly opposite ones there is no
    shortest way, and the result means nothing.
    """
    if a.shape != b.shape:
        raise ValueError(f"Interpolation needs two tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}.")
    rows = (-1, *[1] * (a.ndim - 1))
    norm_a, norm_b = (v.flatten(1).norm(dim=1).reshape(rows) for v in (a, b))
    nowhere = (norm_a == 0) | (norm_b == 0)
    norm_a, norm_b = (torch.where(nowhere, 1.0, norm) for norm in (norm_a, norm_b))
    unit_a, unit_b = a / norm_a, b / norm_b
    # half angles keep their digits where the images are nearly parallel or opposite
    apart, together = ((unit_a - s * unit_b).flatten(1).norm(dim=1).reshape(rows) for s in (1, -1))
    angle = 2 * torch.atan2(apart, together)
    u = torch.as_tensor(expand(u, a), dtype=a.dtype, device=a.device)
    sine = angle.sin()
    straight = (angle < 1e-6) | nowhere
    on_a = torch.where(straight, 1 - u, ((1 - u) * angle).sin() / sine)
    on_b = torch.where(straight, u, (u * angle).sin() / sine)
    norm = (1 - u) * norm_a + u * norm_b
    return on_a * (norm / norm_a) * a + on_b * (norm / norm_b) * b


def slerp_columns(a: Tensor, b: Tensor, u: float) -> Tensor:
    """Turn every column of a (B, C, H, W) towards that of b by the part u of the angle between them.

    A column is the H numbers of one image, channel and place along the width, which is what AUTOMATIC1111's web UI turns for
    variation seeds (`slerp` of its modules/rng.py): sin((1 - u) angle) / sin(angle) a + sin(u angle) / sin(angle) b. Lengths
    are not evened, so independent unit noises give nearly unit noise. Columns that are parallel go straight, and so do zeros.
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-2).unsqueeze(-2).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    straight = sine < 1e-6
    on_a = torch.where(straight, 1 - u, ((1 - u) * angle).sin() / sine)
    on_b = torch.where(straight, u, (u * angle).sin() / sine)
    return on_a * a + on_b * b
