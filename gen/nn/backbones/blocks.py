"""Parts that the backbones share.

Shapes: images (B, C, H, W), tokens (B, L, D), time and labels (B,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.attention import attention
from gen.nn.backbones.fused import linear_gelu
from gen.nn.backbones.policy_head import PolicyHeadConfig
from gen.nn.backbones.recompute import checkpointed
from gen.nn.batch_invariance import call_in_mode, without_mode
from gen.nn.initialisation import initialise
from gen.nn.registry import Config
from samplers.constants import constant
from samplers.denoiser import Condition, Context
from samplers.hooks import Site

QK_NORM_EPS = 1e-6
Visible = Tensor | tuple[int, ...] | None  # which text a row may attend to: see `CrossAttention`


def timestep_embedding(time: Tensor, dim: int, freq_shift: int = 0) -> Tensor:
    """(B,) -> (B, dim): cos then sin of time at dim / 2 frequencies from 1 down to 1 / 10000 (exclusive), at least float32.

    The frequencies are 10000^(-i / (dim / 2 - freq_shift)); a freq_shift of 1 includes 1 / 10000.
    """
    time = time if time.dtype == torch.float64 else time.float()
    step = -math.log(10000) / (dim // 2 - freq_shift)
    frequencies = torch.exp(torch.arange(dim // 2, device=time.device, dtype=time.dtype) * step)
    angles = time[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def normalize_heads(x: Tensor, kind: str) -> Tensor:
    """qk-norm over the last axis, the width of a head, without weights: "none", "rms" or "layer".

    The root mean square is written with `vector_norm`: F.rms_norm has no fused CPU kernel for training and is 1.6 times slower
    there, attention included. "layer" (the mean is removed as well) has one and is the fastest.
    """
    if kind == "rms":
        with without_mode():
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            norm = norm if norm.dtype == torch.float64 else norm.float()
            return x * call_in_mode(torch.rsqrt, norm.square() / x.shape[-1] + QK_NORM_EPS).to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], eps=QK_NORM_EPS) if kind == "layer" else x


@dataclass(frozen=True)
class Hooked:
    """An attention's place and the run's hooks for it (`samplers.hooks`); either may be missing.

    pictures: the last so many of the site's extras are of pictures that are edited: the "text" hook sees them with the patches.
    """

    site: Site
    attention: Callable[..., Tensor] | None
    heads: Callable[..., Tensor] | None
    cross: Callable[..., Tensor] | None = None
    text: Callable[..., Tensor] | None = None
    pictures: int = 0


def hooked(
    context: Context | None, index: int, count: int, extras: int, rows: int, columns: int, pictures: int = 0
) -> Hooked | None:
    """The attention hooks of a run at a site (`samplers.hooks.Site`); None where there are none. pictures: as of `Hooked`."""
    hooks = context.hooks if context is not None else {}
    attention, heads, cross, text = (hooks.get(name) for name in ("attention", "heads", "cross", "text"))
    if attention is None and heads is None and cross is None and text is None:
        return None
    return Hooked(Site(index, count, extras, rows, columns), attention, heads, cross, text, pictures)


class BackboneConfig(Config):
    """What every backbone's config has: the picture it takes, the conditions it takes, and the width of its tokens."""

    size: int = Field(gt=0, description="height and width it is trained at, in pixels or latent pixels")
    patch: int = Field(gt=0)
    channels: int = Field(gt=0)
    dim: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    num_classes: int = Field(default=0, ge=0, description="0: takes no label")
    text_tokens: int = Field(default=0, ge=0, description="the most text tokens it takes; 0: takes no text")
    text_dim: int = Field(default=0, ge=0)
    policy: PolicyHeadConfig | None = Field(default=None, description="it predicts policies (`samplers.policy`), not one image")

    @model_validator(mode="after")
    def _fits(self) -> BackboneConfig:
        if self.size % self.patch:
            raise ValueError(f"size {self.size} must be a multiple of patch {self.patch}")
        if self.dim % self.heads or self.dim % 4:
            raise ValueError(f"dim {self.dim} must be a multiple of 4 and of heads {self.heads}")
        if bool(self.text_tokens) != bool(self.text_dim):
            raise ValueError("text_tokens and text_dim go together: give both, or neither")
        return self

    @property
    def predicted_channels(self) -> int:
        """Channels of what it predicts."""
        return self.channels if self.policy is None else self.policy.build().outputs(self.channels)

    @property
    def grid(self) -> int:
        """Patches along a side at the trained size."""
        return self.size // self.patch


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection for q, k and v."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool, qk_norm: str):
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, backend: str = "auto", hooks: Hooked | None = None) -> Tensor:
        if hooks is not None and hooks.attention is not None:
            return hooks.attention(hooks.site, x, lambda: self(x, backend, replace(hooks, attention=None)))
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        # every number in one part, once: gradients of overlapping views would be filled up with zeros and added
        if self.qk_norm == "none":
            q, k, v = qkv.unbind(2)
        else:
            both, v = qkv.split([2, 1], dim=2)
            (q, k), v = normalize_heads(both, self.qk_norm).unbind(2), v.squeeze(2)
        if hooks is None or hooks.heads is None:
            out = attention(q, k, v, backend=backend)
        else:
            out = hooks.heads(hooks.site, q, k, v, lambda q, k, v: attention(q, k, v, backend=backend))
        out, extras = out.flatten(2), 0 if hooks is None else hooks.site.extras
        if hooks is not None and hooks.text is not None and extras:  # text is among the other tokens
            led = hooks.text(hooks.site, lambda rows: out[:, extras:])
            out = torch.cat([out[:, :extras], led], dim=1)
        return self.proj(out)


