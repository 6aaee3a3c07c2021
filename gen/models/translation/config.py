"""What a translator is: `config.json` of its folder, checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from gen.nn.registry import Config

FORMAT = "fewstep_translator"

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$")]
LayerName = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Reads = Literal["picture", "lines"]


class DirectionConfig(Config):
    """One way to translate.

    name: what it makes ("icon"). prompt: what the network is told in any case; None: what the caller says, or nothing.
    reads: the picture as it is, or as a drawing of lines, grey and dark on light.
    """

    name: Name
    prompt: Annotated[str, StringConstraints(max_length=1000)] | None = None
    reads: Reads = "picture"


class LayersConfig(Config):
    """Names of layers: `denoiser` and `autoencoder` have changes of low rank, `full` are those of the denoiser whose whole
    weight changes."""

    denoiser: tuple[LayerName, ...] = Field(default=(), max_length=10_000)
    full: tuple[LayerName, ...] = Field(default=(), max_length=1000)
    autoencoder: tuple[LayerName, ...] = Field(default=(), max_length=10_000)


class TranslatorConfig(Config):
    """`config.json` of a translator's folder.

    model: the one-step model that it changes, by name; weights: sha256 of that model's parts.
    directions: the first is that of a call that names none.
    layers, rank, scale, coder_rank, coder_scale: the changes of the denoiser and of the autoencoder (scale = alpha / rank).
    gamma: what skip connections count. stochastic: it has learned from strengths below 1.
    """

    format: Literal["fewstep_translator"] = "fewstep_translator"
    version: Literal[1] = 1
    model: Annotated[str, StringConstraints(min_length=1, max_length=300)]
    weights: dict[Name, Digest] = Field(default_factory=dict)
    directions: tuple[DirectionConfig, ...] = Field(min_length=1, max_length=8)
    layers: LayersConfig = LayersConfig()
    rank: int = Field(default=8, ge=1, le=4096)
    scale: float = Field(default=1.0, ge=-1e4, le=1e4)
    coder_rank: int = Field(default=4, ge=1, le=4096)
    coder_scale: float = Field(default=1.0, ge=-1e4, le=1e4)
    gamma: float = Field(default=1.0, ge=0, le=100)
    stochastic: bool = False

    @model_validator(mode="after")
    def _names_apart(self) -> TranslatorConfig:
        names = [direction.name for direction in self.directions]
        if len(set(names)) < len(names):
            raise ValueError(f"directions are named {', '.join(names)}; give each a name of its own")
        return self
