"""The config's section `optimizer`: which optimisers there are, and what each reads.

`KINDS` is the table. Its rows name what makes an optimiser, which is imported when a run asks for it (distill/optim/table.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from distill.names import did_you_mean
from gen.nn.registry import Config, describe

MATRICES = "it needs whole matrices"


class NoOptions(Config):
    """Of an optimiser that has no options of its own."""


class AdEMAMixOptions(Config):
    """alpha: weight of the slow average of gradients beside the fast one. beta3: decay of the slow one. warmup: steps over
    which both rise (equations of section 3.1); none: the whole run, as published; 0: no warm-up."""

    alpha: float = Field(default=5.0, ge=0)
    beta3: float = Field(default=0.9999, gt=0, lt=1)
    warmup: int | None = Field(default=None, ge=0)


class ScheduleFreeOptions(Config):
    """Step t counts t^r times its rate to the power `rate_power` in the average."""

    r: float = Field(default=0.0, ge=0)
    rate_power: float = Field(default=2.0, ge=0)


class ProdigyOptions(Config):
    """d0: the first guess of the distance to the solution. d_coef: a factor on its estimate, the number to tune. growth_rate:
    the most that it may grow by in a step; none: no limit. beta3: decay of the sums it is estimated from; none: the root of
    beta2. bias_correction: Adam's. safeguard_warmup: estimate it as if there were no warm-up of the rate."""

    d0: float = Field(default=1e-6, gt=0)
    d_coef: float = Field(default=1.0, gt=0)
    growth_rate: float | None = Field(default=None, gt=1)
    beta3: float | None = Field(default=None, ge=0, lt=1)
    bias_correction: bool = False
    safeguard_warmup: bool = False


class DoGOptions(Config):
    """relative_start: the first step goes this times (1 + the norm of the weights) far; 1e-4 for networks with batch norms."""

    relative_start: float = Field(default=1e-6, gt=0)


class AdafactorOptions(Config):
    """decay: the averages' weight of step t is t^-decay. smallest_scale: of weights, as their root mean square, which a step is
    a share of. clip_threshold: the root mean square that an update may have."""

    decay: float = Field(default=0.8, ge=0)
    smallest_scale: float = Field(default=1e-3, ge=0)
    clip_threshold: float = Field(default=1.0, ge=1)


class SOAPOptions(Config):
    """every: steps between new bases. largest: sides of a matrix above this are not rotated. beta: decay of the matrices that
    the bases are of; none: beta2."""

    every: int = Field(default=10, gt=0)
    largest: int = Field(default=10_000, gt=0)
    beta: float | None = Field(default=None, ge=0, lt=1)


class AdamW8bitOptions(Config):
    """block: how many numbers share a scale. smallest: tensors of fewer numbers keep their averages in float32. paged: averages
    lie in the CPU's memory, page-locked, and come to the GPU for their update alone."""

    block: int = Field(default=256, gt=0)
    smallest: int = Field(default=4096, ge=0)
    paged: bool = False


@dataclass(frozen=True)
class OptimizerKind:
    """A row of the table.

    make: what makes it, as module:function of (groups, config, run's steps).
    options: the type of its own options.
    defaults: of the section's shared keys, where they are not AdamW's.
    unread: shared keys that mean nothing to it.
    zero, shards: why it cannot run under ZeRO, or on weights cut by FSDP2; none: it can.
    """

    make: str
    options: type[Config] = NoOptions
    defaults: Mapping[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    zero: str | None = None
    shards: str | None = None


_TORCH, _LIBRARY = "distill.optim.torch_kinds", "distill.optim.library"
KINDS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(f"{_TORCH}:adamw"),
    "radam": OptimizerKind(f"{_TORCH}:radam"),
    "muon": OptimizerKind(f"{_TORCH}:adamw", zero=MATRICES),  # beside Muon itself
    "ademamix": OptimizerKind(f"{_LIBRARY}:ademamix", AdEMAMixOptions, {"betas": (0.9, 0.999)}),
    "grams": OptimizerKind(f"{_LIBRARY}:grams", defaults={"betas": (0.9, 0.999), "eps": 1e-6}),
    "lion": OptimizerKind(f"{_LIBRARY}:lion", defaults={"betas": (0.9, 0.99)}, unread=("eps",)),
    "schedule_free": OptimizerKind(f"{_LIBRARY}:schedule_free", ScheduleFreeOptions, {"lr": 2.5e-3, "betas": (0.9, 0.999)}),
    "prodigy": OptimizerKind("distill.optim.prodigy:prodigy", ProdigyOptions, {"lr": 1.0, "betas": (0.9, 0.999)}),
    "dog": OptimizerKind("distill.optim.dog:dog", DoGOptions, {"lr": 1.0}, ("betas",)),
    "adafactor": OptimizerKind(
        f"{_TORCH}:adafactor", AdafactorOptions, {"lr": 1e-2}, ("betas", "eps"), zero=MATRICES, shards=MATRICES
    ),
    "soap": OptimizerKind(f"{_LIBRARY}:soap", SOAPOptions, {"lr": 3e-3, "betas": (0.95, 0.95)}, zero=MATRICES, shards=MATRICES),
    "adamw_8bit": OptimizerKind("distill.optim.adamw_8bit:adamw_8bit", AdamW8bitOptions),
}


