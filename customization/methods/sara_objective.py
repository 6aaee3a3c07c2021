"""SaRA as a method that teaches the denoiser: its nearly zero weights train, with a low-rank change (arXiv 2409.06633).

The exact change, index and value of every changed weight, is export/sparse.safetensors
(`customization.methods.sara.apply_sparse`); export/adapter.safetensors has it as whole differences of the changed layers,
which `--lora` and other tools read.

Published: a threshold of 2e-3, a low-rank weight of 5e-4, and the weights that are still small chosen anew half way through; a
learning rate of `sara.learning_rate(threshold)`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from customization.base.config import CustomizationConfig
from customization.base.objective import CustomizationObjective
from customization.base.trainable_subset import TrainableSubset
from customization.methods.sara import MATRICES, METADATA, THRESHOLD
from customization.methods.sparse_weight import SparseWeight, nuclear_norm, replaced
from distill.networks.lora.targets import ends_in
from distill.parallel.shards import full
from distill.types import Batch, Draws, Role
from gen.adapters import Adapter, Delta
from gen.io.weights import write_weights


class SaraConfig(CustomizationConfig):
    """threshold: of |w|, below which a weight trains. nuclear: weight of the sum of the changes' nuclear norms in the loss.
    reselect_at: the step after which weights that have grown past the threshold stay as they are; null: never. targets: ends of
    the names of the layers; none: all linear layers and convolutions of the denoiser."""

    writes: ClassVar[str] = "full"

    adapter: None = None
    threshold: float = Field(default=THRESHOLD, gt=0)
    nuclear: float = Field(default=5e-4, ge=0)
    reselect_at: int | None = Field(default=2500, gt=0)
    targets: tuple[str, ...] = ()


@dataclass
class Small:
    """One layer's: W_0, which entries of it are small, and which of those (n,) have settled, at which values."""

    base: Tensor
    index: Tensor
    settled: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    at: Tensor = field(default_factory=lambda: torch.zeros(0))

    def values(self, trained: Tensor) -> Tensor:
        """What the small entries are, of what is trained of them (n,)."""
        if not len(self.settled):
            return trained
        return torch.where(self.settled.to(trained.device), self.at.to(trained), trained)

    def weight(self, trained: Tensor) -> SparseWeight:
        return SparseWeight.of(self.base, self.index, self.values(trained))


class SparseSubset(TrainableSubset):
    """small: weight name -> what its parameter is short for. Shared by copies, as W_0 is."""

    small: dict[str, Small]

    def __init__(
        self, parts: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter], rates: Any, small: dict[str, Small]
    ):
        super().__init__(parts, parameters, rates)
        object.__setattr__(self, "small", small)

    def forward(self, run: Callable[..., Any], *args: Any) -> Any:
        weights = {name: self.small[name].weight(value) if name in self.small else value for name, value in self.named.items()}
        return functional_call(self.parts, weights, (run, *args))

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseSubset:
        twin = SparseSubset.__new__(SparseSubset)
        nn.Module.__init__(twin)
        object.__setattr__(twin, "parts", self.parts)
        object.__setattr__(twin, "small", self.small)
        twin.values, twin.rates = copy.deepcopy(self.values, memo), dict(self.rates)
        return twin.train(self.training)


