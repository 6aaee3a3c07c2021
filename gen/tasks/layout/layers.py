"""Layouts of layers: things upon one another, each drawn on a canvas of its own, then refined together
(`samplers.multi_model.layers`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gen.nn.conditions import pad_to_longest, with_picture_size
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Crop, Decode, SamplingBatch, Settings, TaskTraits
from gen.tasks.layout.task import Layout, read_prompt
from samplers.multi_model.layers import BlendedLayers, shares_seen
from samplers.rows import expand_rows, stack_conditions

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.denoiser import Denoiser

UNTIL = 0.0  # log-SNR: as much picture as noise
BESIDE = ("layout", "transparent", "encoding")  # tasks that go with it


@dataclass(frozen=True)
class LayeredLayout(Layout):
    """Rows of x are the pictures, then their layers, the lowest first."""

    @property
    def traits(self) -> TaskTraits:
        return replace(super().traits, copies=1 + len(self.layout.regions))

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        tasks = {name: task for name, task in settings.tasks.items() if getattr(task, "name", "") != "merge"}
        if other := next((name for name in tasks if name not in BESIDE), None):
            raise ValueError(f"A layout of layers takes no {other}; leave it out, or give regions instead of layers.")

    def masks(self, factor: int) -> list[Tensor]:
        """How much of each layer is seen, (1, 1, h, w). ValueError where some of the picture belongs to none."""
        alphas = [
            mask * (1.0 if region.opacity is None else region.opacity)
            for mask, region in zip(self.own_masks(factor), self.layout.regions, strict=True)
        ]
        shares = shares_seen([alpha.double() for alpha in alphas])
        missing = 1 - torch.stack(shares).sum(0)
        if bool((missing > 1e-4).any()):
            raise ValueError(
                f"{float((missing > 1e-4).double().mean()):.0%} of the picture is in no opaque layer; let the first layer, the "
                "lowest, cover all of it (without box or mask)."
            )
        hidden = next((i for i, share in enumerate(shares) if not bool((share > 0).any())), None)
        if hidden is not None:
            raise ValueError(f"Nothing of layer {hidden} is seen, as those above cover it; leave it out, or move it.")
        return shares

    def _copied(self, rows: Tensor) -> Tensor:
        return torch.cat([rows] * self.traits.copies)

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        """With the same noise for every layer, at the beginning and later."""
        source = batch.source
        x = self._copied(batch.noise) * batch.settings.levels[0].sigma
        return replace(batch, x=x, source=lambda s, t: self._copied(source(s, t)))

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        """The layers around the guided network; the run's own prompt is that of the whole scene."""
        model, settings, negative, count = batch.model, batch.settings, batch.negative, len(batch.noise)
        texts = [read_prompt(model, text, settings.adapters, reading=settings.reading) for text in self.prompts]
        sized = [with_picture_size(text, model, 1, settings.seen) for text in texts]
        rows = [expand_rows(one, count) for one in pad_to_longest([batch.condition, *sized])]
        refused = None if negative is None else stack_conditions([expand_rows(negative, count)] * self.traits.copies)
        inner, _ = settings.guidance.build(denoiser, settings.solver, settings.scale, refused, settings.interval, batch.guided)
        until = UNTIL if self.layout.until is None else self.layout.until
        shares = tuple(share.float().to(batch.noise.device) for share in self.masks(model.factor))
        return BlendedLayers(inner, shares, until, stack_conditions(rows))

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        return decode(latents[: len(latents) // self.traits.copies], crop)
