"""What every discriminator may be trained with instead of its method's own loss: R3GAN's relativistic loss and penalties.

Real and drawn samples are judged in pairs: the discriminator is to find the real one of a pair more real than the drawn one,
the student the other way round. On its own the loss does not converge; with penalties on the gradient of the discriminator at
real samples (R1) and at drawn ones (R2) it does, locally. Source: R3GAN, arXiv 2501.05441, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from gen.nn.registry import Config


class AdversarialLossConfig(Config):
    """adversarial_loss: what both networks are trained with: the method's own, or relativistic.
    gradient_penalties: (R1, R2), the weights gamma of the penalties gamma / 2 E |grad D|^2 at what the discriminator is given
    of the data, and of the student. They may be had with either loss; with the relativistic one both should be above 0.
    """

    adversarial_loss: Literal["own", "relativistic"] = "own"
    gradient_penalties: tuple[float, float] = (0.0, 0.0)

    @model_validator(mode="after")
    def _judges(self) -> AdversarialLossConfig:
        if not all(0 <= weight < float("inf") for weight in self.gradient_penalties):
            raise ValueError(f"gradient_penalties {self.gradient_penalties} must be two numbers of at least 0")
        if (self.relativistic or self.penalised) and not getattr(self, "adversarial_weight", 1):
            raise ValueError(
                "adversarial_loss and gradient_penalties are of a discriminator, and adversarial_weight is 0: give it a "
                "weight, or leave them out"
            )
        return self

    @property
    def relativistic(self) -> bool:
        return self.adversarial_loss == "relativistic"

    @property
    def penalised(self) -> bool:
        return any(self.gradient_penalties)


def relativistic(ahead: Tensor, behind: Tensor) -> Tensor:
    """softplus(behind - ahead), one for each pair of logits: 0 where those ahead are judged to be far more real.

    The discriminator's loss is (real, drawn), the student's (drawn, real). Source: arXiv 2501.05441, section 2, with the
    logistic f.
    """
    return F.softplus(behind - ahead)


def squared_gradients(scores: Tensor, at: Sequence[Tensor]) -> Tensor:
    """(B,): |d score / d x|^2 of every sample, summed over all of its inputs x (B, ...); differentiable once more.

    scores: (B,), each a function of its own sample alone, so that the gradient of their sum has that of each. Not of their
    mean, which would divide the square by B^2. Source: arXiv 2501.05441, section 2.
    """
    gradients = torch.autograd.grad(scores.sum(), list(at), create_graph=True)
    return torch.stack([gradient.float().square().flatten(1).sum(1) for gradient in gradients]).sum(0)


def weighted_penalties(config: AdversarialLossConfig, on_real: Tensor, on_fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(gamma_1 / 2 R1 + gamma_2 / 2 R2, R1 and R2 to log) of the squared gradients (B,) at real and at drawn samples."""
    r1, r2 = on_real.mean(), on_fake.mean()
    first, second = config.gradient_penalties
    return first / 2 * r1 + second / 2 * r2, {"r1": r1.detach(), "r2": r2.detach()}
