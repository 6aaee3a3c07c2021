"""A discriminator on the features of a denoiser: small heads on the tokens of some of its blocks, one by one or pooled.

The features are functions of (x, level, condition), so it judges noisy latents with no decoder and no second backbone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.hooks import check_reached, with_hook
from samplers.noise import fold
from samplers.path import NoiseLevel


def keep_blocks(context: Context, blocks: Sequence[int]) -> tuple[Context, dict[int, Tensor]]:
    """(the context of one call that keeps the tokens after some blocks, where they will be, by block)."""
    found: dict[int, Tensor] = {}

    def keep(index: int, count: int, x: Tensor, run) -> Tensor:
        if max(blocks) >= count:
            raise ValueError(f"The discriminator reads block {max(blocks)}, but the network has {count}, counted from 0.")
        out = run()
        if index in blocks:
            found[index] = out.float()
        return out

    return with_hook(context, "block", keep), found


def judged_blocks(depth: int) -> tuple[int, ...]:
    """A quarter, half and three quarters of the way through, and the last."""
    return tuple(sorted({depth * k // 4 for k in (1, 2, 3)} | {depth - 1}))


def block_features(
    denoiser: NetworkDenoiser, x: Tensor, level: NoiseLevel, condition: Condition, blocks: Sequence[int]
) -> list[Tensor]:
    """The tokens (B, L, D) after some blocks of a network, float32; differentiable in x. ValueError if it has none."""
    context, found = keep_blocks(Context(), blocks)
    denoiser(x, level, condition, context)
    check_reached(context, "block", "The discriminator")
    return [found[index] for index in blocks]


class TokenHeads(nn.Module):
    """Per block, a two-layer perceptron that judges every token: (B, L, D) each -> logits (B, blocks * L)."""

    def __init__(self, width: int, blocks: int, hidden: int = 64):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, 1)) for _ in range(blocks)
        )
        draw_weights(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([head(tokens)[..., 0].float() for head, tokens in zip(self.heads, features, strict=True)], dim=1)


class PooledHeads(nn.Module):
    """Per block, a two-layer perceptron on each channel's mean and deviation over the tokens: (B, L, D) each and the network's
    time (B,) -> logits (B, blocks). It judges whole pictures.

    Every number is brought to mean 0 and deviation 1 by its statistics over data at `knots` times, interpolated between them:
    how much noise there is moves these numbers far more than who drew the picture.
    """

    def __init__(self, width: int, blocks: int, hidden: int = 64, knots: int = 8):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * width, hidden), nn.SiLU(), nn.Linear(hidden, 1)) for _ in range(blocks)
        )
        draw_weights(self)
        self.register_buffer("times", torch.linspace(0, 1, knots))
        self.register_buffer("center", torch.zeros(knots, blocks, 2 * width))
        self.register_buffer("spread", torch.ones(knots, blocks, 2 * width))

    @staticmethod
    def pooled(features: Sequence[Tensor]) -> Tensor:
        """(B, blocks, 2 D)."""
        return torch.stack([torch.cat([tokens.mean(1), (tokens.var(1) + 1e-6).sqrt()], 1) for tokens in features], 1)

    @torch.no_grad()
    def standardize(self, knot: int, time: float, features: Sequence[Tensor]) -> None:
        """Take the statistics of a knot from features of data at a time. Knots must rise in time."""
        found = self.pooled([tokens.float() for tokens in features])
        self.times[knot] = time
        self.center[knot] = found.mean(0)
        self.spread[knot] = found.std(0).clamp(min=1e-4)

    def forward(self, features: Sequence[Tensor], time: Tensor) -> Tensor:
        time = time.to(self.times).contiguous()
        above = torch.searchsorted(self.times, time).clamp(1, len(self.times) - 1)
        low, high = self.times[above - 1], self.times[above]
        share = ((time - low) / (high - low)).clamp(0, 1)[:, None, None]
        center, spread = (torch.lerp(v[above - 1], v[above], share) for v in (self.center, self.spread))
        numbers = ((self.pooled(features) - center) / spread).unbind(1)
        return torch.cat([head(part).float() for head, part in zip(self.heads, numbers, strict=True)], dim=1)


def draw_weights(heads: nn.Module) -> None:
    """Initial weights of their own, not from the global generator."""
    numbers = itertools.count()
    for module in heads.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            generator = torch.Generator().manual_seed(fold(0, "heads", next(numbers)))
            bound = module.weight[0].numel() ** -0.5
            with torch.no_grad():
                module.weight.copy_((2 * torch.rand(module.weight.shape, generator=generator) - 1) * bound)
                if module.bias is not None:
                    module.bias.zero_()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean relu(1 - D(real)) + mean relu(1 + D(fake))."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_apart(on_real: Tensor, on_fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's own loss, and the mean logits of each to log."""
    return hinge_discriminator(on_real, on_fake), {"real": on_real.detach().mean(), "fake": on_fake.detach().mean()}


def judge_apart(heads: nn.Module, real: Sequence[Tensor], fake: Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """`hinge_apart` on features of both, judged in one call."""
    return hinge_apart(*heads([torch.cat(pair) for pair in zip(real, fake, strict=True)]).chunk(2))
