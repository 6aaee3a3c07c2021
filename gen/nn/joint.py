"""A joint adapter: one network that denoises a picture and a map of it together (UniCon, arXiv 2410.11439).

Two streams go through the same frozen network as rows of one batch: first the B pictures, then their B maps (outlines, regions,
depth), each with a noise level of its own. Two things are learned:

- joint attention: beside what a patch finds in its own stream, it attends to the patches of the other one,

      out = Attention(Q, K, V) + w W_out Attention(Q + A_q Q, K' + A_k K', V' + A_v V')

  with K', V' of the other stream, low-rank A and a W_out that starts at zero, all of them the layer's and the direction's own;
- the stream of maps: low-rank changes of linear layers that act on the rows of maps alone.

So an untrained adapter is two separate models, and the stream of pictures alone is always the base. The published form
changes the weights of q, k and v; here the change comes behind norms and rotary positions, through the hook "heads", so that
any network that has the hook will do.

Shapes: rows (2 B, ...), or several times that where guidance stacks its branches; tokens (B, L, heads, width).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from gen.nn.attention import attention
from gen.nn.initialisation import initialise
from gen.nn.low_rank import LowRankWeight, layer_weight, start_down
from gen.nn.registry import Config
from samplers.denoiser import Context
from samplers.hooks import Site, with_hook

STREAMS = ("picture", "map")  # in the order of their rows
Size = Annotated[int, Field(gt=0, le=1 << 16)]


class JointAdapterConfig(Config):
    """Sizes, and what the maps are."""

    kind: str = Field(default="segments", max_length=64, description="of maps (`gen.models.control_pictures`)")
    layers: PositiveInt = Field(le=256, description="self-attentions of the network, in the order they run")
    dim: PositiveInt = Field(description="width of their queries, all heads together")
    rank: PositiveInt = Field(default=16, description="of the changes of q, k and v")
    map_rank: int = Field(default=16, ge=0, description="of the changes in the stream of maps")
    changed: dict[str, tuple[Size, Size]] = Field(
        default={}, max_length=4096, description="linear layers that change for maps: name -> (outputs, inputs)"
    )

    @model_validator(mode="after")
    def _fits(self) -> JointAdapterConfig:
        if bool(self.map_rank) != bool(self.changed):
            raise ValueError(f"map_rank is {self.map_rank} and {len(self.changed)} layers are changed: give both, or neither")
        return self


class JointAdapter(nn.Module):
    """See the module. Its tensors of joint attention hold one row for each layer and direction: 0 is what pictures find in
    maps, 1 what maps find in pictures."""

    def __init__(self, config: JointAdapterConfig):
        super().__init__()
        self.config = config
        rank, dim = min(config.rank, config.dim), config.dim
        self.down = nn.Parameter(torch.empty(config.layers, 2, 3, rank, dim))
        self.up = nn.Parameter(torch.empty(config.layers, 2, 3, dim, rank))
        self.out = nn.Parameter(torch.empty(config.layers, 2, dim, dim))
        self.map_down, self.map_up = nn.ParameterDict(), nn.ParameterDict()
        for name, (outputs, inputs) in config.changed.items():
            own, key = min(config.map_rank, outputs, inputs), name.replace(".", "/")
            self.map_down[key] = nn.Parameter(start_down(name, own, inputs))
            self.map_up[key] = nn.Parameter(torch.zeros(outputs, own))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Both parts begin without effect."""
        for place in itertools.product(range(self.config.layers), range(2), range(3)):
            start = start_down(" ".join(map(str, place)), *self.down.shape[3:])
            initialise(lambda value, start=start: value.copy_(start), self.down.data[place])
        initialise(nn.init.zeros_, self.up)
        initialise(nn.init.zeros_, self.out)

    def changes(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What changes for maps: name of a linear layer -> (A (rank, inputs), B (outputs, rank))."""
        return {
            name: (self.map_down[key], self.map_up[key])
            for name, key in ((n, n.replace(".", "/")) for n in self.config.changed)
        }

    def weights(self, network: nn.Module, rows: Tensor) -> dict[str, Tensor]:
        """The weights of a network (`gen.nn.replaced_weight.replaced`) for a batch. rows: (N,), 1 for maps, else 0."""
        return {
            f"{name}.weight": LowRankWeight.of(layer_weight(network, name).detach(), down, up, rows)
            for name, (down, up) in self.changes().items()
        }

    def found(self, layer: int, direction: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What the queries (B, L, heads, width) of one stream find in keys and values (B, L', heads, width) of the other."""
        heads = q.shape[2]
        changed = []
        for part, value in enumerate((q, k, v)):
            flat = value.flatten(2)
            down, up = (both[layer, direction, part].to(flat.dtype) for both in (self.down, self.up))
            changed.append((flat + F.linear(F.linear(flat, down), up)).unflatten(2, (heads, -1)))
        seen = attention(*changed).flatten(2)
        return F.linear(seen, self.out[layer, direction].to(seen.dtype)).unflatten(2, (heads, -1))


@dataclass(frozen=True)
class JointAttention:
    """The joint attention of an adapter in a run, as a hook "heads". count: B, of pictures and of maps. weight: w."""

    adapter: JointAdapter
    count: int
    weight: float = 1.0

    def hooked(self, context: Context) -> Context:
        """The run with this in its network's attentions."""
        return with_hook(context, "heads", self)

    def __call__(self, site: Site, q: Tensor, k: Tensor, v: Tensor, run: Callable[..., Tensor]) -> Tensor:
        """Patches come after the other tokens of a sequence, and attend to the patches of the other stream."""
        out, extras, config = run(q, k, v), site.extras, self.adapter.config
        if self.weight == 0:
            return out
        if (site.count, q.shape[2] * q.shape[3]) != (config.layers, config.dim):
            raise ValueError(
                f"The joint adapter is for {config.layers} attentions of width {config.dim}, and this network has {site.count} "
                f"of {q.shape[2] * q.shape[3]}; it is for another model."
            )
        streams = [self.streams(value[:, extras:]) for value in (q, k, v)]
        added = [
            self.adapter.found(site.index, own, streams[0][own], streams[1][1 - own], streams[2][1 - own]) for own in range(2)
        ]
        stacked = torch.stack([one.unflatten(0, (-1, self.count)) for one in added], 1).flatten(0, 2)
        return torch.cat([out[:, :extras], out[:, extras:] + self.weight * stacked.to(out.dtype)], dim=1)

    def streams(self, rows: Tensor) -> list[Tensor]:
        """The rows of pictures, and those of maps, of all branches together."""
        return [part.flatten(0, 1) for part in rows.unflatten(0, (-1, 2, self.count)).unbind(1)]
