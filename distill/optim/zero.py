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
from distill.optim.optimizer import Optimizer, step_count
from distill.run_folder import TrainingError


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

    def __init__(self, network: nn.Module, config: OptimizerConfig, settings: Mapping[str, Any]):
        if config.type == "muon":
            raise TrainingError(
                "Muon needs whole matrices, and ZeRO cuts through them; use optimizer.type=adamw or radam, or launch with "
                "configs/accelerate/fsdp2.yaml."
            )
        super().__init__(network, config)
        (self.part,) = self.parts
        self.members = [list(group["params"]) for group in self.part.param_groups]  # before flat tensors take their places
        with_clip = {**copy.deepcopy(dict(settings)), "gradient_clipping": config.clip}
        self.engine = Engine(None, LossGate(network), self.part, config=with_clip, config_class=DeepSpeedConfig(with_clip))

    @property
    def copies(self) -> Sequence[Tensor]:
        return [share for share, _ in self._shares()]

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
        for share, members in self._shares():
            for slot, value in self.part.state[share].items():
                for parameter in members:
                    made = value.clone() if slot == "step" else _collect(value, parameter)
                    if keep:
                        whole[f"{self.names[parameter]}::{slot}"] = made
                    del made
        return whole

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        share_of = {parameter: share for share, members in self._shares() for parameter in members}
        for parameter, slot, value in self.read(state):
            share = share_of[parameter]
            own = self.part.state[share]
            if slot == "step":  # one for a share
                own[slot] = step_count(value, self.part, share)
            else:
                _hand_out(value, parameter, own.setdefault(slot, torch.zeros_like(share.detach())))

    def _shares(self) -> Iterator[tuple[Tensor, list[nn.Parameter]]]:
        """This process's share of each group's weights, flat, and the parameters that it is of."""
        for group, members in zip(self.part.param_groups, self.members, strict=True):
            yield group["params"][0], members


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
