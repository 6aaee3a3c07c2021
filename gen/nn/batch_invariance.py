"""Pictures that do not depend on how many are made together: kernels that round otherwise at other batch sizes are called in
blocks that round alike.

Which kernel a library takes, and in what order that adds, depends on the number of rows; so do the ends of vectors where an
element-wise function is computed another way. Every such function of a run is therefore asked once per shape whether rows come
out the same to the last bit together and each alone. If they do, it is called as ever, and costs nothing; if not, in the
largest blocks that do. The question is put to numbers whose sums cancel, so that what is left is nothing but the order of
adding. Element-wise functions are called together where each row is whole vectors. The answer depends on shapes, threads and
the machine alone, and so does the picture.

A mode of the thread that runs (`torch.overrides.TorchFunctionMode`), so that networks of others, adapters and energies are
covered like our own. B is the batch, first in every tensor.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from samplers.denoiser import Condition, Context

GRAIN = 1 << 15  # numbers from which PyTorch divides an element-wise function among threads
VECTOR = 64  # numbers, at most, that it computes at once
QUESTIONS, ENOUGH = 64, 1 << 14  # at most, and numbers that are answer enough
LARGEST = 1 << 24  # numbers in a weight that is made up for a question; beyond, its own is asked
_run = threading.local()
_answers: dict[tuple, int] = {}


def _products() -> dict[Any, tuple[int, ...]]:
    """function -> its arguments that have the batch first."""
    first_argument: list[Any] = [F.linear, torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d]
    first_argument.append(torch.ops.mkldnn._linear_pointwise)
    first_argument += [F.group_norm, torch.group_norm]  # several threads share the rows of channels that lie last
    two_arguments: list[Any] = [torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm]
    three_arguments: list[Any] = [torch.baddbmm, Tensor.baddbmm]
    return (
        dict.fromkeys(first_argument, (0,)) | dict.fromkeys(two_arguments, (0, 1)) | dict.fromkeys(three_arguments, (0, 1, 2))
    )


CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d, torch.conv_transpose2d)
LINEAR = (F.linear, torch.ops.mkldnn._linear_pointwise)
ATTENTION = F.scaled_dot_product_attention
PRODUCTS = _products() | {ATTENTION: (0, 1, 2, 3)}
POINTWISE: set[Any] = {F.silu, F.gelu, F.mish, F.softplus, F.sigmoid, F.tanh, Tensor.__pow__} | {
    getattr(place, name)
    for place in (torch, Tensor)
    for name in ("sigmoid", "tanh", "exp", "log", "pow", "rsqrt", "sin", "cos", "erf")
}
SUMS: set[Any] = {torch.sum, Tensor.sum, torch.mean, Tensor.mean}


class BatchInvariantMode(TorchFunctionMode):
    """Functions of a batch give every row what it would get alone. rows: of the network that runs, None outside of one."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: int | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        places = PRODUCTS.get(func)
        if places is not None or func in POINTWISE:
            return self.run(func, places or (0,), args, kwargs)
        if func in SUMS and _over_rows(args, kwargs):
            return self.run(func, (0,), args, kwargs)
        if func is torch.einsum and isinstance(args[0], str):
            return self._einsum(args)
        return func(*args, **kwargs)

    def run(self, func: Any, places: Sequence[int], args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """func in blocks that round as each row alone."""
        first = args[0] if args else None
        if not isinstance(first, Tensor) or first.ndim < 2 or not first.is_floating_point():
            return func(*args, **kwargs)
        if func is F.linear and type(args[1]) not in (Tensor, nn.Parameter):
            return func(*args, **kwargs)  # a weight of parts, which multiplies itself (`gen.nn.quantized`)
        count = first.shape[0]
        unit = 1 if self.rows is None or count <= self.rows or count % self.rows else count // self.rows
        if count <= unit or (func in CONVOLUTIONS and first.ndim != args[1].ndim):
            return func(*args, **kwargs)
        if func in POINTWISE and _cut_at_vectors(first):
            return func(*args, **kwargs)
        if torch.is_grad_enabled() and any(isinstance(argument, Tensor) and argument.requires_grad for argument in args):
            return _Call.of(func, places, args, kwargs, count).in_blocks(unit)  # gradients round by block too
        if func in POINTWISE:
            return _Call.of(func, places, args, kwargs, count).in_blocks(unit)
        key = _key(func, unit, args, kwargs)
        if (size := _answers.get(key)) is None:
            with torch.no_grad():
                size = _answers[key] = _Call.of(func, places, args, kwargs, count).largest(unit)
        return func(*args, **kwargs) if size == count else _Call.of(func, places, args, kwargs, count).in_blocks(size)

    def _einsum(self, args: tuple) -> Any:
        equation, operands = args[0].replace(" ", ""), args[1:]
        operands = tuple(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else operands
        terms, _, out = equation.partition("->")
        names = terms.split(",")
        places = [i for i, name in enumerate(names) if out and "." not in equation and name[:1] == out[0]]
        if not places or any(out[0] in name[1:] for name in names) or operands[places[0]].shape[0] < 2:
            return torch.einsum(equation, *operands)
        call = _Call(lambda *given: torch.einsum(equation, *given), tuple(places), operands, {})
        return call.in_blocks(1)


def _cut_at_vectors(x: Tensor) -> bool:
    """Is an element-wise function of x computed in whole vectors within every row, whatever their number? The rest that fills
    no vector, at the end of a thread's part, is computed another way."""
    if x.device.type != "cpu":
        return True
    threads = torch.get_num_threads() if x.numel() > GRAIN else 1
    return x.is_contiguous() and (x.numel() // len(x)) % (VECTOR * threads) == 0


def _over_rows(args: tuple, kwargs: Mapping[str, Any]) -> bool:
    """Does a sum leave the first axis?"""
    dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if dims is None or not isinstance(args[0], Tensor):
        return False
    return not {0, -args[0].ndim} & set(dims if isinstance(dims, tuple | list | torch.Size) else (dims,))


@dataclass
class _Call:
    """A function with its arguments; those at `places` have the batch first."""

    func: Callable[..., Tensor]
    places: tuple[int, ...]
    args: tuple
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, func: Any, places: Sequence[int], args: tuple, kwargs: Mapping[str, Any], count: int) -> _Call:
        if func is ATTENTION and kwargs.get("attn_mask") is not None:
            kwargs = dict(kwargs)
            args = (*args, kwargs.pop("attn_mask"))
        split = tuple(
            i for i in places
            if i < len(args) and isinstance(args[i], Tensor) and args[i].shape[:1] == (count,) and (i == 0 or args[i].ndim > 2)
        )  # fmt: skip
        return cls(func, split, args, kwargs)

    @property
    def count(self) -> int:
        return self.args[self.places[0]].shape[0]

    def in_blocks(self, size: int, args: tuple | None = None) -> Tensor:
        args = self.args if args is None else args
        if size >= self.count:
            return self.func(*args, **self.kwargs)
        blocks = [[*args] for _ in range(0, self.count, size)]
        for place in self.places:
            for block, part in zip(blocks, args[place].split(size), strict=True):
                block[place] = aligned(part)
        return torch.cat([self.func(*block, **self.kwargs) for block in blocks])

    def largest(self, unit: int) -> int:
        """How many rows may go together. Small products are asked often, as few numbers show little."""
        sizes = [self.count, *reversed([unit << k for k in range(10) if unit < unit << k < self.count])]
        compared = 0
        for seed in range(QUESTIONS):
            args = _stand_ins(self, seed, cancel=seed % 2 == 0)
            alone = self.in_blocks(unit, args)
            sizes = [size for size in sizes if torch.equal(self.in_blocks(size, args), alone)]
            compared += alone.numel()
            if not sizes or (seed and compared > ENOUGH):
                break
        return sizes[0] if sizes else unit


def _key(func: Any, unit: int, args: tuple, kwargs: Mapping[str, Any]) -> tuple:
    """All that a kernel is chosen by."""
    parts = [func, unit, torch.get_num_threads(), args[0].device]
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            parts += (value.shape, value.dtype, () if value.is_mkldnn else value.stride())
        else:
            parts.append(tuple(value) if isinstance(value, list) else value)
    return tuple(parts)


def _stand_ins(call: _Call, seed: int, cancel: bool) -> tuple:
    """Arguments of the same shapes. cancel: with products that cancel in pairs wherever they are added."""
    draw = torch.Generator().manual_seed(seed)

    def like(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_mkldnn or value.numel() > LARGEST:
            return value
        extent = 1 + sum((side - 1) * step for side, step in zip(value.shape, value.stride(), strict=True))
        made = torch.randn(max(extent, 1), generator=draw).to(value.device, value.dtype)
        return made.as_strided(value.shape, value.stride())

    args = [like(value) for value in call.args]
    if call.func in LINEAR:
        weight = args[1]
        if weight.is_mkldnn:
            if weight.numel() > LARGEST:
                return tuple(args)
            weight = torch.randn(weight.shape, generator=draw).to(weight.dtype)
        if cancel:
            _cancel(args[0], weight, -1, -1, draw)
        args[1] = _packed(weight) if call.args[1].is_mkldnn else weight
        if len(args) > 2 and isinstance(args[2], Tensor):
            args[2] = torch.zeros_like(args[2])
    elif not cancel:
        pass
    elif call.func in CONVOLUTIONS and args[0].shape[1] == args[1].shape[1] and args[1].numel() <= LARGEST:
        _cancel(args[0], args[1], 1, 1, draw)
        if len(args) > 2 and isinstance(args[2], Tensor):
            args[2] = torch.zeros_like(args[2])
    elif call.func is ATTENTION:
        _cancel(args[1], args[2], -2, -2, draw)
    elif call.func in PRODUCTS and args[-1] is not call.args[-1] and args[-1].ndim > 1:
        _cancel(args[-2], args[-1], -1, -2, draw)
    return tuple(args)


def _cancel(x: Tensor, y: Tensor, axis: int, other: int, draw: torch.Generator) -> None:
    """Make pairs along an axis of x equal, and those of y opposite: sums of their products are what rounding leaves."""
    if any(side > 1 and step == 0 for first in (x, y) for side, step in zip(first.shape, first.stride(), strict=True)):
        return  # expanded, and written to more than once
    order = torch.randperm(x.shape[axis], generator=draw).to(x.device)
    half = len(order) // 2
    first, second = order[:half], order[half : 2 * half]
    x.index_copy_(axis, second, x.index_select(axis, first))
    y.index_copy_(other, second, -y.index_select(other, first))


def _packed(weight: Tensor) -> Tensor:
    from gen.nn.backbones.fused import reordered

    return reordered(weight)


@contextmanager
def batch_invariance(enabled: bool) -> Iterator[None]:
    """Inside, what this thread computes of a batch is what it computes of each of its rows; not `enabled`: as
    ever."""
    if not enabled or getattr(_run, "mode", None) is not None:
        yield
        return
    _run.mode = BatchInvariantMode()
    try:
        with _run.mode:
            yield
    finally:
        _run.mode = None


def without_mode() -> Any:
    """A context without the mode, for code that only looks at tensors: every look would go through it."""
    return nullcontext() if getattr(_run, "mode", None) is None else torch._C.DisableTorchFunction()


def call_in_mode(func: Any, *args: Any, **kwargs: Any) -> Any:
    """func(*args, **kwargs) as the mode would call it, from within `without_mode`."""
    mode = getattr(_run, "mode", None)
    return func(*args, **kwargs) if mode is None else mode.run(func, PRODUCTS.get(func, (0,)), args, kwargs)


@contextmanager
def as_rows(count: int) -> Iterator[None]:
    """Inside, what is computed counts as a batch of `count` rows: of the rows that a layer sees, those of one run."""
    mode = getattr(_run, "mode", None)
    if mode is None:
        yield
        return
    before, mode.rows = mode.rows, count
    try:
        yield
    finally:
        mode.rows = before


def aligned(part: Tensor) -> Tensor:
    """Rows of a tensor as they lie in memory alone."""
    return part if part.is_cuda or part.data_ptr() % 64 == 0 else part.clone()


def is_invariant() -> bool:
    """Does this thread compute so that rows do not depend on their batch?"""
    return getattr(_run, "mode", None) is not None


@dataclass(frozen=True)
class BatchInvariantNetwork:
    """A network that says how many rows it was given; a single one is left alone."""

    network: Callable[..., Tensor]

    def __call__(self, x: Tensor, time: Tensor, condition: Condition, context: Context) -> Tensor:
        mode = getattr(_run, "mode", None)
        if mode is None:
            return self.network(x, time, condition, context)
        before, mode.rows = mode.rows, len(x)
        top = torch._C._len_torch_function_stack() - 1
        alone = len(x) == 1 and torch._C._get_function_stack_at(top) is mode
        if alone:
            torch._C._pop_torch_function_stack()
            _run.mode = None
        try:
            return self.network(x, time, condition, context)
        finally:
            mode.rows = before
            if alone:
                torch._C._push_on_torch_function_stack(mode)
                _run.mode = mode
