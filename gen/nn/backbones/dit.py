"""Diffusion transformer: DiT (arXiv 2212.09748) and PixArt-alpha (arXiv 2310.00426) as two settings of one network.

    patches + positions --> blocks: modulated self-attention, cross-attention to text, modulated MLP --> modulated norm, head

Two choices are independent. Modulation by c = time + label: "adaln" gives every block its own projection of c to shift, scale
and gate; "adaln_single" one projection for all blocks plus a table per block. Conditions: labels, text, both or neither.

Ours on top: qk-norm, pooled text, task routing, other sizes than the trained one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.attention import PACKING, choose
from gen.nn.backbones.blocks import (
    MLP,
    BackboneConfig,
    CrossAttention,
    Hooked,
    SelfAttention,
    TimeMLP,
    Visible,
    check_condition,
    check_image,
    class_index,
    hooked,
    mean_token,
    memoize,
    run_block,
    timestep_embedding,
    trimmed_length,
    unpatchify,
)
from gen.nn.backbones.extra_scalars import ExtraScalars, ScalarName
from gen.nn.backbones.routing import Routing, route
from gen.nn.control import OpenedControl, added
from gen.nn.initialisation import initialise, xavier_linears
from samplers.denoiser import Condition, Context

FREQUENCIES = 256  # width of the timestep embedding
KeysValues = tuple[Tensor, Tensor]


class DiTConfig(BackboneConfig):
    """Sizes of a DiT. The defaults of the switches are those of the published checkpoints."""

    learned_variance: bool = Field(default=False, description="twice the channels come out; the second half is a variance")
    modulation: Literal["adaln", "adaln_single"] = "adaln"
    position_scale: float = Field(default=1.0, gt=0, description="divides positions (PixArt: 1, 1, 2 at 256, 512, 1024)")
    qkv_bias: bool = True
    qk_norm: Literal["none", "rms", "layer"] = "none"
    gelu: Literal["exact", "tanh"] = "tanh"
    freq_shift: Literal[0, 1] = Field(default=0, description="as in timestep_embedding; diffusers' class-conditional DiT has 1")
    mlp_norm_eps: float = Field(default=1e-6, gt=0, description="of the norm before the MLP; diffusers' DiT has 1e-5")
    pooled_text: bool = Field(default=False, description="the mean token, through an MLP, joins the time in the modulation")
    null_length: int = Field(default=0, ge=0, description="tokens of the null text that are read, the rest is padding; 0: all")
    size_conditions: bool = Field(default=False, description="the picture's size and aspect ratio join the time (PixArt 1024)")
    routing: Routing | None = Field(default=None, description="task routing (arXiv 2310.07138)")
    scalars: tuple[ScalarName, ...] = Field(default=(), description="numbers it receives beside the time: see ExtraScalars")

    @model_validator(mode="after")
    def _check_conditions(self) -> DiTConfig:
        if self.pooled_text and not self.text_dim:
            raise ValueError("pooled_text is the mean of text tokens, but text_dim is 0: this network reads no text")
        if self.policy is not None and self.learned_variance:
            raise ValueError("a policy has no learned variance: set learned_variance to false")
        if self.null_length > self.text_tokens:
            raise ValueError(f"null_length is {self.null_length}, more than the {self.text_tokens} text tokens")
        if self.size_conditions and self.dim % 3:
            raise ValueError(f"size_conditions needs a dim that is a multiple of 3, not {self.dim}")
        return self


def sincos(places: Tensor, width: int) -> Tensor:
    """(..., width) of positions along one axis (...), of their dtype, which must be wide: sine, then cosine."""
    frequencies = 10000.0 ** -(torch.arange(width // 2, dtype=places.dtype, device=places.device) / (width // 2))
    angles = places[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_positions(rows: int, columns: int, dim: int, trained: int, scale: float) -> Tensor:
    """(1, rows * columns, dim) float64: the column in the first half, the row in the second, each sine then cosine.

    Other sizes than the trained one cover the same range of positions, more or less finely.
    """

    def axis(count: int) -> Tensor:
        return sincos(torch.arange(count, dtype=torch.float64) * (trained / count) / scale, dim // 2)

    column = axis(columns)[None, :].expand(rows, -1, -1)
    row = axis(rows)[:, None].expand(-1, columns, -1)
    return torch.cat([column, row], dim=-1).flatten(0, 1)[None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1 + scale)


@dataclass(frozen=True)
class ReadText:
    """A prompt as the blocks need it: every block's keys and values, what each row may see of them, the pooled text's share of
    the modulation (B, dim), and the embedded tokens that keys and values are made of. None: the network has no such part."""

    keys_values: Sequence[KeysValues | None]
    visible: Visible = None
    pooled: Tensor | None = None
    embedded: Tensor | None = None


@dataclass(frozen=True)
class DiTState:
    """What is known before the first block, for a control that has blocks of its own (`gen.nn.backbones.dit_control`).

    x: tokens (B, L, dim). shared: the modulation, as of `DiTBlock`. active: as of `DiTBlock`. backend: of attention.
    """

    x: Tensor
    shared: Tensor
    text: ReadText
    active: Tensor | None
    backend: str


class DiTBlock(nn.Module):
    """Transformer block under adaLN-Zero; cross-attention, where there is text, has neither norm nor gate, as in PixArt."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.attn = SelfAttention(dim, config.heads, config.qkv_bias, config.qk_norm)
        self.cross = CrossAttention(dim, config.heads, config.qk_norm) if config.text_dim else None
        self.norm2 = nn.LayerNorm(dim, eps=config.mlp_norm_eps, elementwise_affine=False)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio), dim, config.gelu)
        if config.modulation == "adaln":
            self.modulation = nn.Linear(dim, 6 * dim)
        else:
            self.table = nn.Parameter(torch.empty(6, dim))

    def forward(
        self,
        x: Tensor,
        c: Tensor,
        keys_values: KeysValues | None,
        visible: Visible,
        backend: str = "auto",
        hooks: Hooked | None = None,
        active: Tensor | None = None,
        control: Tensor | None = None,
    ) -> Tensor:
        """c: (B, dim), through SiLU, for adaln; (B, 6, dim), the shared projection, for adaln_single. active: (B, 1, dim), the
        channels that the block works on. control: (B, L, dim), which is added to what comes out."""
        c = self.modulation(c).unflatten(-1, (6, -1)) if c.ndim == 2 else self.table + c
        shift1, scale1, gate1, shift2, scale2, gate2 = c.to(x.dtype).unsqueeze(2).unbind(1)
        x, rest = route(x, active)
        x = torch.addcmul(x, gate1, self.attn(modulate(self.norm1(x), shift1, scale1), backend, hooks))
        if self.cross is not None:
            x = x + self.cross(x, keys_values, visible, backend, hooks)
        x = torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))
        x = x if rest is None else x + rest
        return x if control is None else x + control


