"""Optimisers, the learning rate as a pure function of the step, and optimiser state as named tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from distill.config import OptimizerConfig, ScheduleConfig


def lr_factor(step: int, max_steps: int, schedule: ScheduleConfig) -> float:
    """The learning rate at a step (0-based) as a share of the peak: warm-up, plateau, linear cool-down."""
    factor = min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0
    start = max_steps * (1 - schedule.cooldown)
    if step > start:
        progress = (step - start) / (max_steps - start)
        factor *= 1 - (1 - schedule.final) * progress
    return factor


def orthogonalize(matrices: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """U V^T of each matrix's SVD, roughly, by Newton-Schulz: (N, rows, columns) -> the same shape in bfloat16."""
    a, b, c = coefficients
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Muon):
    """torch's Muon with the matrices of one shape orthogonalised together: a transformer has many alike, and one product of
    nine is twice as fast on a CPU, and one launch on a GPU. Same updates to bfloat16 rounding, same state."""

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in alike.items():
                buffers = [self.state[p].setdefault("momentum_buffer", torch.zeros_like(p.grad)) for p in parameters]
                grads = [p.grad for p in parameters]
                torch._foreach_lerp_(buffers, grads, 1 - group["momentum"])
                wanted = torch._foreach_lerp(grads, buffers, group["momentum"]) if group["nesterov"] else buffers
                update = orthogonalize(torch.stack(list(wanted)), group["ns_coefficients"], group["ns_steps"], group["eps"])
                # match_rms_adamw scales Muon's update to AdamW's typical size (arXiv 2502.16982), so rates transfer.
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(update.to(parameters[0].dtype)), alpha=-rate)


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Muon's share: 2-D weights inside repeated blocks. Embeddings, heads, norms and biases stay with AdamW."""
    return parameter.ndim == 2 and any(part.isdigit() for part in name.split(".")) and min(parameter.shape) > 1


class Optimizer:
    """One role's optimiser: AdamW, or Muon and AdamW side by side, stepped and saved as one."""

    def __init__(self, network: nn.Module, config: OptimizerConfig):
        self.names = {p: n for n, p in network.named_parameters() if p.requires_grad}
        self.parameters = list(self.names)
        self.clip = config.clip
        matrices = [p for p, n in self.names.items() if config.type == "muon" and _is_block_matrix(n, p)]
        chosen = set(matrices)
        rest = [p for p in self.parameters if p not in chosen]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            self.parts.append(Muon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay, momentum=0.95))
        if rest:
            adamw = torch.optim.AdamW(
                rest, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, eps=1e-8, fused=True
            )
            self.parts.append(adamw)
        self.peaks = [group["lr"] for part in self.parts for group in part.param_groups]

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, factor: float) -> Tensor:
        """Clip the global gradient norm, update at `factor` times the peak rates; returns the norm before clipping.

        Nothing is updated where the norm is not finite: the caller reports it.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip)
        if torch.isfinite(norm):
            groups = [group for part in self.parts for group in part.param_groups]
            for group, peak in zip(groups, self.peaks, strict=True):
                group["lr"] = peak * factor
            for part in self.parts:
                part.step()
        return norm

    def state_dict(self) -> dict[str, Tensor]:
        """`parameter::slot` -> tensor."""
        return {
            f"{self.names[parameter]}::{slot}": torch.as_tensor(value)
            for part in self.parts
            for parameter, slots in part.state.items()
            for slot, value in slots.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        by_name = {name: parameter for parameter, name in self.names.items()}
        owner = {p: part for part in self.parts for group in part.param_groups for p in group["params"]}
        unknown = sorted({key.partition("::")[0] for key in state} - by_name.keys())
        if unknown:
            raise ValueError(f"Optimiser state for unknown parameters: {_some(unknown)}; the network has changed.")
        for key, value in state.items():
            name, _, slot = key.partition("::")
            parameter = by_name[name]
            if value.shape == parameter.shape:  # in its order in memory: a fused kernel takes it for granted
                value = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
            else:
                value = value.to("cpu" if value.ndim == 0 and parameter.device.type == "cpu" else parameter.device)
            owner[parameter].state[parameter][slot] = value


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
