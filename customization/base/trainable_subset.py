"""What trains of a frozen model, as a network of its own: a few parameters inside of it, and nothing else.

The model stays one copy in memory. `TrainableSubset` holds the parameters alone, so that its state dict, its averages and its
checkpoints are small; called with a function, it runs the function while the model has them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call


class Parts(nn.Module):
    """The networks of a model by part name; called with a function, it runs it."""

    def __init__(self, parts: Mapping[str, nn.Module]):
        super().__init__()
        for name, network in parts.items():
            self.add_module(name, network)

    def forward(self, run: Callable[..., Any], *args: Any) -> Any:
        return run(*args)


class TrainableSubset(nn.Module):
    """parts: the model's networks by part name, frozen. parameters: "<part>.<name inside of it>" -> what trains there; the
    parameter may also be new, taking the place of the network's own. rates: name -> factor on the learning rate, 1 where none
    is given."""

    parts: Parts

    def __init__(
        self, parts: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter], rates: Mapping[str, float] | None = None
    ):
        super().__init__()
        object.__setattr__(self, "parts", Parts(parts))  # not a submodule: its weights are not ours
        self.values = nn.ParameterDict({_key(name): parameter for name, parameter in parameters.items()})
        self.rates = {f"values.{_key(name)}": rate for name, rate in (rates or {}).items()}

    @property
    def named(self) -> dict[str, Tensor]:
        """The parameters by the model's names."""
        return {key.replace("/", "."): value for key, value in self.values.items()}

    def forward(self, run: Callable[..., Any], *args: Any) -> Any:
        """`run(*args)` with these parameters in the model."""
        return functional_call(self.parts, self.named, (run, *args))

    def enable_recompute(self) -> int:
        """Gradient checkpointing of the denoiser's blocks; returns how many modules have it."""
        from distill.parallel import recompute

        return recompute.enable(self.parts.get_submodule("denoiser"))

    def __deepcopy__(self, memo: dict[int, Any]) -> TrainableSubset:
        """A copy with parameters of its own in the same model."""
        twin = TrainableSubset.__new__(TrainableSubset)
        nn.Module.__init__(twin)
        object.__setattr__(twin, "parts", self.parts)
        twin.values, twin.rates = copy.deepcopy(self.values, memo), dict(self.rates)
        return twin.train(self.training)


def frozen(parts: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The same networks, in evaluation mode and without gradients."""
    return {name: network.eval().requires_grad_(False) for name, network in parts.items()}


def _key(name: str) -> str:
    return name.replace(".", "/")


__all__ = ["Parts", "TrainableSubset", "frozen"]
