"""An upsampler: any backbone that reads an enlarged picture, and how noisy it was made, beside x.

    x, enlarged picture, level of its noise --> squares of `fold` by `fold` pixels as channels --> backbone --> x0 or flow

The picture is noised on purpose (noise conditioning augmentation of CDM, arXiv 2106.15282, section 4.2, and Imagen, arXiv
2205.11487, section 2.3), so that the network believes it no more than it should: what another model made has faults that
enlarged photographs have not. The level is told to the network as a channel, so any backbone can read it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor, nn

from gen.nn.backbones.adm import with_picture
from gen.nn.backbones.blocks import check_image
from gen.nn.registry import COMPONENTS as NETWORKS
from gen.nn.registry import Config, build, from_registry
from samplers.denoiser import Condition, Context
from samplers.path import Path, wide_dtype

LEVEL = "augmentation"  # in `Condition.extra`: (B,), the noise on the picture that is enlarged, as a time of the path in [0, 1]
BACKBONES = ("adm", "dit", "uvit")  # whose input and output have as many channels as their config says


class UpsamplerConfig(Config):
    """size: height and width it is trained at. channels: of x. factor: how many times as large its pictures are as what is
    enlarged. fold: squares of so many pixels are the backbone's channels. noise: (lowest, highest) level of the noise that it
    was trained with on the picture. residual: the enlarged picture is added to what comes out, for networks that predict x0.
    backbone: the network inside, without size and channels, which follow."""

    size: PositiveInt
    channels: PositiveInt = 3
    factor: int = Field(default=4, ge=2, le=16)
    fold: PositiveInt = 1
    noise: tuple[float, float] = (0.0, 0.5)
    residual: bool = False
    backbone: dict[str, Any]

    @field_validator("noise")
    @classmethod
    def _check_noise(cls, noise: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= noise[0] <= noise[1] <= 1:
            raise ValueError(f"noise is {noise}; give (lowest, highest) with 0 <= lowest <= highest <= 1")
        return noise

    @field_validator("backbone")
    @classmethod
    def _check_backbone(cls, backbone: dict[str, Any]) -> dict[str, Any]:
        if backbone.get("type") not in BACKBONES:
            raise ValueError(f"backbone.type is {backbone.get('type')!r}; choose one of {', '.join(BACKBONES)}")
        if wrong := {"size", "channels", "learned_variance"} & backbone.keys():
            raise ValueError(f"backbone says {', '.join(sorted(wrong))}, which follow from the upsampler; leave them out")
        return backbone

    def inner(self) -> dict[str, Any]:
        """The whole config of the backbone."""
        channels = 2 * self.channels * self.fold**2 + 1
        return {**self.backbone, "size": self.size // self.fold, "channels": channels}

    @property
    def any_size(self) -> bool:
        """It takes pictures of other sizes as well as those it was trained at: its backbone has no attention."""
        inside = self._backbone
        return self.backbone["type"] == "adm" and not inside.attention and not inside.middle_attention

    @property
    def enlarging(self) -> str:
        """How the picture is enlarged, a mode of `torch.nn.functional.interpolate`."""
        return "bicubic"

    @property
    def patch(self) -> int:
        """Height and width must be multiples of it."""
        return self.fold * self._backbone.patch

    @property
    def num_classes(self) -> int:
        return self._backbone.num_classes

    @property
    def text_dim(self) -> int:
        return self._backbone.text_dim

    @property
    def text_tokens(self) -> int:
        return self._backbone.text_tokens

    @property
    def _backbone(self) -> Any:
        return from_registry(NETWORKS, "network type", self.inner())[1]


class Upsampler(nn.Module):
    """See the module."""

    def __init__(self, config: UpsamplerConfig):
        super().__init__()
        self.config = config
        self.patch = config.patch
        self.backbone: Any = build(config.inner())

    @property
    def attention_backend(self) -> str:
        return self.backbone.attention_backend

    @attention_backend.setter
    def attention_backend(self, name: str) -> None:
        self.backbone.attention_backend = name

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> the same. condition.image (B, channels, H, W): the enlarged picture; condition.extra
        ["augmentation"] (B,): the level of its noise, 0 where it is missing. ValueError for what does not fit."""
        config, fold = self.config, self.config.fold
        check_image(x, config.channels, self.patch)
        both = with_picture(x, condition, config.channels)
        level = condition.extra.get(LEVEL)
        told = x.new_zeros(len(x)) if level is None else level.to(x)
        told = told[:, None, None, None].expand(-1, 1, x.shape[2] // fold, x.shape[3] // fold)
        y = self.backbone(torch.cat([F.pixel_unshuffle(both, fold), told], 1), time, condition, context)
        y = F.pixel_shuffle(y[:, : config.channels * fold**2], fold)
        return y + both[:, config.channels :] if config.residual else y


def enlarged(picture: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """A picture (B, C, h, w) in [-1, 1] at another size, float32; without bounds, so that it is linear in the picture."""
    if tuple(picture.shape[2:]) == (height, width):
        return picture.float()
    return F.interpolate(picture.float(), (height, width), mode=mode, align_corners=False)


def shown_picture(
    small: Tensor, eps: Tensor, s: Tensor, path: Path, size: tuple[int, int], mode: str = "bicubic"
) -> tuple[Tensor, Tensor]:
    """(enlarged picture (B, C, *size), its level (B,)) as an upsampler reads them: pictures (B, C, h, w) in [-1, 1], noised
    with eps (B, C, h, w) to levels s (B,), as a share of the path's clock, and then enlarged. At 0 nothing is added,
    and at 1, on a path that ends in pure noise, nothing of the picture is left."""
    noised = path(s.to(wide_dtype(s.device)) * path.t_noise).mix(small.float(), eps.float())
    return enlarged(noised, *size, mode), s.float()
