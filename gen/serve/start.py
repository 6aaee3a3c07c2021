"""The engine of a server, from the names of its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gen.generator import Generator
from gen.models.memory import plan
from gen.models.options import ModelOptions
from gen.models.pretrained import find_model, resolve_device, resolve_dtype
from gen.serve.engine import ServingEngine
from gen.serve.models import ModelSource, describe_size


def make_engine(models: Sequence[str], arguments: Mapping[str, Any], *, memory: int | None, **limits: Any) -> ServingEngine:
    """models: MODEL or NAME=MODEL, the first of which serves requests that name none. arguments: of
    `Generator.from_pretrained`, for all. memory: bytes, None for any number. limits: of `ServingEngine`.

    ValueError for a model that is not there, two of one name, or one that does not fit.
    """
    sources = {name: source(model, arguments, memory) for name, model in by_name(models).items()}
    engine = ServingEngine(sources, memory=memory, **limits)
    engine.preload = list(sources) if memory is None else list(sources)[:1]
    return engine


def by_name(models: Sequence[str]) -> dict[str, str]:
    """name -> model, of MODEL or NAME=MODEL. ValueError for two of one name."""
    found: dict[str, str] = {}
    for text in models:
        name, equals, model = text.partition("=")
        if not equals or not name or "/" in name:
            name, model = named(text), text
        if name in found:
            raise ValueError(f"Two models are called {name!r}; call one otherwise: --model other={model}.")
        found[name] = model
    return found


def check_there(models: Sequence[str], arguments: Mapping[str, Any], memory: int | None) -> list[str]:
    """The names of models that can be opened here. ValueError as of `make_engine`."""
    return [name for name, model in by_name(models).items() if source(model, arguments, memory)]


def named(model: str) -> str:
    """What a model is called by requests: a file or folder by its own name, others as they are given."""
    return Path(model).stem if Path(model).is_file() else Path(model).name if Path(model).is_dir() else model


def source(model: str, arguments: Mapping[str, Any], memory: int | None) -> ModelSource:
    """How a model is opened; its size is planned where memory is limited."""
    device = resolve_device(arguments.get("device"))
    dtype = resolve_dtype(arguments.get("dtype"), device)
    find_model(model, None, arguments.get("variant"), dtype)  # it is there
    size = 0
    if memory is not None:
        names = ("vae", "text_encoder", "native", "variant", "quantize", "model_options")
        options = {name: arguments[name] for name in names if arguments.get(name) is not None}
        try:
            size = sum(plan(model, dtype, device, options=ModelOptions(**options)).weights.values())
        except ValueError:  # a pipeline that runs as a whole, whose size shows once it is open
            size = 0
        if size > memory:
            needs, has = describe_size(size), describe_size(memory)
            raise ValueError(f"The model {model!r} needs {needs} for its weights, and --memory is {has}; allow more.")
    return ModelSource(lambda: Generator.from_pretrained(model, **arguments), size)
