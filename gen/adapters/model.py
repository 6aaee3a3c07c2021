"""The adapters of a whole model: one file may change its denoiser and its text encoders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from gen.adapters.adapter import Adapter
from gen.adapters.apply import Adapters
from gen.adapters.delta import AdapterError
from gen.adapters.report import LoadReport
from gen.adapters.resolve import renamed, resolve
from gen.adapters.words import check_words, teach
from gen.io.validators import check_float

MAX_NAME = 300
MAX_WEIGHT = 100.0
USUAL_WEIGHT = 10.0


def parts_of(network: nn.Module, text_encoder: nn.Module | None) -> dict[str, nn.Module]:
    """A model's networks as adapters name them: denoiser, text_encoder, and text_encoder_2 and _3 where diffusers has those."""
    if text_encoder is None:
        return {"denoiser": network}
    return {"denoiser": network, **(getattr(text_encoder, "encoders", None) or {"text_encoder": text_encoder})}


def other_names(parts: Mapping[str, nn.Module]) -> dict[str, str]:
    """Files call a T5 the third text encoder, as it is in Stable Diffusion 3, in every model."""
    if "text_encoder_3" in parts:
        return {}
    t5 = [part for part, network in parts.items() if type(network).__name__ == "T5EncoderModel"]
    return {"text_encoder_3": t5[0]} if t5 else {}


class ModelAdapters:
    """What is loaded, by name, on each part of a model.

    parts: {"denoiser": network, "text_encoder": network}.
    readers: of the prompts that they encode, which learn words (`gen.adapters.words.readers_of`).
    """

    def __init__(self, parts: Mapping[str, nn.Module | None], readers: Mapping[str, Any] | None = None):
        self.readers = dict(readers or {})
        self.parts = {part: Adapters(network, part) for part, network in parts.items() if network is not None}
        self.same = other_names({part: adapters.network for part, adapters in self.parts.items()})
        self.loaded: dict[str, Adapter] = {}

    def load(self, adapter: Adapter, strict: bool = True) -> LoadReport:
        """AdapterError if its name is taken or no name, or if it does not fit the model (`gen.adapters.resolve`)."""
        if not adapter.name.strip() or len(adapter.name) > MAX_NAME or not adapter.name.isprintable():
            raise AdapterError(f"{adapter.name[:50]!r} is no name for an adapter; give it one with name=.")
        if adapter.name in self.loaded:
            raise AdapterError(f"An adapter named {adapter.name!r} is loaded already; give this one another name with name=.")
        self._check_words(adapter)
        if adapter.layers or not adapter.words:
            placed, report = resolve(
                adapter, {part: adapters.index for part, adapters in self.parts.items()}, strict, self.same
            )
        else:
            placed, report = {part: [] for part in self.parts}, LoadReport(adapter, {}, {}, {}, adapter.notes)
        done: list[Adapters] = []
        try:
            for part, adapters in self.parts.items():
                adapters.place(adapter, placed[part])
                done.append(adapters)
        except BaseException:
            for adapters in done:
                adapters.remove(adapter.name)
            raise
        self.loaded[adapter.name] = adapter
        return report

    def _check_words(self, adapter: Adapter) -> None:
        """AdapterError where the model cannot read the words, or another adapter has one of them."""
        if not adapter.words:
            return
        check_words(adapter.words, self.readers, adapter.name)
        for other in self.loaded.values():
            if both := {word.lower() for word in adapter.words} & {word.lower() for word in other.words}:
                raise AdapterError(
                    f"The word {min(both)!r} is one of {other.name!r} already; unload that first, or call this one's otherwise "
                    "(gen.adapters.words.rename_words)."
                )

    def remove(self, name: str) -> None:
        self.check({name: 1.0})
        for adapters in self.parts.values():
            if name in adapters.fused:
                raise AdapterError(f"The adapter {name!r} is fused into the weights; unfuse it before unloading it.")
        for adapters in self.parts.values():
            adapters.remove(name)
        del self.loaded[name]

    def check(self, weights: Mapping[str, float]) -> dict[str, float]:
        """The same weights, if all are those of loaded adapters."""
        self.parts["denoiser"]._check(list(weights))
        checked = {name: check_float(f"the weight of {name!r}", w, -MAX_WEIGHT, MAX_WEIGHT) for name, w in weights.items()}
        for name, weight in checked.items():
            if abs(weight) > USUAL_WEIGHT:
                warnings.warn(
                    f"The adapter {name!r} has weight {weight:g}; weights beyond 10 rarely make pictures.", stacklevel=4
                )
        return checked

    def on_text(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Of these, those that change a text encoder and do not have weight 0."""
        self.parts["denoiser"]._check(list(weights))
        text = [adapters for part, adapters in self.parts.items() if part != "denoiser"]
        return {
            name: w
            for name, w in weights.items()
            if w != 0 and (self.loaded[name].words or any(adapters.changes(name) for adapters in text))
        }

    @contextmanager
    def reading_with(self, weights: Mapping[str, float]) -> Iterator[None]:
        """Inside, the text encoders have these."""
        with ExitStack() as stack:
            for part, adapters in self.parts.items():
                if part != "denoiser" and weights:
                    stack.enter_context(adapters.using(weights))
            words = {word: parts for name in weights for word, parts in self.loaded[name].words.items()}
            if words:
                stack.callback(teach, self.readers, {})
                teach(self.readers, words)
            yield

    def fuse(self, weights: Mapping[str, float]) -> None:
        """Into the weights of every part, or, where one of them cannot, of none (`Adapters.fuse`)."""
        weights = self.check(weights)
        for name in weights:
            if self.loaded[name].words:
                raise AdapterError(f"The adapter {name!r} has learned words, which weights cannot hold; use it without fusing.")
        if self.fused:
            raise AdapterError(f"{', '.join(self.fused)} are fused into the weights already; unfuse them first.")
        try:
            for adapters in self.parts.values():
                adapters.fuse(weights)
        except BaseException:
            self.unfuse()
            raise

    def unfuse(self) -> None:
        """The weights as they were, to the last bit."""
        for adapters in self.parts.values():
            adapters.unfuse()

    @property
    def fused(self) -> dict[str, float]:
        """The adapters in the weights."""
        return dict(self.parts["denoiser"].fused)

    def renamed(self, name: str) -> Adapter:
        """A loaded adapter by the model's own module names; what fits nothing is left out."""
        self.check({name: 1.0})
        indices = {part: adapters.index for part, adapters in self.parts.items()}
        return renamed(self.loaded[name], indices, self.same, strict=False)
