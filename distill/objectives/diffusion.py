"""Train a denoiser by predicting what noise was added: diffusion and flow matching in one loss.

The network predicts raw = a x0 + b eps (its prediction row); the error may be measured on any other reading. As x is given,
alpha dx0 + sigma deps = 0, so the error of a reading p x0 + q eps is (p - q alpha / sigma) dx0, and measuring it there only
weighs the raw error: no conversion, no cancellation. prediction=x0 with loss=flow is JiT's recipe (arXiv 2511.13720). A
`weighting` (`distill.losses.loss_weighting`) says instead how much each level counts, whatever the network predicts. EDM's
recipe (arXiv 2206.00364) is prediction, input_scale and weighting edm on log_normal levels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from distill.losses.coupling import CouplingConfig, couple
from distill.losses.levels import TimeConfig, draw_levels, log_density
from distill.losses.loss_weighting import Weighting, bounded_level, factor_on_x0
from distill.objectives.bases.objective import Objective
from distill.objectives.bases.student_sampling import sample_by
from distill.optim.precision import autocast
from distill.types import Batch, Draws, Phase, Preview, Role, drop_labels, encoded, knows_no_label
from gen.models.components import load_component
from gen.models.folder import Defaults, ModelConfig, PathConfig, RectifiedFlowPath, learns_variance, write_model
from gen.nn.registry import Config
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.hooks import with_hook
from samplers.noise import normal
from samplers.path import NoiseLevel, Scalar, expand

if TYPE_CHECKING:
    from distill.data.source import Source

Kind = Literal["eps", "x0", "v", "flow", "edm"]


class DiffusionPreviewConfig(Config):
    """The contact sheet made while training, by the sampler, grid and guidance of `defaults`, which the exported model draws
    with; its steps and guidance scale, too, where none are given here."""

    prompts: tuple[str, ...] = ("a red heart",)
    num_inference_steps: int | None = Field(default=None, gt=0)
    guidance_scale: float | None = None


def keep_stages(context: Context) -> tuple[Context, list[Tensor]]:
    """(the context of one call, where the predictions of all resolutions but the finest will be, coarsest first)."""
    found: list[Tensor] = []

    def keep(index: int, count: int, run: Callable[[], Tensor]) -> Tensor:
        out = run()
        if index < count - 1:
            found.append(out)
        return out

    return with_hook(context, "stage", keep), found


def averaged(x0: Tensor, eps: Tensor, grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(x0, eps) (B, C, H, W) averaged to a coarser grid, where the noise is scaled to a standard deviation of 1 again.

    Source: DiMR, arXiv 2406.09416, section 3.2, and its published targets."""
    cell = (x0.shape[2] // grid[0], x0.shape[3] // grid[1])
    if cell == (1, 1):
        return x0, eps
    return F.avg_pool2d(x0, cell), F.avg_pool2d(eps, cell) * (cell[0] * cell[1]) ** 0.5


class DiffusionConfig(Config):
    """See the module. min_sigma bounds the weight of the cleanest levels; autoencoder, text_encoder: component folders.

    coupling: which noise of a batch goes to which picture (`distill.losses.coupling`). drop_label: share of the samples that
    are trained without their label, for guidance; empty captions are the data's (`drop_caption`).

    stage_weight: of the error of each coarser stage of a network of several resolutions (DiMR), over that of the next finer."""

    path: PathConfig = RectifiedFlowPath(type="rectified_flow")
    prediction: Kind = "flow"
    loss: Kind | None = None  # the reading whose error is measured; the predicted one if not given
    weighting: Weighting | None = None
    min_sigma: float = Field(default=0.05, gt=0)
    time: TimeConfig = TimeConfig()
    coupling: CouplingConfig = CouplingConfig()
    drop_label: float = Field(default=0.1, ge=0, le=1)
    stage_weight: float = Field(default=0.25, gt=0)
    clock: Literal["t", "999t", "1000t", "index", "log_sigma/4"] = "1000t"
    input_scale: Literal["none", "edm"] = "none"
    sigma_data: float = Field(default=0.5, gt=0)
    latent_scale: float = Field(default=1.0, gt=0)
    autoencoder: Path | None = None
    text_encoder: Path | None = None
    preview: DiffusionPreviewConfig = DiffusionPreviewConfig()
    defaults: Defaults = Defaults()  # of the exported model

    @model_validator(mode="after")
    def _one_weighting(self) -> DiffusionConfig:
        if self.loss is not None and self.weighting is not None:
            raise ValueError("loss and weighting both say how much a level counts; give one of them")
        return self


class DiffusionObjective(Objective):
    """One role, `denoiser`. Data gives latents, or images (encoded here if there is an autoencoder), and captions or labels."""

    draws_pictures = True

    def __init__(self, config: DiffusionConfig, network: nn.Module, source: Source | None = None):
        self.config = config
        self.path = config.path.build()
        self.roles = {"denoiser": Role(network)}
        self.autoencoder: Any = load_component(config.autoencoder, "autoencoder") if config.autoencoder else None
        self.text_encoder: Any = load_component(config.text_encoder, "text_encoder") if config.text_encoder else None

    def denoiser(self, network: nn.Module) -> NetworkDenoiser:
        config = self.config
        return NetworkDenoiser(
            network,
            self.path,
            config.prediction,
            config.clock,
            config.input_scale,
            sigma_data=config.sigma_data,
            learned_variance=learns_variance(network),
        )

    @torch.no_grad()
    def clean(self, batch: Batch) -> Tensor:
        """The x0 of a batch (B, C, h, w), float32: scaled latents, or the pictures themselves."""
        if batch.latents is not None:
            return batch.latents.float() * self.config.latent_scale
        return encoded(batch.images, self.autoencoder, self.config.latent_scale)

    def known_inputs(self, batch: Batch) -> Batch:
        """The batch with nothing but what the network receives of it: the rest must not decide which noise is whose."""
        reads = getattr(getattr(self.roles["denoiser"].network, "config", None), "num_classes", 1)
        return replace(
            batch, labels=batch.labels if reads else None, captions=None if self.text_encoder is None else batch.captions
        )

    @torch.no_grad()
    def condition(self, batch: Batch, device: torch.device) -> Condition:
        if self.text_encoder is None:
            return Condition(label=batch.labels)
        tokens, mask = self.text_encoder.to(device).encode(batch.captions)
        return Condition(tokens=tokens.float(), mask=mask)

    def trained_condition(self, batch: Batch, x0: Tensor, draws: Draws) -> Condition:
        """What the network is told in training, where that differs from what it is told when it draws."""
        return self.condition(batch, x0.device)

    def levels(self, draws: Draws, device: torch.device) -> NoiseLevel:
        """One level per sample, (B,)."""
        return draw_levels(self.config.time, self.path, draws, device)

    def weight(self, level: NoiseLevel) -> Scalar:
        """The factor from an error of the raw prediction to one of the measured or weighted reading, (B,)."""
        config = self.config
        if config.weighting is None and config.loss in (None, config.prediction):
            return 1.0
        bounded = bounded_level(level, config.min_sigma)

        def on_x0(kind: str) -> Scalar:
            return factor_on_x0(kind, bounded, self.path, config.sigma_data)

        if config.weighting is None:
            return on_x0(config.loss or config.prediction) / on_x0(config.prediction)
        weight = config.weighting.on_x0(
            (bounded.alpha / bounded.sigma) ** 2, lambda: log_density(config.time, self.path, level)
        )
        return weight.sqrt() / on_x0(config.prediction)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch = self.known_inputs(batch)
        if knows_no_label(self.roles["denoiser"].network):
            batch = drop_labels(batch, self.config.drop_label, draws)
        x0 = self.clean(batch)
        level = self.levels(draws, x0.device)
        eps = couple(self.config.coupling, x0, draws.normal_like("eps", x0), batch, draws)
        x = level.mix(x0, eps)
        context, coarse = keep_stages(Context())
        prediction = self.denoiser(models["denoiser"])(x, level, self.trained_condition(batch, x0, draws), context)
        a, b = prediction.row

        def error_of(raw: Tensor) -> Tensor:
            data, noise = averaged(x0, eps, raw.shape[2:])
            return (raw.float() - expand(a, x) * data - expand(b, x) * noise).square().flatten(1).mean(1)

        error = error_of(prediction.raw)
        weight = self.weight(level) ** 2
        total = (weight * error).mean()
        for number, raw in enumerate(reversed(coarse), 1):
            total = total + self.config.stage_weight**number * (weight * error_of(raw)).mean()
        return total, {"raw_error": error.detach().mean()}

    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview | None:
        config, network = self.config.preview, models["denoiser"]
        like = self.clean(batch)
        if self.text_encoder is not None:
            prompts = Batch(index=torch.arange(len(config.prompts)), captions=config.prompts)
            condition = self.condition(prompts, like.device)
        else:
            condition = self.condition(self.known_inputs(batch), like.device).map(lambda v: v[:16])
        count = len(config.prompts) if self.text_encoder is not None else min(16, len(batch))
        noise = normal(range(seed, seed + count), like.shape[1:], device=like.device)
        with autocast(like.device):
            steps = config.num_inference_steps or self.config.defaults.num_inference_steps
            images = self.render(self.draw(network, noise, condition, steps))
        return images, config.prompts if self.text_encoder is not None else None

    def draw(self, network: nn.Module, noise: Tensor, condition: Condition, steps: int) -> Tensor:
        """x0 (B, C, h, w) from unit noise, as the exported model draws it by default."""
        settings, scale = self.config.defaults, self.config.preview.guidance_scale
        return sample_by(self.denoiser(network), settings, noise, condition, steps=steps, scale=scale)

    def render(self, x0: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of x0 (B, C, h, w)."""
        latents = x0 / self.config.latent_scale
        return (latents if self.autoencoder is None else self.autoencoder.to(x0.device).decode(latents)).float().clamp(-1, 1)

    @torch.no_grad()
    def decoded(self, batch: Batch) -> Tensor:
        return batch.images if batch.images is not None else self.render(self.clean(batch))

    @torch.no_grad()
    def pictures(self, models: Mapping[str, nn.Module], batch: Batch, seeds: Sequence[int], steps: int) -> Tensor:
        like = self.clean(batch)
        noise = normal(seeds, like.shape[1:], device=like.device)
        return self.render(self.draw(models["denoiser"], noise, self.condition(self.known_inputs(batch), like.device), steps))

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        """A model folder that `Generator.from_pretrained` opens."""
        network: Any = models["denoiser"]
        config = ModelConfig(
            path=self.config.path,
            prediction=self.config.prediction,
            clock=self.config.clock,
            input_scale=self.config.input_scale,
            sigma_data=self.config.sigma_data,
            latent_scale=self.config.latent_scale,
            sample_size=network.config.size * (self.autoencoder.factor if self.autoencoder else 1),
            defaults=self.config.defaults,
        )
        write_model(folder, config, network, self.autoencoder, self.text_encoder)
