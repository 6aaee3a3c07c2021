"""Z-Image: patches and text as one sequence in blocks of one stream, each refined by itself before (arXiv 2511.22699).

    patches --> image blocks --.
                                >-- blocks on both --> patches --> modulated norm, head
    text -----> text blocks ---'

Blocks have a norm before and after each part, scales and gates but no shifts, and a gated MLP. Text blocks know nothing of the
time, so that text is refined once for a whole run. Text is filled up to whole 32s of tokens with a learned one, and so are
patches; attention sees these. Positions turn with the token of the text, and, behind it, the row and column of the patch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gen.nn.backbones.blocks import Hooked, check_condition, check_image, hooked, memoize, run_block, unpatchify
from gen.nn.backbones.flux import RotaryConfig, grid_positions
from gen.nn.backbones.joint_blocks import RMSNorm, Rotation, StreamAttention, angles, attend
from gen.nn.backbones.joint_network import JointNetwork, JointText
from gen.nn.initialisation import initialise
from samplers.denoiser import Condition, Context

THETA, EPS, WHOLE = 256.0, 1e-5, 32
TIME_DIM, TIME_HIDDEN = 256, 1024


class ZImageConfig(RotaryConfig):
    """Sizes of a Z-Image; `depth` counts the blocks on both."""

    mlp_ratio: float = Field(default=8 / 3, gt=0)
    axes: tuple[int, int, int] = Field(default=(32, 48, 48), description="channels of a head that turn with each axis")
    refiner_depth: int = Field(default=2, ge=0, description="blocks on patches alone, and as many on text alone")


class SandwichBlock(nn.Module):
    """Attention and a gated MLP, each between two norms. time_dim: width of what modulates it; 0: nothing does."""

    def __init__(self, dim: int, heads: int, hidden: int, time_dim: int):
        super().__init__()
        self.modulation = nn.Linear(time_dim, 4 * dim) if time_dim else None
        self.norm1, self.norm2 = RMSNorm(dim, EPS), RMSNorm(dim, EPS)
        self.attn = StreamAttention(dim, heads, qk_norm=True, bias=False, eps=EPS)
        self.norm3, self.norm4 = RMSNorm(dim, EPS), RMSNorm(dim, EPS)
        self.fc1 = nn.Linear(dim, 2 * hidden, bias=False)  # what is gated by SiLU, then what it is multiplied by
        self.fc2 = nn.Linear(hidden, dim, bias=False)

    def forward(
        self,
        x: Tensor,
        c: Tensor | None,
        rotation: Rotation,
        visible: Tensor | None = None,
        backend: str = "auto",
        hooks: Hooked | None = None,
    ) -> Tensor:
        """(B, L, D); c: (B, time_dim)."""
        if self.modulation is None or c is None:
            x = x + self.norm2(self.attention(self.norm1(x), rotation, visible, backend, hooks))
            return x + self.norm4(self.mlp(self.norm3(x)))
        scale1, gate1, scale2, gate2 = self.modulation(c).to(x.dtype).unsqueeze(1).chunk(4, dim=-1)
        attended = self.attention(self.norm1(x) * (1 + scale1), rotation, visible, backend, hooks)
        x = torch.addcmul(x, gate1.tanh(), self.norm2(attended))
        return torch.addcmul(x, gate2.tanh(), self.norm4(self.mlp(self.norm3(x) * (1 + scale2))))

    def attention(self, x: Tensor, rotation: Rotation, visible: Tensor | None, backend: str, hooks: Hooked | None) -> Tensor:
        if hooks is not None and hooks.attention is not None:
            rest = replace(hooks, attention=None)
            return hooks.attention(hooks.site, x, lambda: self.attention(x, rotation, visible, backend, rest))
        assert self.attn.proj is not None
        return self.attn.proj(attend(*self.attn.heads_of(x, rotation), visible, backend, hooks))

    def mlp(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class ScaledHead(nn.Module):
    """The last layers: a norm, modulated by a scale of its own, and a linear layer to the numbers of a patch."""

    def __init__(self, dim: int, time_dim: int, out: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(time_dim, dim)
        self.linear = nn.Linear(dim, out)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return self.linear(self.norm(x) * (1 + self.modulation(F.silu(c)).to(x.dtype).unsqueeze(1)))


class ZImageTransformer(JointNetwork):
    """Z-Image backbone; the time runs from 0, data, to 1, noise, and it predicts noise minus data."""

    config: ZImageConfig
    time_scale: ClassVar[float] = 1000.0

    def __init__(self, config: ZImageConfig):
        super().__init__()
        self.config = config
        dim, heads, hidden = config.dim, config.heads, int(config.dim * config.mlp_ratio)
        time_dim, numbers = min(dim, TIME_DIM), config.patch**2 * config.channels
        self.patch_embed = nn.Linear(numbers, dim)
        text_embed = nn.Sequential(RMSNorm(config.text_dim, EPS), nn.Linear(config.text_dim, dim))
        self.add_conditions(config, time_dim, text_embed, TIME_HIDDEN)
        self.pad_image, self.pad_text = nn.Parameter(torch.zeros(1, dim)), nn.Parameter(torch.zeros(1, dim))
        refiners = range(config.refiner_depth)
        self.image_blocks = nn.ModuleList(SandwichBlock(dim, heads, hidden, time_dim) for _ in refiners)
        self.text_blocks = nn.ModuleList(SandwichBlock(dim, heads, hidden, 0) for _ in refiners)
        self.blocks = nn.ModuleList(SandwichBlock(dim, heads, hidden, time_dim) for _ in range(config.depth))
        self.head = ScaledHead(dim, time_dim, config.patch**2 * config.predicted_channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        zero = [self.head.modulation, self.head.linear]
        for block in cast("list[SandwichBlock]", [*self.image_blocks, *self.blocks]):
            zero += [] if block.modulation is None else [block.modulation]
        self.start_weights(zero)
        for token in (self.pad_image, self.pad_text):
            initialise(nn.init.normal_, token, std=0.02)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        """(B, channels, H, W), (B,) -> (B, channels, H, W), of any size that patches divide.

        Text rows without a real token and missing text are unconditional. Raises ValueError for what does not fit.
        """
        config, backend, count = self.config, self.attention_backend, self.config.depth
        rows, columns = check_image(x, config.channels, config.patch)
        check_condition(condition, len(x), config)
        read = self.text(condition, len(x), context)
        c = self.embed(1 - time, condition, read)  # published with a time that runs from noise to data
        patches = x.unflatten(3, (-1, config.patch)).unflatten(2, (-1, config.patch)).permute(0, 2, 4, 3, 5, 1)
        image = self.patch_embed(patches.flatten(3).flatten(1, 2))
        missing = -(rows * columns) % WHOLE
        image = torch.cat([self.pad_image.to(image.dtype).expand(len(x), missing, -1), image], dim=1)
        of_image, of_both = self.rotations(rows, columns, read, x, context)
        for block in self.image_blocks:
            image = run_block(None, 0, 0, block, image, c, of_image, None, backend)

        both, visible = torch.cat([read.tokens.to(image.dtype), image], dim=1), read.visible(image.shape[1])
        extras = both.shape[1] - rows * columns
        for i, block in enumerate(self.blocks):
            hooks = hooked(context, i, count, extras, rows, columns)
            both = run_block(context, i, count, block, both, c, of_both, visible, backend, hooks)
        return -unpatchify(self.head(both[:, extras:], c), rows, columns, config.patch)

    def project(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Text refined, (B, whole 32s, dim), and which of it is seen: every row's own whole 32s; None: all."""
        length = -(-tokens.shape[1] // WHOLE) * WHOLE
        real = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        real = F.pad(real, (0, length - tokens.shape[1]))
        text = self.text_embed(F.pad(tokens, (0, 0, 0, length - tokens.shape[1])))
        text = torch.where(real[..., None], text, self.pad_text.to(text.dtype))
        place = torch.arange(length, device=text.device)
        seen = place < -(-real.sum(1, keepdim=True) // WHOLE) * WHOLE
        whole = length == WHOLE or (not torch.is_grad_enabled() and not self.config.padded_text and bool(seen.all()))
        visible = None if whole else seen[:, None, None]
        turned = angles(self.text_places(torch.arange(length)), self.config.axes, THETA, text.dtype).to(text.device)
        for block in self.text_blocks:
            text = run_block(None, 0, 0, block, text, None, turned, visible, self.attention_backend)
        return text, None if whole else seen

    @staticmethod
    def text_places(place: Tensor) -> Tensor:
        """Positions (T, 3) of text on the host, from 1 along the first axis."""
        return F.pad((place + 1).double()[:, None], (0, 2))

    def rotations(self, rows: int, columns: int, read: JointText, x: Tensor, context: Context | None) -> tuple[Tensor, Tensor]:
        """Angles of the patches, and of text and then patches, row by row, as patches stand behind their own text: (B, L, ..).
        What fills up the patches stands before them, at position 0."""

        def compute() -> tuple[Tensor, Tensor]:
            batch, length = read.tokens.shape[:2]
            lengths = [length] * batch if read.mask is None else read.mask.sum(1).tolist()
            row, column = (torch.arange(side, dtype=torch.float64) for side in (rows, columns))
            places = grid_positions(row, column).repeat(batch, 1, 1)
            places[..., 0] = torch.tensor(lengths, dtype=torch.float64)[:, None] + 1
            places = F.pad(places, (0, 0, -(rows * columns) % WHOLE, 0))
            text = self.text_places(torch.arange(length)).expand(batch, -1, -1)
            both = torch.cat([text, places], dim=1)
            turned = angles(both.flatten(0, 1), self.config.axes, THETA, x.dtype).to(x.device).unflatten(0, (batch, -1))
            return turned[:, length:], turned

        return memoize(self, context, f"rotations {rows} {columns} {x.dtype}", (read.tokens,), compute)