class OptimizerConfig(Config):
    """An optimiser for every weight; or Muon (orthogonalised momentum) for the matrices inside blocks, AdamW for the rest.

    options: what only this type has, e.g. {d_coef: 2} for prodigy.
    """

    type: str = "adamw"
    lr: float = Field(default=1e-4, gt=0)
    muon_lr: float = Field(default=2e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)  # of the global gradient norm
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("type")
    @classmethod
    def _known(cls, type: str) -> str:
        if type not in KINDS:
            raise ValueError(f"unknown optimizer {type!r}: {did_you_mean(type, KINDS)}Known: {', '.join(KINDS)}")
        return type

    @field_validator("betas")
    @classmethod
    def _between(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; each must be at least 0 and less than 1")
        return betas

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, values: Any) -> Any:
        """What is not given is what this type usually has."""
        kind = KINDS.get(str(values.get("type", "adamw"))) if isinstance(values, dict) else None
        return {**kind.defaults, **values} if kind is not None else values

    @model_validator(mode="after")
    def _all_read(self) -> OptimizerConfig:
        ignored = [key for key in self.kind.unread if key in self.changed()]
        if ignored:
            raise ValueError(
                f"{self.type} has no {' and no '.join(ignored)}; leave it out (the override "
                f"'optimizer={{type: {self.type}}}' replaces the whole section), or choose another type"
            )
        needs = {
            "schedule_free": "it trains between two sets of weights",
            "ademamix": "its slow average begins as the fast one",
        }
        if self.type in needs and self.betas[0] == 0:
            raise ValueError(f"{self.type} needs a first beta above 0, as {needs[self.type]}")
        if self.options and self.kind.options is NoOptions:
            raise ValueError(f"{self.type} has no options of its own, and {', '.join(self.options)} is given; leave it out")
        try:
            self.own()
        except ValidationError as error:
            known = ", ".join(self.kind.options.model_fields)
            reason = describe(error, self.kind.options).removesuffix("?")
            raise ValueError(f"options of {self.type}: {reason} (there are: {known})") from None
        return self

    @property
    def kind(self) -> OptimizerKind:
        return KINDS[self.type]

    def own(self) -> Any:
        """The options that only this type has, checked."""
        return self.kind.options(**self.options)

    def changed(self) -> dict[str, Any]:
        """The keys that are neither this type's usual ones nor the section's defaults."""
        usual = {name: info.default for name, info in type(self).model_fields.items()} | dict(self.kind.defaults)
        return {name: getattr(self, name) for name in self.model_fields_set if getattr(self, name) != usual[name]}

    def changed_to(self, other: Mapping[str, Any]) -> OptimizerConfig:
        """The section with some keys replaced. Another type has its own options, and keeps what it can read."""
        if other.get("type", self.type) == self.type:
            return OptimizerConfig(**{**self.model_dump(exclude_unset=True), **other})
        unread = KINDS[other["type"]].unread if other["type"] in KINDS else ()
        kept = {name: value for name, value in self.changed().items() if name not in ("type", "options", *unread)}
        return OptimizerConfig(**{**kept, **other})
