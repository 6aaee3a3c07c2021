"""A device that this machine does not have: tensors that say they are on it, computed on the CPU, and a record of every wait.

Inside `Pretend()` a tensor made with `device="lazy"` holds a tensor of the CPU and says it lies on that device. As on a real
one, an operation between it and a tensor of the CPU with more than one number is refused. What would make the host wait for the
device is recorded with the line of the project that did it.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_map_only

import samplers.noise
import samplers.path

ROOT = Path(__file__).parents[1]
PACKAGES = ("samplers", "gen", "distill", "customization")
aten = torch.ops.aten
# operations that hand a number or a size to the host
READS = {aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.item}
SIZED = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.bincount}
CHOICE = aten._fused_sdp_choice


@dataclass(frozen=True)
class Wait:
    """One time that the host waited: which operation, and the line of the project."""

    operation: str
    line: str

    def __str__(self) -> str:
        return f"{self.operation} at {self.line}"


class DeviceTensor(Tensor):
    """A tensor that says it is on the pretended device; `inner` is on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
            requires_grad=inner.requires_grad,
        )
        made.inner = inner.detach()
        return made

    def __repr__(self) -> str:
        return f"DeviceTensor({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function} was called outside of the device's mode.")


class _Literals(TorchFunctionMode):
    """Tensors of Python numbers on the device, which torch makes below every dispatch mode: made on the CPU, then moved."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.pinned: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function is Tensor.new_tensor and isinstance(args[0], DeviceTensor):
            made = torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype)
            return made.to(args[0].device)
        if function is Tensor.pin_memory:
            self.pinned.append(args[0].clone())
            return self.pinned[-1]
        if function is Tensor.tolist and isinstance(args[0], DeviceTensor):
            return args[0].cpu().tolist()
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            if device.type == self.device.type:
                return function(*args, **{**kwargs, "device": None}).to(device)
        return function(*args, **kwargs)


class Pretend(TorchDispatchMode):
    """The device's mode: see the module.

    float64: whether it has numbers of 64 bits; without, one is refused with a TypeError, as on Apple's GPUs.
    waits: what was recorded.
    seen: the numbers of `waits` when `mark` was called.
    """

    def __init__(self, float64: bool = True):
        super().__init__()
        self.device, self.float64 = torch.device("lazy", 0), float64
        self.waits: list[Wait] = []
        self.seen: list[int] = []
        self._literals = _Literals(self.device)

    def __enter__(self) -> Pretend:
        self._literals.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)

    def put(self, value: Tensor) -> Tensor:
        """A tensor on the device, without a record."""
        return value if isinstance(value, DeviceTensor) else DeviceTensor(value, self.device)

    def take(self, value: Tensor) -> Tensor:
        """A tensor's numbers, on the CPU, without a record."""
        return value.inner if isinstance(value, DeviceTensor) else value

    def mark(self) -> None:
        """The end of a step."""
        self.seen.append(len(self.waits))

    def between(self, first: int, last: int = -1) -> list[Wait]:
        """What was recorded between two marks."""
        return self.waits[self.seen[first] : self.seen[last]]

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given: list[Tensor] = []
        tree_map_only(Tensor, given.append, (args, kwargs))
        there = [one for one in given if isinstance(one, DeviceTensor)]
        packet, asked = function.overloadpacket, kwargs.get("device")
        target = None if asked is None else torch.device(asked)
        if not there and (target is None or target.type != self.device.type):
            return function(*args, **kwargs)
        if packet is CHOICE:
            return 0  # plain products, which every device has
        self._check_together(function, given, there, target)
        self._record(function, packet, args, kwargs, there, target)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        inner_args, inner_kwargs = tree_map_only(DeviceTensor, lambda one: one.inner, (args, kwargs))
        out = function(*inner_args, **inner_kwargs)
        if packet in READS or (target is not None and target.type == "cpu"):
            return out
        self._check_dtype(function, out)
        wrapped = tree_map_only(Tensor, self.put, out)
        if function._schema.name.endswith("_") or function.is_view or "out" in kwargs:
            return return_and_correct_aliasing(function, args, kwargs, wrapped)
        return wrapped

    def _check_together(self, function: Any, given: list[Tensor], there: list[Any], target: torch.device | None) -> None:
        """RuntimeError where tensors of both devices meet, as torch says it."""
        moves = target is not None or function.overloadpacket in (aten.copy_, aten._copy_from, aten.index, aten.index_put_)
        if there and not moves and any(not isinstance(one, DeviceTensor) and one.ndim for one in given):
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {function} got some on {self.device} and cpu."
            )

    def _check_dtype(self, function: Any, out: Any) -> None:
        def refuse(one: Tensor) -> None:
            if one.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"Cannot convert a {self.device.type} tensor to float64: it has none ({function}, {_line()}).")

        if not self.float64:
            tree_map_only(Tensor, refuse, out)

    def _record(
        self, function: Any, packet: Any, args: Any, kwargs: Any, there: list[Any], target: torch.device | None
    ) -> None:
        waits = (packet in READS or packet in SIZED) and bool(there)
        if packet in (aten.index, aten.index_put_, aten.index_put):  # by a mask: as many as it holds
            waits = any(one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1])
            waits = waits or any(one is not None and not isinstance(one, DeviceTensor) and one.ndim for one in args[1])
        if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            waits = True
        if packet is aten._to_copy and target is not None:
            arrives = target.type == self.device.type and not there
            leaves = target.type == "cpu" and there
            follows = kwargs.get("non_blocking") and any(args[0] is one for one in self._literals.pinned)
            waits = bool(leaves or arrives) and not (follows and arrives)
        if packet is aten.copy_:
            waits = isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor) and bool(args[1].ndim)
            waits = waits and not (len(args) > 2 and args[2])
        if waits:
            self.waits.append(Wait(str(function), _line()))


def _line() -> str:
    """The innermost line of the project, tests left out, and where that called another library, the line in there."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__ and "/torch/" not in frame.filename]
    names = [Path(frame.filename) for frame in frames]
    ours = [i for i, name in enumerate(names) if name.is_relative_to(ROOT) and name.relative_to(ROOT).parts[0] in PACKAGES]
    inner, own = len(frames) - 1, (ours or [len(frames) - 1])[-1]
    shown = str(names[own].relative_to(ROOT)) if ours else names[own].name
    text = f"{shown}:{frames[own].lineno} ({frames[own].name})"
    return text if inner == own else f"{text}, in {names[inner].name}:{frames[inner].lineno} ({frames[inner].name})"


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pretend]:
    """A device without numbers of 64 bits that copies from pinned memory: what one device or another asks for, at once."""
    monkeypatch.setattr(samplers.noise, "PINNED", {"lazy"})
    monkeypatch.setattr(samplers.path, "WITHOUT_FLOAT64", {"lazy"})
    with Pretend(float64=False) as device:
        yield device
