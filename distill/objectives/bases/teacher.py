"""The model that is distilled: its networks as they are, its path and encoders, and its prediction under guidance.

Images or latents x are (B, C, H, W); levels hold one value per sample, (B,).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.checkpointing.digests import digest, weights_digest
from distill.types import Batch, encoded
from gen.models.folder import ModelConfig, Option, learns_variance, policy_of
from gen.models.options import DTYPES
from gen.models.pretrained import find_model, load_model
from gen.nn.conditions import join
from gen.nn.registry import Config
from samplers.denoiser import Condition, Context, Denoiser, NetworkDenoiser
from samplers.guidance.two_branch import Guided, as_guided, both_branches, lerp, scale_at
from samplers.interval import EVERYWHERE
from samplers.path import NoiseLevel
from samplers.path import Path as NoisePath
from samplers.registry import grid_info

Scale = float | Tensor  # a guidance scale, or one per sample (B,)


class TeacherConfig(Config):
    """The model that is distilled.

    model: "default", a model folder, a diffusers pipeline or a hub id.
    guidance_scale: a number, or [low, high] to draw one per sample uniformly; 1 is none.
    guidance_interval: (low, high) log-SNR in which guidance acts.
    solver, steps, schedule, schedule_options: how it is run, over how many levels of which grid.
    dtype: of its weights, which save memory as bfloat16.
    """

    model: str = "default"
    guidance_scale: float | tuple[float, float] = 1.0
    guidance_interval: tuple[float, float] | None = None
    solver: Literal["ddim", "euler", "heun"] = "ddim"
    steps: int = Field(default=64, gt=0)
    schedule: str = "uniform"
    schedule_options: dict[str, Option] = Field(default_factory=dict)
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _check(self) -> TeacherConfig:
        if isinstance(self.guidance_scale, tuple) and not self.guidance_scale[0] <= self.guidance_scale[1]:
            raise ValueError(f"guidance_scale {self.guidance_scale} is empty: give [low, high]")
        grid_info(self.schedule)
        return self


@dataclass
class Teacher:
    """A loaded model, which does not change.

    model: its config. weights: part -> sha256 of its file; empty for networks that were made in memory.
    """

    model: ModelConfig
    network: Any
    autoencoder: Any = None
    text_encoder: Any = None
    name: str = "unnamed"
    weights: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, config: TeacherConfig) -> Teacher:
        """Open the model that a config names, frozen and in evaluation mode."""
        name, folder = find_model(config.model)
        opened = load_model(folder)
        frozen = {part: network.eval().requires_grad_(False) for part, network in opened.parts.items()}
        network = frozen["denoiser"].to(DTYPES[config.dtype])
        return cls(opened.config, network, frozen.get("autoencoder"), frozen.get("text_encoder"), name, opened.weights)

    # ---- the denoiser ----

    @property
    def dtype(self) -> torch.dtype | None:
        """The type that its network computes in; None for float32, which needs no cast."""
        dtype = next((parameter.dtype for parameter in self.network.parameters()), None)
        return None if dtype == torch.float32 else dtype

    @property
    def path(self) -> NoisePath:
        return self.denoiser(self.network).path

    @property
    def takes_labels(self) -> bool:
        return bool(getattr(self.network.config, "num_classes", 0))

    def denoiser(self, network: nn.Module, dtype: torch.dtype | None = None, calls: nn.Module | None = None) -> NetworkDenoiser:
        """A network of the teacher's kind as a denoiser: its own, a student, a critic. calls: of a plain function, the network
        that it calls, which says whether half of the output is a variance."""
        made = self.model.denoiser(network, dtype)
        return made if calls is None else replace(made, learned_variance=learns_variance(calls), policy=policy_of(calls))

    # ---- what it reads ----

    def read_null(self) -> None:
        """Tell a network that has no empty prompt of its own what the text encoder makes of one."""
        if self.text_encoder is not None and getattr(self.network, "reads_null", False):
            self.network.set_null(self.text_encoder.condition("", True))

    @torch.no_grad()
    def clean(self, batch: Batch) -> Tensor:
        """The x0 of a batch (B, C, h, w), float32: scaled latents, or the pictures themselves."""
        if batch.latents is not None:
            return batch.latents * self.model.latent_scale
        return encoded(batch.images, self.autoencoder, self.model.latent_scale)

    def blank(self, batch: Batch) -> Tensor:
        """Zeros (B, C, h, w) of the size of its x0, for methods that draw pictures of prompts alone."""
        side = self.model.sample_size // getattr(self.autoencoder, "factor", 1)
        return torch.zeros(len(batch), self.network.config.channels, side, side, device=batch.index.device)

    @torch.no_grad()
    def condition(self, batch: Batch, device: torch.device) -> Condition:
        """What the captions or labels of a batch say."""
        if self.text_encoder is None or batch.captions is None:
            return Condition(label=batch.labels if self.takes_labels else None)
        encoder = self.text_encoder.to(device)
        if not hasattr(encoder, "encode"):
            return join([encoder.condition(caption) for caption in batch.captions])
        tokens, mask = encoder.encode(batch.captions)
        return Condition(tokens=tokens.float(), mask=mask)

    def empty_condition(self) -> Condition:
        """The condition of one picture of nothing."""
        if self.text_encoder is None:
            return Condition(label=torch.tensor([0]) if self.takes_labels else None)
        device = next(self.network.parameters()).device
        return self.condition(Batch(index=torch.arange(1), captions=[""]), device)

    def latent_size(self, largest: int = 16) -> tuple[int, int, int]:
        """(C, H, W) of a small latent that its network takes."""
        config: Any = self.network.config
        factor = getattr(self.autoencoder, "factor", 1)
        side = max(min(self.model.sample_size // factor, largest) // config.patch, 1) * config.patch
        return config.channels, side, side

    # ---- pictures ----

    def decode(self, x0: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) of x0 (B, C, h, w), differentiable in it, and not kept to [-1, 1]."""
        latents = x0 / self.model.latent_scale
        return (latents if self.autoencoder is None else self.autoencoder.to(x0.device).decode(latents)).float()

    def check_draws_pictures(self, instead: str) -> None:
        """ValueError where it draws nothing that a network of pictures could look at. instead: what to do about it."""
        sizes: Any = getattr(self.network, "config", None)
        channels = getattr(sizes, "channels", 3)
        if self.autoencoder is None and channels != 3:
            raise ValueError(
                f"Pictures are judged, but the teacher {self.name!r} draws {channels} channels and has no "
                f"autoencoder to make pictures of them; choose another teacher, or {instead}."
            )

    # ---- what a run depends on ----

    def sampling_digest(self, config: TeacherConfig, scale: float) -> str:
        """A hash of everything that its pictures depend on but the number of steps. scale: of guidance."""
        networks = {"denoiser": self.network, "autoencoder": self.autoencoder, "text_encoder": self.text_encoder}
        how = config.model_dump_json(exclude={"model", "steps"})
        return digest(weights_digest(networks), self.model.model_dump_json(), how, scale)

    def files_digest(self) -> str:
        """A hash of the files that it was read from."""
        return digest(sorted(self.weights.items()), self.model.model_dump_json())


def predict_guided(
    denoiser: Denoiser,
    x: Tensor,
    level: NoiseLevel,
    condition: Condition,
    scale: Scale = 1.0,
    interval: tuple[float, float] | None = None,
) -> Guided:
    """The prediction under classifier-free guidance (arXiv 2207.12598, equation 6, whose w is scale - 1); `cond` is the one
    without. Differentiable.

    scale: of guidance, or one per sample (B,). interval: (low, high) of log-SNR in which it acts; None: everywhere.
    """
    if not isinstance(scale, Tensor) and scale == 1:
        plain = denoiser(x, level, condition, Context())
        return as_guided(plain, plain.raw, plain)
    cond, null = both_branches(denoiser, x, level, condition, None, Context())
    inside = scale_at(lambda _: torch.as_tensor(scale), interval or EVERYWHERE, level)
    return as_guided(cond, lerp(null.raw, cond.raw, inside), cond, null)
