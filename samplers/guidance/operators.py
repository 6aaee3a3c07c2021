"""What a measurement keeps of a picture: linear operators with their adjoints, and others linearised where they are used.

Pictures are (B, C, H, W) throughout, measurements (B, ...).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.constants import constant
from samplers.path import wide_dtype

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Linear:
    """A measurement near a picture: its value there, its derivative and the derivative's adjoint, as functions of tensors."""

    value: Tensor
    apply: Map
    adjoint: Map


class Operator(Protocol):
    def __call__(self, x: Tensor) -> Tensor:
        """The noiseless measurement of x, differentiable."""
        ...

    def near(self, x: Tensor) -> Linear:
        """The measurement linearised at x."""
        ...


@dataclass(frozen=True)
class LinearOperator:
    """A x by two functions, A and its adjoint: <A x, y> = <x, A^T y> for all x and y, which is tested at the first use.

    adjoint None: it is made of `apply` by automatic differentiation. ValueError for a pair that fails the test (relative
    difference above 1e-8 in float64, 1e-3 in lower precision).
    """

    apply: Map
    adjoint: Map | None = None
    name: str = "operator"
    _tested: set[tuple] = field(default_factory=set, init=False, repr=False, compare=False)

    def __call__(self, x: Tensor) -> Tensor:
        return self.apply(x)

    def near(self, x: Tensor) -> Linear:
        adjoint = self._by_autograd(x) if self.adjoint is None else self.adjoint
        with torch.no_grad():
            linear = Linear(self.apply(x), self.apply, adjoint)
        kind = (tuple(x.shape[1:]), x.dtype, x.device)
        if kind not in self._tested:
            check_adjoint(linear, x, self.name)
            self._tested.add(kind)
        return linear

    def _by_autograd(self, x: Tensor) -> Map:
        def adjoint(y: Tensor) -> Tensor:
            with torch.enable_grad():
                at = torch.zeros_like(x).requires_grad_()
                return torch.autograd.grad((self.apply(at) * y).sum(), at)[0]

        return adjoint


@dataclass(frozen=True)
class Composed:
    """`outer` after `inner`, where inner is any function that torch can differentiate twice, such as a decoder.

    The measurement is no longer linear; `near` linearises it, with the derivative of `inner` as the derivative of a
    vector-Jacobian product.
    """

    outer: Operator
    inner: Map

    def __call__(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def near(self, x: Tensor) -> Linear:
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            image = self.inner(at)
            probe = torch.zeros_like(image).requires_grad_()
            (back,) = torch.autograd.grad((image * probe).sum(), at, create_graph=True)
        linear = self.outer.near(image.detach())

        def apply(v: Tensor) -> Tensor:
            return linear.apply(torch.autograd.grad((back * v).sum(), probe, retain_graph=True)[0])

        def adjoint(y: Tensor) -> Tensor:
            return torch.autograd.grad((image * linear.adjoint(y)).sum(), at, retain_graph=True)[0]

        return Linear(linear.value, _outside_grad(apply), _outside_grad(adjoint))


def _outside_grad(function: Map) -> Map:
    def run(v: Tensor) -> Tensor:
        with torch.enable_grad():
            return function(v.detach()).detach()

    return run


def check_adjoint(linear: Linear, x: Tensor, name: str) -> None:
    """ValueError unless <A x, y> = <x, A^T y> for a random x and y of their shapes."""
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    u, v = draw(x), draw(linear.value)
    with torch.no_grad():
        forward, back = linear.apply(u), linear.adjoint(v)
        if back.shape != x.shape:
            raise ValueError(
                f"The adjoint of {name} makes {tuple(back.shape)} of a measurement {tuple(v.shape)}; it must give back "
                f"{tuple(x.shape)}."
            )
        forward, v, u, back = (one.to(wide_dtype(x.device)) for one in (forward, v, u, back))
        left, right = (forward * v).sum(), (u * back).sum()
        size = forward.norm() * v.norm() + u.norm() * back.norm()
    tolerance = 1e-8 if x.dtype == torch.float64 else 1e-3
    if not bool((left - right).abs() <= tolerance * size):
        raise ValueError(
            f"The adjoint of {name} is not one: <A x, y> is {left:.6g} and <x, A^T y> is {right:.6g} for random x and y; "
            "correct it, or leave it out and it is made by differentiation."
        )


def keep(mask: Tensor) -> LinearOperator:
    """The picture where `mask` (B or 1, 1 or C, H, W) is 1, zero where it is 0."""
    return LinearOperator(lambda x: x * mask.to(x), lambda y: y * mask.to(y), "keep")


def blur(radius: float) -> LinearOperator:
    """A Gaussian blur of standard deviation `radius` pixels, with the picture mirrored at its edges."""
    if not 0 < radius < math.inf:
        raise ValueError(f"A blur got the radius {radius!r}; give a positive number of pixels.")
    reach = max(1, math.ceil(3 * radius))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / radius) ** 2)
    weights = weights / weights.sum()

    def along(x: Tensor, dim: int) -> Tensor:
        size, kernel = x.shape[dim], weights.to(x)
        place = (torch.arange(-reach, size + reach, device=x.device) % (2 * size)).long()
        place = torch.where(place < size, place, 2 * size - 1 - place)  # mirrored, edge pixels twice, as often as needed
        padded = x.movedim(dim, -1).index_select(-1, place)
        return (
            F.conv1d(padded.reshape(-1, 1, padded.shape[-1]), kernel.reshape(1, 1, -1))
            .reshape(*padded.shape[:-1], size)
            .movedim(-1, dim)
        )

    return LinearOperator(lambda x: along(along(x, 2), 3), None, "blur")


def downsample(factor: int) -> LinearOperator:
    """Averages of factor x factor pixels; ValueError at a size that the factor does not divide."""
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise ValueError(f"Downsampling got the factor {factor!r}; give a whole number of at least 1.")

    def shrink(x: Tensor) -> Tensor:
        if x.shape[2] % factor or x.shape[3] % factor:
            raise ValueError(f"A picture of {x.shape[3]} x {x.shape[2]} is not divisible by the factor {factor}; crop it.")
        return F.avg_pool2d(x, factor)

    def spread(y: Tensor) -> Tensor:
        return y.repeat_interleave(factor, 2).repeat_interleave(factor, 3) / factor**2

    return LinearOperator(shrink, spread, "downsample")


def grey(weights: tuple[float, float, float] = (0.299, 0.587, 0.114)) -> LinearOperator:
    """The brightness (B, 1, H, W) of a colour picture; the weights are those of BT.601."""

    def mix(x: Tensor) -> Tensor:
        return (x * constant(weights, x.device, x.dtype).reshape(1, -1, 1, 1)).sum(1, keepdim=True)

    return LinearOperator(mix, lambda y: y * constant(weights, y.device, y.dtype).reshape(1, -1, 1, 1), "grey")