class CrossAttention(nn.Module):
    """Image tokens attend to text, whose keys and values depend on nothing else and can be kept for a whole run."""

    def __init__(self, dim: int, heads: int, qk_norm: str):
        super().__init__()
        self.heads, self.qk_norm = heads, qk_norm
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, D) -> keys and values, each (B, L, heads, D / heads)."""
        k, v = self.kv(text).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return normalize_heads(k, self.qk_norm), v

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        visible: Visible = None,
        backend: str = "auto",
        hooks: Hooked | None = None,
    ) -> Tensor:
        """visible: a mask (B, 1, 1, L), True = attend; or the number of tokens of each row, where the rows' keys and values
        are packed one after another into (1, sum, heads, D / heads); None: everything."""
        if hooks is not None and hooks.attention is not None:
            site, rest = replace(hooks.site, kind="cross"), replace(hooks, attention=None)
            return hooks.attention(site, x, lambda: self(x, keys_values, visible, backend, rest))
        q = normalize_heads(self.q(x).unflatten(-1, (self.heads, -1)), self.qk_norm)
        if hooks is not None and (hooks.cross is not None or hooks.text is not None):
            return self.proj(self._hooked(q, *unpacked(keys_values, visible), backend, hooks))
        if isinstance(visible, tuple):
            lengths = ([q.shape[1]] * len(q), visible)
            out = attention(q.flatten(0, 1)[None], *keys_values, lengths=lengths, backend=backend).view(q.shape)
        else:
            out = attention(q, *keys_values, visible, backend=backend)
        return self.proj(out.flatten(2))

    def _hooked(
        self, q: Tensor, keys_values: tuple[Tensor, Tensor], mask: Tensor | None, backend: str, hooks: Hooked
    ) -> Tensor:
        """(B, L, D): attention through the run's hooks, "text" around "cross"."""
        site, (k, v) = replace(hooks.site, kind="cross"), keys_values

        def proper(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return attention(q, k, v, mask, backend=backend)

        def run(rows: Tensor | None) -> Tensor:
            asked = q if rows is None else q[rows]
            out = proper(asked, k, v, mask) if hooks.cross is None else hooks.cross(site, asked, k, v, mask, proper)
            return out.flatten(2)

        return run(None) if hooks.text is None else hooks.text(site, run)


def unpacked(keys_values: tuple[Tensor, Tensor], visible: Visible) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
    """Keys and values (B, L, heads, D / heads) with their mask, of such or of packed ones."""
    if not isinstance(visible, tuple):
        return keys_values, visible
    k, v = (nn.utils.rnn.pad_sequence(list(part[0].split(visible)), batch_first=True) for part in keys_values)
    is_real = torch.arange(k.shape[1], device=k.device) < constant(visible, k.device)[:, None]
    return (k, v), is_real[:, None, None]


class MLP(nn.Module):
    """Two linear layers with a GELU between them. fused: their kernels may be one, whose last bit can depend on the number of
    rows."""

    def __init__(self, dim: int, hidden: int, out: int, gelu: str, fused: bool = True):
        super().__init__()
        self.fused = fused
        self.approximate = {"exact": "none", "tanh": "tanh"}[gelu]
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return self.fc2(linear_gelu(self.fc1, x, self.approximate))
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class TimeMLP(nn.Sequential):
    """Two linear layers on the timestep embedding, with a SiLU between them."""

    def __init__(self, frequencies: int, dim: int, hidden: int):
        super().__init__(nn.Linear(frequencies, hidden), nn.SiLU(), nn.Linear(hidden, dim))

    @property
    def linears(self) -> tuple[nn.Linear, nn.Linear]:
        """The first and the last layer."""
        return cast("nn.Linear", self[0]), cast("nn.Linear", self[2])


def init_truncated(module: nn.Module) -> None:
    """A linear layer or embedding as U-ViT and DiMR begin it: truncated normals of 0.02, no bias; other modules stay."""
    if isinstance(module, nn.Linear | nn.Embedding):
        initialise(nn.init.trunc_normal_, module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        initialise(nn.init.zeros_, module.bias)


def check_image(x: Tensor, channels: int, patch: int) -> tuple[int, int]:
    """The patch grid (rows, columns) of an input, or a sentence about what is wrong with it."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"The network takes images of shape (B, {channels}, H, W); it was given {tuple(x.shape)}.")
    height, width = x.shape[2:]
    if height % patch or width % patch or not height or not width:
        raise ValueError(
            f"The network cuts images into patches of {patch} by {patch}, so height and width must be multiples of {patch}; "
            f"it was given {height} by {width}."
        )
    return height // patch, width // patch


def check_condition(condition: Condition, batch: int, config: Any) -> None:
    """Refuses, in a sentence, a label or text that the network does not take or that does not fit it."""
    label, tokens, mask = condition.label, condition.tokens, condition.mask
    if label is not None:
        if not config.num_classes:
            raise ValueError("This network takes no label (its config has num_classes 0), but the condition has one.")
        if label.shape != (batch,):
            raise ValueError(f"The labels must be one per image, ({batch},); they are {tuple(label.shape)}.")
    if tokens is not None:
        if not config.text_dim:
            raise ValueError("This network takes no text (its config has text_dim 0), but the condition has tokens.")
        if tokens.ndim != 3 or tokens.shape[0] != batch or tokens.shape[2] != config.text_dim:
            raise ValueError(f"The text must be ({batch}, L, {config.text_dim}); it is {tuple(tokens.shape)}.")
        if tokens.shape[1] > config.text_tokens:
            raise ValueError(
                f"The network has room for {config.text_tokens} text tokens and was given {tokens.shape[1]}: "
                "shorten the prompt, or have the text encoder truncate it."
            )
        if mask is not None and mask.shape != tokens.shape[:2]:
            raise ValueError(f"The mask must be {tuple(tokens.shape[:2])}, like the text; it is {tuple(mask.shape)}.")


def unpatchify(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """(B, rows * columns, patch * patch * C) -> (B, C, rows * patch, columns * patch)."""
    x = tokens.unflatten(1, (rows, columns)).unflatten(3, (patch, patch, -1))
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def resize_positions(positions: Tensor, trained: int, rows: int, columns: int) -> Tensor:
    """(1, trained^2, D) position embeddings at another grid (1, rows * columns, D), bicubic; the trained grid is untouched."""
    if (rows, columns) == (trained, trained):
        return positions
    grid = positions.unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    dtype = grid.dtype if grid.dtype == torch.float64 else torch.float32
    grid = F.interpolate(grid.to(dtype), size=(rows, columns), mode="bicubic", align_corners=False)
    return grid.flatten(2).transpose(1, 2).to(positions.dtype)


def class_index(label: Tensor | None, num_classes: int, batch: int, device: torch.device, null: bool = True) -> Tensor:
    """Rows of a (num_classes + 1)-row label table; negative labels and no labels at all are the null row, the last one.

    null: whether the table has that row; a table without it takes no image without a label.
    """
    if not null and (label is None or (label.device.type == "cpu" and label.numel() and int(label.min()) < 0)):
        raise ValueError(
            "This network has no row for images without a label (its config has null_label false): give every image a label, "
            "and leave guidance at 1."
        )
    if label is None:
        return torch.full((batch,), num_classes, device=device)
    if label.device.type == "cpu" and label.numel() and int(label.max()) >= num_classes:
        raise ValueError(
            f"The network knows the labels 0 to {num_classes - 1} (negative = unconditional); it was given {int(label.max())}."
        )
    return torch.where(label < 0, num_classes, label)


def mean_token(tokens: Tensor, mask: Tensor) -> Tensor:
    """(B, D): the mean over the True places of `mask` (B, L) of tokens (B, L, D); zero where there is none."""
    weight = mask[..., None].to(tokens.dtype)
    return (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)


def trimmed_length(mask: Tensor, dtype: torch.dtype) -> int:
    """How many tokens of a padded text (B, L) have to be kept: all up to the last real one of any row, rounded up.

    Rounded to the width of the kernels' inner loops, 16 numbers in float32 and 64 in half precision, because then the masked
    rest that is left away changes no bit of the result: a picture does not depend on the prompts of its batch.
    """
    step = 64 if dtype.itemsize == 2 else 16
    # a length read from the values would break a compiled graph in two
    if mask.shape[1] <= step or torch.compiler.is_compiling():
        return mask.shape[1]
    used = mask.any(0).nonzero()
    longest = int(used[-1]) + 1 if len(used) else 1
    return min(-(-longest // step) * step, mask.shape[1])


def memoize(network: nn.Module, context: Context | None, name: str, owners: tuple, compute: Callable[[], Any]) -> Any:
    """`compute()` once per run where that is safe: no context, gradients or training mean every time."""
    if context is None or network.training or torch.is_grad_enabled():
        return compute()
    return context.memo(f"{name} {id(network)}", (network, *owners), compute)


def run_block(context: Context | None, index: int, count: int, block: Callable[..., Tensor], x: Tensor, *args: Any) -> Tensor:
    """A block of the network, through the run's "block" hook if there is one: hook(index, count, x, run) -> x.

    `run()` evaluates the block; a cache returns something else instead. index counts 0 .. count - 1 through the network.
    A block with `recompute` set keeps nothing for the backward pass but its inputs, and is evaluated again there.
    """
    if isinstance(block, nn.Module) and getattr(block, "recompute", False) and torch.is_grad_enabled():
        block = partial(checkpointed, block)
    hook = context.hooks.get("block") if context is not None else None
    if hook is None:
        return block(x, *args)
    return hook(index, count, x, lambda: block(x, *args))
