"""Optimisers, and their state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distill.config import OptimizerConfig
from distill.optim.kept_state import placed, read_slots, write_slots
from distill.optim.precision import product_dtype
from distill.optim.table import check_cut, make
from distill.parallel.shards import full, is_sharded, local, shard_like


def orthogonalize(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """U V^T of each matrix's SVD, roughly, by Newton-Schulz: (N, rows, columns) -> the same shape in `dtype`."""
    a, b, c = coefficients
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Muon):
    """torch's Muon with the matrices of one shape orthogonalised together: a transformer has many alike, and one product of
    nine is twice as fast on a CPU, and one launch on a GPU. Same updates to bfloat16 rounding, same state.

    dtype: of the orthogonalisation. In bfloat16, gradients that differ in their last bit, as those of one process and of two
    do, can round apart, and an update changes by up to a hundredth of its size. None: bfloat16, or float32 on a CPU that does
    not multiply bfloat16."""

    dtype: torch.dtype | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                grads = [p.grad for p in parameters if p.grad is not None]
                states = [self.state[p] for p in parameters]
                buffers = [s.setdefault("momentum_buffer", torch.zeros_like(g)) for s, g in zip(states, grads, strict=True)]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                wanted = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
                # a shard of a matrix has another SVD, so every process orthogonalises whole ones
                whole = torch.stack([full(w) for w in wanted])
                dtype = self.dtype or product_dtype(whole.device, "bf16")
                update = orthogonalize(whole, group["ns_coefficients"], group["ns_steps"], group["eps"], dtype)
                # match_rms_adamw scales Muon's update to AdamW's typical size (arXiv 2502.16982), so rates transfer.
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                updates = [shard_like(u, p) for u, p in zip(update.to(parameters[0].dtype), parameters, strict=True)]
                weights: list[Tensor] = list(parameters)
                torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(weights, updates, alpha=-rate)


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Muon's share: 2-D weights inside repeated blocks. Embeddings, heads, norms and biases stay with AdamW."""
    return parameter.ndim == 2 and any(part.isdigit() for part in name.split(".")) and min(parameter.shape) > 1


