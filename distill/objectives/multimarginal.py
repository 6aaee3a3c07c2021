"""Multimarginal stochastic interpolants: one network that takes any of several kinds of pictures to any other.

    L = sum_k E |g_k(a, x(a)) - x_k|^2,   x(a) = sum_k a_k x_k,   a anywhere on the simplex

The kinds are noise, the data's pictures and what is made of them (outlines, greys, flat colours), or the other half of pairs.
What is trained draws by the command `fewstep transport`.

Source: arXiv 2310.03695, equations 9 and 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.data.drawn_edges import drawn_edges
from distill.objectives.bases.objective import Objective
from distill.types import SOURCE, Batch, Draws, Phase, Preview, Role, pictures_of
from gen.nn.multimarginal import Multimarginal
from gen.nn.registry import Config
from samplers.lookup import nearest
from samplers.simplex import SimplexPath, transport

KINDS = ("noise", "picture", "source", "lines", "grey", "flat")
GREY = (0.299, 0.587, 0.114)


class MultimarginalObjectiveConfig(Config):
    """coupling: the parts of a sample are of one picture (paired), or of different ones of the batch (independent). edges:
    share of the samples on the edges between two corners, where transports pass that choose no other path. colours: of each
    channel in the kind flat. preview_steps: of the transports in a preview."""

    coupling: Literal["paired", "independent"] = "paired"
    edges: float = Field(default=0.5, ge=0, le=1)
    colours: int = Field(default=4, ge=2, le=64)
    preview_steps: int = Field(default=10, ge=1)


class MultimarginalObjective(Objective):
    """See the module. Role `parts`, a network of type multimarginal whose marginals are names of KINDS."""

    def __init__(self, config: MultimarginalObjectiveConfig, network: nn.Module, source=None):
        if not isinstance(network, Multimarginal):
            raise ValueError("This method trains a network of its own: set network.type to multimarginal.")
        self.config, self.kinds = config, network.config.marginals
        for kind in self.kinds:
            if kind not in KINDS:
                near = nearest(kind, KINDS)
                hint = f" Did you mean {near!r}?" if near else ""
                raise ValueError(f"network.marginals has {kind!r}; choose among {', '.join(KINDS)}.{hint}")
        self.roles = {"parts": Role(network)}

    def corners(self, batch: Batch, draws: Draws) -> Tensor:
        """(B, K, C, H, W): of every kind a picture in [-1, 1], or unit noise."""
        pictures = pictures_of(batch)
        made = []
        for number, kind in enumerate(self.kinds):
            one = self.kind(kind, pictures, batch, draws)
            made.append(one.roll(number, 0) if self.config.coupling == "independent" and kind != "noise" else one)
        return torch.stack(made, 1)

    def kind(self, kind: str, pictures: Tensor, batch: Batch, draws: Draws) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of a kind."""
        if kind == "noise":
            return draws.normal_like("noise", pictures)
        if kind == "lines":  # black on white
            return 1 - 2 * drawn_edges((pictures + 1) / 2, draws)
        if kind == "grey":
            return (pictures * pictures.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True).expand_as(pictures)
        if kind == "flat":
            smooth = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
            parts = self.config.colours - 1
            return ((smooth + 1) / 2 * parts).round() / parts * 2 - 1
        if kind == "source":
            if SOURCE not in batch.extra:
                raise ValueError("network.marginals has source, and the data have no pairs: use data.type pairs or unpaired.")
            return batch.extra[SOURCE]
        return pictures

    def weights(self, draws: Draws, device: torch.device) -> Tensor:
        """(B, K): uniform on the simplex, a share of them on its edges."""
        count = len(self.kinds)
        spaced = -draws.uniform("weights", (count,), device).clamp(min=1e-12).log()  # exponentials: a flat Dirichlet
        order = draws.uniform("edge", (count,), device).argsort(1).argsort(1)
        on_edge = draws.uniform("on an edge", device=device) < self.config.edges
        spaced = torch.where(on_edge[:, None] & (order >= 2), 0.0, spaced)
        return spaced / spaced.sum(1, keepdim=True)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        corners = self.corners(batch, draws)
        weights = self.weights(draws, corners.device).to(corners)
        x = (weights[:, :, None, None, None] * corners).sum(1)
        errors = (models["parts"](weights, x) - corners).square().mean((0, 2, 3, 4))
        return errors.sum(), {f"error/{kind}": error.detach() for kind, error in zip(self.kinds, errors, strict=True)}

    @torch.no_grad()
    def preview(self, models: Mapping[str, nn.Module], batch: Batch, seed: int) -> Preview | None:
        """The first kind and what becomes of it in every other."""
        draws = Draws(seed, batch.index.cpu())
        first = self.corners(batch, draws)[:4, 0]
        count = len(self.kinds)
        parts, steps = models["parts"], self.config.preview_steps
        rows = [first, *(transport(parts, first, SimplexPath(0, k, count), steps) for k in range(1, count))]
        names: Sequence[str] = [kind for kind in self.kinds for _ in range(len(first))]
        return torch.cat(rows).clamp(-1, 1), names
