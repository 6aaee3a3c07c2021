"""The number of steps that a trained policy gives to prompts (`gen.nn.step_policy`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gen.models.components import load_component
from gen.models.model import Model
from gen.nn.conditions import join
from gen.nn.step_policy import StepPolicy
from gen.pipeline.subjects import read_labels
from samplers.denoiser import Condition


def choose_steps(model: Model, policy: StepPolicy | Path | str, prompts: Sequence[str]) -> list[int]:
    """A number of steps for each prompt, or each class name or number of a model of classes.

    policy: the network or its folder. ValueError where it was trained for a model that reads something else.
    """
    network: Any = policy if isinstance(policy, StepPolicy) else load_component(policy, "step_policy")
    config, encoder = network.config, model.text_encoder
    if encoder is None:
        if not config.num_classes or config.num_classes != getattr(model.network.config, "num_classes", 0):
            raise ValueError(_other(model, "its classes"))
        labels = read_labels(list(prompts), model.config.classes, config.num_classes)
        return network.choose(Condition(label=torch.tensor(labels)), len(labels))
    told = join([encoder.condition(prompt).map(lambda value: value.cpu()) for prompt in prompts])
    if told.tokens is None or told.tokens.shape[2] != config.text_dim:
        raise ValueError(_other(model, "text of this width"))
    return network.choose(told, len(prompts))


def _other(model: Model, what: str) -> str:
    return (
        f"This policy of steps was not trained for {model.name!r}: it does not read {what}. Give a policy that was trained "
        "with this model."
    )
