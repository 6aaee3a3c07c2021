"""Training of a model that paints any window of a scene around a given view of it (PQDiff, arXiv 2401.15652).

Every picture of a batch is cut twice: a small view, the anchor, is known, and a large one, the target, is denoised, each scaled
to the picture's size. The network (`gen.nn.backbones.positional_query`) is told where the target lies in units of the anchor.
The loss is the model's own, on the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.objectives.bases.student_sampling import sample_by, unit_noise
from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective
from distill.optim.precision import autocast
from distill.types import Batch, Draws, Phase, Preview, encoded, pictures_of
from gen.nn.backbones.positional_query import PositionalQuery, asks, relative_window
from samplers.denoiser import Condition

PREVIEWED = 6  # pictures


class PositionalQueryObjectiveConfig(DiffusionConfig):
    """anchor, target: (lowest, highest) share of a picture's area that the views have. ratio: of width to height, at most, and
    its inverse. drop_anchor: share of the samples that do not see their anchor, for guidance. The rest is of
    `DiffusionConfig`."""

    anchor: tuple[float, float] = (0.15, 0.5)
    target: tuple[float, float] = (0.8, 1.0)
    ratio: float = Field(default=4 / 3, ge=1, le=8)
    drop_anchor: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _shares(self) -> PositionalQueryObjectiveConfig:
        for name in ("anchor", "target"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(
                    f"{name} is {(low, high)}; give (lowest, highest) share of the area, with 0 < lowest <= highest <= 1"
                )
        return self


class PositionalQueryObjective(DiffusionObjective):
    """See the module. One role, `denoiser`; the data must be pictures."""

    draws_pictures = False  # of captions alone
    config: PositionalQueryObjectiveConfig
    source: ClassVar[str] = "PQDiff, arXiv 2401.15652"

    def __init__(self, config: PositionalQueryObjectiveConfig, network: nn.Module, source: Any = None):
        if not isinstance(network, PositionalQuery):
            raise ValueError(f"The network is a {type(network).__name__}; give network: {{type: positional_query}}.")
        super().__init__(config, network, source)

    def windows(self, draws: Draws, purpose: str, area: tuple[float, float]) -> Tensor:
        """Views (B, 4) of a picture: top, left, height and width in its own units, as a random resized crop has them."""
        share, ratio, down, right = draws.uniform(purpose, (4,)).double().unbind(1)
        size = (area[0] + (area[1] - area[0]) * share).sqrt()
        stretch = float(self.config.ratio) ** (ratio - 0.5)  # of a side, between the root of the ratio and its inverse
        height, width = (size / stretch).clamp(max=1), (size * stretch).clamp(max=1)
        return torch.stack([down * (1 - height), right * (1 - width), height, width], 1)

    def cut(self, batch: Batch, draws: Draws) -> Batch:
        """The batch of target views, with their anchors (B, 3, H, W) and windows in `extra`."""
        pictures, config = pictures_of(batch), self.config
        anchor, target = self.windows(draws, "anchor", config.anchor), self.windows(draws, "target", config.target)
        seen = draws.uniform("seen", device=pictures.device) >= config.drop_anchor
        extra = {
            "anchor picture": views(pictures, anchor),
            "window": relative_window(target, anchor).to(pictures),
            "seen": seen.to(pictures.dtype),
        }
        return replace(batch, images=views(pictures, target), latents=None, extra={**batch.extra, **extra})

    @torch.no_grad()
    def condition(self, batch: Batch, device: torch.device) -> Condition:
        plain = super().condition(batch, device)
        anchor = encoded(batch.extra["anchor picture"].to(device), self.autoencoder, self.config.latent_scale)
        extra = asks(anchor, batch.extra["window"].to(device), batch.extra["seen"].to(device))
        return replace(plain, extra={**plain.extra, **extra})

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return super().loss(phase, models, self.cut(batch, draws), draws, step)

    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview:
        """Anchors, the true targets, and what the model paints."""
        shown = self.cut(batch.first(PREVIEWED), Draws(seed, batch.first(PREVIEWED).index, "preview"))
        shown = self.known_inputs(replace(shown, extra={**shown.extra, "seen": torch.ones_like(shown.extra["seen"])}))
        like = self.clean(shown)
        condition, settings, own = self.condition(shown, like.device), self.config.defaults, self.config.preview
        with autocast(like.device):
            denoiser = self.denoiser(models["denoiser"])
            noise = unit_noise(range(seed, seed + len(like)), like)
            x0 = sample_by(denoiser, settings, noise, condition, steps=own.num_inference_steps, scale=own.guidance_scale)
            painted = self.render(x0)
        images = torch.cat([shown.extra["anchor picture"], pictures_of(shown), painted])
        return images, [name for name in ("anchor", "target", "painted") for _ in range(len(like))]

    def pictures(self, models: Mapping[str, nn.Module], batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
        raise NotImplementedError


def views(pictures: Tensor, windows: Tensor) -> Tensor:
    """Windows (B, 4) of pictures (B, 3, H, W), scaled to the pictures' size."""
    top, left, height, width = windows.to(pictures).unbind(1)
    theta = pictures.new_zeros(len(pictures), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = 2 * left + width - 1, 2 * top + height - 1
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode="bilinear", padding_mode="border", align_corners=False)
