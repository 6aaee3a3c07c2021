"""Training configs: a YAML file, `key=value` overrides, one validated model.

YAML is read strictly: plain data only, no duplicate keys, no aliases, at most 1 MB, and `1e-4` is a number. The sections
`objective`, `network` and `data` are validated by the type that they name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from gen.components import Config, describe


class ConfigError(ValueError):
    """A training config that cannot be used; the message says which file or key and why."""


class OptimizerConfig(Config):
    """AdamW for every weight, or Muon (orthogonalised momentum) for the matrices inside blocks and AdamW for the rest."""

    type: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(1e-4, gt=0)
    muon_lr: float = Field(2e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0)  # of the global gradient norm


class ScheduleConfig(Config):
    """Learning-rate factor: linear warm-up, constant, then a linear fall to `final` over the last `cooldown` of the run."""

    warmup: int = Field(100, ge=0)  # steps
    cooldown: float = Field(0.2, ge=0, le=1)  # share of max_steps
    final: float = Field(0.02, ge=0, le=1)


class EmaConfig(Config):
    """Averaged weights: decay min(decay, (1 + step) / (10 + step)), so that the average leaves the start quickly."""

    decay: float = Field(0.999, ge=0, lt=1)


class TrainConfig(Config):
    """Everything a training run is. Batch size is the global one, over processes and accumulated micro-batches."""

    output: Path
    objective: dict[str, Any]
    network: dict[str, Any]
    data: dict[str, Any]
    max_steps: int = Field(gt=0, strict=True)
    batch_size: int = Field(gt=0, strict=True)
    accumulate: int = Field(1, gt=0, strict=True)
    seed: int = Field(0, ge=0, strict=True)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool = False  # torch.compile the trained networks: a minute at the start for a tenth or more in speed
    threads: int | None = Field(None, gt=0)
    prefetch: bool = False  # make the next batch in a second thread while this one trains
    init_from: Path | None = None  # a component folder whose weights the run starts from
    log_every: int = Field(50, gt=0)
    checkpoint_every: int = Field(1000, gt=0)
    keep: int = Field(2, gt=0)  # newest checkpoints kept
    preview_every: int = Field(0, ge=0)  # 0: never
    measure_every: int = Field(0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _suggest(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values.keys() - cls.model_fields.keys():
                near = difflib.get_close_matches(str(key), cls.model_fields, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(cls.model_fields)}."
                raise ValueError(f"unknown key {key!r}; {hint}")
        return values


class _StrictLoader(yaml.SafeLoader):
    """Plain YAML data without aliases or duplicate keys, and with 1e-4 read as a number."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value, strict=True):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", key_node.start_mark)
        return super().construct_mapping(node, deep)


_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _StrictLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}.") from None


def read_yaml(path: Path | str) -> dict[str, Any]:
    """A YAML mapping from a file."""
    path = Path(path)
    try:
        if path.stat().st_size > 1_000_000:
            raise ConfigError(f"{path}: larger than 1 MB, which no config is.")
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from None
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
        raise ConfigError(f"{source}: {describe(error)}.") from None
