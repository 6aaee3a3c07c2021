"""A discriminator on the features of a denoiser: small heads on the tokens of some of its blocks, one by one or pooled.

The features are functions of (x, level, condition), so it judges noisy latents with no decoder and no second backbone. A U-Net
has no blocks of one width: of it the levels on the way down and the middle are read, every place of a map being a token. Of
networks that work on text and picture together the picture's tokens are read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.adversarial import AdversarialLossConfig, relativistic, squared_gradients, weighted_penalties
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.hooks import check_reached, with_hook
from samplers.noise import fold
from samplers.path import NoiseLevel


def hook_of(network: Any) -> str:
    """The hook by which a network, or the LoRA on one, shows what is inside of it: block or map."""
    return getattr(getattr(network, "base", network), "shows", "block")


def record_features(
    context: Context, blocks: Sequence[int] | None, network: Any, x: Tensor
) -> tuple[Context, dict[int, Tensor]]:
    """(the context of one call on x that keeps the tokens after some blocks, or all, of a network; where they will be, by
    block)."""
    found: dict[int, Tensor] = {}
    base = getattr(network, "base", network)
    patch = base.config.patch if getattr(base, "bridged", False) else 0
    length = (x.shape[2] // patch) * (x.shape[3] // patch) if patch else None

    def keep(index: int, count: int, run: Callable[[], Tensor]) -> Tensor:
        if blocks is not None and max(blocks) >= count:
            raise ValueError(f"The discriminator reads block {max(blocks)}, but the network has {count}, counted from 0.")
        out = run()
        if blocks is None or index in blocks:
            if out.ndim == 4:
                found[index] = out.flatten(2).mT.float()
            else:
                found[index] = (out if length is None else out[:, -length:]).float()  # text comes first
        return out

    hook = hook_of(network)
    shown = keep if hook == "map" else lambda index, count, tokens, run: keep(index, count, run)
    return with_hook(context, hook, shown), found


def quarter_blocks(depth: int) -> tuple[int, ...]:
    """A quarter, half and three quarters of the way through, and the last."""
    return tuple(sorted({depth * k // 4 for k in (1, 2, 3)} | {depth - 1}))


def block_features(
    denoiser: NetworkDenoiser, x: Tensor, level: NoiseLevel, condition: Condition, blocks: Sequence[int]
) -> list[Tensor]:
    """The tokens (B, L, D) after some blocks of a network, float32; differentiable in x. ValueError if it has none."""
    context, found = record_features(Context(), blocks, denoiser.network, x)
    denoiser(x, level, condition, context)
    check_reached(context, hook_of(denoiser.network), "The discriminator")
    return [found[index] for index in blocks]


@torch.no_grad()
def feature_widths(denoiser: NetworkDenoiser, size: Sequence[int], condition: Condition) -> list[int]:
    """How many channels the tokens after each block of a network have, by one call on a picture of a size (C, H, W)."""
    x = torch.zeros(1, *size, device=next(denoiser.network.parameters()).device)  # type: ignore[attr-defined]
    level = denoiser.path(torch.full((1,), 0.5 * denoiser.path.t_noise, dtype=torch.float64, device=x.device))  # type: ignore[attr-defined]
    context, found = record_features(Context(), None, denoiser.network, x)
    denoiser(x, level, condition, context)
    check_reached(context, hook_of(denoiser.network), "The discriminator")
    return [found[index].shape[2] for index in sorted(found)]


def choose_blocks(
    denoiser: NetworkDenoiser,
    size: Sequence[int],
    condition: Condition,
    chosen: Sequence[int],
    default: Callable[[int], tuple[int, ...]],
) -> tuple[tuple[int, ...], list[int]]:
    """(the blocks whose tokens a discriminator reads, the width of each): those chosen, or, none given, those that `default`
    takes of their number; of a U-Net all levels on the way down and the middle.

    size: (C, H, W) of a small x that the network takes. condition: of one sample. ValueError for a block that is not there.
    """
    widths = feature_widths(denoiser, size, condition)
    blocks = tuple(chosen) or (default(len(widths)) if hook_of(denoiser.network) == "block" else tuple(range(len(widths))))
    if max(blocks) >= len(widths):
        raise ValueError(f"The discriminator reads block {max(blocks)}, but the network has {len(widths)}, counted from 0.")
    return blocks, [widths[block] for block in blocks]


class TokenHeads(nn.Module):
    """Per block, a two-layer perceptron that judges every token: (B, L, D) each -> logits (B, sum of L). width: D, one for all
    `blocks`, or one for each."""

    def __init__(self, width: int | Sequence[int], blocks: int | None = None, hidden: int = 64):
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(own), nn.Linear(own, hidden), nn.SiLU(), nn.Linear(hidden, 1))
            for own in each_width(width, blocks)
        )
        start_weights(self)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return torch.cat([head(tokens)[..., 0].float() for head, tokens in zip(self.heads, features, strict=True)], dim=1)


class PooledHeads(nn.Module):
    """Per block, a two-layer perceptron on each channel's mean and deviation over the tokens: (B, L, D) each and the network's
    time (B,) -> logits (B, blocks). It judges whole pictures.

    Every number is brought to mean 0 and deviation 1 by its statistics over data at `knots` times, interpolated between them:
    how much noise there is moves these numbers far more than who drew the picture. width: D, one for all `blocks`, or one for
    each.
    """

    times: Tensor
    center: Tensor
    spread: Tensor

    def __init__(self, width: int | Sequence[int], blocks: int | None = None, hidden: int = 64, knots: int = 8):
        super().__init__()
        widths = each_width(width, blocks)
        self.heads = nn.ModuleList(nn.Sequential(nn.Linear(2 * own, hidden), nn.SiLU(), nn.Linear(hidden, 1)) for own in widths)
        start_weights(self)
        self.register_buffer("times", torch.linspace(0, 1, knots))
        self.register_buffer("center", torch.zeros(knots, len(widths), 2 * max(widths)))
        self.register_buffer("spread", torch.ones(knots, len(widths), 2 * max(widths)))

    @staticmethod
    def pooled(features: Sequence[Tensor]) -> Tensor:
        """(B, blocks, 2 D) with the largest D; what a block lacks of it is 0, at the end."""
        numbers = [torch.cat([tokens.mean(1), (tokens.var(1) + 1e-6).sqrt()], 1) for tokens in features]
        most = max(part.shape[1] for part in numbers)
        return torch.stack([F.pad(part, (0, most - part.shape[1])) for part in numbers], 1)

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
        heads: Any = self.heads
        judged = zip(heads, numbers, strict=True)
        return torch.cat([head(part[:, : head[0].in_features]).float() for head, part in judged], dim=1)


class ChannelMean(nn.Module):
    """The mean over channels of every token, (B, L, D) each -> logits (B, sum of L): no weights of its own, so that the network
    itself is the discriminator. Source: arXiv 2410.14919 (SiDA)."""

    def forward(self, features: Sequence[Tensor], time: Tensor) -> Tensor:
        return torch.cat([tokens.float().mean(2) for tokens in features], dim=1)


def each_width(width: int | Sequence[int], blocks: int | None) -> tuple[int, ...]:
    """One width for every block."""
    return (width,) * (blocks or 1) if isinstance(width, int) else tuple(width)


def start_weights(heads: nn.Module) -> None:
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


def prompt_vector(condition: Condition) -> Tensor | None:
    """What a prompt says as a whole, (B, P) of length sqrt(P): the vector that comes with its tokens, or their mean; None where
    there is none."""
    if condition.pooled is not None:
        mean = condition.pooled.float()
    elif condition.tokens is None:
        return None
    else:
        tokens = condition.tokens
        weight = torch.ones_like(tokens[..., :1]) if condition.mask is None else condition.mask.to(tokens)[..., None]
        mean = (tokens * weight).sum(1) / weight.sum(1).clamp(min=1)
    return F.normalize(mean, dim=-1) * mean.shape[-1] ** 0.5


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean relu(1 - D(real)) + mean relu(1 + D(fake))."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def logistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-D(real)) + mean softplus(D(fake)): of the original GAN, arXiv 1406.2661, equation 1."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def non_saturating(logits: Tensor) -> Tensor:
    """mean softplus(-D(fake)): the student's loss beside the logistic one, arXiv 1406.2661, section 3."""
    return F.softplus(-logits).mean()


