"""What methods by preferences share: how well a network denoises, beside the reference, and the loss of a better one of two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.path import expand
from samplers.prediction import Prediction


def own_error(prediction: Prediction, x0: Tensor, eps: Tensor) -> Tensor:
    """(B,): the mean squared error of what the network itself predicts (eps, x0, velocity), at least float32."""
    a, b = (expand(v, x0) for v in prediction.row)
    error = prediction.raw - (a * x0 + b * eps)
    return (error if error.dtype == torch.float64 else error.float()).square().flatten(1).mean(1)


def preference_loss(margin: Tensor, counted: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of -log sigmoid(margin) over pairs (P,): how unlikely their order is under Bradley and Terry's model.

    counted (P,): 1 for pairs with an order, 0 for ties, which add nothing. Logged: the share of pairs in the right order.
    """
    loss = -F.logsigmoid(margin)
    right = (margin.detach() > 0).to(loss)
    if counted is not None:
        counted = counted.to(loss)
        loss, right = loss * counted, (right * counted).sum() / counted.sum().clamp(min=1)
    return loss.mean(), {"in_order": right.mean()}
