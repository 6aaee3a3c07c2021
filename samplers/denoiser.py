"""Denoisers: everything that predicts a clean image, as one function type.

A denoiser maps (x, level, condition, context) to a `Prediction`. Guidance, canvases, caches and adapters are denoisers
around denoisers; `NetworkDenoiser` is the only leaf, the only one that knows a network's clock and scaling.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from samplers.path import NoiseLevel, Path, Scalar, expand
from samplers.policy import Policy
from samplers.prediction import Prediction, prediction_row

MAP = "map:"  # begins the names of further tensors that lie over x
NULL = "null:"  # begins the names of those that stand in for others where nothing is asked for


@dataclass(frozen=True)
class Condition:
    """What the image should be. Every tensor has the batch first; None means the model does not get that input.

    label (B,) integers, negative = unconditional; tokens (B, L, D) text features with mask (B, L), True = a real token (a row
    without any is unconditional); pooled (B, P); image (B, C, H, W) aligned with x; extra: further tensors by name, of which
    those whose name begins with "map:" are (B, C, H, W) and aligned with x too, and extra["null:NAME"] is what extra["NAME"] is
    in the unconditional counterpart.
    """

    label: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    image: Tensor | None = None
    extra: Mapping[str, Tensor] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Apply a function to every tensor."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        parts = {name: None if value is None else function(value) for name, value in parts.items()}
        return Condition(**parts, extra={name: function(value) for name, value in self.extra.items()})

    def cat(self, others: Sequence[Condition]) -> Condition:
        """Stack conditions along the batch; all must hold the same inputs with the same token length."""
        everyone = [self, *others]

        def join(values: list[Tensor | None], name: str) -> Tensor | None:
            present = [v for v in values if v is not None]
            if present and len(present) < len(values):
                raise ValueError(f"Conditions to batch together differ: {name!r} is set in some and missing in others.")
            return torch.cat(present) if present else None

        names = sorted({name for c in everyone for name in c.extra})
        extra: dict[str, Any] = {name: join([c.extra.get(name) for c in everyone], name) for name in names}
        parts = {f.name: join([getattr(c, f.name) for c in everyone], f.name) for f in fields(self) if f.name != "extra"}
        return Condition(**parts, extra=extra)

    def slice(self, box: tuple[int, int, int, int]) -> Condition:
        """Crop what is aligned with x to (top, left, height, width)."""
        top, left, height, width = box
        return self.map_aligned(lambda value: value[..., top : top + height, left : left + width])

    @property
    def is_aligned(self) -> bool:
        """Something of it lies over x."""
        return self.image is not None or any(name.startswith(MAP) for name in self.extra)

    def map_aligned(self, function: Callable[[Tensor], Tensor]) -> Condition:
        """Apply a function to what is aligned with x; itself where nothing is."""
        if not self.is_aligned:
            return self
        extra = {name: function(value) if name.startswith(MAP) else value for name, value in self.extra.items()}
        return replace(self, image=None if self.image is None else function(self.image), extra=extra)

    def aligned_as(self, other: Condition) -> Condition:
        """With what lies over x taken from another condition."""
        if not (self.is_aligned or other.is_aligned):
            return self
        maps = {name: value for name, value in other.extra.items() if name.startswith(MAP)}
        return replace(self, image=other.image, extra={**self.extra, **maps})

    def null(self) -> Condition:
        """The unconditional counterpart: label -1, no real tokens, zero pooled vector, of `extra` what stands in."""
        return replace(
            self,
            label=None if self.label is None else torch.full_like(self.label, -1),
            tokens=None if self.tokens is None else torch.zeros_like(self.tokens),
            mask=None if self.tokens is None else self.tokens.new_zeros(self.tokens.shape[:2], dtype=torch.bool),
            pooled=None if self.pooled is None else torch.zeros_like(self.pooled),
            extra={name: self.extra.get(NULL + name, value) for name, value in self.extra.items()},
        )

    def __getitem__(self, rows: Any) -> Condition:
        """Pick samples of the batch."""
        return self.map(lambda value: value[rows])


# One weight per adapter; or some adapters with a weight per sample, (B,) on the CPU; or one mapping per sample. In a batch of
# several times B, which is how guidance stacks its branches, sample i has the adapters of sample i mod B.
AdapterWeights = Mapping[str, float | Sequence[float] | Tensor] | Sequence[Mapping[str, float]]


def adapters_key(adapters: AdapterWeights) -> tuple:
    """What tells one choice of adapters from another; the same for equal ones. Other packages' own kinds say it as `key`."""
    if (key := getattr(adapters, "key", None)) is not None:
        return key
    if not isinstance(adapters, Mapping):
        return tuple(tuple(sorted(one.items())) for one in adapters)
    values = {name: w.tolist() if isinstance(w, Tensor) else w for name, w in adapters.items()}
    return tuple(sorted((name, w if isinstance(w, int | float) else tuple(w)) for name, w in values.items()))


