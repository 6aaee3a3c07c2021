"""DiT: a transformer that reads a class label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.families.base import VAES, Family, Parts, latent_size
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from samplers.denoiser import Condition


class BridgedDiT(BridgedNetwork):
    """Label `num_classes` is the unconditional one."""

    def __init__(self, network: Any):
        channels, patch = setting(network, "in_channels"), setting(network, "patch_size", 2)
        classes = setting(network, "num_embeds_ada_norm", 1000)
        super().__init__(network, BridgedConfig(channels=channels, patch=patch, num_classes=classes))

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        null = self.config.num_classes
        label = condition.label
        if label is None:
            label = torch.full((len(x),), null, device=x.device)
        label = torch.where(label < 0, null, label)
        return self.network(x, timestep=time, class_labels=label, return_dict=False)[0]


def network(parts: Parts, index: Mapping[str, Any]) -> BridgedDiT:
    return BridgedDiT(parts["transformer"])


def class_names(index: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The first name of every label, in their order, where the pipeline names all of them."""
    names = index.get("id2label")
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for name in names.values()):
        return None
    if set(names) != {str(i) for i in range(len(names))}:
        return None
    return tuple(names[str(i)].split(",")[0].strip() for i in range(len(names)))


FAMILY = Family(
    name="DiT",
    backbone="transformer",
    classes={"transformer": ("DiTTransformer2DModel", "Transformer2DModel"), "vae": VAES},
    clock="index",
    network=network,
    reader=None,
    defaults=lambda backbone: {"num_inference_steps": 30, "guidance_scale": 4.0},
    size=latent_size,
    class_names=class_names,
    native="diffusers-dit",
)