class Optimizer:
    """One role's optimiser, by the name in its config; or Muon and AdamW side by side, stepped and saved as one.

    steps: of the run, which some warm up over.
    """

    def __init__(self, network: nn.Module, config: OptimizerConfig, steps: int = 1):
        self.names = {p: n for n, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(self.names)
        self.clip = config.clip
        matrices = [p for p, n in self.names.items() if config.type == "muon" and _is_block_matrix(n, p)]
        chosen = set(matrices)
        rest = [p for p in self.parameters if p not in chosen]
        self.parts: list[torch.optim.Optimizer] = []
        rates = getattr(network, "rates", {})
        if matrices:
            groups: Any = self._by_rate(matrices, rates, config.muon_lr)
            self.parts.append(Muon(groups, lr=config.muon_lr, weight_decay=config.weight_decay, momentum=0.95))
        if any(map(is_sharded, self.parameters)):
            check_cut(config, "shards")
        if rest:
            self.parts.append(make(self._by_rate(rest, rates, config.lr), config, steps))
        self.peaks = [group["lr"] for part in self.parts for group in part.param_groups]

    def _by_rate(self, parameters: list[nn.Parameter], rates: Mapping[str, float], lr: float) -> list[dict[str, Any]]:
        """Groups of one learning rate: `lr` times what a network's `rates` say of a parameter, 1 where they say nothing.

        Sharded ones are in groups of their own, as a fused update takes one kind of tensor.
        """
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in parameters:
            groups.setdefault((rates.get(self.names[parameter], 1.0), is_sharded(parameter)), []).append(parameter)
        return [{"params": members, "lr": lr * rate} for (rate, _), members in groups.items()]

    @property
    def copies(self) -> Sequence[Tensor]:
        """What it updates besides the parameters."""
        return []

    @property
    def gradients(self) -> Sequence[Tensor]:
        """What takes as much memory as the gradients of an update."""
        return self.parameters

    def backward(self, loss: Tensor, last: bool, inputs: Sequence[Tensor] | None = None) -> None:
        """Add a loss's gradients to those of `inputs` (none: all that it depends on). last: of the update's micro-batches."""
        loss.backward(inputs=inputs)

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def clip_gradients(self) -> Tensor:
        """Clip the global gradient norm; returns the norm before clipping, which may be infinite or NaN."""
        whole = [p for p in self.parameters if not is_sharded(p)]
        cut = [p for p in self.parameters if is_sharded(p)]
        if not whole or not cut:
            return full(nn.utils.clip_grad_norm_(self.parameters, self.clip))
        grads = [[p.grad for p in part if p.grad is not None] for part in (whole, cut)]
        norm = torch.stack([full(nn.utils.get_total_norm(part)) for part in grads]).norm()
        torch._foreach_mul_([local(g) for part in grads for g in part], (self.clip / (norm + 1e-6)).clamp(max=1))
        return norm

    def set_rates(self, factor: float) -> None:
        groups = [group for part in self.parts for group in part.param_groups]
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = peak * factor

    def step(self, factor: float) -> None:
        """Update at `factor` times the peak rates."""
        self.set_rates(factor)
        for part in self.parts:
            part.step()

    def discard(self) -> None:
        """Leave this update out: its gradients must not reach the next one."""
        self.zero_grad()

    def state_dict(self, keep: bool = True) -> dict[str, Tensor]:
        """`parameter::slot` -> whole tensor, of shards on the CPU. Every process must call this alike, and those that do not
        `keep` let go of each tensor before the next."""
        state = {}
        for part, group, parameter in self._members():
            for slot, value in read_slots(part, group, parameter).items():
                whole = full(torch.as_tensor(value))
                if keep:
                    state[f"{self.names[parameter]}::{slot}"] = whole.cpu() if is_sharded(parameter) else whole
                del whole
        return state

    def _members(self) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any], nn.Parameter]]:
        """(part, group, parameter) of every parameter."""
        for part in self.parts:
            for group in part.param_groups:
                for parameter in group["params"]:
                    yield part, group, parameter

    def read(self, state: Mapping[str, Tensor]) -> Iterator[tuple[nn.Parameter, str, Tensor]]:
        """(parameter, slot, tensor) of what `state_dict` gave; ValueError for names that are not this network's."""
        by_name = {name: parameter for parameter, name in self.names.items()}
        unknown = sorted({key.partition("::")[0] for key in state} - by_name.keys())
        if unknown:
            raise ValueError(f"Optimiser state for unknown parameters: {_some(unknown)}; the network has changed.")
        for key, value in state.items():
            name, _, slot = key.partition("::")
            yield by_name[name], slot, value

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The weights that it belongs to must be in place before."""
        slots: dict[Tensor, dict[str, Tensor]] = {}
        for parameter, slot, value in self.read(state):
            slots.setdefault(parameter, {})[slot] = value
        for part, group, parameter in self._members():
            own = slots.get(parameter, {})
            ready = {
                slot: step_count(value, part, parameter) if slot == "step" else placed(value, parameter)
                for slot, value in own.items()
            }
            if ready:
                write_slots(part, group, parameter, ready)

    # ---- other weights than those that train ----

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, parameters are those that the optimiser is for: schedule-free's average. Afterwards they are the same bits as
        before. Every process must enter alike."""
        kept: list[tuple[nn.Parameter, Tensor]] = []
        with torch.no_grad():
            for part, group, parameter in self._stepped():
                evaluated = getattr(part, "evaluated", None)
                if evaluated is not None and (stepped := self._slot(part, parameter, "z")) is not None:
                    kept.append((parameter, local(parameter).clone()))
                    local(parameter).copy_(evaluated(group, local(parameter), stepped))
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weights in kept:
                    local(parameter).copy_(weights)

    def _stepped(self) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any], nn.Parameter]]:
        """(part, group, parameter) of the network's own parameters."""
        return self._members()

    def _slot(self, part: Any, parameter: nn.Parameter, slot: str) -> Tensor | None:
        """What the optimiser keeps of a parameter, as this process holds the parameter; None before the first step."""
        value = part.state[parameter].get(slot) if parameter in part.state else None
        return None if value is None else local(value)


def step_count(value: Tensor, part: torch.optim.Optimizer, weights: Tensor) -> Tensor:
    """A count of updates where the optimiser wants it: fused kernels beside the weights, the others on the CPU."""
    return value.clone().to(weights.device if part.param_groups[0].get("fused") else "cpu")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
