"""A small residual network whose embeddings meet those of texts, as in CLIP (Radford et al. 2021, arXiv 2103.00020).

Pictures (B, 3, H, W) in [-1, 1] become unit vectors (B, E); sentence embeddings of a frozen text encoder become unit vectors
by a linear map. A picture is classified by its nearest label, and fits a prompt as well as their cosine says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

import distill.networks.evaluator  # noqa: F401  (makes the type known to gen.nn.registry)
from gen.io.weights import CheckpointError, read_json, read_weights, write_json, write_weights
from gen.models.components import load_component
from gen.nn.registry import Config

SHIPPED = Path(__file__).parent
FORMAT = "labels are numbered by their place in this list; labels.safetensors has their sentence embeddings"


class EvaluatorConfig(Config):
    """Sizes. Pictures of any size are brought to `size` by averaging; every width halves the resolution once more.

    block: residual, or convnext for a network of another design, whose first map is at a quarter of the resolution.
    """

    block: Literal["residual", "convnext"] = "residual"
    size: int = Field(default=64, ge=16, le=512)
    widths: tuple[PositiveInt, ...] = Field(default=(48, 96, 192, 288), min_length=2, max_length=6)
    dim: PositiveInt = Field(default=384, description="of the shared embedding")
    text_dim: PositiveInt = Field(default=384, description="of the text encoder's sentence embeddings")


class EvaluatorBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut (He et al. 2016, arXiv 1512.03385, figure 2)."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Conv2d(inputs, width, 1, stride, bias=False) if stride > 1 or inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(shortcut + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class ConvNextBlock(nn.Module):
    """x + pointwise(gelu(pointwise(norm(depthwise(x))))), after a patch convolution where resolution or width changes.

    Source: Liu et al. 2022, arXiv 2201.03545, figure 4; here with 5x5 depthwise convolutions, 3x the width, batch norms.
    """

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.enter = nn.Conv2d(inputs, width, stride, stride) if stride > 1 or inputs != width else None
        self.depthwise = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.norm = nn.BatchNorm2d(width)
        self.widen, self.narrow = nn.Conv2d(width, 3 * width, 1), nn.Conv2d(3 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.enter is None else self.enter(x)
        return x + self.narrow(F.gelu(self.widen(self.norm(self.depthwise(x)))))


BLOCKS: dict[str, type[EvaluatorBlock | ConvNextBlock]] = {"residual": EvaluatorBlock, "convnext": ConvNextBlock}


class Evaluator(nn.Module):
    """`features`, `embed` and `classify` pictures; `embed_texts` and `alignment` for prompts. Labels: see `set_labels`."""

    def __init__(self, config: EvaluatorConfig | None = None):
        super().__init__()
        self.config = config = config or EvaluatorConfig()
        first = config.widths[0]
        block = BLOCKS[config.block]
        layers: list[nn.Module] = [nn.Conv2d(3, first, 5, 2, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU()]
        if config.block == "convnext":
            layers = [nn.Conv2d(3, first, 4, 4), nn.BatchNorm2d(first)]
        layers.append(block(first, first, 1))
        for inputs, width in zip(config.widths, config.widths[1:], strict=False):
            layers += [block(inputs, width, 2), block(width, width, 1)]
        self.trunk = nn.Sequential(*layers)
        self.image_head = nn.Linear(2 * config.widths[-1], config.dim)
        self.text_head = nn.Linear(config.text_dim, config.dim)
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        self.labels: tuple[str, ...] = ()
        self.register_buffer("label_sentences", torch.zeros(0, config.text_dim), persistent=False)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def resize(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) brought to the network's own size."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"The evaluation network takes pictures (B, 3, H, W), not {tuple(images.shape)}.")
        size = self.config.size
        if min(images.shape[-2:]) < size:
            return F.interpolate(images, (size, size), mode="bilinear", align_corners=False)
        return F.adaptive_avg_pool2d(images, size)

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, 2 W) of pictures (B, 3, H, W): averages, then maxima, over places; for set distances."""
        x = self.trunk(self.resize(images).contiguous(memory_format=torch.channels_last))
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Features (B, C, h, w) of pictures (B, 3, H, W) after each resolution of the trunk, the finest first."""
        x, found = self.resize(images).contiguous(memory_format=torch.channels_last), []
        for layer in self.trunk:
            before, x = x, layer(x)
            if isinstance(layer, EvaluatorBlock | ConvNextBlock) and before.shape[-1] != x.shape[-1]:
                found.append(before)
        return [*found, x]

    def embed(self, images: Tensor) -> Tensor:
        """Unit embeddings (B, E) of pictures (B, 3, H, W) in [-1, 1]."""
        return F.normalize(self.image_head(self.features(images)), dim=-1)

    def embed_texts(self, sentences: Tensor) -> Tensor:
        """Unit embeddings (B, E) of sentence embeddings (B, D) from the text encoder used in training."""
        return F.normalize(self.text_head(F.normalize(sentences, dim=-1)), dim=-1)

    def forward(self, images: Tensor, sentences: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(embeddings of pictures (B, E), of sentences (N, E), the scale of their cosines as logits)."""
        return self.embed(images), self.embed_texts(sentences), self.log_scale.exp().clamp(max=100)

    def set_labels(self, labels: Sequence[str], sentences: Tensor) -> None:
        """The labels to classify among, and their sentence embeddings (N, D)."""
        if sentences.shape != (len(labels), self.config.text_dim) or not labels:
            raise ValueError(f"{len(labels)} labels need embeddings ({len(labels)}, {self.config.text_dim}), "
                             f"not {tuple(sentences.shape)}.")  # fmt: skip
        self.labels = tuple(labels)
        self.label_sentences = sentences.to(self.text_head.weight)

    def classify(self, images: Tensor) -> Tensor:
        """Cosines (B, N) between pictures and the N labels; the largest is the answer."""
        if not self.labels:
            raise ValueError("The evaluation network has no labels yet; load it from its folder, or call set_labels.")
        return self.embed(images) @ self.embed_texts(self.label_sentences).T

    def save_extra(self, folder: Path) -> None:
        if not self.labels:
            raise ValueError("The evaluation network has no labels to save; call set_labels first.")
        write_json(folder / "labels.json", {"format": FORMAT, "labels": list(self.labels)})
        write_weights(folder / "labels.safetensors", {"sentences": self.label_sentences}, torch.bfloat16)

    def load_extra(self, folder: Path) -> None:
        path, weights = folder / "labels.json", folder / "labels.safetensors"
        labels, tensors = read_json(path).get("labels"), read_weights(weights)
        if not isinstance(labels, list) or not labels or not all(isinstance(label, str) for label in labels):
            raise CheckpointError(path, "has no list of labels.")
        try:
            self.set_labels(labels, tensors["sentences"].float())
        except (KeyError, ValueError) as error:
            raise CheckpointError(weights, f"does not hold the labels' sentence embeddings: {error}") from None


def load_evaluator(folder: Path | str | None = None) -> Evaluator:
    """The evaluation network in a folder, or the one that comes with the package."""
    if folder is None and not (SHIPPED / "config.json").is_file():
        raise ValueError(
            "This installation has no evaluation network. Train one with "
            "python -m distill.train configs/default/evaluator.yaml, and give its folder."
        )
    network = load_component(SHIPPED if folder is None else folder, "evaluator")
    assert isinstance(network, Evaluator)
    return network
