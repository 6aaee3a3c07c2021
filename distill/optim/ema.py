"""Averages of weights over the run, kept as networks of their own, and snapshots from which other ones are made later."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.config import EmaConfig
from distill.optim.power_ema import Profile, combination, decay, gamma_of
from distill.parallel.shards import local
from gen.io.errors import CheckpointError
from gen.io.weights import TensorFile, write_weights

SNAPSHOTS = "snapshots"
_NAME = re.compile(r"(?P<role>[\w-]+)-(?P<width>0\.\d{3,})-(?P<step>\d{8,})\.safetensors")


class Ema:
    """A float32 averaged copy of a network. The copy is never swapped into the live one: it is its own role and file.

    decay: as a number, or as a function of the step (0-based).
    """

    def __init__(self, network: nn.Module, decay: float | Callable[[int], float], warmup: bool = True):
        self.decay, self.warmup = decay, warmup
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        if callable(self.decay):
            return self.decay(step)
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """average <- decay average + (1 - decay) weights, after `step` completed steps.

        Floating buffers, such as the statistics of batch norms, belong to the weights they were measured with and are
        averaged alike; counters are copied.
        """
        states = zip(self.network.state_dict().values(), network.state_dict().values(), strict=True)
        pairs = [(local(mine), local(theirs.detach())) for mine, theirs in states]
        floating = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([mine for mine, _ in floating], [theirs for _, theirs in floating], 1 - self.decay_at(step))
        for mine, theirs in pairs:
            if not mine.is_floating_point():
                mine.copy_(theirs)


def make_averages(network: nn.Module, config: EmaConfig) -> dict[str, Ema]:
    """The averages that a config asks for, by what their files add to the name of the role; the first one is shown and
    exported."""
    if config.type == "constant":
        return {"": Ema(network, config.decay, config.warmup)}

    def average(width: float) -> Ema:
        gamma = gamma_of(width)
        return Ema(network, lambda step: decay(gamma, step))

    return {f"-{width:.3f}": average(width) for width in config.widths}


def write_snapshot(run: Path, role: str, suffix: str, step: int, tensors: dict[str, Tensor]) -> None:
    """One average after `step` updates, as one file; written again after a resume, it is the same."""
    (run / SNAPSHOTS).mkdir(exist_ok=True)
    write_weights(run / SNAPSHOTS / f"{role}{suffix}-{step:08d}.safetensors", tensors)


def find_snapshots(run: Path, step: int | None = None) -> dict[str, dict[Profile, Path]]:
    """role -> (step, gamma) -> file, up to a step. CheckpointError where there is none."""
    found: dict[str, dict[Profile, Path]] = {}
    for path in sorted((run / SNAPSHOTS).glob("*.safetensors")):
        match = _NAME.fullmatch(path.name)
        if match and (step is None or int(match["step"]) <= step):
            profile = (int(match["step"]), gamma_of(float(match["width"])))
            found.setdefault(match["role"], {})[profile] = path
    if not found:
        raise CheckpointError(
            run, "has no snapshots of averages; train with ema.type=power and ema.snapshot_every=1000, for example."
        )
    return found


def reconstruct(files: dict[Profile, Path], width: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of relative width `width` after `step` updates (none: those of the last snapshot) as float32 tensors."""
    profiles = list(files)
    weights = combination(profiles, (step or max(p[0] for p in profiles), gamma_of(width)))
    total: dict[str, Tensor] = {}
    for profile, weight in zip(profiles, weights, strict=True):
        for name, tensor in TensorFile(files[profile]).tensors():
            if not tensor.is_floating_point():
                total[name] = tensor.clone()
            elif name in total:
                total[name].add_(tensor.double(), alpha=weight)
            else:
                total[name] = tensor.double() * weight
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in total.items()}
