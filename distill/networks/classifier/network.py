"""A classifier of noisy images: the way down of a U-Net that knows the noise level, and attention over what is left.

It reads the variance-preserving x of a level and the level's angle, so that it serves every path: at the same log-SNR, all
paths have the same x up to its scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

import distill.networks.classifier  # noqa: F401  (makes the type known to gen.nn.registry)
from gen.io.weights import CheckpointError, read_json, write_json
from gen.nn.backbones.blocks import TimeMLP, timestep_embedding
from gen.nn.registry import Config
from samplers.path import NoiseLevel, expand

FREQUENCIES = 128  # width of the level's sinusoids


class NoisyClassifierConfig(Config):
    """channels: of what is classified, pictures or latents; num_classes: of labels. Every width after the first halves the
    resolution."""

    channels: PositiveInt = 16
    num_classes: int = Field(ge=2)
    patch: PositiveInt = Field(default=2, description="side of the squares that the first convolution reads, one each")
    widths: tuple[PositiveInt, ...] = Field(default=(96, 192), min_length=1, max_length=7)
    blocks: PositiveInt = Field(default=1, description="residual blocks at every resolution")
    groups: PositiveInt = Field(default=16, description="of the normalisations; they divide every width")
    time_dim: PositiveInt = 256


class ClassifierBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut, the second scaled and shifted by the level (arXiv 2105.05233, eq. 3).
    stride 2 halves the resolution."""

    def __init__(self, inputs: int, width: int, stride: int, config: NoisyClassifierConfig):
        super().__init__()
        self.stride = stride
        self.norm1 = nn.GroupNorm(config.groups, inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, 1, 1)
        self.modulation = nn.Linear(config.time_dim, 2 * width)
        self.norm2 = nn.GroupNorm(config.groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        self.shortcut = nn.Conv2d(inputs, width, 1) if inputs != width else None
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        out = F.silu(self.norm1(x))
        if self.stride > 1:
            out, x = F.avg_pool2d(out, 2, ceil_mode=True), F.avg_pool2d(x, 2, ceil_mode=True)
        scale, shift = self.modulation(time)[..., None, None].chunk(2, dim=1)
        out = self.conv2(F.silu(self.norm2(self.conv1(out)) * (1 + scale) + shift))
        return out + (x if self.shortcut is None else self.shortcut(x))


class NoisyClassifier(nn.Module):
    """`forward` gives logits; `log_probabilities` takes x at any level of any path. Labels' names: see `set_labels`."""

    def __init__(self, config: NoisyClassifierConfig):
        super().__init__()
        self.config = config
        if wrong := [width for width in config.widths if width % config.groups]:
            raise ValueError(f"The classifier's groups {config.groups} do not divide its width {wrong[0]}; choose others.")
        self.time = TimeMLP(FREQUENCIES, config.time_dim, config.time_dim)
        self.stem = nn.Conv2d(config.channels, config.widths[0], config.patch, config.patch)
        blocks, inputs = [], config.widths[0]
        for number, width in enumerate(config.widths):
            for block in range(config.blocks):
                blocks.append(ClassifierBlock(inputs, width, 2 if number and not block else 1, config))
                inputs = width
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.GroupNorm(config.groups, inputs)
        self.attend = nn.Linear(inputs, 1)
        self.head = nn.Linear(inputs, config.num_classes)
        nn.init.zeros_(self.head.weight)
        self.labels: tuple[str, ...] = ()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, angle: Tensor) -> Tensor:
        """Logits (B, N), float32 or wider, of variance-preserving x (B, C, H, W) at angles atan(sigma / alpha) (B,)."""
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise ValueError(
                f"The noisy classifier takes (B, {self.config.channels}, H, W), not {tuple(x.shape)}; "
                "give one that was trained on this model's latents."
            )
        time = F.silu(self.time(timestep_embedding(1000 * angle, FREQUENCIES).to(self.head.weight.dtype)))
        x = self.stem(x.to(self.head.weight.dtype).contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = block(x, time)
        places = F.silu(self.norm(x)).flatten(2).transpose(1, 2)
        share = self.attend(places).softmax(1)  # attention pooling, one query
        logits = self.head((share * places).sum(1))
        return logits if logits.dtype == torch.float64 else logits.float()

    def log_probabilities(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """log p(y | x) (B, N) of x (B, C, H, W) at a level of any path; levels are floats or (B,)."""
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64, device=x.device) for v in (level.alpha, level.sigma))
        angle = torch.atan2(sigma, alpha).expand(len(x))
        scale = torch.hypot(alpha, sigma)
        return self(x / expand(scale.to(x.dtype), x), angle.to(x.dtype)).log_softmax(1)

    def set_labels(self, labels: Sequence[str]) -> None:
        """The names of labels 0, 1, ..."""
        if len(labels) != self.config.num_classes:
            raise ValueError(f"There are {len(labels)} labels, and the classifier's num_classes is {self.config.num_classes}.")
        self.labels = tuple(labels)

    def save_extra(self, folder: Path) -> None:
        write_json(folder / "labels.json", {"labels": list(self.labels)})

    def load_extra(self, folder: Path) -> None:
        path = folder / "labels.json"
        labels = read_json(path).get("labels")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise CheckpointError(path, "has no list of labels.")
        try:
            self.set_labels(labels)
        except ValueError as error:
            raise CheckpointError(path, str(error)) from None
