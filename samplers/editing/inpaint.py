"""Inpainting with any model: the known part of the image is put in place of the model's at every evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.sample import KNOWN
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class Inpaint(DenoiserWrapper):
    """A denoiser that knows part of the image: `image` where `mask` is 0, the model's where it is 1, a blend in between.

    What the model sees is x with its known part replaced by alpha image + sigma eps, and the known part of its x0 by
    `image`. As eps is the same at every level, the known part moves along its own exact trajectory, so that solvers with
    memory stay of their order, and clean data hold `image` there, to the bit at the end of a `trajectory`. Start from
    x = levels[0].sigma * eps for new content, or from levels[0].mix(image, eps) to keep some of the old.

    image, eps (B or 1, C, H, W); mask (B or 1, C or 1, H, W) with values in [0, 1]: 1 = to be made, as in diffusers.
    Acts on x0, so it goes outside guidance.
    """

    denoiser: Denoiser
    image: Tensor
    mask: Tensor
    eps: Tensor

    def __post_init__(self) -> None:
        if not self.mask.is_floating_point() or not bool(((self.mask >= 0) & (self.mask <= 1)).all()):
            raise ValueError("A mask must hold floats from 0 (keep the image) to 1 (make it new): convert and scale it.")
        shape = torch.broadcast_shapes(self.image.shape, self.eps.shape)
        try:
            fits = torch.broadcast_shapes(shape, self.mask.shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"A mask of shape {tuple(self.mask.shape)} does not fit an image of shape {tuple(shape)}.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        # lerp is exact at 0 and 1
        context.store[KNOWN] = self.put_back
        seen = torch.lerp(level.mix(self.image, self.eps).expand_as(x), x, self.mask.expand_as(x))
        prediction = self.denoiser(seen, level, condition, context)
        x0 = torch.lerp(self.image.expand_as(x), prediction.x0, self.mask.expand_as(x))
        return Prediction(x, level, x0, (1.0, 0.0), prediction.variance)

    def put_back(self, x: Tensor) -> Tensor:
        """A clean x (B, C, H, W) with its known part in place; an x of another shape, of which this is one view, as it is."""
        if torch.broadcast_shapes(x.shape, self.image.shape) != x.shape or x.shape[-2:] != self.image.shape[-2:]:
            return x
        return torch.where(self.mask == 0, self.image.to(x), x)
