"""Control: what networks that read a picture of edges, depth or poses add to a denoiser's layers.

A control's picture and strength are conditions: `Condition.extra["map:control:NAME"]` (B, 3 f^2, h, w), the f x f pixels in
[0, 1] under every latent, or the picture's latents (B, C, h, w) for networks that read those, and
`extra["control weight:NAME"]` (B,); of a union of controls, `extra["control mode:NAME"]` (B, 1) too. Which network NAME is, is
known to the denoiser's network, in `controls`. What several add is summed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor

from samplers.denoiser import MAP, Condition

PICTURE, WEIGHT, MODE = f"{MAP}control:", "control weight:", "control mode:"
PROMPT, PROMPT_MASK = "control prompt", "control prompt mask"  # what the pictures should be, of both branches of guidance


class OpenedControl(Protocol):
    """A network of control that is ready. digest: of its weights. modes: how many controls a union has, None for one."""

    @property
    def network(self) -> Any: ...

    @property
    def digest(self) -> str: ...

    @property
    def modes(self) -> int | None: ...

    @property
    def reads_latents(self) -> bool: ...

    def picture(self, picture: Tensor, autoencoder: Any, latent_scale: float, mode: int | None) -> Tensor: ...


class SequenceControl(OpenedControl, Protocol):
    """A control of a network of text and patches.

    repeats: what it adds goes round over the network's layers; otherwise each tensor is for a run of them.
    residuals(x, time, condition, picture, mode): groups of tensors (B, P, D), one group for each kind of layer.
    """

    @property
    def repeats(self) -> bool: ...

    def residuals(
        self, x: Tensor, time: Tensor, condition: Condition, picture: Tensor, mode: Tensor | None
    ) -> Sequence[Sequence[Tensor] | None]: ...


def added(
    controls: Mapping[str, OpenedControl],
    condition: Condition,
    evaluate: Callable[[Any, Tensor, Tensor | None], Sequence[Sequence[Tensor] | None]],
) -> list[list[Tensor] | None] | None:
    """The sum over all active controls, place by place and times their weights, of the groups of tensors that evaluate(control,
    picture, mode) gives; None for no control."""
    total: list[list[Tensor] | None] | None = None
    extra = condition.extra
    for name in (key.removeprefix(PICTURE) for key in extra if key.startswith(PICTURE)):
        control, picture = controls[name], extra[PICTURE + name]
        picture = picture if control.reads_latents else F.pixel_shuffle(picture, round((picture.shape[1] / 3) ** 0.5))
        said = evaluate(control, picture, extra.get(MODE + name))
        groups = [None if group is None else [_times(v, extra[WEIGHT + name]) for v in group] for group in said]
        if total is None:
            total = groups
            continue
        total = [_sum(a, b) for a, b in zip(total, groups, strict=True)]
    return total


def added_in_sequence(
    controls: Mapping[str, OpenedControl], x: Tensor, time: Tensor, condition: Condition
) -> tuple[list[list[Tensor] | None] | None, bool]:
    """(what all active controls of a network of text and patches add, None for nothing; whether it repeats over the layers).
    ValueError for controls of both kinds at once."""
    repeats: set[bool] = set()

    def evaluate(control: Any, picture: Tensor, mode: Tensor | None) -> Sequence[Sequence[Tensor] | None]:
        repeats.add(control.repeats)
        return control.residuals(x, time, condition, picture.to(x.dtype), mode)

    total = added(controls, condition, evaluate)
    if len(repeats) > 1:
        raise ValueError("ControlNets in the way of XLabs and others are spread over FLUX's layers unalike; give one kind.")
    return total, repeats == {True}


def share_of(
    values: Sequence[Tensor] | None, index: int, count: int, repeats: bool = False, even: bool = False
) -> Tensor | None:
    """Which of a group's tensors is added behind layer `index` of `count`; None for none.

    repeats: they go round. even: each has an equal share of the layers, as Stable Diffusion 3's; otherwise each is for as many
    whole layers, and the last may have fewer, as in diffusers' FLUX and Qwen-Image.
    """
    if not values:
        return None
    if repeats:
        return values[index % len(values)]
    return values[index * len(values) // count if even else index // -(-count // len(values))]


def _times(value: Tensor, weight: Tensor) -> Tensor:
    return value * weight.to(value).view(-1, *[1] * (value.ndim - 1))


def _sum(a: list[Tensor] | None, b: list[Tensor] | None) -> list[Tensor] | None:
    """ValueError where networks add at different numbers of places: what one adds is spread over the denoiser's layers."""
    if a is None or b is None:
        return b if a is None else a
    if len(a) != len(b):
        raise ValueError(f"These ControlNets add at {len(a)} and {len(b)} places; several at once must be of one depth.")
    return [x + y for x, y in zip(a, b, strict=True)]
