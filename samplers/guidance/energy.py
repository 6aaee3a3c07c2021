"""Energies: what a picture should be, as a log-density of the clean image; and their gradients through a denoiser.

An energy is any function (x0 (B, C, H, W), condition) -> (B,) that torch can differentiate. It is log p(condition | x0) up to
a constant: higher is better, and rows must not look at one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import read_x0
from samplers.noise import NoiseSource, fork_noise
from samplers.path import NoiseLevel
from samplers.prediction import Guided, Prediction


class Energy(Protocol):
    def __call__(self, x0: Tensor, condition: Condition) -> Tensor: ...


def log_density(energy: Callable[..., Tensor], images: Tensor, *arguments: Any, what: str = "energy") -> Tensor:
    """energy(images, *arguments), checked: finite numbers (B,) that depend on the images; ValueError says what is wrong.

    what: the word for it in that sentence."""
    name = energy_name(energy)
    try:
        value = energy(images, *arguments)
    except Exception as error:
        raise ValueError(
            f"The {what} {name} failed on images {tuple(images.shape)}: {type(error).__name__}: {error}".rstrip(".") + "."
        ) from error
    if not isinstance(value, Tensor) or value.shape != (len(images),) or not value.is_floating_point():
        got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        wanted = "log-density" if what == "energy" else "number"
        raise ValueError(f"The {what} {name} returned {got}; return one {wanted} per image, floats of shape ({len(images)},).")
    if not bool(value.isfinite().all()):
        row = int((~value.isfinite()).nonzero()[0])
        raise ValueError(
            f"The {what} {name} gave {value[row].item()} for image {row}; return finite numbers (log_softmax, not "
            "log(softmax), for example)."
        )
    return value


def gradients(value: Tensor, inputs: tuple[Tensor, ...], energy: object, what: str = "energy") -> tuple[Tensor, ...]:
    """d sum(value) / d inputs, checked to exist and be finite."""
    name = energy_name(energy)
    if not value.requires_grad:
        raise ValueError(
            f"The {what} {name} does not depend on the images in a way that torch can differentiate; compute it from x0 with "
            "torch functions, without detach, rounding or no_grad."
        )
    try:
        with torch.enable_grad():
            found = torch.autograd.grad(value.sum(), inputs)
    except RuntimeError as error:
        raise ValueError(f"The {what} {name} cannot be differentiated: {error}".rstrip(".") + ".") from error
    if not all(bool(g.isfinite().all()) for g in found):
        raise ValueError(f"The gradient of the {what} {name} is not finite; keep roots, norms and logarithms away from 0.")
    return found


def smoothed_energy(energy: Energy, x0: Tensor, condition: Condition, shifts: list[Tensor]) -> Tensor:
    """log of the mean of exp(energy) over x0 + shift (B,), one evaluation per shift; the energy itself without shifts."""
    if not shifts:
        return log_density(energy, x0, condition)
    values = torch.stack([log_density(energy, x0 + shift, condition) for shift in shifts])
    return values.logsumexp(0) - math.log(len(shifts))


def draw_shifts(noise: NoiseSource | None, level: NoiseLevel, count: int, spread: float) -> list[Tensor]:
    """`count` draws of spread * z, functions of the source's seeds and the level alone; none where spread is 0."""
    if spread == 0:
        return []
    assert noise is not None
    return [spread * fork_noise(noise, "energy", k)(level, level) for k in range(count)]


