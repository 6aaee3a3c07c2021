"""A ControlNet for DiT: copies of the first blocks, which see the picture to follow and add to the blocks of the denoiser.

    picture --> convolutions --> + tokens --> copied blocks --> a layer each, zero at first --> added behind blocks

An untrained control changes nothing, as the layers behind its blocks start at zero. Source:
ControlNet-Transformer of PixArt-delta, arXiv 2401.05252, section 4, after ControlNet, arXiv 2302.05543; spread over all
blocks as in Stable Diffusion 3's.

Ours: pixels are read by a few convolutions in the place of the autoencoder, so that thin lines are seen as they are, and what
these give does not start at zero, so that the layers behind see the picture from the first step on; one network may know
several kinds of picture; copied blocks may do without text, of which the denoiser's own modulation tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import CrossAttention, Visible, run_block
from gen.nn.backbones.dit import DiT, DiTBlock, DiTConfig, DiTState
from gen.nn.initialisation import initialise, xavier_linears

KindName = Annotated[str, Field(max_length=64)]


class DiTControlConfig(DiTConfig):
    """The sizes of the copied blocks, of which there are `depth`; without text_dim they read no text."""

    factor: PositiveInt = Field(default=8, description="picture pixels per latent pixel, each way; a multiple of 4")
    kinds: tuple[KindName, ...] = Field(default=(), max_length=64, description="pictures it knows; more than one: a union")
    width: PositiveInt = Field(default=96, description="channels of the convolutions at the latents' resolution")
    places: Literal["first", "spread"] = Field(
        default="spread", description="behind which blocks it adds: as many of the first, or all, each control to its share"
    )

    @model_validator(mode="after")
    def _check_factor(self) -> DiTControlConfig:
        if self.factor % 4:
            raise ValueError(f"factor is {self.factor}; the convolutions need a multiple of 4")
        return self


class PictureTokens(nn.Module):
    """A picture (B, 3, f h, f w) in [0, 1] as tokens (B, L, dim), one for each patch of latents (B, C, h, w)."""

    def __init__(self, factor: int, width: int, patch: int, dim: int):
        super().__init__()
        fine, middle = max(width // 3, 8), max(2 * width // 3, 8)
        self.factor = factor
        self.enter = nn.Conv2d(12, fine, 3, padding=1)
        self.middle = nn.Conv2d(4 * fine, middle, 3, padding=1)
        self.coarse = nn.Conv2d((factor // 4) ** 2 * middle, width, 3, padding=1)
        self.same = nn.Conv2d(width, width, 3, padding=1)
        self.leave = nn.Conv2d(width, dim, patch, stride=patch)

    def forward(self, picture: Tensor) -> Tensor:
        x = F.silu(self.enter(F.pixel_unshuffle(2 * picture - 1, 2)))
        x = F.silu(self.middle(F.pixel_unshuffle(x, 2)))
        x = F.silu(self.coarse(F.pixel_unshuffle(x, self.factor // 4)))
        return self.leave(x + F.silu(self.same(x))).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class CopiedText:
    """A prompt as the copied blocks read it, as `gen.nn.backbones.dit.ReadText`."""

    keys_values: Sequence[tuple[Tensor, Tensor] | None]
    visible: Visible = None


class DiTControl(nn.Module):
    """What is added behind each block of a DiT: (its state, picture, mode) -> `depth` tensors (B, L, dim)."""

    def __init__(self, config: DiTControlConfig):
        super().__init__()
        self.config = config
        dim = config.dim
        self.picture = PictureTokens(config.factor, config.width, config.patch, dim)
        self.kind = nn.Embedding(len(config.kinds), dim) if len(config.kinds) > 1 else None
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.after = nn.ModuleList(nn.Linear(dim, dim) for _ in range(config.depth))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The layers behind the blocks at zero (arXiv 2302.05543, equation 2)."""
        for module in self.picture.modules():
            if isinstance(module, nn.Conv2d):
                initialise(nn.init.kaiming_normal_, module.weight, nonlinearity="relu")
                initialise(nn.init.zeros_, module.bias)
        if self.kind is not None:
            initialise(nn.init.normal_, self.kind.weight, std=0.02)
        for block in self.blocks:
            xavier_linears(block)
            if self.config.modulation == "adaln_single":
                initialise(nn.init.normal_, block.get_parameter("table"), std=self.config.dim**-0.5)
        for layer in cast("list[nn.Linear]", list(self.after)):
            initialise(nn.init.zeros_, layer.weight)
            initialise(nn.init.zeros_, layer.bias)

    @classmethod
    @torch.no_grad()
    def of(cls, base: DiT, depth: int, factor: int, kinds: Sequence[str] = (), text: bool = True, **sizes: object) -> Self:
        """A control of a DiT, its blocks copied from the first `depth` of it. text: they read the prompt too. sizes: of
        `DiTControlConfig`. ValueError for more blocks than there are."""
        if not 0 < depth <= base.config.depth:
            raise ValueError(f"depth is {depth}; the network has {base.config.depth} blocks to copy, so give 1 to that many.")
        unread = {"text_dim": 0, "text_tokens": 0} if not text else {}
        plain = {"pooled_text": False, "null_length": 0, "size_conditions": False, "scalars": (), "num_classes": 0}
        given = {**base.config.model_dump(), **plain, **unread, "depth": depth, "factor": factor, "kinds": tuple(kinds)}
        control = cls(DiTControlConfig(**{**given, **sizes}))
        for copied, block in zip(control.blocks, base.blocks, strict=False):
            weights = block.state_dict()
            copied.load_state_dict({name: weights[name] for name in copied.state_dict()})
        return control

    def read_text(self, state: DiTState) -> CopiedText:
        """The copied blocks' keys and values of the prompt."""
        if not self.config.text_dim or state.text.embedded is None:
            return CopiedText([None] * self.config.depth)
        readers = [cast("CrossAttention", block.cross) for block in self.blocks]
        return CopiedText([reader.keys_values(state.text.embedded) for reader in readers], state.text.visible)

    def forward(self, state: DiTState, picture: Tensor, mode: Tensor | None = None) -> list[Tensor]:
        """One tensor (B, L, dim) for each copied block.

        state: of the denoiser before its first block. picture: (B, 3, H, W) in [0, 1]. mode: (B, 1), which of the kinds it is.
        """
        x, text = state.x, self.read_text(state)
        seen = self.picture(picture.to(x.dtype))
        if self.kind is not None:
            seen = seen + self.kind(picture.new_zeros(len(x), dtype=torch.long) if mode is None else mode[:, 0].long())[:, None]
        x, out, count = x + seen, [], self.config.depth
        for index, (block, after) in enumerate(zip(self.blocks, self.after, strict=True)):
            words = text.keys_values[index]
            x = run_block(None, index, count, block, x, state.shared, words, text.visible, state.backend, None, state.active)
            out.append(after(x))
        return out

    def place(self, index: int, count: int) -> int | None:
        """Which of its tensors is added behind block `index` of `count`; None for none."""
        if self.config.places == "first":
            return index if index < self.config.depth else None
        return index * self.config.depth // count  # as diffusers' SD3ControlNetModel, each for a share of the blocks
