"""A pipeline that is run as a whole, in the place that a model has for its network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.generic.call import PipelineCall
from gen.models.bridge.generic.noise import scheduler_noise
from gen.models.bridge.generic.run import BACKBONES
from gen.models.bridge.network import BridgedConfig
from gen.models.folder import ModelConfig
from samplers.denoiser import Condition, Context


class PipelineNetwork(nn.Module):
    """Holds a pipeline. It has no parameters of its own: the pipeline's stay where its maker put them.

    pipe: the pipeline.
    owned: it was opened here, and goes to a device with the model.
    """

    whole = True
    attention_backend = "diffusers"  # for the recipe: diffusers chooses it

    def __init__(self, pipe: Any, owned: bool = False):
        super().__init__()
        object.__setattr__(self, "pipe", pipe)  # not a submodule
        self.call, self.owned = PipelineCall.of(pipe), owned
        self.config = BridgedConfig(channels=0)
        self.size: tuple[int, int] | None = None  # height and width of the pictures under way

    pipe: Any

    def to(self, *args: Any, **kwargs: Any) -> PipelineNetwork:
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if self.owned and device is not None:
            self.pipe.to(device)
        return self

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context) -> Tensor:
        raise ValueError(
            f"{self.call.name} runs only as a whole, by calling the Generator; what asks its network alone needs a model "
            "that is opened natively (docs/pipelines.md lists them)."
        )

    @property
    def backbone(self) -> nn.Module | None:
        parts = (getattr(self.pipe, name, None) for name in BACKBONES)
        return next((part for part in parts if isinstance(part, nn.Module)), None)

    def unpacked(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the autoencoder knows them, of the pipeline's own; ValueError where their layout is its own
        affair."""
        vae = getattr(self.pipe, "vae", None)
        channels = getattr(getattr(vae, "config", None), "latent_channels", None)
        if latents.ndim == 5 and latents.shape[2] == 1:
            latents = latents[:, :, 0]
        if latents.ndim == 4 and latents.shape[1] == channels:
            return latents
        if latents.ndim == 3 and channels and latents.shape[2] == 4 * channels and type(vae).__name__ != "AutoencoderKLFlux2":
            rows, columns = self._grid(latents.shape[1])
            patches = latents.view(len(latents), rows, columns, channels, 2, 2)  # two by two latent pixels per token
            return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(latents), channels, 2 * rows, 2 * columns)
        raise ValueError(
            f"{self.call.name} keeps its latents in a layout of its own, {tuple(latents.shape)}, of which no preview is made."
        )

    def _grid(self, tokens: int) -> tuple[int, int]:
        """(rows, columns) of so many tokens, in the shape of the pictures under way."""
        height, width = self.size or (1, 1)
        rows = max(1, round((tokens * height / width) ** 0.5))
        while tokens % rows:
            rows -= 1
        return rows, tokens // rows


def pipeline_config(pipe: Any, name: str) -> ModelConfig:
    """The noise of a pipeline's scheduler, and the defaults of its call."""
    call = PipelineCall.of(pipe)
    config = scheduler_noise(pipe.scheduler, name).config
    defaults = {"num_inference_steps": call.steps, "guidance_scale": min(max(call.usual_scale, 0.0), 100.0)}
    return config.model_copy(update={"defaults": config.defaults.model_copy(update=defaults)})


def pipeline_dtype(pipe: Any) -> torch.dtype:
    """What a pipeline's network computes in; float32 where a quantised one does not say."""
    dtype = getattr(PipelineNetwork(pipe).backbone, "dtype", torch.float32)
    return dtype if dtype in (torch.float32, torch.bfloat16, torch.float16) else torch.float32