@dataclass(frozen=True)
class Context:
    """Where in a run a denoiser is being called. One per run; `store` is shared by every copy made from it.

    step / steps: position in the run, for display and per-step memory, never for schedules (those are in log-SNR).
    levels: those of the run, noisiest first, for solvers that look ahead; () where the caller has not said.
    branch: which of several evaluations this is, e.g. ("null",), so that memories do not mix.
    view: which part of a canvas this is: memories of earlier steps are kept apart by it too, what `memo` keeps is shared.
    adapters: name -> weight of the adapters in force; samples of a batch may differ in it (`AdapterWeights`).
    hooks: name -> callable handed to the network.
    """

    step: int = 0
    steps: int = 0
    levels: tuple[NoiseLevel, ...] = ()
    branch: tuple[Hashable, ...] = ()
    view: Hashable = None
    adapters: AdapterWeights = field(default_factory=dict)
    hooks: Mapping[str, Any] = field(default_factory=dict)
    store: dict[Any, Any] = field(default_factory=dict)

    def fork(self, *branch: Hashable) -> Context:
        """The same run, one branch deeper."""
        return replace(self, branch=(*self.branch, *branch))

    def at(self, step: int) -> Context:
        return replace(self, step=step)

    def memo(self, name: str, owners: tuple, compute: Callable[[], Any]) -> Any:
        """`compute()` once per run and branch, for as long as `owners` are the very same objects."""
        key = (name, self.branch, adapters_key(self.adapters))
        entry = self.store.get(key)
        if entry is None or len(entry[0]) != len(owners) or any(a is not b for a, b in zip(entry[0], owners, strict=True)):
            entry = self.store[key] = (owners, compute())
        return entry[1]

    @property
    def evaluations(self) -> int:
        """Network evaluations so far, counted in samples: a batch of B under two-branch guidance counts 2B."""
        return self.store.get("evaluations", 0)

    def count(self, samples: int) -> None:
        self.store["evaluations"] = self.evaluations + samples


class Denoiser(Protocol):
    @property
    def path(self) -> Path: ...

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction: ...


class Network(Protocol):
    """What a backbone is to a sampler: (x (B, C, H, W), time (B,) on its own clock, condition, context) -> (B, C', H, W)."""

    def __call__(self, x: Tensor, time: Tensor, condition: Condition, context: Context) -> Tensor: ...


# The clocks that published networks read, as functions of (level, path).
CLOCKS: dict[str, Callable[[NoiseLevel, Any], Scalar]] = {
    "t": lambda level, path: level.t,  # rectified flow in [0, 1] (Flux)
    "999t": lambda level, path: 999 * level.t,  # score networks of the VP SDE: U-ViT on pixels
    "1000t": lambda level, path: 1000 * level.t,  # U-ViT, SD3
    "index": lambda level, path: len(path.table) * level.t - 1,  # 0-based table index: DiT, PixArt, Stable Diffusion
    "log_sigma/4": lambda level, path: -level.logsnr / 4,  # EDM's c_noise, written on sigma / alpha
}


