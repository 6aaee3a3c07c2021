"""The models of a server: opened when they are asked for, within a budget of memory, and let go of when others need it."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gen.generator import Generator
from gen.io.threads import lock_of
from gen.nn.backbones.fused import pack
from gen.nn.quantized import stored_bytes
from gen.serve.collector import Collector
from gen.serve.jobs import Unavailable
from gen.serve.sharing import Told

MAX_ADAPTERS = 32  # that a model keeps loaded beyond those at work
HOLD = 5.0  # seconds for which a model is worked with before one that waits may take its place


@dataclass(frozen=True)
class ModelSource:
    """How a model is opened, and what memory it is thought to take (bytes; 0: not known)."""

    open: Callable[[], Generator]
    size: int = 0


@dataclass(eq=False)
class LoadedModel:
    """An open model. runs: that are under way; since: when it was opened, on the pool's clock."""

    name: str
    generator: Generator
    collector: Collector
    size: int
    since: float
    told: Told = field(default_factory=Told)
    runs: int = 0
    adapters_used: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def begin(self) -> None:
        """One more run. The first takes the model's lock for all of them, in the thread that calls `end` too."""
        if not self.runs:
            lock_of(self.generator.network).acquire()
            pack(self.generator.network)
        self.runs += 1

    def end(self) -> None:
        self.runs -= 1
        if not self.runs:
            self.collector.forget()
            self.told.null = None
            lock_of(self.generator.network).release()

    def load_adapters(self, names: Mapping[str, Path], at_work: set[str]) -> None:
        """Have adapters loaded, none of them in force; those that were not used for the longest go when there are many."""
        generator = self.generator
        for name, path in names.items():
            loaded = {} if generator.loaded_adapters is None else generator.loaded_adapters.loaded
            if name not in loaded:
                before = dict(generator.adapters)
                generator.load_adapter(path, name, weight=0.0)
                generator.set_adapters(before)
                pack(generator.network)  # layers are others now
                self.told.null = None
            self.adapters_used[name] = None
            self.adapters_used.move_to_end(name)
        idle = [name for name in self.adapters_used if name not in at_work and name not in names]
        for name in idle[: max(len(self.adapters_used) - MAX_ADAPTERS, 0)]:
            generator.unload_adapter(name)
            del self.adapters_used[name]


class ModelPool:
    """Models by name. All methods but `wait` are for the engine's thread; models open in threads of their own, one at a time.

    sources: closed; no request adds to it.
    memory: bytes that models may take together, None for any number.
    max_rows: of a forward pass.
    clock: seconds.
    on_open: called, in the opening thread, when a model is there or has failed.
    """

    def __init__(
        self, sources: Mapping[str, ModelSource], memory: int | None, max_rows: int, clock: Callable[[], float]
    ) -> None:
        self.sources, self.memory, self.max_rows, self.clock = dict(sources), memory, max_rows, clock
        self.loaded: OrderedDict[str, LoadedModel] = OrderedDict()  # used last at the end
        self.draining: set[str] = set()  # those that begin nothing more, as another needs their memory
        self.on_open: Callable[[], None] = lambda: None
        self.evictions = 0
        self._opening: str | None = None
        self._opened: tuple[str, Generator | Exception] | None = None
        self._thread: threading.Thread | None = None

    def get(self, wanted: Sequence[str]) -> dict[str, LoadedModel]:
        """Of the models that jobs wait for, those that are open and take runs. Others open as soon as there is memory.
        OpeningFailed where one cannot."""
        self.collect()
        self.draining.clear()
        for name in wanted:
            if name not in self.loaded and self._opening is None and self._make_room(name, wanted):
                self._opening = name
                self._thread = threading.Thread(target=self._open, args=(name,), name=f"open {name}", daemon=True)
                self._thread.start()
        ready = {name: self.loaded[name] for name in wanted if name in self.loaded and name not in self.draining}
        for name in ready:
            self.loaded.move_to_end(name)
        return ready

    def wait(self) -> None:
        """Until nothing opens any more, for tests."""
        if self._thread is not None:
            self._thread.join()

    def _open(self, name: str) -> None:
        opened: Generator | Exception
        try:
            opened = self.sources[name].open()
        except Exception as error:
            opened = error
        self._opened = name, opened
        self.on_open()

    def collect(self) -> None:
        """Take in what has opened since. Unavailable if it has failed, once."""
        if self._opened is None:
            return
        (name, opened), self._opened, self._opening = self._opened, None, None
        if isinstance(opened, Exception):
            raise OpeningFailed(name, opened)
        size = max(size_of(opened), self.sources[name].size)
        self.loaded[name] = LoadedModel(name, opened, Collector(opened, self.max_rows), size, self.clock())

    def _make_room(self, name: str, wanted: Sequence[str]) -> bool:
        """Let go of idle models, the one used longest ago first, until one more fits; whether it does. Where only models at
        work could go, that one begins nothing more."""
        size = self.sources[name].size
        if self.memory is None:
            return True
        if size > self.memory:
            few = f"it needs {describe_size(size)}, and {describe_size(self.memory)} are allowed; raise --memory"
            raise OpeningFailed(name, ValueError(few))
        while self.used + size > self.memory:
            held = [model for model in self.loaded.values() if model.name in wanted and self.clock() - model.since < HOLD]
            others = [model for model in self.loaded.values() if model not in held]
            if not others:
                return False
            idle = next((model for model in others if not model.runs), None)
            if idle is None:
                self.draining.add(others[0].name)
                return False
            self.evict(idle.name)
        return True

    def evict(self, name: str) -> None:
        """Close an idle model."""
        model = self.loaded[name]
        if model.runs:
            raise RuntimeError(f"The model {name!r} is at work.")
        del self.loaded[name]
        self.draining.discard(name)
        self.evictions += 1
        del model
        gc.collect()
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.empty_cache()

    @property
    def used(self) -> int:
        """Bytes of the open models."""
        return sum(model.size for model in list(self.loaded.values()))


class OpeningFailed(Unavailable):
    """A model that cannot be opened."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(f"The model {name!r} cannot be opened: {str(error).rstrip('.')}.")
        self.name = name


def size_of(generator: Generator) -> int:
    """Bytes of a model's weights."""
    parts: list[Any] = [generator.network, generator.autoencoder, generator.text_encoder]
    return sum(stored_bytes(part) for part in parts if part is not None)


def describe_size(count: int) -> str:
    """512 MiB, 8 GiB."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"
