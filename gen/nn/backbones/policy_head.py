"""Networks that predict policies (`samplers.policy`): how their configs say so, and how a trained network becomes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gen.nn.registry import Config, build, config_of
from samplers.policy import Policy


class PolicyHeadConfig(Config):
    """As of `samplers.policy.Policy`."""

    kind: Literal["grid", "mixture"] = "grid"
    count: int = Field(default=8, ge=1, le=1024)
    segment: float = Field(default=1.0, gt=0, le=1)
    shift: float = Field(default=1.0, gt=0)

    def build(self) -> Policy:
        return Policy(self.kind, self.count, self.segment, self.shift)


def head_layers(network: nn.Module) -> list[str]:
    """The names of the parameters that make what comes out of a network."""
    names = ["head", "head.linear", "final_conv"]
    owners = [name for name in names if hasattr(dict(network.named_modules()).get(name), "weight")]
    return [f"{name}.{part}" for name in owners for part in ("weight", "bias")]


@torch.no_grad()
def as_policy(network: Any, policy: PolicyHeadConfig, scalars: Sequence[str] = (), apart: float = 0.0) -> nn.Module:
    """A network of this one's weights that predicts a policy: at first every component is what this one predicts.

    scalars: further numbers that it receives, as of `ExtraScalars`. apart: the standard deviation of what is added to the
    components of a mixture, a constant each, so that they do not stay the same. ValueError for a network that cannot be one.
    """
    settings = config_of(network) if hasattr(getattr(network, "config", None), "policy") else None
    if settings is None or settings["policy"] is not None or settings.get("refine_channels") or settings.get("out_channels"):
        raise ValueError(
            f"{type(network).__name__} cannot be made to predict a policy: take a teacher on a DiT, U-ViT, MMDiT, FLUX, "
            "Qwen-Image or Z-Image of ours that predicts one image."
        )
    channels, given = settings["channels"], settings["channels"] * (2 if settings.get("learned_variance") else 1)
    settings |= {"policy": policy.model_dump()} | ({"learned_variance": False} if given != channels else {})
    if scalars:
        settings["scalars"] = list(dict.fromkeys((*settings["scalars"], *scalars)))
    made = build(settings)
    outputs, first = policy.build().outputs(channels), getattr(network, "head_channels_first", False)
    weights, heads = dict(network.named_parameters()) | dict(network.named_buffers()), head_layers(network)
    state = made.state_dict()
    for name, value in state.items():
        if name.startswith("final_conv"):
            value.copy_(_conv(weights[name], value, policy.count))
        elif name in heads:
            value.copy_(_rows(weights[name], given, channels, outputs, policy.count, first))
        elif name in weights:
            value.copy_(weights[name])
    if policy.kind == "mixture" and apart:
        bias = next(state[name] for name in heads if name.endswith("bias") and not name.startswith("final_conv"))
        offsets = apart * torch.randn(policy.count * channels, generator=torch.Generator().manual_seed(0))
        offsets = torch.cat([offsets, offsets.new_zeros(outputs - len(offsets))])
        patch = bias.numel() // outputs
        bias += (offsets.repeat_interleave(patch) if first else offsets.repeat(patch)).to(bias)
    return made


def _rows(rows: Tensor, given: int, channels: int, outputs: int, count: int, channels_first: bool) -> Tensor:
    """Rows of a head (patch^2 outputs, ...) from those (patch^2 given, ...): the first `channels` of them, `count` times, and
    zeros for the rest. channels_first: in which order the numbers of a patch lie."""
    each = rows.unflatten(0, (given, -1) if channels_first else (-1, given))
    each = each if channels_first else each.transpose(0, 1)
    rest = each.new_zeros(outputs - count * channels, *each.shape[1:])
    whole = torch.cat([*[each[:channels]] * count, rest])
    return (whole if channels_first else whole.transpose(0, 1)).flatten(0, 1)


def _conv(given: Tensor, like: Tensor, count: int) -> Tensor:
    """A last convolution's weights or bias: every component's own channels go through the given one; what is behind them stays
    as it is."""
    channels = len(given)
    if given.ndim == 1:
        return torch.cat([*[given] * count, given.new_zeros(len(like) - count * channels)])
    whole = nn.init.dirac_(torch.empty_like(like))
    for i in range(count):
        block = slice(i * channels, (i + 1) * channels)
        whole[block] = 0
        whole[block, block] = given
    return whole
