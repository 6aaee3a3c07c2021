"""A denoiser with a control that trains as one network: called as the denoiser is, with the control's parameters alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from distill.parallel import recompute
from gen.nn.control import MODE, PICTURE, WEIGHT
from samplers.denoiser import Condition

NAME = "trained"


@dataclass(frozen=True)
class TrainedControl:
    """The control of a run, as a denoiser asks for it (`gen.nn.control.OpenedControl`)."""

    network: Any
    modes: int | None = None
    digest: str = ""
    reads_latents: bool = False

    def picture(self, picture: Tensor, autoencoder: Any, latent_scale: float, mode: int | None = None) -> Tensor:
        return F.pixel_unshuffle(picture, self.network.config.factor)


def follows(picture: Tensor, factor: int, mode: Tensor | None = None, weight: Tensor | None = None) -> dict[str, Tensor]:
    """Of a condition's `extra`: what a `ControlledNetwork` is to follow.

    picture: (B, 3, H, W) in [0, 1]. factor: pixels per latent pixel. mode: (B,), the kind of each picture, for a union.
    weight: (B,), how strongly; 1 if None.
    """
    weight = picture.new_ones(len(picture)) if weight is None else weight
    extra = {PICTURE + NAME: F.pixel_unshuffle(picture, factor), WEIGHT + NAME: weight}
    return extra if mode is None else {**extra, MODE + NAME: mode[:, None]}


class ControlledNetwork(nn.Module):
    """`base`, frozen, and a `control` (`gen.nn.backbones.dit_control`) that adds to its blocks what a condition says to follow
    (`follows`); the same function as the base where it says nothing."""

    base: nn.Module

    def __init__(self, base: nn.Module, control: nn.Module):
        super().__init__()
        object.__setattr__(self, "base", base)  # not a submodule: neither its parameters nor its weights are ours
        self.control = control

    @property
    def config(self) -> Any:
        return self.base.config

    def enable_recompute(self) -> int:
        """Gradient checkpointing of the blocks of both; returns how many modules have it."""
        return recompute.enable(self.base) + recompute.enable(self.control)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Any = None) -> Tensor:
        return self.base(x, time, condition, context, {NAME: TrainedControl(self.control)})

    def __deepcopy__(self, memo: dict[int, Any]) -> ControlledNetwork:
        """A copy with a control of its own on the same base."""
        return ControlledNetwork(self.base, copy.deepcopy(self.control, memo)).train(self.training)
