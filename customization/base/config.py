"""The settings that every method of customization has, and the model that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import torch
from pydantic import Field, field_validator, model_validator

from customization.base.huber import HuberConfig
from customization.base.pyramid_noise import PyramidConfig
from customization.base.start import STARTED
from customization.base.textual_inversion import TokenConfig
from distill.losses.levels import TimeConfig
from distill.losses.loss_weighting import Weighting
from distill.networks.lora.peft_injection import AdapterConfig
from gen.generator import Generator
from gen.models.pretrained import find_model
from gen.nn.registry import Config

Format = Literal["diffusers", "kohya", "peft", "ai-toolkit"]
FORMATS: tuple[str, ...] = get_args(Format)
LORAS = {"lora", "rslora", "dora"}  # kinds that are B A
WEIGHTS = "adapter.safetensors"  # in the export of formats that are one file


class AdapterPreviewConfig(Config):
    """The sheet made while training; None: as the model does by default."""

    prompts: tuple[str, ...] = ()
    num_inference_steps: int | None = Field(default=None, gt=0)
    guidance_scale: float | None = Field(default=None, ge=0)


class CustomizationConfig(Config):
    """What every method is told.

    model: "default", a model folder, a diffusers pipeline or a hub id. dtype: of its frozen weights. adapter: what trains in
    the denoiser, null for nothing; text_adapter: in its text encoders. start: a LoRA's file, which training goes on from.
    tokens: new words to learn, name -> `customization.base.textual_inversion.TokenConfig`. text_rate, token_rate: factors on
    the learning rate there. time: of the noise levels; None: as the model's path is usually trained. loss, weighting: as in the
    objective `diffusion`. noise_offset: share of noise that is one number per picture and channel. noise_pyramid: coarser noise
    on top (`customization.base.pyramid_noise`). huber: errors count as pseudo-Huber losses (`customization.base.huber`).
    up_rate: factor on the learning rate of a LoRA's B, which starts at zero (LoRA+, arXiv 2402.12354). prior_weight: of
    pictures of the class (`customization.data`). format: of the file. name: of the adapter, for its file and metadata."""

    model: str = "default"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    adapter: AdapterConfig | None = AdapterConfig()
    start: Path | None = None
    text_adapter: AdapterConfig | None = None
    text_rate: float = Field(default=1.0, gt=0)
    tokens: dict[str, TokenConfig] = Field(default_factory=dict)
    token_rate: float = Field(default=1.0, gt=0)
    time: TimeConfig | None = None
    loss: Literal["eps", "x0", "v", "flow", "edm"] | None = None
    weighting: Weighting | None = None
    noise_offset: float = Field(default=0.0, ge=0, le=1)
    noise_pyramid: PyramidConfig | None = None
    huber: HuberConfig | None = None
    up_rate: float = Field(default=1.0, gt=0)
    prior_weight: float = Field(default=1.0, ge=0)
    format: Format = "diffusers"
    name: str = Field(default="adapter", min_length=1, max_length=200)
    preview: AdapterPreviewConfig = AdapterPreviewConfig()

    @field_validator("adapter", mode="before")
    @classmethod
    def _none_where_none_fits(cls, value: object) -> object:
        if value is not None and cls.model_fields["adapter"].annotation in (None, type(None)):
            raise ValueError(
                "this method trains weights of the network itself, and has no adapter; leave adapter out, or use lora"
            )
        return value

    @model_validator(mode="after")
    def _has_factors(self) -> CustomizationConfig:
        made = {adapter.type for adapter in (self.adapter, self.text_adapter) if adapter is not None}
        if self.up_rate != 1 and (not made or made - LORAS):
            raise ValueError(
                f"up_rate is for the B of a LoRA ({', '.join(sorted(LORAS))}), not for {', '.join(sorted(made)) or 'tokens'}; "
                "leave it out, or choose another adapter"
            )
        return self

    @model_validator(mode="after")
    def _can_start(self) -> CustomizationConfig:
        made = {adapter.type for adapter in (self.adapter, self.text_adapter) if adapter is not None}
        if self.start is not None and (not made or made - STARTED):
            raise ValueError(
                f"start is a LoRA that an adapter of type {' or '.join(sorted(STARTED))} goes on from, not "
                f"{', '.join(sorted(made)) or 'tokens'}"
            )
        return self

    @model_validator(mode="after")
    def _held(self) -> CustomizationConfig:
        if self.text_adapter is not None and self.format in ("peft", "ai-toolkit"):  # before hours of training, not after
            raise ValueError(
                f"the {self.format} format holds one network and has no place for text_adapter; use kohya or diffusers"
            )
        return self


def open_model(config: CustomizationConfig, device: str | torch.device | None = None) -> Generator:
    """The model to be taught. A pipeline of diffusers keeps diffusers' networks, by whose names its adapters are read."""
    _, folder = find_model(config.model)
    pipeline = (folder / "model_index.json").is_file() and not (folder / "config.json").exists()
    return Generator.from_pretrained(config.model, device, config.dtype, native=False if pipeline else None)
