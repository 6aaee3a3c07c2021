"""Running a call: a model, its adapters, and the method with the call's arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.calls.adapters import put_adapters
from gen.calls.call import Call
from gen.calls.keywords import FOLDERS, MAPPED, PICTURES

if TYPE_CHECKING:
    from gen.pipeline.output import Output


def run(
    call: Call,
    generator: Any,
    *,
    on_step: Callable[..., None] | None = None,
    on_images: Callable[[Output], None] | None = None,
    say: Callable[[str], None] | None = None,
    progress: bool = False,
    **more: Any,
) -> Output:
    """The pictures of a call.

    generator: a `Generator` of the call's model; adapters of earlier calls are unloaded.
    on_step: called as (generator, step, t, {"denoised": ...}) after every step; it may set `generator.interrupt`.
    on_images: gets every batch that is done; the output then holds no pictures.
    say: told what was matched of adapters that were loaded.
    more: arguments that are no plain data.
    Raises ValueError in a sentence for what cannot be.
    """
    for text in put_adapters(generator, call.adapters):
        if say is not None:
            say(text)
    arguments = python_arguments(call.arguments)
    if on_step is not None:
        arguments |= {"callback_on_step_end": on_step, "callback_on_step_end_tensor_inputs": ("denoised",)}
    if on_images is not None:
        arguments["on_images"] = on_images
    method = generator if call.method == "image" else getattr(generator, call.method)
    return method(**arguments, **more, progress=progress)


def python_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As a `Generator` takes them: files as paths, pairs as tuples."""
    values = dict(arguments)
    for name in (*PICTURES, *FOLDERS):
        if name in values and values[name] != "batch":
            value = values[name]
            values[name] = _paths(value)
    for name in MAPPED:
        if name in values:
            values[name] = {key: Path(file) for key, file in values[name].items()}
    return {name: _tuples(value) if name in PAIRS else value for name, value in values.items()}


PAIRS = (  # keywords whose lists of numbers are one value
    *("guidance_interval", "control_range", "window", "stride", "original_size", "crops_coords_top_left", "target_size"),
    *(
        "ip_adapter_range",
        "references_range",
        "negative_original_size",
        "negative_crops_coords_top_left",
        "negative_target_size",
    ),
)


def _paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _paths(one) for name, one in value.items()}
    return [_paths(one) for one in value] if isinstance(value, list) else Path(value)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