@dataclass(frozen=True)
class NetworkDenoiser:
    """A network as a denoiser: its path, what it predicts, its clock, its input scale.

    network: the network, (x, time (B,), condition, context) -> as many values as x has.
    path: the noise path that it was trained on.
    prediction: what it predicts: eps, x0, v, flow (dx/dt) or edm (F).
    clock: the time that it reads, a name of `CLOCKS`.
    input_scale: "none", or "edm" for c_in = 1 / sqrt(sigma^2 + sigma_data^2).
    dtype: what the network runs in, x's own when None; its output comes back in x's dtype.
    sigma_data: the standard deviation of the data, for EDM.
    learned_variance: the network gives twice x's channels, and the second half is a variance (DiT, PixArt).
    policy: the network's output is a policy, whose components are each what `prediction` says.

    A second time in the condition, extra["target_time"] (B,) on the path's clock, reaches the network on the network's own
    clock. Raises ValueError where the network's output does not fit x.
    """

    network: Network
    path: Path
    prediction: str = "eps"
    clock: str = "t"
    input_scale: str = "none"
    dtype: torch.dtype | None = None
    sigma_data: float = 0.5
    learned_variance: bool = False
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if self.clock not in CLOCKS:
            raise ValueError(f"Unknown clock {self.clock!r}: choose one of {', '.join(CLOCKS)}.")
        if self.clock == "index" and not hasattr(self.path, "table"):
            raise ValueError(f"The clock 'index' counts a table's timesteps, and {type(self.path).__name__} has no table.")
        if self.input_scale not in ("none", "edm"):
            raise ValueError(f"Unknown input scale {self.input_scale!r}: choose none or edm.")
        prediction_row(self.prediction, self.path(0.5), self.path)  # refuses unknown names now, not mid-run

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        context.count(x.shape[0])
        time = CLOCKS[self.clock](level, self.path)
        if not isinstance(time, Tensor):
            time = torch.full((x.shape[0],), float(time), dtype=torch.float32, device=x.device)
        scaled = x
        if self.input_scale == "edm":
            scaled = x * expand((level.sigma**2 + self.sigma_data**2) ** -0.5, x)
        if (target := condition.extra.get("target_time")) is not None:
            target_time = CLOCKS[self.clock](self.path(target), self.path)
            condition = replace(condition, extra={**condition.extra, "target_time": target_time})
        raw = self.network(scaled.to(self.dtype or x.dtype), time, condition, context)
        self._check(raw, x)
        raw, variance = raw.to(x.dtype), None
        if self.learned_variance:
            raw, variance = raw.chunk(2, dim=1)
        row = prediction_row(self.prediction, level, self.path, self.sigma_data)
        if self.policy is not None:
            return self.policy.read(x, level, raw, row)
        return Prediction(x, level, raw, row, variance)

    def _check(self, raw: Any, x: Tensor) -> None:
        """ValueError unless the network's output fits x in type, shape and device."""
        if not isinstance(raw, Tensor):
            raise ValueError(
                f"The network gave a {type(raw).__name__}; it must return a tensor (of a diffusers model, `.sample`)."
            )
        if not raw.is_floating_point():
            raise ValueError(f"The network gave {raw.dtype}; it must return floating-point numbers.")
        if raw.device != x.device:
            raise ValueError(f"The network's output is on {raw.device} and x on {x.device}: move the network or x.")
        channels = x.shape[1] * (2 if self.learned_variance else 1)
        if self.policy is not None:
            channels = self.policy.outputs(x.shape[1])
        if raw.shape != (wanted := (x.shape[0], channels, *x.shape[2:])):
            variance = "x's own shape"
            if self.learned_variance:
                variance = "twice x's channels, as learned_variance=True says"
            elif self.policy is not None:
                variance = "all that its policy consists of"
            hint = ""
            if not self.learned_variance and raw.shape == (x.shape[0], 2 * x.shape[1], *x.shape[2:]):
                hint = " If the second half of its channels is a variance, as in DiT, say learned_variance=True."
            raise ValueError(f"The network gave {tuple(raw.shape)} for x {tuple(x.shape)}; give {wanted}, {variance}.{hint}")
