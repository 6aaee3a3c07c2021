"""A translator as it trains: with the perceptrons that PatchNCE compares its encoder's features through, in one module."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.patch_contrast import patch_nce, patches_of
from distill.networks.discriminator import start_weights
from distill.parallel import recompute
from gen.models.translation.network import TranslationJob, Translator

Places = Sequence[Tensor]  # (B, P) for each map: which of its pixels are compared


class PatchProjector(nn.Module):
    """A perceptron of two layers for each map, to features of unit length (arXiv 2007.15651, section 3)."""

    def __init__(self, widths: Sequence[int], dim: int = 256):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, dim)) for width in widths)
        start_weights(self)

    def forward(self, maps: Sequence[Tensor], places: Places) -> list[Tensor]:
        """(B, P, dim) of each map."""
        chosen = [patches_of(one, where) for one, where in zip(maps, places, strict=True)]
        return [F.normalize(layer(one).float(), dim=-1) for layer, one in zip(self.layers, chosen, strict=True)]


class TrainedTranslator(nn.Module):
    """A `Translator` and, where pictures are contrasted, a projector for the maps of its encoder.

    Everything of an update is asked for in one call, so that what wraps it for several processes sees one.
    """

    def __init__(self, translator: Translator, projected: int | None = None):
        """projected: width of the projector's features, None for no projector."""
        super().__init__()
        self.translator = translator
        widths = [shown for shown, _ in translator.skips.widths]
        channels = translator.base.network.config.channels
        self.projector = None if projected is None else PatchProjector([*widths, channels], projected)

    @property
    def config(self) -> Any:
        return self.translator.base.network.config

    def enable_recompute(self) -> int:
        """Gradient checkpointing of the denoiser's blocks; returns how many modules have it."""
        return recompute.enable(self.translator.base.network)

    def forward(
        self, *jobs: TranslationJob, contrast: Mapping[int, tuple[Places, float]] | None = None
    ) -> list[tuple[Tensor, Tensor | None, Tensor | None]]:
        """(pictures, those translated back or None, PatchNCE (B,) or None) of every job.

        contrast: number of a job -> (places of each map, temperature): its pictures are contrasted with what they were made
        from, as its direction's encoder sees both.
        """
        made = []
        for number, (job, (there, back)) in enumerate(zip(jobs, self.translator(*jobs), strict=True)):
            contrasted = None
            if contrast is not None and number in contrast:
                contrasted = self.contrast(job, there, *contrast[number])
            made.append((there, back, contrasted))
        return made

    def seen(self, direction: str, images: Tensor) -> list[Tensor]:
        """The maps of a direction's encoder, the coarsest first, and its latents."""
        latents, maps = self.translator.encode(direction, images)
        return [*maps, latents]

    def contrast(self, job: TranslationJob, made: Tensor, places: Places, temperature: float) -> Tensor:
        """PatchNCE (B,), the mean over maps (arXiv 2007.15651, equation 4, over layers)."""
        assert self.projector is not None
        pairs = zip(
            self.projector(self.seen(job.direction, made), places),
            self.projector(self.seen(job.direction, job.images), places),
            strict=True,
        )
        losses = [patch_nce(query, key, temperature) for query, key in pairs]
        return sum(losses[1:], losses[0]) / len(losses)

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainedTranslator:
        twin = TrainedTranslator.__new__(TrainedTranslator)
        nn.Module.__init__(twin)
        twin.translator = copy.deepcopy(self.translator, memo)
        twin.projector = copy.deepcopy(self.projector, memo)
        return twin.train(self.training)
