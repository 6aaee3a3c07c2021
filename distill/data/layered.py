"""Drawings with true alpha upon backgrounds: pictures, and the layers that they consist of.

The things are those of the emoji data, in scenes if its config asks for them. What lies behind is, by shares, what the caption
says (white, or a plain colour), any plain colour, two colours that run into one another, or other drawings, large and out of
focus. Some things cast a soft shadow, which is black with alpha and belongs to the thing (as visual effects do in LayerDecomp,
arXiv 2411.17864). Every sample is a function of (seed, counter).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from distill.data.emoji.data import EmojiConfig, EmojiData
from distill.data.emoji.scenes import DrawingScene, Placed, SceneConfig, warp
from distill.types import Batch
from gen.io.alpha import over, upon
from gen.nn.registry import Config
from samplers.noise import fold


class LayeredConfig(Config):
    """drawings: the things, as of `emoji`. plain, gradient, drawn: shares of samples with any plain colour behind them, with
    two colours that run into one another, with other drawings; the others have what their caption says. shadow: share of
    samples with a soft shadow."""

    drawings: EmojiConfig = EmojiConfig(scenes=SceneConfig(shift=0.1, shrink=0.4, turn=0.5, degrees=15))
    plain: float = Field(default=0.2, ge=0, le=1)
    gradient: float = Field(default=0.15, ge=0, le=1)
    drawn: float = Field(default=0.15, ge=0, le=1)
    shadow: float = Field(default=0.2, ge=0, le=1)

    @model_validator(mode="after")
    def _shares(self) -> LayeredConfig:
        if (total := self.plain + self.gradient + self.drawn) > 1:
            raise ValueError(f"plain, gradient and drawn are shares of all samples, and sum to at most 1, not {total:.2f}")
        return self


class LayeredDrawings:
    """A data source (see distill.data.Source). Batches have pictures and captions; `extra` has "foreground", the layers (B, 4,
    H, W) with colours multiplied by alpha, and "background" (B, 3, H, W), both in [0, 1]."""

    def __init__(self, config: LayeredConfig | None = None, seed: int = 0):
        self.config, self.seed = config or LayeredConfig(), seed
        self.drawings = EmojiData(self.config.drawings, seed)

    def __len__(self) -> int:
        return len(self.drawings)

    def digest(self) -> str:
        """A hash of the archives."""
        return self.drawings.digest()

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        numbers = [int(counter) for counter in counters]
        scenes, captions = zip(*(self._scene(counter) for counter in numbers), strict=True)
        pairs = [self._layers(scene, counter) for scene, counter in zip(scenes, numbers, strict=True)]
        foreground, background = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        return Batch(
            index=torch.tensor(numbers),
            images=upon(foreground, background).clamp_(0, 1).mul_(2).sub_(1),
            captions=list(captions),
            labels=self.drawings.labels[[scene.things[0].index for scene in scenes]],
            extra={"foreground": foreground, "background": background},
        )

    def _scene(self, counter: int) -> tuple[DrawingScene, str]:
        """What sample `counter` shows, and its caption."""
        drawings = self.drawings
        if drawings.config.scenes is not None:
            return drawings.scene(counter)
        ((index, k),) = drawings.choose([counter])
        variant = drawings.variant(index, k)
        return DrawingScene((Placed(index, variant.color),), variant.background), drawings.caption(variant, counter)

    def _layers(self, scene: DrawingScene, counter: int) -> tuple[Tensor, Tensor]:
        """(foreground (1, 4, H, W), background (1, 3, H, W)) of a sample."""
        rng = random.Random(fold(self.seed, "layers", counter))
        foreground = self._placed(scene.things)
        if rng.random() < self.config.shadow:
            foreground = over(foreground, shadow_of(foreground, rng))
        return foreground.clamp(0, 1), self._behind(scene, rng)

    def _placed(self, things: Sequence[Placed]) -> Tensor:
        """The layer (1, 4, H, W) of things upon one another."""
        size, drawings = self.drawings.config.size, self.drawings.draw(things)
        layer = torch.zeros(1, 4, size, size)
        for drawing, thing in zip(drawings, things, strict=True):
            layer = over(warp(drawing[None], [thing], size), layer)
        return layer

    def _behind(self, scene: DrawingScene, rng: random.Random) -> Tensor:
        config, kind, size = self.config, rng.random(), self.drawings.config.size
        own = self.drawings.backgrounds([scene.background])[:, :, None, None].expand(1, 3, size, size)
        first, second = (torch.tensor([rng.random() for _ in range(3)])[None, :, None, None] for _ in range(2))
        if kind < config.plain:
            return first.expand(1, 3, size, size)
        if kind < config.plain + config.gradient:
            return torch.lerp(first, second, _ramp(size, rng))
        if kind < config.plain + config.gradient + config.drawn:
            return self._drawn(first.expand(1, 3, size, size), rng)
        return own

    def _drawn(self, behind: Tensor, rng: random.Random) -> Tensor:
        """One to three drawings upon a colour, larger than the picture and out of focus."""
        count = rng.randint(1, 3)
        things = [
            Placed(rng.randrange(len(self)), None, rng.uniform(-0.8, 0.8), rng.uniform(-0.8, 0.8), rng.uniform(0.8, 2.2),
                   rng.uniform(-180, 180))
            for _ in range(count)
        ]  # fmt: skip
        return blurred(upon(self._placed(things), behind), rng.uniform(0.5, 5.0)).clamp(0, 1)


def _ramp(size: int, rng: random.Random) -> Tensor:
    """(1, 1, size, size) from 0 to 1, straight across in any direction or outwards from a point."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    a, b = rng.uniform(-1, 1), rng.uniform(-1, 1)
    ramp = a * x + b * y if rng.random() < 0.6 else ((x - a) ** 2 + (y - b) ** 2).sqrt()
    return ((ramp - ramp.min()) / (ramp.max() - ramp.min()).clamp_min(1e-6))[None, None]


def blurred(picture: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) under a Gaussian of `sigma` pixels, edges repeated."""
    reach = max(1, min(round(3 * sigma), min(picture.shape[2:]) - 1))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = (weights / weights.sum()).to(picture)
    channels = picture.shape[1]
    for axis, shape in ((3, (1, 1, 1, -1)), (2, (1, 1, -1, 1))):
        padding = (reach, reach, 0, 0) if axis == 3 else (0, 0, reach, reach)
        kernel = weights.view(shape).expand(channels, 1, *[len(weights) if size == -1 else 1 for size in shape[2:]])
        picture = F.conv2d(F.pad(picture, padding, mode="replicate"), kernel, groups=channels)
    return picture


def shadow_of(layer: Tensor, rng: random.Random) -> Tensor:
    """A soft shadow of a layer (1, 4, H, W): black, moved aside and blurred, as a layer."""
    size = layer.shape[-1]
    down, right = round(rng.uniform(0.02, 0.08) * size), round(rng.uniform(-0.06, 0.06) * size)
    alpha = torch.zeros_like(layer[:, 3:])
    cut = layer[:, 3:, : size - down, max(0, -right) : size - max(0, right)]
    alpha[..., down:, max(0, right) : size - max(0, -right)] = cut
    alpha = blurred(alpha, rng.uniform(0.01, 0.04) * size) * rng.uniform(0.2, 0.6)
    return torch.cat([torch.zeros_like(layer[:, :3]), alpha], 1)
