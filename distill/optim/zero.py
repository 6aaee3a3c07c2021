"""ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054) by DeepSpeed: processes share out a role's optimiser state (stage 1) and its
gradients too (stage 2); weights stay whole on each of them. With optimiser offload the shares lie in the CPU's memory.

What concerns ZeRO is in the file that accelerate was launched with (configs/accelerate/deepspeed.yaml). Batches, accumulation,
clipping, precision, optimiser and learning rate are the training config's, as everywhere. Every trained role has an engine of
its own. What is saved is whole and by parameter, so that a run goes on with any number of processes of any kind.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import Tensor, nn

from distill.config import OptimizerConfig
from distill.optim.kept_state import KeptState, read_slots, write_slots
from distill.optim.optimizer import Optimizer, step_count
from distill.optim.table import check_cut


class LossGate(nn.Module):
    """What an engine takes for its model: it has a network's parameters, and passes a loss on.

    An engine begins to collect gradients where the backward pass reaches its model's output, and counts on one output per
    backward pass. The loss is that; networks are called as they are, however often, under the trainer's autocast, which an
    engine turns off around its model.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, loss: Tensor) -> Tensor:
        return loss.clone()


class Engine(DeepSpeedEngine):
    """DeepSpeed's own sends weights as bytes, which those of no dimension or of another order in memory cannot be seen as."""

    def _broadcast_model(self) -> None:
        for parameter in self.module.parameters():
            sent = parameter.detach().contiguous()
            dist.broadcast(sent, 0)
            parameter.data.copy_(sent)


class ZeroOptimizer(Optimizer):
    """One role's optimiser, each process with its share. Every process must call every method alike."""

    def __init__(self, network: nn.Module, config: OptimizerConfig, settings: Mapping[str, Any], steps: int = 1):
        check_cut(config, "zero")
        super().__init__(network, config, steps)
        (self.part,) = self.parts
        if isinstance(self.part, KeptState):
            self.part.over_shares = True
        self.members = [list(group["params"]) for group in self.part.param_groups]  # before flat tensors take their places
        self.group_of = {parameter: number for number, members in enumerate(self.members) for parameter in members}
        with_clip = {**copy.deepcopy(dict(settings)), "gradient_clipping": config.clip}
        self.engine = Engine(None, LossGate(network), self.part, config=with_clip, config_class=DeepSpeedConfig(with_clip))

    @property
    def copies(self) -> Sequence[Tensor]:
        return [share for _, share, _ in self._shares()]

    @property
    def gradients(self) -> Sequence[Tensor]:
        return self.copies if self.engine.zero_optimization_stage() == 2 else self.parameters

    def backward(self, loss: Tensor, last: bool, inputs: Sequence[Tensor] | None = None) -> None:
        self.engine.set_gradient_accumulation_boundary(last)
        super().backward(self.engine(loss), last, inputs)

    def zero_grad(self) -> None:
        self.engine.optimizer.zero_grad()

    def clip_gradients(self) -> Tensor:
        """The norm of the gradient, infinite where it has none; the engine clips by it in `step`."""
        norm = self.engine.optimizer.scaled_global_norm()
        return torch.as_tensor(norm, device=self.parameters[0].device).detach()

    def step(self, factor: float) -> None:
        self.set_rates(factor)
        self.engine.optimizer.refresh_fp32_params()  # its share, for an objective may have changed the weights
        self.engine.step()

    def discard(self) -> None:
        """An engine clears an update away of its own accord where the norm of the gradient is not finite."""
        self.engine.optimizer.scaled_global_norm = lambda: torch.tensor(torch.inf)
        try:
            self.engine.step()
        finally:
            del self.engine.optimizer.scaled_global_norm

    # ---- state: DeepSpeed's flat shares to tensors by parameter, and back ----

    def state_dict(self, keep: bool = True) -> dict[str, Tensor]:
        whole = {}
        for group, share, members in self._shares():
            for slot, value in read_slots(self.part, group, share).items():
                for parameter in members:
                    made = value.clone() if value.ndim == 0 else _collect(value, parameter)
                    if keep:
                        whole[f"{self.names[parameter]}::{slot}"] = made
                    del made
        return whole

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        shares = {parameter: (group, share) for group, share, members in self._shares() for parameter in members}
        ready: dict[Tensor, tuple[dict[str, Any], dict[str, Tensor]]] = {}
        for parameter, slot, value in self.read(state):
            group, share = shares[parameter]
            own = ready.setdefault(share, (group, {}))[1]
            if slot == "step":  # one for a share, as all numbers of a group
                own[slot] = step_count(value, self.part, share)
            elif slot in getattr(self.part, "shared", ()):
                own[slot] = value
            else:
                _hand_out(value, parameter, own.setdefault(slot, torch.zeros_like(share.detach())))
        for share, (group, slots) in ready.items():
            write_slots(self.part, group, share, slots)

    def _stepped(self) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any], nn.Parameter]]:
        for group, _, members in self._shares():
            for parameter in members:
                yield self.part, group, parameter

    def _slot(self, part: Any, parameter: nn.Parameter, slot: str) -> Tensor | None:
        share = self.part.param_groups[self.group_of[parameter]]["params"][0]
        value = self.part.state[share].get(slot) if share in self.part.state else None
        return None if value is None else _collect(value, parameter).to(parameter.device)

    def _shares(self) -> Iterator[tuple[dict[str, Any], Tensor, list[nn.Parameter]]]:
        """Of each group: itself, this process's share of its weights, flat, and the parameters that it is of."""
        for group, members in zip(self.part.param_groups, self.members, strict=True):
            yield group, group["params"][0], members


def _places(parameter: nn.Parameter) -> tuple[slice, slice] | None:
    """Which part of a parameter lies in this process's share, and where; None for no part of it."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed's
    if mapping is None:
        return None
    own, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return slice(own.start, own.start + own.numel), slice(there.start, there.start + there.numel)


def _collect(share: Tensor, parameter: nn.Parameter) -> Tensor:
    """One parameter's values from all processes' shares, on the CPU."""
    whole = torch.zeros(parameter.numel(), dtype=share.dtype, device=parameter.device)
    if places := _places(parameter):
        own, there = places
        whole[own] = share[there].to(whole.device)
    dist.all_reduce(whole)  # each value is in one share, and the rest are zeros
    return whole.view(parameter.shape).cpu()


def _hand_out(whole: Tensor, parameter: nn.Parameter, share: Tensor) -> None:
    """Put one parameter's values into this process's share."""
    if places := _places(parameter):
        own, there = places
        share[there] = whole.flatten()[own].to(share)
