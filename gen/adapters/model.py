"""The adapters of a whole model: one file may change its denoiser and its text encoder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn

from gen import request
from gen.adapters.adapter import Adapter
from gen.adapters.apply import Adapters
from gen.adapters.delta import AdapterError
from gen.adapters.report import Report
from gen.adapters.resolve import resolve

MAX_NAME = 300
MAX_WEIGHT = 100.0
USUAL_WEIGHT = 10.0


class ModelAdapters:
    """What is loaded, by name, on each part of a model. parts: {"denoiser": network, "text_encoder": network}."""

    def __init__(self, parts: Mapping[str, nn.Module | None]):
        self.parts = {part: Adapters(network, part) for part, network in parts.items() if network is not None}
        self.loaded: dict[str, Adapter] = {}

    def load(self, adapter: Adapter, strict: bool = True) -> Report:
        """AdapterError if its name is taken or no name, or if it does not fit the model (`gen.adapters.resolve`)."""
        if not adapter.name.strip() or len(adapter.name) > MAX_NAME or not adapter.name.isprintable():
            raise AdapterError(f"{adapter.name[:50]!r} is no name for an adapter; give it one with name=.")
        if adapter.name in self.loaded:
            raise AdapterError(f"An adapter named {adapter.name!r} is loaded already; give this one another name with name=.")
        placed, report = resolve(adapter, {part: one.index for part, one in self.parts.items()}, strict)
        done: list[Adapters] = []
        try:
            for part, one in self.parts.items():
                one.place(adapter, placed[part])
                done.append(one)
        except BaseException:
            for one in done:
                one.remove(adapter.name)
            raise
        self.loaded[adapter.name] = adapter
        return report

    def remove(self, name: str) -> None:
        self.check({name: 1.0})
        for one in self.parts.values():
            if name in one.fused:
                raise AdapterError(f"The adapter {name!r} is fused into the weights; unfuse it before unloading it.")
        for one in self.parts.values():
            one.remove(name)
        del self.loaded[name]

    def check(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The same weights, if all are those of loaded adapters."""
        self.parts["denoiser"]._check(list(weights))
        checked = {name: request.real(f"the weight of {name!r}", w, -MAX_WEIGHT, MAX_WEIGHT) for name, w in weights.items()}
        for name, weight in checked.items():
            if abs(weight) > USUAL_WEIGHT:
                warnings.warn(
                    f"The adapter {name!r} has weight {weight:g}; weights beyond 10 rarely make pictures.", stacklevel=4
                )
        return checked

    def on(self, part: str, weights: Mapping[str, float]) -> dict[str, float]:
        """Of these, those that change a part and do not have weight 0."""
        return {name: w for name, w in weights.items() if w != 0 and name in self.loaded and part in self.loaded[name].parts}

    @property
    def fused(self) -> bool:
        return any(one.fused for one in self.parts.values())
