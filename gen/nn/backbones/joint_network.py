"""What networks of joint blocks have in common: how they read text, the time and a pooled vector, and their last layers.

A row without a real token reads the learned null text (and null pooled vector), as in the other backbones. Text that is
projected once is kept for the whole run; the streams of text themselves change with the time, so they are computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import BackboneConfig, TimeMLP, class_index, mean_token, memoize, timestep_embedding
from gen.nn.backbones.extra_scalars import ExtraScalars, ScalarName
from gen.nn.backbones.joint_blocks import modulate
from gen.nn.control import PICTURE, OpenedControl, added_in_sequence, share_of
from gen.nn.initialisation import initialise, xavier_linears
from samplers.denoiser import Condition, Context

FREQUENCIES = 256  # width of the timestep embedding


class JointConfig(BackboneConfig):
    """What every config of these networks has beside its sizes."""

    null_length: int = Field(default=0, ge=0, description="tokens of the null text that are read, the rest is padding; 0: all")
    pooled_dim: int = Field(default=0, ge=0, description="width of a pooled vector of the text that joins the time; 0: none")
    pooled_text: bool = Field(default=False, description="the mean token, through an MLP, joins the time instead")
    padded_text: bool = Field(
        default=True,
        description="every text is filled up to text_tokens, which attention does not see, so that a picture's bits do not "
        "depend on the lengths of the prompts beside it; False: only up to the longest of the batch",
    )
    scalars: tuple[ScalarName, ...] = Field(default=(), description="numbers it receives beside the time: see ExtraScalars")

    @model_validator(mode="after")
    def _reads_text(self) -> JointConfig:
        if not self.text_dim:
            raise ValueError(
                "this network is of text and patches: give text_tokens and text_dim, or take type dit without text"
            )
        if self.null_length > self.text_tokens:
            raise ValueError(f"null_length is {self.null_length}, more than the {self.text_tokens} text tokens")
        if self.pooled_dim and self.pooled_text:
            raise ValueError("pooled_dim is for a vector that is given and pooled_text for the mean token; give one of them")
        return self


@dataclass(frozen=True)
class JointText:
    """A prompt as the blocks need it: projected tokens (B, T, dim), which of them are seen (B, T), None for all, and the pooled
    vector's share of the modulation (B, dim), None without one."""

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor | None

    def visible(self, patches: int) -> Tensor | None:
        """What a sequence of this text and then so many patches may attend to: (B, 1, 1, L)."""
        return None if self.mask is None else F.pad(self.mask, (0, patches), value=True)[:, None, None]


@dataclass(frozen=True)
class Added:
    """What controls add behind blocks, (B, P, D) each, as shared out by `gen.nn.control.share_of`.

    groups: of the joint blocks and of the single ones, None for nothing.
    """

    groups: tuple[list[Tensor] | None, ...] = ()
    repeats: bool = False
    even: bool = False

    def behind(self, index: int, count: int, single: bool = False) -> Tensor | None:
        """What is added behind a block, number `index` of `count` of its kind; None for nothing."""
        values = self.groups[int(single)] if int(single) < len(self.groups) else None
        return share_of(values, index, count, self.repeats and not single, self.even)


