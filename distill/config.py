"""Training configs: a YAML file, `key=value` overrides, one validated model.

YAML is read strictly: plain data only, no duplicate keys, no aliases, at most 1 MB, and `1e-4` is a number. The sections
`objective`, `network` and `data` are validated by the type that they name.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from distill.optimizer_config import OptimizerConfig
from gen.io.errors import CheckpointError, read_text
from gen.io.key_hints import dotted_keys, unknown_key
from gen.io.plain_yaml import PlainLoader
from gen.nn.registry import Config, describe

MAX_WIDTH = 0.28  # of a power-function average: gamma -> -1 has 1 / sqrt(12)

Section = TypeVar("Section", bound=Config)


class ConfigError(ValueError):
    """A training config that cannot be used; the message says which file or key and why."""


def _given(section: Config) -> set[str]:
    """The keys that say something: a config that was read back from a checkpoint has all of them, most with their defaults."""
    return {k for k in section.model_fields_set if getattr(section, k) != type(section).model_fields[k].default}


class ScheduleConfig(Config):
    """Learning-rate factor after a linear warm-up of `warmup` steps (distill/optim/schedule.py has the formulas).

    linear: constant, then a linear fall to `final` over the last `cooldown` of the run. constant. cosine: from 1 down to
    `final` at the end. inverse_sqrt: 1 up to step `reference`, then sqrt(reference / step), with the same cool-down as linear.
    drops: step -> a further factor from that step on, with any type. restarts: rising steps at each of which the schedule
    begins anew, warm-up included, and until which the one before ends: a rate for each stage of a method that has some.
    """

    type: Literal["linear", "constant", "cosine", "inverse_sqrt"] = "linear"
    warmup: int = Field(default=100, ge=0)  # steps
    cooldown: float = Field(default=0.2, ge=0, le=1)  # share of max_steps
    final: float = Field(default=0.02, ge=0, le=1)
    reference: int = Field(default=1000, gt=0)  # steps
    drops: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    restarts: tuple[Annotated[int, Field(gt=0)], ...] = ()

    @model_validator(mode="after")
    def _rises(self) -> ScheduleConfig:
        if list(self.restarts) != sorted(set(self.restarts)):
            raise ValueError(f"restarts {self.restarts} must rise, each step once")
        return self

    @model_validator(mode="after")
    def _all_read(self) -> ScheduleConfig:
        reads = {"linear": {"cooldown", "final"}, "cosine": {"final"}, "inverse_sqrt": {"cooldown", "final", "reference"}}
        ignored = _given(self) - {"type", "warmup", "drops", "restarts"} - reads.get(self.type, set())
        if ignored:
            raise ValueError(
                f"a {self.type} schedule has no {', '.join(sorted(ignored))}; leave it out, or choose another type"
            )
        return self


class EmaConfig(Config):
    """Averaged weights.

    constant: decay min(decay, (1 + step) / (10 + step)), so that the average leaves the start quickly; without `warmup`, decay.
    power: the power-function averages of Karras et al. 2024 (arXiv 2312.02696), one for each of `widths`, relative standard
    deviations; previews and the export show the first. snapshot_every: steps between the snapshots from which
    `python -m distill.ema reconstruct` makes any width after training.
    """

    type: Literal["constant", "power"] = "constant"
    decay: float = Field(default=0.999, ge=0, lt=1)
    warmup: bool = True
    widths: tuple[float, ...] = Field(default=(0.05, 0.10), min_length=1)
    snapshot_every: int = Field(default=0, ge=0)  # 0: never

    @model_validator(mode="after")
    def _sensible(self) -> EmaConfig:
        if not all(0 < width < MAX_WIDTH for width in self.widths):
            raise ValueError(f"widths are {self.widths}; each must lie between 0 and {MAX_WIDTH}")
        if len({f"{width:.3f}" for width in self.widths}) < len(self.widths):
            raise ValueError(f"widths are {self.widths}; they must differ in their first three decimals")
        other = {"power": {"decay", "warmup"}, "constant": {"widths", "snapshot_every"}}[self.type] & _given(self)
        if other:
            raise ValueError(f"a {self.type} average has no {', '.join(sorted(other))}; leave it out, or choose another type")
        return self


class RoleConfig(Config):
    """What differs for one role: single keys of the optimizer, schedule and ema sections, and how often it is updated: on steps
    that `every` divides."""

    optimizer: dict[str, Any] = Field(default_factory=dict)
    schedule: dict[str, Any] = Field(default_factory=dict)
    ema: dict[str, Any] = Field(default_factory=dict)
    every: int = Field(default=1, gt=0, strict=True)


class EvaluationConfig(Config):
    """Numbers of the averaged student as it trains (distill/eval/during_training.py), on every step that `every` divides and at
    the end.

    steps: numbers of sampling steps. pictures: how many samples of the data are drawn. seed: of the first one's noise.
    features: by which network sets are compared (distill/networks/features.py). reference_steps: the teacher's own; its
    pictures are made once and kept in `references`, by a hash of what they depend on; none: they are made at every start."""

    every: int = Field(gt=0)
    steps: tuple[int, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    pictures: int = Field(default=64, ge=4)
    batch_size: int = Field(default=16, gt=0)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    features: str = "evaluator"
    reference_steps: int = Field(default=50, gt=0, le=1000)
    references: Path | None = Path("outputs/references")

    @field_validator("steps")
    @classmethod
    def _countable(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if not all(0 < n <= 1000 for n in steps) or len(set(steps)) < len(steps):
            raise ValueError(f"steps are {steps}; give different numbers from 1 to 1000")
        return steps


class ValidationConfig(Config):
    """The loss of pictures that are held out (distill/eval/validation.py), on every step that `every` divides and at the end.

    share: of the data's pictures, which training then never sees; which they are depends on their content alone. data: a data
    section of other pictures, in place of a share. batches: how many of batch_size samples."""

    every: int = Field(gt=0)
    share: float = Field(default=0.1, gt=0, lt=1)
    data: dict[str, Any] | None = None
    batches: int = Field(default=4, gt=0)

    @model_validator(mode="after")
    def _one_source(self) -> ValidationConfig:
        if self.data is not None and "share" in _given(self):
            raise ValueError("share and data both say what is held out; give one of them")
        return self


class TrainConfig(Config):
    """Everything a training run is. Batch size is the global one, over processes and accumulated micro-batches."""

    output: Path
    objective: dict[str, Any]
    network: dict[str, Any]
    data: dict[str, Any]
    max_steps: int = Field(gt=0, strict=True)
    batch_size: int = Field(gt=0, strict=True)
    accumulate: int = Field(default=1, gt=0, strict=True)
    seed: int = Field(default=0, ge=0, lt=1 << 64, strict=True)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    roles: dict[str, RoleConfig] = Field(default_factory=dict)  # by the objective's role names
    # weights are float32; bf16 stands for fp32 on a CPU without bfloat16 products; fp16 scales the loss, and is for CUDA
    precision: Literal["bf16", "fp32", "fp16"] = "bf16"
    on_nonfinite: Literal["stop", "skip"] = "stop"
    max_skips: int = Field(default=10, gt=0)  # updates skipped in a row before a run with on_nonfinite: skip stops too
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Literal["auto", "ddp", "fsdp2"] = "auto"  # auto: as accelerate was launched
    world_size: int | None = Field(default=None, gt=0)  # how many processes there must be; none: any number
    compile: bool = False  # torch.compile the trained networks: a minute at the start for a tenth or more in speed
    gradient_checkpointing: bool = False  # compute blocks again in the backward pass instead of keeping what is inside
    threads: int | None = Field(default=None, gt=0)
    prefetch: bool = False  # make the next batch in a second thread while this one trains
    init_from: Path | None = None  # a component folder whose weights the run starts from
    resume: str = "auto"  # auto: from the run's newest good checkpoint; never; or the path of a checkpoint folder
    log_every: int = Field(default=50, gt=0)
    trackers: tuple[str, ...] = ()  # beside log.jsonl: tensorboard, wandb and others that accelerate knows
    checkpoint_every: int = Field(default=1000, gt=0)
    keep: int = Field(default=2, gt=0)  # newest checkpoints kept
    keep_every: int = Field(default=0, ge=0)  # checkpoints of steps that this divides are kept for good; 0: none
    preview_every: int = Field(default=0, ge=0)  # sheets in samples/, one before the first step too; 0: never
    export_every: int = Field(default=0, ge=0)  # exports/step-N, as the final export, and a sheet in samples/; 0: never
    measure_every: int = Field(default=0, ge=0)
    evaluation: EvaluationConfig | None = None  # none: never
    validation: ValidationConfig | None = None  # none: never

    def of_role(self, role: str) -> tuple[OptimizerConfig, ScheduleConfig, EmaConfig, int]:
        """(optimizer, schedule, ema, every) of a role: the run's sections with what the role changes."""
        own = self.roles.get(role, RoleConfig())
        return (
            _changed(self.optimizer, own.optimizer),
            _changed(self.schedule, own.schedule),
            _changed(self.ema, own.ema),
            own.every,
        )

    @model_validator(mode="after")
    def _roles_are_valid(self) -> TrainConfig:
        for role in self.roles:
            try:
                self.of_role(role)
            except ValidationError as error:
                kinds = {kind.__name__: kind for kind in (OptimizerConfig, ScheduleConfig, EmaConfig)}
                raise ValueError(f"roles.{role}: {describe(error, kinds.get(error.title))}") from None
        return self

    @model_validator(mode="before")
    @classmethod
    def _suggest(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values.keys() - cls.model_fields.keys():
                raise ValueError(unknown_key(str(key), [*dotted_keys(cls), *_typed_keys(values)]))
        return values


def _typed_keys(values: dict[str, Any]) -> list[str]:
    """The keys of the sections that are validated by the type that they name, as far as it is known."""
    from distill.registry import OBJECTIVES, SOURCES
    from gen.nn.registry import COMPONENTS

    found = []
    for section, registry in (("objective", OBJECTIVES), ("network", COMPONENTS), ("data", SOURCES)):
        given = values.get(section)
        if isinstance(given, dict) and (row := registry.get(str(given.get("type")))) is not None:
            model = getattr(importlib.import_module(row[0]), row[1])
            found += dotted_keys(model, f"{section}.")
    return found


def _changed(section: Section, changes: dict[str, Any]) -> Section:
    """The section with some keys replaced. A change of type forgets the keys that only the old type reads."""
    if isinstance(section, OptimizerConfig):
        changed: Any = section.changed_to(changes)
        return changed
    kept = section.model_dump(exclude_unset=True)
    if "type" in changes and changes["type"] != getattr(section, "type", None):
        kept = {"warmup": section.warmup} if isinstance(section, ScheduleConfig) else {}
    return type(section)(**{**kept, **changes})


class _StrictLoader(PlainLoader):
    """Plain YAML data without duplicate keys."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", key_node.start_mark)
        return super().construct_mapping(node, deep)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _StrictLoader)
    except Exception as error:  # YAML makes numbers and dates of text, which raises what int() and date() raise
        kind = "" if isinstance(error, yaml.YAMLError | ValueError) else f"{type(error).__name__} "
        raise ConfigError(f"{source}: not valid YAML: {kind}{' '.join(str(error).split())[:500]}.") from None


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A YAML mapping from a file."""
    try:
        text = read_text(path)
    except CheckpointError as error:
        raise ConfigError(str(error)) from None
    value = _parse(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds a {type(value).__name__}; a config is a mapping of keys to values.")
    return value


def apply_overrides(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply `a.b=value` strings to a nested mapping; values are read as YAML."""
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise ConfigError(f"Override {item!r} is not of the form key=value, for example optimizer.lr=2e-4.")
        *parents, last = key.split(".")
        target = values
        for part in parents:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"Override {item!r}: {part!r} is a value, not a section.")
        target[last] = _parse(text, f"override {item!r}")


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read, override, validate."""
    values = read_yaml(path)
    apply_overrides(values, overrides)
    return parse_config(values, str(path))


def parse_config(values: dict[str, Any], source: str = "config") -> TrainConfig:
    try:
        return TrainConfig(**values)
    except ValidationError as error:
        raise ConfigError(f"{source}: {describe(error, TrainConfig).removesuffix('?')}.") from None


def config_first(given: argparse.Namespace, name: str = "config") -> argparse.Namespace:
    """What was parsed, with the file in its place where key=value stood before it: these have no order of their own.

    name: the argument that is the file; the others are `overrides`. ValueError where no argument is a file.
    """
    arguments = [getattr(given, name), *given.overrides]
    files = [argument for argument in arguments if "=" not in argument or Path(argument).exists()]
    if not files:
        raise ValueError(
            f"{' '.join(arguments)}: only key=value is given; say which config they change, for example "
            "configs/default/generator.yaml."
        )
    arguments.remove(files[0])
    setattr(given, name, files[0])
    given.overrides = arguments
    return given
