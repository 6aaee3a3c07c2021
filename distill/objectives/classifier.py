"""Training of a classifier of noisy images for classifier guidance: cross-entropy at random noise levels.

Source: Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233, section 4 and appendix H.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.losses.levels import TimeConfig, draw_levels
from distill.objectives.bases.objective import Objective
from distill.types import Batch, Draws, Phase, Role, encoded
from gen.models.components import load_component
from gen.models.folder import PathConfig, RectifiedFlowPath
from gen.nn.registry import Config

if TYPE_CHECKING:
    from distill.data.source import Source


class ClassifierConfig(Config):
    """path and time: at which levels it learns; it serves other paths too. latent_scale, autoencoder: as the model that it is
    to guide has them (pictures are encoded where an autoencoder is given)."""

    path: PathConfig = RectifiedFlowPath(type="rectified_flow")
    time: TimeConfig = TimeConfig(type="uniform")
    latent_scale: float = Field(default=1.0, gt=0)
    autoencoder: Path | None = None
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class ClassifierObjective(Objective):
    """One role, `classifier`. Data gives latents or pictures, and labels. Logged: the share that is right, of all levels and of
    those with more image than noise."""

    def __init__(self, config: ClassifierConfig, network: nn.Module, source: Source | None = None):
        self.config, self.path = config, config.path.build()
        names = getattr(source, "concepts", None) or getattr(getattr(source, "source", None), "concepts", None)
        classifier: Any = network
        count = classifier.config.num_classes
        classifier.set_labels(names if names is not None else [str(label) for label in range(count)])
        self.autoencoder = load_component(config.autoencoder, "autoencoder") if config.autoencoder else None
        self.roles = {"classifier": Role(network)}

    @torch.no_grad()
    def clean(self, batch: Batch) -> Tensor:
        """The x0 of a batch (B, C, h, w): scaled latents, or the pictures themselves."""
        if batch.latents is not None:
            return batch.latents.float() * self.config.latent_scale
        return encoded(batch.images, self.autoencoder, self.config.latent_scale)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.labels is None:
            raise ValueError("A classifier learns labels, and the data have none; give data of type emoji_latents or images.")
        x0 = self.clean(batch)
        level = draw_levels(self.config.time, self.path, draws, x0.device)
        x = level.mix(x0, draws.normal_like("eps", x0))
        size = torch.hypot(level.alpha, level.sigma)
        logits = models["classifier"](x / size.view(-1, 1, 1, 1), torch.atan2(level.sigma, level.alpha))
        # arXiv 2105.05233, section 4: log p(y | x_t) at noise of every level
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=self.config.label_smoothing)
        right, seen = (logits.argmax(1) == batch.labels).float(), (level.logsnr > 0).float()
        return loss, {"top1": right.mean(), "top1_clear": (right * seen).sum() / seen.sum().clamp(min=1)}