class JointNetwork(nn.Module):
    """Base of MMDiT, FLUX, Qwen-Image and Z-Image. `attention_backend` may be set to any name that `gen.nn.attention` knows.

    time_scale: what the time is multiplied by before its embedding, which tells numbers up to 1000 apart.
    scalar_scales: the same of `ExtraScalars`, where a published network has another one.
    controlled_by: diffusers' classes of control that it takes (`gen.models.bridge.control`); even_controls: each tensor of one
        is for an equal share of the blocks. controls_read_prompt: as of `gen.models.bridge.network.BridgedNetwork`.
    """

    attention_backend: str = "auto"
    time_scale: ClassVar[float] = 1.0
    scalar_scales: ClassVar[Mapping[str, float]] = {}
    controlled_by: tuple[str, ...] = ()
    even_controls: ClassVar[bool] = False
    controls_read_prompt: ClassVar[bool] = False
    config: JointConfig

    def add_conditions(
        self, config: JointConfig, time_dim: int, text_embed: nn.Module | None = None, time_hidden: int | None = None
    ) -> None:
        """The layers that read conditions; text_embed: a linear layer unless given; time_hidden: as wide as time_dim."""
        self.controls: dict[str, OpenedControl] = {}  # no part of its weights; likewise those by their folders
        self.opened_controls: dict[str, OpenedControl] = {}
        self.null_read: tuple[Tensor, Tensor | None] | None = None
        dim = config.dim
        self.time_embed = TimeMLP(FREQUENCIES, time_dim, time_hidden or time_dim)
        self.label_embed = nn.Embedding(config.num_classes + 1, time_dim) if config.num_classes else None
        self.scalar_embeds = ExtraScalars(config.scalars, time_dim, self.scalar_scales)
        self.text_embed = text_embed or nn.Linear(config.text_dim, dim)
        self.null_text = nn.Parameter(torch.empty(config.text_tokens, config.text_dim))
        pooled = config.pooled_dim or (config.text_dim if config.pooled_text else 0)
        self.pooled_embed = TimeMLP(pooled, time_dim, time_dim) if pooled else None
        self.null_pooled = nn.Parameter(torch.empty(config.pooled_dim)) if config.pooled_dim else None

    def start_weights(self, zero: list[nn.Linear]) -> None:
        """Xavier's rule for linear layers, small embeddings, and layers of zeros, `zero`: every block starts as the identity
        (adaLN-Zero), and the head at zero."""
        xavier_linears(self)
        small: list[nn.Linear | nn.Embedding] = [*self.time_embed.linears]
        small += [] if self.label_embed is None else [self.label_embed]
        small += [] if self.pooled_embed is None else [*self.pooled_embed.linears]
        for module in small:
            initialise(nn.init.normal_, module.weight, std=0.02)
        for module in zero:
            initialise(nn.init.zeros_, module.weight)
        initialise(nn.init.normal_, self.null_text, std=self.config.text_dim**-0.5)
        if self.null_pooled is not None:
            initialise(nn.init.normal_, self.null_pooled, std=self.config.pooled_dim**-0.5)
        self.scalar_embeds.reset_parameters()

    @property
    def reads(self) -> str:
        """What it reads beside text: "picture", one to edit, "mask", a picture and its mask, or nothing."""
        return "mask" if getattr(self.config, "beside", 0) else "picture" if self.most_pictures else ""

    @property
    def most_pictures(self) -> int:
        """Pictures to edit that it reads, at most."""
        return getattr(self.config, "pictures", 0)

    @property
    def reads_null(self) -> bool:
        """It is told what the empty prompt gives, as an editor's text encoder may see the pictures with it; the null text of
        other networks is a part of their weights."""
        return bool(self.most_pictures)

    @property
    def embeds(self) -> bool:
        """It reads a guidance scale."""
        return "guidance" in self.config.scalars

    def embed(self, time: Tensor, condition: Condition, text: JointText) -> Tensor:
        """What modulates the blocks (B, time_dim): time, scalars, label and pooled text."""
        frequencies = timestep_embedding(self.time_scale * time, FREQUENCIES)
        c = self.time_embed(frequencies.to(self.time_embed.linears[0].weight.dtype))
        c = c + self.scalar_embeds(condition, len(time))
        if self.label_embed is not None:
            c = c + self.label_embed(class_index(condition.label, self.config.num_classes, len(time), time.device))
        return c if text.pooled is None else c + text.pooled

    def text(self, condition: Condition, batch: int, context: Context | None) -> JointText:
        """The condition's text, read once per run."""
        owners = (condition.tokens, condition.mask, condition.pooled)
        return memoize(self, context, f"joint text {batch}", owners, lambda: self.read_text(condition, batch))

    def controlled(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None) -> Added:
        """What all controls of a condition add to its blocks: they read the text, or the null text, that these do."""
        if not any(name.startswith(PICTURE) for name in condition.extra):
            return Added()

        def read() -> Condition:
            tokens, mask, pooled = self.with_null(condition, len(x))
            return replace(condition, tokens=tokens, mask=mask, pooled=pooled)

        owners = (condition.tokens, condition.mask, condition.pooled)
        ready = memoize(self, context, f"control text {len(x)}", owners, read)
        total, repeats = added_in_sequence(self.controls, x, time, replace(ready, extra=condition.extra))
        return Added(tuple(total or ()), repeats, self.even_controls)

    def read_text(self, condition: Condition, batch: int) -> JointText:
        """The condition's text for this batch; rows without a real token, and all without text, read the null text."""
        tokens, mask, pooled = self.with_null(condition, batch)
        if self.config.padded_text:
            missing = self.config.text_tokens - tokens.shape[1]
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
            mask = F.pad(mask, (0, missing))
            # padding and mask are alike for all, as a kernel may round by what it is not to see, or where it is given a mask
            tokens = F.pad(tokens, (0, 0, 0, missing)) * mask[..., None]
        vector = None
        if self.pooled_embed is not None:
            if pooled is None:
                pooled = tokens.mean(1) if mask is None else mean_token(tokens, mask)
            vector = self.pooled_embed(pooled)
        return JointText(*self.project(tokens, mask), vector)

    def project(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T, text_dim) and their mask as the blocks take them."""
        return self.text_embed(tokens), mask

    def set_null(self, null: Condition) -> None:
        """What the empty prompt gives (batch of 1), for a network that `reads_null`."""
        assert null.tokens is not None
        real = null.tokens.shape[1] if null.mask is None else int(null.mask.sum())
        self.null_read = null.tokens[0, :real], None if null.pooled is None or self.null_pooled is None else null.pooled[0]

    def with_null(self, condition: Condition, batch: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(tokens, mask, pooled vector where the network is given one) with the null text where there is none; the mask is None
        where every token is real."""
        config, tokens, mask, pooled = self.config, condition.tokens, condition.mask, condition.pooled
        null = self.null_text[: config.null_length or config.text_tokens]
        null_pooled: Tensor | None = self.null_pooled
        if self.null_read is not None:  # which does not move with the weights, as those of an offloaded network do
            null, pooled_read = self.null_read[0].to(null), self.null_read[1]
            null_pooled = None if pooled_read is None else pooled_read.to(null)
        length = len(null)
        if tokens is None:
            vector = None if null_pooled is None else null_pooled.expand(batch, -1)
            return null.expand(batch, -1, -1), None, vector
        if self.null_pooled is not None and (pooled is None or pooled.shape != (batch, config.pooled_dim)):
            raise ValueError(
                "This network reads a pooled vector of the text beside its tokens: give condition.pooled as "
                f"({batch}, {config.pooled_dim}); it is {'missing' if pooled is None else tuple(pooled.shape)}."
            )
        tokens = tokens.to(null.dtype)
        if mask is not None:
            real = mask.any(1, keepdim=True)
            if torch.is_grad_enabled() or not bool(real.all()):  # in training the null text is always part of the graph
                longest = max(tokens.shape[1], length)
                missing = longest - tokens.shape[1]
                tokens, mask = F.pad(tokens, (0, 0, 0, missing)), F.pad(mask, (0, missing))
                tokens = torch.where(real[..., None], tokens, F.pad(null, (0, 0, 0, longest - length)))
                mask = torch.where(real, mask, torch.arange(longest, device=mask.device) < length)
                if null_pooled is not None and pooled is not None:
                    pooled = torch.where(real, pooled.to(null.dtype), null_pooled)
            if not torch.compiler.is_compiling() and not torch.is_grad_enabled() and bool(mask.all()):
                mask = None
        vector = None if self.null_pooled is None or pooled is None else pooled.to(null.dtype)
        return tokens, mask, vector


class ModulatedHead(nn.Module):
    """The last layers: a norm, modulated by shift and scale of its own, and a linear layer to the numbers of a patch."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x: (B, P, D); c: (B, D), through SiLU."""
        shift, scale = self.modulation(c).to(x.dtype).unsqueeze(1).chunk(2, dim=-1)
        return self.linear(modulate(self.norm(x), shift, scale))
