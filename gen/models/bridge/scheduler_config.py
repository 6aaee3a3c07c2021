"""A scheduler's config, read by key: diffusers' values where it is silent, sentences where it cannot be followed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.models.bridge.schedulers import KEYS, NO_EFFECT, ONLY


class SchedulerConfig:
    """A scheduler's config with diffusers' values for what it does not say. Reading a key that the class lacks is an error of
    ours; `check` refuses what cannot be followed."""

    def __init__(self, config: Mapping[str, Any]):
        self.name = str(config["_class_name"])
        self.kind = self.name.removesuffix("Scheduler").removesuffix("Discrete").removesuffix("Multistep")
        self.prediction = config.get("prediction_type", KEYS[self.name].get("prediction_type", "flow_prediction"))
        self.values = {key: config.get(key, default) for key, default in KEYS[self.name].items()}
        self.said = config.keys() & self.values.keys()

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def is_one_of(self, kinds: tuple[str, ...]) -> bool:
        return self.name.startswith(kinds)

    def check(self) -> None:
        for key, (allowed, why) in ONLY.items():
            if key not in self.values or f"{self.name}.{key}" in NO_EFFECT:
                continue
            value = self.values[key]
            if key == "clip_sample" and key not in self.said:
                continue  # no published latent model means the default of the class, which was made for pixels
            if value not in allowed or (isinstance(value, bool) and not any(value is one for one in allowed)):
                raise ValueError(f"{key} is {value!r}, which cannot be followed: {why}; {_should_be(allowed)}")

    def get(self, key: str, otherwise: Any = None) -> Any:
        return self.values.get(key, otherwise)

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}, not true or false")
        return value

    def number(self, key: str) -> float:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{key} is {value!r}, not a number")
        return float(value)

    def whole(self, key: str) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{key} is {value!r}, not a whole number")
        return value

    def one(self, key: str, *known: str, **same: str) -> str:
        """The value of a key with a few names; `same` are other names for them."""
        value = self.values[key]
        value = same.get(value, value) if isinstance(value, str) else value
        if value not in known:
            raise ValueError(f"{key} {self.values[key]!r} is not one of {', '.join(known)}")
        return value


def _should_be(allowed: tuple[Any, ...]) -> str:
    shown = " or ".join("null" if v is None else str(v).lower() if isinstance(v, bool) else repr(v) for v in allowed[:1])
    return f"set it to {shown} if the model was made with that"