class DiT(nn.Module):
    """DiT backbone. `attention_backend` may be set to any name that `gen.nn.attention` knows, for this network alone.

    packed_text: True packs the rows' text one after another, so that cross-attention sees no padding; False pads and masks;
    None packs where xFormers or FlashAttention runs, whose kernels then need no mask. On a CPU masked padding costs no more.
    """

    controlled_by: ClassVar[tuple[str, ...]] = ("dit_control",)  # the types of control that it takes
    attention_backend: str = "auto"
    packed_text: bool | None = None
    pos_embed: Tensor

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.controls: dict[str, OpenedControl] = {}  # no part of its weights; likewise those by their folders
        self.opened_controls: dict[str, OpenedControl] = {}
        dim, out = config.dim, config.predicted_channels * (2 if config.learned_variance else 1)
        self.patch_embed = nn.Conv2d(config.channels, dim, config.patch, stride=config.patch)
        self.time_embed = TimeMLP(FREQUENCIES, dim, dim)
        self.label_embed = nn.Embedding(config.num_classes + 1, dim) if config.num_classes else None
        self.size_embed = TimeMLP(FREQUENCIES, dim // 3, dim // 3) if config.size_conditions else None
        self.aspect_embed = TimeMLP(FREQUENCIES, dim // 3, dim // 3) if config.size_conditions else None
        self.scalar_embeds = ExtraScalars(config.scalars, dim)
        if config.text_dim:
            # not fused: a prompt reads the same to the bit, whatever its batch pads it to
            self.text_embed = MLP(config.text_dim, dim, dim, "tanh", fused=False)
            self.null_text = nn.Parameter(torch.empty(config.text_tokens, config.text_dim))
            self.pooled_embed = MLP(config.text_dim, dim, dim, "tanh") if config.pooled_text else None
        self.blocks = nn.ModuleList(DiTBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        if config.modulation == "adaln":
            self.final_modulation = nn.Linear(dim, 2 * dim)
        else:
            self.shared_modulation = nn.Linear(dim, 6 * dim)
            self.final_table = nn.Parameter(torch.empty(2, dim))
        self.head = nn.Linear(dim, config.patch**2 * out)
        positions = sincos_positions(config.grid, config.grid, dim, config.grid, config.position_scale)
        self.register_buffer("pos_embed", positions.to(torch.get_default_dtype()), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As published: every block starts as the identity (adaLN-Zero; cross-attention too) and the head at zero."""
        xavier_linears(self)
        initialise(nn.init.xavier_uniform_, self.patch_embed.weight.flatten(1))
        initialise(nn.init.zeros_, self.patch_embed.bias)
        config, blocks = self.config, self.typed_blocks()
        small: list[nn.Linear | nn.Embedding] = [*self.time_embed.linears]
        zero = [self.head]
        for embed in (self.size_embed, self.aspect_embed):
            small += [] if embed is None else embed.linears
        if self.label_embed is not None:
            small.append(self.label_embed)
        if config.text_dim:
            small += [self.text_embed.fc1, self.text_embed.fc2]
            zero += [block.cross.proj for block in blocks if block.cross is not None]
            zero += [] if self.pooled_embed is None else [self.pooled_embed.fc2]
            initialise(nn.init.normal_, self.null_text, std=config.text_dim**-0.5)
        if config.modulation == "adaln":
            zero += [block.modulation for block in blocks] + [self.final_modulation]
        else:
            small.append(self.shared_modulation)
            for table in [block.table for block in blocks] + [self.final_table]:
                initialise(nn.init.normal_, table, std=config.dim**-0.5)
        self.scalar_embeds.reset_parameters()
        for module in small:
            initialise(nn.init.normal_, module.weight, std=0.02)
        for module in zero:
            initialise(nn.init.zeros_, module.weight)

    def typed_blocks(self) -> list[DiTBlock]:
        """The blocks in the order they run."""
        return cast("list[DiTBlock]", list(self.blocks))

    @property
    def embeds(self) -> bool:
        """It reads a guidance scale."""
        return "guidance" in self.config.scalars

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        condition: Condition,
        context: Context | None = None,
        controls: Mapping[str, OpenedControl] | None = None,
    ) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, channels or twice that, H, W). H and W may differ from the trained size.

        Labels that are negative or missing, text rows without a real token and missing text are unconditional. A network with
        size conditions reads the picture's height and width in pixels from condition.extra["size"] (B, 2) and height / width
        from condition.extra["aspect"] (B, 1). controls: the networks that condition.extra names (`gen.nn.control`), in place
        of its own. Raises ValueError for a size that patches do not divide, for a label or text that this network does not
        take and for a missing size.
        """
        config = self.config
        rows, columns = check_image(x, config.channels, config.patch)
        check_condition(condition, len(x), config)
        # contiguous, or the residual stream keeps the order of the convolution, and every product copies its weights
        x = self.patch_embed(x).flatten(2).transpose(1, 2).contiguous()
        x = x + self.positions(rows, columns, context).to(x.dtype)

        c = self.embed(time) + self.scalar_embeds(condition, len(x))
        if self.label_embed is not None:
            c = c + self.label_embed(class_index(condition.label, config.num_classes, len(x), x.device))
        if config.size_conditions:
            c = c + self.sizes(condition, len(x))
        text = ReadText([None] * config.depth)
        if config.text_dim:
            owners, batch = (condition.tokens, condition.mask), len(x)
            text = memoize(self, context, f"text keys {batch}", owners, lambda: self.read_text(condition, batch))
            c = c if text.pooled is None else c + text.pooled
        activated = F.silu(c)
        shared = activated if config.modulation == "adaln" else self.shared_modulation(activated).unflatten(-1, (6, -1))
        active = None if config.routing is None else config.routing.mask(time, config.dim, x.dtype)

        backend, count = self.attention_backend, config.depth
        state = DiTState(x, shared, text, active, backend)
        control = self.controlled(state, condition, self.controls if controls is None else controls)
        for i, block in enumerate(self.blocks):
            hooks, words = hooked(context, i, count, 0, rows, columns), text.keys_values[i]
            x = run_block(context, i, count, block, x, shared, words, text.visible, backend, hooks, active, control[i])

        if config.modulation == "adaln":
            final = self.final_modulation(activated).unflatten(-1, (2, -1))
        else:
            final = self.final_table + c[:, None]
        shift, scale = final.to(x.dtype).unsqueeze(2).unbind(1)
        return unpatchify(self.head(modulate(self.norm(x), shift, scale)), rows, columns, config.patch)

    def controlled(
        self, state: DiTState, condition: Condition, controls: Mapping[str, OpenedControl]
    ) -> Sequence[Tensor | None]:
        """What all controls of a condition add behind every block; None for nothing."""
        count = self.config.depth

        def evaluate(control: OpenedControl, picture: Tensor, mode: Tensor | None) -> list[list[Tensor] | None]:
            network = control.network
            said, places = network(state, picture, mode), (network.place(i, count) for i in range(count))
            return [None if place is None else [said[place]] for place in places]

        total = added(controls, condition, evaluate)
        return [None] * count if total is None else [None if group is None else group[0] for group in total]

    def embed(self, time: Tensor) -> Tensor:
        """(B,) -> (B, dim)."""
        frequencies = timestep_embedding(time, FREQUENCIES, self.config.freq_shift)
        return self.time_embed(frequencies.to(self.time_embed.linears[0].weight.dtype))

    def sizes(self, condition: Condition, batch: int) -> Tensor:
        """(B, dim): the embeddings of height, width and aspect ratio, a third of the channels each."""
        parts = []
        for name, width, embed in (("size", 2, self.size_embed), ("aspect", 1, self.aspect_embed)):
            value = condition.extra.get(name)
            if value is None or value.shape != (batch, width):
                raise ValueError(
                    "This network reads the size of the picture: give condition.extra['size'] as (B, 2), height and width in "
                    f"pixels, and condition.extra['aspect'] as (B, 1), height / width. With {batch} images, {name!r} is "
                    f"{'missing' if value is None else tuple(value.shape)}."
                )
            assert embed is not None  # both are there with size_conditions
            frequencies = timestep_embedding(value.flatten(), FREQUENCIES).to(embed.linears[0].weight.dtype)
            parts.append(embed(frequencies).unflatten(0, (batch, width)).flatten(1))
        return torch.cat(parts, dim=1)

    def read_text(self, condition: Condition, batch: int) -> ReadText:
        """The condition's text for this batch. Rows without a real token, and all rows where there is no text, read the learned
        null text instead. Padding that no row needs is left away, or all of it where the text is packed."""
        tokens, mask, null = condition.tokens, condition.mask, self.null_text
        length = self.config.null_length
        read = torch.arange(len(null), device=null.device) < length if length else None
        if tokens is None:
            tokens, mask = null.expand(batch, -1, -1), None if read is None else read.expand(batch, -1)
        elif mask is not None:
            real = mask.any(1, keepdim=True)
            if torch.is_grad_enabled() or not bool(real.all()):  # in training the null text is always part of the graph
                missing = self.config.text_tokens - tokens.shape[1]
                tokens, mask = F.pad(tokens.to(null.dtype), (0, 0, 0, missing)), F.pad(mask, (0, missing))
                tokens = torch.where(real[..., None], tokens, null)
                mask = (mask | ~real) if read is None else torch.where(real, mask, read)
        tokens = tokens.to(null.dtype)
        pooled = None
        if self.pooled_embed is not None:
            pooled = self.pooled_embed(tokens.mean(1) if mask is None else mean_token(tokens, mask))
        visible: Visible = None
        if mask is not None:
            if mask.device.type == "cpu" or not torch.is_grad_enabled():  # training on a GPU does not wait for the mask
                keep = trimmed_length(mask, null.dtype)
                tokens, mask = tokens[:, :keep], mask[:, :keep]
            visible = mask[:, None, None]
            if self.packs(tokens):
                visible, tokens = tuple(mask.sum(1).tolist()), tokens[mask][None]
        text = self.text_embed(tokens)
        crosses = [block.cross for block in self.typed_blocks() if block.cross is not None]
        return ReadText([cross.keys_values(text) for cross in crosses], visible, pooled, text)

    def packs(self, tokens: Tensor) -> bool:
        """Whether text of this device and dtype is packed: see the class."""
        waits = tokens.device.type != "cpu" and torch.is_grad_enabled()  # for the lengths, in every step of training
        if self.packed_text is not None or waits or self.attention_backend not in ("auto", *PACKING):
            return bool(self.packed_text)
        probe = tokens.new_empty(1, 1, self.config.heads, self.config.dim // self.config.heads)
        return self.attention_backend in PACKING or choose(probe, probe, probe, None, ([1], [1])) in PACKING

    def positions(self, rows: int, columns: int, context: Context | None) -> Tensor:
        """(1, rows * columns, dim)."""
        config = self.config
        if (rows, columns) == (config.grid, config.grid):
            return self.pos_embed

        def compute() -> Tensor:
            return sincos_positions(rows, columns, config.dim, config.grid, config.position_scale).to(self.pos_embed)

        return memoize(self, context, f"positions {rows} {columns}", (), compute)
