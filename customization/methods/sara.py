"""SaRA (arXiv 2409.06633): train only those weights that are nearly zero, in place, with a low-rank update.

    M = |W_0| < threshold,   W = W_0 outside M, trained inside;   loss + lambda sum |W - W_0|_*

The trained numbers are the weights themselves, so without a step the network is the base network to the last bit, and what is
outside the mask never changes at all. After a while those that have grown past the threshold are settled, and training goes on
with the rest (`reselected`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from customization.methods.sparse_weight import SparseWeight, nuclear_norm, replaced
from gen.adapters import Adapter, AdapterError, Delta
from gen.io.weights import CheckpointError, listed, read_weights, write_weights

THRESHOLD = 2e-3
MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d)
METADATA = {"fewstep.sparse": "index and value of every changed weight"}


def learning_rate(threshold: float) -> float:
    """1e-3 exp(-350 threshold), the published rule."""
    return 1e-3 * math.exp(-350 * threshold)


class SparseUpdate(nn.Module):
    """A network of which only the small weights of linear layers and convolutions train.

    values: weight name with _ for dots -> its trained entries (n,), a parameter; optimise `update.parameters()`, and call
    the update as the network. threshold: of |w|. modules: names of layers; all of them if None. The network itself is never
    written to. AdapterError where no weight is below the threshold.
    """

    def __init__(self, network: nn.Module, threshold: float = THRESHOLD, modules: Sequence[str] | None = None):
        super().__init__()
        matrices = {name: module for name, module in network.named_modules() if isinstance(module, MATRICES)}
        if modules is not None and (unknown := sorted(set(modules) - matrices.keys())):
            raise AdapterError(f"The network has no linear layer or convolution named {listed(unknown)}.")
        self._network = [network]  # in a list: its parameters are not the update's own
        self.threshold = threshold
        self.base: dict[str, Tensor] = {}
        self.index: dict[str, Tensor] = {}
        self.values = nn.ParameterDict()
        for name in matrices if modules is None else modules:
            weight = matrices[name].weight.detach()
            index = (weight.abs() < threshold).flatten().nonzero()[:, 0]
            if len(index):
                self._add(f"{name}.weight", weight, index, weight.flatten()[index])
        if not self.base:
            raise AdapterError(f"No weight is smaller than {threshold:g}; give a larger threshold.")

    def _add(self, name: str, weight: Tensor, index: Tensor, values: Tensor) -> None:
        self.base[name], self.index[name] = weight, index
        self.values[name.replace(".", "_")] = nn.Parameter(values.clone())

    @property
    def network(self) -> nn.Module:
        return self._network[0]

    def weights(self) -> dict[str, Tensor]:
        """The trained weights whole, by name: what `functional_call` takes."""
        return {name: replaced(base, self.index[name], self.values[name.replace(".", "_")]) for name, base in self.base.items()}

    def forward(self, *args: Any, **options: Any) -> Any:
        sparse: dict[str, Tensor] = {
            name: SparseWeight.of(base, self.index[name], self.values[name.replace(".", "_")])
            for name, base in self.base.items()
        }
        return functional_call(self.network, sparse, args, options)

    def nuclear_norm(self) -> Tensor:
        """sum |W - W_0|_* (`sparse_weight.nuclear_norm`)."""
        norms = [
            nuclear_norm(self.values[name.replace(".", "_")], base.flatten()[self.index[name]], self.index[name], base.shape)
            for name, base in self.base.items()
        ]
        return torch.stack(norms).sum()

    def reselected(self) -> SparseUpdate:
        """The same network as trained so far, of which the entries that are still below the threshold train on."""
        new = object.__new__(SparseUpdate)
        nn.Module.__init__(new)
        new._network, new.threshold, new.base, new.index, new.values = self._network, self.threshold, {}, {}, nn.ParameterDict()
        for name, weight in self.weights().items():
            values = self.values[name.replace(".", "_")].detach()
            left = values.abs() < self.threshold
            new._add(name, weight.detach(), self.index[name][left], values[left])
        return new

    def adapter(self, name: str = "sara", part: str = "denoiser") -> Adapter:
        """The change as an adapter of whole differences from the network's own weights, which algebra and other models take."""
        parameters = dict(self.network.named_parameters())
        layers = {f"{part}.{key.removesuffix('.weight')}": Delta({"weight": (new - parameters[key]).detach()})
                  for key, new in self.weights().items()}  # fmt: skip
        return Adapter(name, layers)

    def save(self, path: Path | str) -> None:
        """A safetensors file of every entry that differs from the network's own, by index: exact."""
        own, tensors = dict(self.network.named_parameters()), {}
        for name, new in self.weights().items():
            index = (new.detach() != own[name].detach()).flatten().nonzero()[:, 0]
            tensors[f"{name}.index"], tensors[f"{name}.values"] = index, new.detach().flatten()[index]
        write_weights(path, tensors, metadata=METADATA)


def apply_sparse(network: nn.Module, path: Path | str) -> None:
    """Write a saved sparse update into a network's weights; CheckpointError, and nothing written, where it does not fit."""
    tensors, own, changes = read_weights(path), dict(network.named_parameters()), []
    names = {key.rpartition(".")[0] for key in tensors}
    if set(tensors) != {f"{name}.{leaf}" for name in names for leaf in ("index", "values")} or not names:
        raise CheckpointError(path, "is not a sparse update: it needs an index and values of every weight, and nothing else.")
    if unknown := sorted(names - own.keys()):
        raise CheckpointError(path, f"is for another network: this one has no {listed(unknown)}.")
    for name in sorted(names):
        index, values, weight = tensors[f"{name}.index"], tensors[f"{name}.values"], own[name]
        whole = index.dtype == torch.int64 and index.ndim == 1 and values.shape == index.shape and values.dtype == weight.dtype
        if not whole or (len(index) and not 0 <= int(index.min()) <= int(index.max()) < weight.numel()):
            raise CheckpointError(
                path, f"does not fit {name}, {str(weight.dtype).removeprefix('torch.')} {tuple(weight.shape)}."
            )
        changes.append((weight, index, values))
    with torch.no_grad():
        for weight, index, values in changes:
            flat = weight.detach().flatten()
            flat[index.to(weight.device)] = values.to(weight.device)
            weight.copy_(flat.reshape(weight.shape))
