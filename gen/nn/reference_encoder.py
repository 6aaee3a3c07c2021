"""A reference encoder: what pictures show, as tokens that a denoiser attends to beside the text (arXiv 2308.06721).

    features of N pictures --> embedded, refined within each --> [resampled] --> tokens --> keys and values of each layer
                                                             \\--> a word of the prompt

Tokens are the refined features themselves, or what a resampler makes of those of all pictures, which it reads as a set: learned
queries attend to them (IP-Adapter plus; EasyRef, arXiv 2412.09618, has 64 for any number of pictures). A picture's number in
the list is told to nobody, so their order changes nothing. The values of every layer start at zero, so an untrained encoder
changes nothing.

Shapes: features (B, N, T, F) of N pictures with T features each, tokens (B, M, D).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import MLP, CrossAttention, SelfAttention, check_image, mean_token, normalize_heads
from gen.nn.backbones.dit import DiT, DiTBlock, sincos_positions
from gen.nn.initialisation import initialise, xavier_linears
from gen.nn.registry import Config

NOISY = 700.0  # time at which keys are copied, of a clock that ends at 1000: where most of a picture is decided
KeysValues = tuple[Tensor, Tensor]


class ReferenceEncoderConfig(Config):
    """Sizes, and what is read and told.

    features: "latents" reads patches of the autoencoder's latents, "clip" the tokens of CLIP's vision network before its last
    layer. subject: "word" is the embedding of the word that stands for the pictures (PromptNet of ProFusion, arXiv 2305.13579;
    MM-Diff's fused embedding, arXiv 2403.15059), "fused" changes what the text encoder makes of that word (ours), "none" leaves
    the prompt alone.
    """

    features: Literal["latents", "clip"] = "latents"
    channels: PositiveInt = Field(default=16, description="of the latents, or the width of CLIP's tokens")
    patch: PositiveInt = Field(default=2, description="of latents; 1 for CLIP")
    size: PositiveInt = Field(default=16, description="height and width of the latents of a reference")
    dim: PositiveInt = 256
    heads: PositiveInt = 4
    depth: int = Field(default=2, ge=0, le=64, description="layers that refine each picture's features by themselves")
    mlp_ratio: float = Field(default=4.0, gt=0)
    qk_norm: Literal["none", "rms", "layer"] = "rms"
    gelu: Literal["exact", "tanh"] = "exact"
    tokens: int = Field(default=0, ge=0, le=4096, description="that a resampler makes of all pictures; 0: no resampler")
    resampler_depth: int = Field(default=0, ge=0, le=64)
    subject: Literal["none", "fused", "word"] = "none"
    text_dim: int = Field(default=0, ge=0, description="of text tokens, or of word embeddings")
    attention: Literal["cross", "joint"] = Field(
        default="cross", description="what it is added to: attention to text, or that of patches among themselves, of text too"
    )
    layers: int = Field(default=0, ge=0, le=256, description="attentions that it is added to, in the order they run")
    layer_dim: int = Field(default=0, ge=0, description="width of their queries, all heads together")
    layer_heads: int = Field(default=0, ge=0)
    layer_norm: Literal["none", "rms", "layer"] = Field(default="none", description="of keys, as the network norms its own")

    @model_validator(mode="after")
    def _fits(self) -> ReferenceEncoderConfig:
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim {self.dim} must be a multiple of 4 and of heads {self.heads}")
        if self.size % self.patch:
            raise ValueError(f"size {self.size} must be a multiple of patch {self.patch}")
        if bool(self.tokens) != bool(self.resampler_depth):
            raise ValueError("tokens and resampler_depth go together: give both, or neither")
        if bool(self.text_dim) != (self.subject != "none"):
            raise ValueError(
                f"subject is {self.subject!r}, and text_dim {self.text_dim}: a subject needs the width of the text"
            )
        if self.layers and (not self.layer_heads or not self.layer_dim or self.layer_dim % self.layer_heads):
            raise ValueError(
                f"layer_dim {self.layer_dim} must be a positive multiple of layer_heads {self.layer_heads}, as there are layers"
            )
        if not self.layers and self.subject == "none":
            raise ValueError("the encoder tells nobody of its pictures: give layers, or a subject")
        return self


@dataclass(frozen=True)
class EncodedReferences:
    """What pictures gave. tokens (B, M, D); seen (B, M) bool, of no missing picture; summary (B, D), zero without pictures."""

    tokens: Tensor
    seen: Tensor
    summary: Tensor


class RefineBlock(nn.Module):
    """A pre-norm transformer block over the features of one picture."""

    def __init__(self, config: ReferenceEncoderConfig):
        super().__init__()
        dim = config.dim
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = SelfAttention(dim, config.heads, False, config.qk_norm)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio), dim, config.gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    @torch.no_grad()
    def copy(self, block: DiTBlock, modulation: Tensor) -> None:
        """Become a block of a DiT without its attention to text, under a modulation (6, dim) that does not change: shift and
        scale are those of the norms, and gates part of the layers behind."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        for norm, shift, scale in ((self.norm1, shift1, scale1), (self.norm2, shift2, scale2)):
            norm.weight.copy_(1 + scale)
            norm.bias.copy_(shift)
        self.attn.qkv.weight.copy_(block.attn.qkv.weight)
        self.mlp.fc1.load_state_dict(block.mlp.fc1.state_dict())
        for mine, its, gate in ((self.attn.proj, block.attn.proj, gate1), (self.mlp.fc2, block.mlp.fc2, gate2)):
            mine.weight.copy_(gate[:, None] * its.weight)
            mine.bias.copy_(gate * its.bias)


class ResamplerBlock(nn.Module):
    """Learned queries attend to the features of all pictures and to one another (arXiv 2204.14198, figure 5)."""

    def __init__(self, config: ReferenceEncoderConfig):
        super().__init__()
        dim = config.dim
        self.norm, self.norm_features, self.norm_mlp = (nn.LayerNorm(dim, eps=1e-6) for _ in range(3))
        self.attn = CrossAttention(dim, config.heads, config.qk_norm)
        self.mlp = MLP(dim, int(dim * config.mlp_ratio), dim, config.gelu)

    def forward(self, x: Tensor, features: Tensor, seen: Tensor) -> Tensor:
        """x (B, M, D); features (B, L, D), of which seen (B, L) are there."""
        queries = self.norm(x)
        keys_values = self.attn.keys_values(torch.cat([self.norm_features(features), queries], dim=1))
        visible = F.pad(seen, (0, x.shape[1]), value=True)[:, None, None]
        x = x + self.attn(queries, keys_values, visible)
        return x + self.mlp(self.norm_mlp(x))


class ReferenceEncoder(nn.Module):
    """See the module. `forward` gives tokens, `keys_values` what a layer's queries attend to, `subject_vector` the word."""

    positions: Tensor

    def __init__(self, config: ReferenceEncoderConfig):
        super().__init__()
        self.config = config
        dim = config.dim
        self.embed = nn.Linear(config.channels * config.patch**2, dim)
        if config.features == "latents":  # CLIP's tokens know their places
            grid = config.size // config.patch
            positions = sincos_positions(grid, grid, dim, grid, 1.0).to(torch.get_default_dtype())
            self.register_buffer("positions", positions, persistent=False)
        self.blocks = nn.ModuleList(RefineBlock(config) for _ in range(config.depth))
        self.queries = nn.Parameter(torch.empty(config.tokens, dim)) if config.tokens else None
        self.resampler = nn.ModuleList(ResamplerBlock(config) for _ in range(config.resampler_depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.keys = nn.ModuleList(nn.Linear(dim, config.layer_dim) for _ in range(config.layers))
        self.values = nn.ModuleList(nn.Linear(dim, config.layer_dim, bias=False) for _ in range(config.layers))
        if config.subject != "none":
            read = dim + (config.text_dim if config.subject == "fused" else 0)
            self.subject = MLP(read, dim, config.text_dim, "exact")
            # the word's embedding before the pictures change it, or all that it ever is
            start = torch.zeros(config.text_dim)
            self.subject_start: Tensor
            if config.subject == "word":
                self.subject_start = nn.Parameter(start)
            else:
                self.register_buffer("subject_start", start)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier's rule, and what is added to the network or the prompt at zero."""
        xavier_linears(self)
        zero = cast("list[nn.Linear]", list(self.values))
        if self.config.subject != "none":
            zero.append(self.subject.fc2)
        for layer in zero:
            initialise(nn.init.zeros_, layer.weight)
        if self.queries is not None:
            initialise(nn.init.normal_, self.queries, std=self.config.dim**-0.5)
        if self.config.subject != "none":
            initialise(nn.init.normal_, self.subject_start, std=0.02)

    @classmethod
    @torch.no_grad()
    def of(cls, base: DiT, size: int, time: float, **sizes: object) -> Self:
        """An encoder for a DiT of ours whose refining blocks are copies of the first ones, as they are at a time of its own
        clock, and whose keys beside self-attention are those of the blocks at `NOISY` of it, so that patches find what is like
        them from the first step on. size: height and width of the latents. sizes: of `ReferenceEncoderConfig`. ValueError for
        more blocks than there are."""
        own = base.config
        fitted = {"channels": own.channels, "patch": own.patch, "size": size, "dim": own.dim, "heads": own.heads,
                  "mlp_ratio": own.mlp_ratio, "qk_norm": own.qk_norm, "gelu": own.gelu,
                  **attention_sizes(base, str(sizes.get("attention", "")))}  # fmt: skip
        encoder = cls(ReferenceEncoderConfig(**{**fitted, **sizes}))  # type: ignore[arg-type]
        config = encoder.config
        if config.depth > own.depth:
            raise ValueError(f"depth is {config.depth}; the network has {own.depth} blocks to copy, so give at most that many.")
        alike = ("channels", "patch", "dim", "heads", "mlp_ratio", "qk_norm", "gelu")
        if config.features != "latents" or own.qkv_bias or any(getattr(config, name) != getattr(own, name) for name in alike):
            return encoder  # of other sizes than the blocks: from scratch
        encoder.embed.weight.copy_(base.patch_embed.weight.flatten(1))
        encoder.embed.bias.copy_(base.patch_embed.bias)  # type: ignore[arg-type]
        for copied, block in zip(encoder.blocks, base.typed_blocks(), strict=False):
            cast("RefineBlock", copied).copy(block, modulation_at(base, block, time))
        if config.attention == "joint":
            for key, block in zip(cast("list[nn.Linear]", list(encoder.keys)), base.typed_blocks(), strict=True):
                shift, scale = modulation_at(base, block, NOISY)[:2]
                weight = block.attn.qkv.weight.unflatten(0, (3, -1))[1]
                key.weight.copy_(weight * (1 + scale))
                key.bias.copy_(weight @ shift)
        return encoder

    def patches(self, latents: Tensor) -> Tensor:
        """Features (B, N, T, F) of latents (B, N, C, h, w). ValueError for others than it reads."""
        config = self.config
        check_image(latents.flatten(0, 1), config.channels, config.patch)
        if latents.shape[-2:] != (config.size, config.size):
            raise ValueError(
                f"The reference encoder reads latents of {config.size} by {config.size}; these are "
                f"{latents.shape[-2]} by {latents.shape[-1]}."
            )
        cut = F.unfold(latents.flatten(0, 1), config.patch, stride=config.patch).transpose(1, 2)
        return cut.unflatten(0, latents.shape[:2])

    def forward(self, features: Tensor, present: Tensor | None = None) -> EncodedReferences:
        """Tokens of the pictures of B samples. present: (B, N) bool, False for one that is not there."""
        count, length = features.shape[1:3]
        if present is None:
            present = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        x = self.embed(features.flatten(0, 1).to(self.embed.weight.dtype))
        if self.config.features == "latents":
            x = x + self.positions.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        # what stands where no picture is must be finite, or its product with a weight of zero would not be zero
        x = x.unflatten(0, (-1, count)).masked_fill(~present[..., None, None], 0)
        each = self.norm(x[:, :, 0] if self.config.features == "clip" else x.mean(2))  # CLIP's first token is of the whole
        summary = mean_token(each, present)
        x, seen = x.flatten(1, 2), present.repeat_interleave(length, dim=1)
        if self.queries is not None:
            features, queries = x, self.queries.to(x.dtype).expand(len(x), -1, -1)
            x = queries
            for block in self.resampler:
                x = block(x, features, seen)
            seen = present.any(1, keepdim=True).expand(-1, x.shape[1])
        return EncodedReferences(self.norm(x), seen, summary)

    def keys_values(self, layer: int, tokens: Tensor) -> KeysValues:
        """(B, M, D) -> what the queries of a layer attend to, each (B, M, heads, width)."""
        key, value = cast("nn.Linear", self.keys[layer]), cast("nn.Linear", self.values[layer])
        k, v = (projection(tokens.to(projection.weight.dtype)) for projection in (key, value))
        k, v = (part.unflatten(-1, (self.config.layer_heads, -1)) for part in (k, v))
        return normalize_heads(k, self.config.layer_norm), v

    def word_vector(self, summary: Tensor) -> Tensor:
        """(B, D) -> the embeddings (B, text_dim) of the word that stands for the pictures."""
        start = self.subject_start.expand(len(summary), -1)
        return start + self.subject(summary) if self.config.subject == "word" else start

    def fuse(self, tokens: Tensor, summary: Tensor, places: Tensor) -> Tensor:
        """Text tokens (B, L, text_dim), those at places (B, L) bool with what the pictures' summary (B, D) makes of them added.
        Ours: as MM-Diff (arXiv 2403.15059) fuses them, but behind the text encoder, which is then run once."""
        read = torch.cat([summary[:, None].expand(-1, tokens.shape[1], -1).to(tokens.dtype), tokens], dim=-1)
        return tokens + self.subject(read.to(self.subject.fc1.weight.dtype)).to(tokens.dtype) * places[..., None]


def modulation_at(base: DiT, block: DiTBlock, time: float) -> Tensor:
    """(6, dim): shift, scale and gate of attention and of the MLP of a DiT's block, without a label or text."""
    c = F.silu(base.embed(torch.tensor([time])))
    if base.config.modulation == "adaln":
        return block.modulation(c).unflatten(-1, (6, -1))[0]
    return block.table + base.shared_modulation(c).unflatten(-1, (6, -1))[0]


def attention_sizes(network: Any, attention: str = "") -> dict[str, object]:
    """Sizes of the attentions of one of our networks that an encoder is added to, as its config names them.

    attention: "joint" takes self-attention where the network has attention to text too, which is what is taken else.
    """
    config = network.config
    crosses = any(isinstance(module, CrossAttention) for module in network.modules()) and attention != "joint"
    qk_norm = getattr(config, "qk_norm", "none")
    return {
        "attention": "cross" if crosses else "joint",
        "layers": config.depth + getattr(config, "single_depth", 0),
        "layer_dim": config.dim,
        "layer_heads": config.heads,
        "layer_norm": qk_norm if qk_norm in ("rms", "layer") else "none",
    }