def predict_with_gradient(
    denoiser: Denoiser, x: Tensor, level: NoiseLevel, condition: Condition, context: Context, checkpoint: bool = False
) -> Prediction:
    """The prediction at a copy of x that gradients reach: its `x` is the leaf.

    checkpoint: the denoiser keeps no activations and is evaluated once more for the gradient. That second time sees the run's
    store as the first did and leaves no trace in it, so memories and the count of evaluations stay as without.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("Guidance by an energy needs gradients, which torch.inference_mode() forbids; use torch.no_grad().")
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        if not checkpoint:
            return denoiser(leaf, level, condition, context)
        before = dict(context.store)
        found: list[Prediction] = []

        def run(point: Tensor) -> Tensor:
            if found:
                return _raws(denoiser(point, level, condition, replace(context, store=dict(before))))
            found.append(denoiser(point, level, condition, context))
            return _raws(found[0])

        raws = _Recomputed.apply(leaf, run)
        prediction = replace(found[0], x=leaf, raw=raws[0])
        if isinstance(prediction, Guided) and prediction.cond is not None:
            return replace(prediction, cond=replace(prediction.cond, x=leaf, raw=raws[1]))
        return prediction


def _raws(prediction: Prediction) -> Tensor:
    """(1 or 2, B, ...): the raw output, and the conditional one that it was made of, if it is known."""
    cond = prediction.cond if isinstance(prediction, Guided) else None
    return torch.stack([prediction.raw] if cond is None else [prediction.raw, cond.raw])


class _Recomputed(torch.autograd.Function):
    """run(x) without keeping its graph, which is made when the gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.run = run
        return run(x)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None]:
        with torch.enable_grad():
            leaf = ctx.saved_tensors[0].detach().requires_grad_()
            # as a product, not as grad_outputs, for whose check of shapes torch would import a computer algebra system
            return torch.autograd.grad((ctx.run(leaf) * gradient[0]).sum(), leaf)[0], None


BRANCHES = ("cond", "guided")


def x0_with_gradient(prediction: Prediction, branch: str = "cond") -> Tensor:
    """x0 of a traced prediction (B, ...), whose gradient is, for "cond", that of the conditional prediction it was made of.

    Guidance extrapolates Jacobians too: s dD_cond/dx - (s - 1) dD_null/dx. Where the empty prompt's prediction follows x more
    than the prompt's does, as colours at high noise, that is negative, and a gradient through it moves x the wrong way. The
    conditional Jacobian is alpha / sigma^2 times a covariance: never negative, and the one that Bayes' rule asks for.
    """
    x0 = read_x0(prediction)
    if branch == "guided" or not isinstance(prediction, Guided) or prediction.cond is None:
        return x0
    cond = read_x0(prediction.cond)
    return x0.detach() + (cond - cond.detach())


def check_branch(owner: str, branch: object) -> None:
    if branch not in BRANCHES:
        raise ValueError(f"{owner} got branch={branch!r}; choose one of {', '.join(BRANCHES)}.")


def detach_prediction(prediction: Prediction, x: Tensor) -> Prediction:
    """The same prediction, at x, without its graph."""
    changes: dict[str, Any] = {"x": x, "raw": prediction.raw.detach()}
    if prediction.variance is not None:
        changes["variance"] = prediction.variance.detach()
    if isinstance(prediction, Guided):
        changes |= {
            name: None if branch is None else detach_prediction(branch, x)
            for name, branch in (("cond", prediction.cond), ("null", prediction.null))
        }
    return replace(prediction, **changes)


def limit_rms(shift: Tensor, limit: float | None) -> Tensor:
    """The shift (B, ...), images where its root mean square is above `limit` scaled down to it."""
    if limit is None:
        return shift
    size = shift.flatten(1).square().mean(1).sqrt().reshape(-1, *[1] * (shift.ndim - 1))
    return shift * (limit / size.clamp(min=torch.finfo(shift.dtype).tiny)).clamp(max=1)


def check_numbers(owner: str, **values: Any) -> None:
    """ValueError unless each is a finite number of at least 0."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{owner} got {name}={value!r}; give a finite number of at least 0.")


def check_count(owner: str, least: int, **values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{owner} got {name}={value!r}; give a whole number of at least {least}.")


def energy_name(energy: object) -> str:
    return repr(getattr(energy, "__name__", type(energy).__name__))
