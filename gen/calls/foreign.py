"""Settings of a picture that any program made, as a call: our recipe, AUTOMATIC1111's text, or ComfyUI's graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gen.calls.call import Call
from gen.io.errors import RecipeError
from gen.io.validators import MAX_PROMPT

LARGEST = 4_000_000  # characters of a graph
DEEPEST = 40  # nodes from a sampler to a prompt


def call_of_picture(path: Path, adapter_files: Mapping[str, Path] | None = None) -> tuple[Call, tuple[str, ...]]:
    """(a call with the picture's settings, what could not be taken over), the model left as "default".

    adapter_files: sha256 -> file of adapters at hand.
    RecipeError in a sentence where the file holds no settings.
    """
    from gen.pipeline.png import CHUNK, read_chunks, read_recipe

    chunks = read_chunks(path)
    if CHUNK in chunks:
        return Call.from_recipe(read_recipe(path), adapter_files)
    if "parameters" in chunks:
        from gen.pipeline.infotext import from_infotext

        return call_of_infotext(from_infotext(chunks["parameters"]))
    if "prompt" in chunks:
        return call_of_graph(chunks["prompt"])
    raise RecipeError("That picture holds no settings: neither a recipe of ours nor AUTOMATIC1111's text nor ComfyUI's graph.")


def call_of_infotext(fields: Mapping[str, str]) -> tuple[Call, tuple[str, ...]]:
    """Of the names and values of AUTOMATIC1111's text."""
    arguments: dict[str, Any] = {"prompt": fields.get("Prompt", "")[:MAX_PROMPT]}
    missing: list[str] = []
    if negative := fields.get("Negative prompt", ""):
        arguments["negative_prompt"] = negative[:MAX_PROMPT]
    for label, name in (("Steps", "num_inference_steps"), ("Seed", "seed")):
        _put(arguments, missing, name, fields.get(label), int)
    _put(arguments, missing, "guidance_scale", fields.get("CFG scale"), float)
    width, _, height = fields.get("Size", "").partition("x")
    if height:
        _put(arguments, missing, "width", width, int)
        _put(arguments, missing, "height", height, int)
    _put_methods(arguments, missing, fields.get("Sampler"), fields.get("Schedule type"))
    for label, name, kind in (("seed", "seed", int), ("seed strength", "strength", float)):
        _put(arguments, missing, f"variation_{name}", fields.get(f"Variation {label}"), kind)
    if "Hires upscale" in fields:
        _put_hires(arguments, missing, fields)
    elif "Denoising strength" in fields:
        missing.append("the picture it began with")
    return _checked(arguments, missing)


def _put_hires(arguments: dict[str, Any], missing: list[str], fields: Mapping[str, str]) -> None:
    """The second pass of hires fix. Its upscalers that are networks become ours, which are none."""
    for label, name, kind in (("Hires upscale", "hires", float), ("Hires steps", "hires_steps", int)):
        _put(arguments, missing, name, fields.get(label), kind)
    _put(arguments, missing, "hires_strength", fields.get("Denoising strength"), float)
    upscaler = fields.get("Hires upscaler", "")
    arguments["hires_upscaler"] = "latent" if upscaler.startswith("Latent") else "picture"
    if upscaler and not upscaler.startswith(("Latent", "Lanczos")):
        missing.append(f"the upscaler {upscaler!r:.40}")


def call_of_graph(text: str) -> tuple[Call, tuple[str, ...]]:
    """Of the graph that ComfyUI writes: its first sampler, and the prompts and the size that lead to it."""
    try:
        graph = json.loads(text) if len(text) <= LARGEST else None
    except (ValueError, RecursionError):
        graph = None
    nodes = {str(number): node for number, node in graph.items() if _is_node(node)} if isinstance(graph, dict) else {}
    samplers = [node["inputs"] for node in nodes.values() if {"positive", "steps", "sampler_name"} <= set(node["inputs"])]
    if not samplers:
        raise RecipeError("That picture holds a graph of ComfyUI without a sampler that can be read (KSampler or its kin).")
    inputs, missing = samplers[0], []
    if len(samplers) > 1:
        missing.append(f"{len(samplers) - 1} further samplers of its graph")
    arguments: dict[str, Any] = {"prompt": _text_before(nodes, inputs["positive"])[:MAX_PROMPT]}
    if negative := _text_before(nodes, inputs.get("negative")):
        arguments["negative_prompt"] = negative[:MAX_PROMPT]
    _put(arguments, missing, "num_inference_steps", _value(nodes, inputs["steps"]), int)
    _put(arguments, missing, "seed", _value(nodes, inputs.get("seed", inputs.get("noise_seed"))), int)
    _put(arguments, missing, "guidance_scale", _value(nodes, inputs.get("cfg")), float)
    latent = nodes.get(_source(inputs.get("latent_image")), {}).get("inputs", {})
    for side in ("width", "height"):
        _put(arguments, missing, side, _value(nodes, latent.get(side)), int)
    _put_methods(arguments, missing, _value(nodes, inputs["sampler_name"]), _value(nodes, inputs.get("scheduler")))
    denoise = _value(nodes, inputs.get("denoise"))
    if isinstance(denoise, int | float) and denoise < 1:
        missing.append("the picture it began with")
    if any("lora" in str(node.get("class_type", "")).lower() for node in nodes.values()):
        missing.append("its LoRAs")
    return _checked(arguments, missing)


def _checked(arguments: dict[str, Any], missing: list[str]) -> tuple[Call, tuple[str, ...]]:
    limits: dict[str, tuple[float, float]] = {
        "num_inference_steps": (1, 1000),
        "guidance_scale": (0, 100),
        "seed": (0, (1 << 63) - 1),
    }
    limits |= dict.fromkeys(("width", "height"), (8, 4096))
    limits |= {"variation_seed": limits["seed"], "variation_strength": (0, 1)}
    limits |= {"hires": (1.01, 8), "hires_steps": (1, 1000), "hires_strength": (0.01, 1)}
    for name, (low, high) in limits.items():
        if name in arguments and not low <= arguments[name] <= high:
            missing.append(f"{name} {arguments.pop(name)!s:.30}")
    return Call(arguments), tuple(missing)


def _put(arguments: dict[str, Any], missing: list[str], name: str, value: Any, kind: type) -> None:
    """A number, where one is given and is one."""
    if value is None or value == "":
        return
    try:
        arguments[name] = kind(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        missing.append(f"{name} {value!r:.30}")


def _put_methods(arguments: dict[str, Any], missing: list[str], sampler: Any, schedule: Any) -> None:
    """Sampler and schedule by our names, those we know."""
    from samplers.registry import grid_info, parse_sampler

    for name, value in (("sampler", sampler), ("schedule", schedule)):
        if not isinstance(value, str) or not value or (name == "schedule" and value == "Automatic"):
            continue
        try:
            if name == "schedule":
                arguments[name] = grid_info(value[:100]).name
            else:
                arguments[name], own = parse_sampler(value[:100])
                if own is not None:
                    arguments["schedule"] = own
        except ValueError:
            missing.append(f"the {name} {value!r:.40}")


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("inputs"), dict)


def _source(link: Any) -> str:
    """The number of the node that an input comes from, "" for none."""
    return str(link[0]) if isinstance(link, list) and len(link) == 2 else ""


def _value(nodes: Mapping[str, Any], value: Any) -> Any:
    """An input's value, through one node that only holds it."""
    if _source(value):
        held = [one for one in nodes.get(_source(value), {}).get("inputs", {}).values() if not isinstance(one, list | dict)]
        return held[0] if len(held) == 1 else None
    return value


def _text_before(nodes: Mapping[str, Any], link: Any) -> str:
    """The first text on the way back from a conditioning."""
    waiting = [_source(link)]
    seen: set[Any] = set()
    while waiting and len(seen) < DEEPEST:
        number = waiting.pop(0)
        if number in seen or number not in nodes:
            continue
        seen.add(number)
        inputs = nodes[number]["inputs"]
        for name in ("text", "text_g", "string", "value", "prompt", "t5xxl", "clip_l"):
            if isinstance(inputs.get(name), str):
                return inputs[name]
        waiting += [_source(one) for one in inputs.values()]
    return ""