class SaraObjective(CustomizationObjective):
    """See the module."""

    config: SaraConfig

    def __init__(self, config: Any, generator: Any, seed: int = 0, run: Any = None, average: bool = False):
        super().__init__(config, generator, seed, run, average)
        self.roles = {"adapter": Role(SparseSubset(self.parts, self.trains, self.rates(), self.small), ema=average)}

    def attach(self) -> dict[str, nn.Parameter]:
        network, ends = self.parts["denoiser"], self.config.targets
        known = {name: module for name, module in network.named_modules() if isinstance(module, MATRICES)}
        for end in ends:
            if not any(ends_in(name, [end]) for name in known):
                raise ValueError(f"targets names {end!r}, but no linear layer or convolution of the denoiser ends in it.")
        self.small: dict[str, Small] = {}
        trained: dict[str, nn.Parameter] = {}
        for name, module in known.items():
            weight: Tensor = module.weight.detach()  # type: ignore[assignment]
            index = (weight.abs() < self.config.threshold).flatten().nonzero()[:, 0]
            if len(index) and (not ends or ends_in(name, ends)):
                key = f"denoiser.{name}.weight"
                self.small[key] = Small(weight, index)
                values = weight.flatten()[index]
                trained[key] = nn.Parameter(values if values.dtype == torch.float64 else values.float())
        if not trained:
            raise ValueError(f"No weight of the denoiser is smaller than {self.config.threshold:g}; give a larger threshold.")
        return trained | super().attach()

    def compute(self, batch: Batch, draws: Draws, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        total, logged = super().compute(batch, draws, step)
        if not self.config.nuclear:
            return total, logged
        norms = []
        for name, small in self.small.items():
            part, _, path = name.partition(".")
            weight: Any = _attribute(self.parts[part], path)
            start = small.base.flatten()[small.index].to(weight.values.dtype)
            norms.append(nuclear_norm(weight.values, start, small.index, small.base.shape))
        low_rank = torch.stack(norms).sum()
        # arXiv 2409.06633: loss + lambda sum |W - W_0|_*
        return total + self.config.nuclear * low_rank, {**logged, "nuclear": low_rank.detach()}

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if self.config.reselect_at is None or step + 1 != self.config.reselect_at:
            return
        network: Any = self.roles["adapter"].network
        for name, value in network.named.items():
            if name in self.small:
                small, now = self.small[name], full(value.detach())
                small.settled, small.at = now.abs() >= self.config.threshold, now.clone()

    def state_dict(self) -> dict[str, Tensor]:
        settled = {name: small for name, small in self.small.items() if len(small.settled)}
        settled_state = {f"settled.{name}": small.settled.to(torch.uint8) for name, small in settled.items()}
        return {**super().state_dict(), **settled_state, **{f"at.{name}": small.at for name, small in settled.items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, small in self.small.items():
            if f"settled.{name}" in state:
                small.settled, small.at = state[f"settled.{name}"].bool(), state[f"at.{name}"]
        handled = {key for key in state if key.partition(".")[0] in ("settled", "at") and key.partition(".")[2] in self.small}
        super().load_state_dict({key: value for key, value in state.items() if key not in handled})

    def to_adapter(self, values: Mapping[str, Tensor]) -> Adapter:
        layers: dict[str, Delta] = {}
        for name, small in self.small.items():
            new = replaced(small.base.cpu(), small.index.cpu(), small.values(values[name].detach().cpu()))
            wide = new.dtype if new.dtype == torch.float64 else torch.float32
            change = new.to(wide) - small.base.cpu().to(wide)
            if change.any():
                layers[name.removesuffix(".weight")] = Delta({"weight": change})
        rest = super().to_adapter({name: value for name, value in values.items() if name not in self.small})
        return Adapter(self.config.name, layers | dict(rest.layers), words=rest.words)

    def export(self, models: Mapping[str, nn.Module], folder: Path) -> None:
        super().export(models, folder)
        network, tensors = models["adapter"], {}
        assert isinstance(network, SparseSubset)
        for name, value in network.named.items():
            if name in self.small:
                small, own = self.small[name], name.partition(".")[2]
                before = small.base.flatten()[small.index].cpu()
                after = small.values(value.detach().cpu()).to(before.dtype)
                changed = after != before
                if changed.any():
                    tensors[f"{own}.index"], tensors[f"{own}.values"] = small.index.cpu()[changed], after[changed]
        if tensors:
            write_weights(folder / "sparse.safetensors", tensors, metadata=METADATA)


def _attribute(network: nn.Module, path: str) -> Any:
    """A module's attribute as it is now, a parameter or what stands in for one."""
    owner, _, name = path.rpartition(".")
    return getattr(network.get_submodule(owner), name)
