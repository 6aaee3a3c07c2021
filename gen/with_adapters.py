"""What a `Generator` does with LoRA and its relatives; `gen.adapters` is imported when the first one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from gen.io import validators as request
from gen.io.threads import exclusive
from gen.models.prompt_cache import PromptMemory
from gen.pipeline.recipe import Recipe

if TYPE_CHECKING:
    from gen.adapters import Adapter, Report
    from gen.adapters.model import ModelAdapters


class WithAdapters:
    """The adapters of a model: `adapters` has those in force, name -> weight. The model's weights stay as they are, unless
    adapters are fused into them."""

    network: nn.Module
    text_encoder: nn.Module | None
    adapters: dict[str, float]
    _loaded: ModelAdapters | None
    _encoded: PromptMemory

    @exclusive
    def load_adapter(
        self,
        adapter: str | Path | Adapter,
        name: str | None = None,
        weight: float = 1.0,
        strict: bool = True,
        allow_nonfinite: bool = False,
    ) -> Report:
        """Load a LoRA or a relative of it (`gen.adapters`), or learned words, from a safetensors file or folder, to act with
        `weight`.

        name: by which `set_adapters` and recipes call it; the file's own if None. The model's weights stay as they are.
        Raises ValueError for a file that is damaged or fits nothing, and where layers are left over unless strict=False.
        NaN and infinite values are refused unless allow_nonfinite=True. Returns what matched.
        """
        from gen.adapters import Adapter, read_adapter

        if not isinstance(adapter, Adapter):
            adapter = read_adapter(adapter, name, strict, allow_nonfinite)
        elif name is not None:
            adapter = replace(adapter, name=name)
        weight = request.real("weight", weight, -100, 100)
        if self._loaded is None:
            from gen.adapters.model import ModelAdapters, parts_of
            from gen.adapters.words import readers_of

            parts = parts_of(self.network, self.text_encoder)
            self._loaded = ModelAdapters(parts, readers_of(self.text_encoder, parts))
        report = self._loaded.load(adapter, strict)
        self._encoded.clear()
        self.set_adapters({**self.adapters, adapter.name: weight})
        return report

    @exclusive
    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; ValueError if there is none of this name."""
        self._with_any(name).remove(name)
        self._encoded.clear()
        self.adapters.pop(name, None)

    @exclusive
    def set_adapters(self, weights: Mapping[str, float]) -> None:
        """Which of the loaded adapters act from now on, and how strongly; those left out stay loaded and do nothing."""
        self.adapters = self._in_force(weights)

    @exclusive
    def fuse_adapters(self, weights: Mapping[str, float] | None = None) -> None:
        """Write adapters into the model's weights, those in force if None: pictures then cost what they cost without.

        The original weights are kept for `unfuse_adapters`. Until then the fused always act, and `adapters` leaves them out.
        """
        weights = self._in_force(self.adapters if weights is None else weights)
        if not weights:
            raise ValueError("No adapter is in force, so there is nothing to fuse; load one with load_adapter.")
        self._with_any(next(iter(weights))).fuse(weights)
        self._encoded.clear()
        self.adapters = {name: weight for name, weight in self.adapters.items() if name not in weights}

    @exclusive
    def unfuse_adapters(self) -> None:
        """The model's weights as they were, to the last bit; the adapters go on acting beside them."""
        if self._loaded is None or not self._loaded.fused:
            raise ValueError("No adapter is fused into the weights.")
        self.adapters = {**self._loaded.fused, **self.adapters}
        self._loaded.unfuse()
        self._encoded.clear()

    @exclusive
    def save_adapter(
        self, name: str, path: str | Path, format: str = "diffusers", dtype: torch.dtype | None = None, fold: bool = False
    ) -> Path:
        """Write a loaded adapter as kohya, diffusers, peft (a folder) or ai-toolkit, by the names that this model's layers
        have; as it was read, where that is the format and these are the names. fold: multiply scales into the factors, for
        ai-toolkit. Layers that found no module are left out."""
        from gen.adapters import write_adapter

        loaded = self._with_any(name)
        loaded.check({name: 1.0})
        adapter = loaded.loaded[name]
        if format != "kohya" or adapter.format != "kohya":
            named = loaded.renamed(name)
            adapter = adapter if format == adapter.format and named.layers.keys() == adapter.layers.keys() else named
        if fold:
            adapter = replace(adapter, layers={layer: delta.folded() for layer, delta in adapter.layers.items()})
        return write_adapter(adapter, path, format, dtype)

    def _with_any(self, name: str) -> ModelAdapters:
        if self._loaded is None:
            raise ValueError(f"No adapter named {name!r} is loaded; none is.")
        return self._loaded

    def _in_force(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Checked weights of loaded adapters."""
        if self._loaded is not None:
            return self._loaded.check(weights)
        if weights:
            raise ValueError(f"No adapter named {next(iter(weights))!r} is loaded; load it with load_adapter (--lora).")
        return {}

    def _as_recorded(self, recipe: Recipe) -> dict[str, float]:
        """The adapters of a recipe, if they are loaded and the same files; ValueError says which is not."""
        loaded = {} if self._loaded is None else self._loaded.loaded
        for name in recipe.adapters:
            digest = (recipe.adapter_files or {}).get(name)
            if name not in loaded:
                file = f" (sha256 {digest[:12]}…)" if digest else ""
                raise ValueError(
                    f"The picture was made with the adapter {name!r}{file}, which is not loaded; load it under that name with "
                    "load_adapter (--lora)."
                )
            if digest is not None and loaded[name].sha256 != digest:
                raise ValueError(
                    f"The loaded adapter {name!r} is not the file that the picture was made with: its sha256 differs."
                )
        return dict(recipe.adapters)
