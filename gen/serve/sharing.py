"""A `Generator` whose network is asked by several runs at once.

Every run has its own solver, guidance, caches and tasks, and is a thread of which one runs at a time. Where it would call the
network, or decode, it hands the call over and waits: what may go together becomes one forward pass (`gen.serve.collector`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gen.adapters.report import LoadReport
from gen.generator import Generator
from gen.models.prompt_reading import USUAL, Reading
from gen.nn.batch_invariance import is_invariant
from samplers.denoiser import Condition, Context, NetworkDenoiser


class Alone:
    """The answer to a call that is to be made by the run itself, in its own thread."""


@dataclass(frozen=True)
class Raised:
    """The answer to a call that failed."""

    error: Exception


@dataclass
class Told:
    """What a network that has no empty prompt of its own was told last; all of its runs share this."""

    null: Hashable = None


@dataclass(frozen=True)
class NetworkCall:
    """What a run wants of the network: x (B, C, h, w), time (B,) and condition, B first everywhere.

    model: the run's.
    key: calls of one model with equal keys may go together; None: alone.
    why: it goes alone, in a word for metrics.
    """

    x: Tensor
    time: Tensor
    condition: Condition
    context: Context
    model: SharedGenerator
    invariant: bool
    key: Hashable | None
    why: str = ""

    @property
    def rows(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class DecodeCall:
    """Latents (B, C, h, w) to be decoded, and cut to `size`."""

    x: Tensor
    size: tuple[int, int] | None
    invariant: bool
    key: Hashable | None

    @property
    def rows(self) -> int:
        return len(self.x)


SharedCall = NetworkCall | DecodeCall
Ask = Callable[[SharedCall], Any]


@dataclass(frozen=True)
class SharedNetwork:
    """The network as a run sees it."""

    network: Callable[..., Tensor]
    model: SharedGenerator

    def __call__(self, x: Tensor, time: Tensor, condition: Condition, context: Context) -> Tensor:
        why = why_alone(x, time, condition, context, self.model)
        key = None if why else (self.model.null_key, *shape_key(x, time, condition, self.model))
        call = NetworkCall(x, time, condition, context, self.model, is_invariant(), key, why)
        answer = self.model.ask(call)
        if answer is Alone:
            self.model.tell_null()
            return self.network(x, time, condition, context)
        if isinstance(answer, Raised):
            raise answer.error
        return answer


class SharedGenerator(Generator):
    """A `Generator` for one run, of the networks, adapters and text features of another."""

    owner: Generator
    ask: Ask
    told: Told
    null_key: Any

    @classmethod
    def of(cls, generator: Generator, ask: Ask, told: Told, adapters: Mapping[str, float], alone: bool = False) -> Self:
        """ask: hands a call over and waits for its answer. told: of the network. adapters: name -> weight of those that act.
        alone: none of its calls go together with others."""
        view = object.__new__(cls)
        vars(view).update(vars(generator))
        view.ask, view.told, view.adapters, view.interrupt, view.null_key = ask, told, dict(adapters), False, None
        view.allowed, view.owner = None, generator
        if isinstance(view.denoiser, NetworkDenoiser) and not alone:
            view.denoiser = replace(view.denoiser, network=SharedNetwork(view.denoiser.network, view))
        return view

    def load_adapter(self, *args: Any, **kwargs: Any) -> LoadReport:
        """As ever, for all runs: there is one table of a network's adapters, which a run that loads the first (a translation)
        would otherwise keep to itself."""
        self.loaded_adapters = self.owner.loaded_adapters
        report = super().load_adapter(*args, **kwargs)
        self.owner.loaded_adapters = self.loaded_adapters
        return report

    def read_null(self, adapters: Mapping[str, float], reading: Reading = USUAL) -> None:
        """As ever; what the network was told is remembered, for other runs tell it something else."""
        if getattr(self.network, "reads_null", False) and self.text_encoder is not None:
            active = {} if self.loaded_adapters is None else self.loaded_adapters.on_text(adapters)
            self.null_key = (tuple(sorted(active.items())), reading)
            self.tell_null()

    def tell_null(self) -> None:
        """Tell the network what this run has told it, where another run has told it something else since."""
        if self.null_key != self.told.null and self.null_key is not None:
            adapters, reading = self.null_key
            super().read_null(dict(adapters), reading)
            self.told.null = self.null_key

    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        key = None
        if self.vae_tile is None and self.offload is None and not latents.requires_grad:
            key = (row_layout(latents), size, is_invariant())
        answer = self.ask(DecodeCall(latents, size, is_invariant(), key))
        if answer is Alone:
            return super().decode(latents, size)
        if isinstance(answer, Raised):
            raise answer.error
        return answer


def why_alone(x: Tensor, time: Tensor, condition: Condition, context: Context, model: SharedGenerator) -> str:
    """Why a call cannot go together with others, in a word; "" if it can."""
    if context.hooks:
        return "hooks"
    derived = forward_ad._current_level >= 0 or torch._C._functorch.is_functorch_wrapped_tensor(x)
    if torch.is_grad_enabled() or torch.is_inference_mode_enabled() or derived:
        return "gradients"
    if is_invariant() and getattr(model.network, "mixes_rows", False):
        return "mixed rows"
    sizes = {len(tensor) for _, tensor in tensors_of(condition)}
    return "" if sizes | {len(time)} == {len(x)} and x.ndim == 4 else "shapes"


def tensors_of(condition: Condition) -> list[tuple[str, Tensor]]:
    """Its tensors by name, in one order."""
    own = [(field.name, getattr(condition, field.name)) for field in fields(condition) if field.name != "extra"]
    return [(name, value) for name, value in [*own, *sorted(condition.extra.items())] if value is not None]


def shape_key(x: Tensor, time: Tensor, condition: Condition, model: SharedGenerator) -> tuple:
    """All but the number of rows that calls of one forward pass must have in common."""
    shapes = tuple((name, row_layout(value)) for name, value in tensors_of(condition))
    counts: Hashable = None
    if condition.mask is not None and getattr(model.text_encoder, "varies", False):
        counts = frozenset(condition.mask.sum(1).tolist())  # texts of other lengths round otherwise
    return (is_invariant(), row_layout(x), time.dtype, shapes, counts)


def row_layout(tensor: Tensor) -> tuple:
    """What a kernel is chosen by, but for the number of rows: also how a row lies in memory, as channels may come last."""
    return (tensor.shape[1:], tensor.stride()[1:], tensor.dtype)
