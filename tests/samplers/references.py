"""Getting at the independent implementations that the tests compare with."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel


def k_diffusion() -> ModuleType:
    """k_diffusion.sampling without the package's own __init__, which imports far more than sampling needs; skips if missing."""
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    for name in ("k_diffusion", "torchsde", "torchdiffeq", "scipy"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(
                f"{name} is not installed: pip install --no-deps k-diffusion==0.1.1.post1; pip install torchsde torchdiffeq"
            )
    folder = importlib.util.find_spec("k_diffusion").submodule_search_locations
    parent, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    parent.__path__, parent.utils = list(folder), utils
    utils.append_dims = lambda x, ndim: x[(..., *[None] * (ndim - x.ndim))]
    sys.modules.update({"k_diffusion": parent, "k_diffusion.utils": utils})
    return importlib.import_module("k_diffusion.sampling")


def k_model(denoiser: Denoiser):
    """A variance-exploding denoiser as k-diffusion's model(x, sigma (B,)) -> x0."""
    return lambda x, sigma, **_: denoiser(x, denoiser.path(sigma[0].item()), Condition(), Context()).x0


def k_sigmas(levels: Sequence[NoiseLevel]) -> Tensor:
    return torch.tensor([level.sigma / level.alpha for level in levels], dtype=torch.float64)


class Replay:
    """The same list of noises for both sides: called with anything, it hands out the next one."""

    def __init__(self, like: Tensor, seed: int = 0):
        self.like, self.seed = like, seed
        self.stream = self._draws()

    def _draws(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield torch.randn(self.like.shape, generator=generator, dtype=self.like.dtype)

    def __call__(self, *_) -> Tensor:
        return next(self.stream)
