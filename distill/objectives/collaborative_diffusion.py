"""Learn how several frozen models share one picture: collaborative diffusion (arXiv 2304.10530).

Each model predicts the clean picture from its own condition, maps that sum to one over the models weigh the predictions, and
the maps alone are trained, with the ordinary diffusion loss of the mixture (`samplers.multi_model.collaborative_diffusion` has
the equations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.losses.levels import TimeConfig, draw_levels
from distill.objectives.bases.objective import Objective
from distill.types import Batch, Draws, Phase, Role, drop_labels, encoded
from gen.models.components import save_component
from gen.models.pretrained import find_model, load_model
from gen.nn.conditions import join
from gen.nn.influence_networks import Influences
from gen.nn.registry import Config
from samplers.denoiser import Condition, Context
from samplers.multi_model.collaborative_diffusion import CollaborativeDiffusion, Collaborator
from samplers.path import NoiseLevel
from samplers.prediction import Prediction

if TYPE_CHECKING:
    from distill.data.source import Source


class MemberConfig(Config):
    """One model. model: "default", a folder, a pipeline or a hub id. reads: what of a sample is its condition."""

    model: str = "default"
    reads: Literal["caption", "label", "nothing"] = "caption"


class CollaborateConfig(Config):
    """models: the first one decides the path and the latents. weight: of an error of x0 at a level
    (`distill.losses.distances`), at most max_weight; snr is the paper's error of eps. drop_label: share of the samples that are
    trained without their label."""

    models: tuple[MemberConfig, ...] = Field(min_length=1, max_length=16)
    time: TimeConfig = TimeConfig()
    weight: losses.Weight = "truncated_snr"
    max_weight: float = Field(default=25.0, gt=0)
    drop_label: float = Field(default=0.1, ge=0, le=1)


@dataclass(frozen=True)
class _Share:
    """The influence of a member, which is known already."""

    logits: Tensor

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
        return self.logits


class CollaborateObjective(Objective):
    """One role that trains, `influence`, and the models as they are. Data gives latents, or images, with captions or labels."""

    def __init__(self, config: CollaborateConfig, network: nn.Module, source: Source | None = None):
        if not isinstance(network, Influences):
            raise ValueError(
                f"The objective 'collaborate' trains influence maps, not {type(network).__name__}; "
                "give network: {type: influence, ...}."
            )
        if len(network.models) != len(config.models):
            raise ValueError(
                f"The network has the influence of {len(network.models)} models, and {len(config.models)} are given."
            )
        self.config = config
        self.opened = {name: load_model(find_model(name)[1]) for name in dict.fromkeys(m.model for m in config.models)}
        first = self.opened[config.models[0].model]
        self.latent_scale, self.autoencoder = first.config.latent_scale, first.parts.get("autoencoder")
        self.roles = {"influence": Role(network)}
        for i, (name, opened) in enumerate(self.opened.items()):
            if opened.config.latent_scale != self.latent_scale:
                raise ValueError(
                    f"The latents of {name!r} have another scale than the first model's; choose models that share one."
                )
            frozen = opened.parts["denoiser"].eval().requires_grad_(False)
            self.roles[f"model{i}"] = Role(frozen, trains=False, ema=False)
        self.role_of = {name: f"model{i}" for i, name in enumerate(self.opened)}
        self.path = first.config.denoiser(first.parts["denoiser"], torch.float32).path

    @torch.no_grad()
    def clean(self, batch: Batch) -> Tensor:
        """The x0 of a batch (B, C, h, w), float32."""
        if batch.latents is not None:
            return batch.latents.float() * self.latent_scale
        return encoded(batch.images, self.autoencoder, self.latent_scale)

    @torch.no_grad()
    def member_condition(self, batch: Batch, member: MemberConfig, device: torch.device) -> Condition:
        """What a member knows of a batch."""
        encoder: Any = self.opened[member.model].parts.get("text_encoder")
        if encoder is not None:
            captions = list(batch.captions or [""] * len(batch)) if member.reads == "caption" else [""] * len(batch)
            read = {text: encoder.to(device).condition(text) for text in dict.fromkeys(captions)}
            return join([read[text] for text in captions]).map(lambda v: v.float() if v.is_floating_point() else v)
        if member.reads == "label":
            return Condition(label=batch.labels)
        return Condition(label=torch.full((len(batch),), -1, device=device))

    def levels(self, draws: Draws, device: torch.device) -> NoiseLevel:
        """One level per sample, (B,)."""
        return draw_levels(self.config.time, self.path, draws, device)

    def mixture(
        self, models: Mapping[str, nn.Module], x: Tensor, level: NoiseLevel, conditions: list[Condition]
    ) -> tuple[Prediction, Tensor]:
        """(what the models say together, logits of their influence (B, N, H, W)); only the influence has gradients."""
        logits = models["influence"](x, level.logsnr, conditions).float()
        members = []
        for i, (member, condition) in enumerate(zip(self.config.models, conditions, strict=True)):
            network = models[self.role_of[member.model]]
            denoiser = self.opened[member.model].config.denoiser(network, torch.float32)
            members.append(Collaborator(denoiser, _Share(logits[:, i : i + 1]), condition))
        return CollaborativeDiffusion(tuple(members))(x, level, Condition(), Context()), logits

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, x0 = drop_labels(batch, self.config.drop_label, draws), self.clean(batch)
        level = self.levels(draws, x0.device)
        x = level.mix(x0, draws.normal_like("eps", x0))
        conditions = [self.member_condition(batch, member, x0.device) for member in self.config.models]
        said, logits = self.mixture(models, x, level, conditions)
        error = losses.squared(said.x0, x0)
        weight = losses.level_weight(self.config.weight, level, self.config.max_weight)
        share = logits.detach().softmax(1).mean((0, 2, 3))
        logged = {"error": error.detach().mean()} | {f"share{i}": v for i, v in enumerate(share)}
        return (weight.to(error) * error).mean(), logged

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """The influence network's folder; `gen.models.components.load_component(folder).members(denoisers, conditions)` uses
        it."""
        save_component(models["influence"], folder)