def loss_with_logs(
    config: AdversarialLossConfig, on_real: Tensor, on_fake: Tensor, own: TellingApart = hinge_discriminator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The discriminator's loss, its method's own or the relativistic one, and the mean logits of each to log."""
    loss = relativistic(on_real, on_fake).mean() if config.relativistic else own(on_real, on_fake)
    return loss, {"real": on_real.detach().mean(), "fake": on_fake.detach().mean()}


class Noised(NamedTuple):
    """Samples (B, ...) that are judged, and the levels at which they are."""

    x: Tensor
    level: NoiseLevel


See = Callable[[Noised], Sequence[Tensor]]  # the features of samples, differentiable in them
Fooling = Callable[[Tensor], Tensor]  # logits (B, N) of drawn samples -> a student's loss
TellingApart = Callable[[Tensor, Tensor], Tensor]  # logits of data and of drawn samples -> a discriminator's loss


def tell_apart(
    config: AdversarialLossConfig,
    heads: Callable[..., Any],
    see: See,
    real: Noised,
    fake: Noised,
    own: TellingApart = hinge_discriminator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of heads, judging both in one call, with the penalties on their gradient at the noised samples, and what is
    logged. With weights for these the network that sees must have been through `allow_second_gradients`."""
    penalised = config.penalised and torch.is_grad_enabled()
    judged = [part._replace(x=part.x.detach().requires_grad_(penalised)) for part in (real, fake)]
    with torch.set_grad_enabled(penalised):
        features = [see(part) for part in judged]
    logits = heads([torch.cat(pair) for pair in zip(*features, strict=True)])
    on_real, on_fake = logits.chunk(2)
    total, logged = loss_with_logs(config, on_real, on_fake, own)
    if penalised:
        halves = zip((on_real, on_fake), judged, strict=True)
        squared = [squared_gradients(half.mean(1), [part.x]) for half, part in halves]
        penalty, more = weighted_penalties(config, *squared)
        total, logged = total + penalty, logged | more
    return total, logged


def fooling_loss(
    config: AdversarialLossConfig, heads: Callable[..., Any], see: See, real: Callable[[], Noised], fake: Noised, own: Fooling
) -> Tensor:
    """The student's loss for its samples, differentiable in them: its method's own of their logits, or the relativistic one,
    for which alone data are made and seen. heads: with weights that do not train here."""
    features = see(fake)
    if not config.relativistic:
        return own(heads(features))
    with torch.no_grad():
        beside = see(real())
    on_fake, on_real = heads([torch.cat(pair) for pair in zip(features, beside, strict=True)]).chunk(2)
    return relativistic(on_fake, on_real).mean()


def allow_second_gradients(network: Any) -> None:
    """Have a network, or the one that a LoRA is on, compute attention by plain products: the gradient of the fused kernels has
    no gradient of its own."""
    base = getattr(network, "base", network)
    if hasattr(base, "attention_backend"):
        base.attention_backend = "math"
