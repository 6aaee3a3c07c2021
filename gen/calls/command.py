"""A call as a command line that makes the same pictures to the byte."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from gen.calls.call import Call
from gen.calls.values import write_options

# keyword -> option, of every command that has it
_VALUES = {
    "num_images_per_prompt": "--number",
    "seed": "--seed",
    "num_inference_steps": "--steps",
    "sampler": "--sampler",
    "schedule": "--schedule",
    "guidance_scale": "--guidance-scale",
    "negative_prompt": "--negative",
    "guidance": "--guidance",
    "cache": "--cache",
    "height": "--height",
    "width": "--width",
    "batch_size": "--batch-size",
    "prompt_syntax": "--prompt-syntax",
    "noise_kind": "--noise-kind",
    "lora_dir": "--lora-dir",
    "mask": "--mask",
    "strength": "--strength",
    "guide": "--guide",
    "guide_strength": "--guide-strength",
    "guide_method": "--guide-method",
    "greedy": "--greedy",
    "composition": "--compose",
    "hires": "--hires",
    "hires_strength": "--hires-strength",
    "hires_steps": "--hires-steps",
    "hires_upscaler": "--hires-upscaler",
    "hires_window": "--hires-window",
    "refiner": "--refiner",
    "refiner_at": "--refiner-at",
    "transparency": "--transparency",
    "translate": "--translate",
    "translator": "--translator",
    "translate_direction": "--translate-direction",
    "translate_strength": "--translate-strength",
    "joint": "--joint",
    "joint_picture": "--joint-picture",
    "joint_strength": "--joint-strength",
    "joint_scale": "--joint-scale",
    "joint_shown": "--joint-shown",
    "joint_adapter": "--joint-adapter",
    "variation_seed": "--variation-seed",
    "variation_strength": "--variation-strength",
    "references_encoder": "--reference-encoder",
    "references_vision": "--reference-vision",
    "references_fusion": "--reference-fusion",
    "clip_skip": "--clip-skip",
    "max_sequence_length": "--max-sequence-length",
    "prompt_2": "--prompt-2",
    "prompt_3": "--prompt-3",
    "negative_prompt_2": "--negative-2",
    "negative_prompt_3": "--negative-3",
}
_REPEATED = {
    "image": "--image",
    "control": "--control",
    "controlnet": "--controlnet",
    "control_weight": "--control-weight",
    "control_mode": "--control-mode",
    "negtome": "--negtome",
    "negtome_mask": "--negtome-mask",
    "reference": "--free-custom",
    "reference_mask": "--free-custom-mask",
    "reference_prompt": "--free-custom-prompt",
    "references": "--reference",
    "references_scale": "--reference-scale",
    "references_mask": "--reference-mask",
    "concepts": "--concept",
    "aesthetic": "--aesthetic",
}
_PAIRS = {
    "guidance_interval": "--guidance-interval",
    "control_range": "--control-range",
    "references_range": "--reference-range",
    "original_size": "--original-size",
    "target_size": "--target-size",
    "crops_coords_top_left": "--crop",
    "negative_original_size": "--negative-original-size",
    "negative_target_size": "--negative-target-size",
    "negative_crops_coords_top_left": "--negative-crop",
}
_OPTIONS = {
    "sampler_options": "--sampler-option",
    "schedule_options": "--schedule-option",
    "guidance_options": "--guidance-option",
    "cache_options": "--cache-option",
    "guide_options": "--guide-option",
    "composition_options": "--compose-option",
    "pipeline_options": "--pipeline-option",
    "references_fusion_options": "--reference-fusion-option",
}
_TWEAKS = {f"{name}_options": name for name in ("negtome", "reference", "concepts", "aesthetic", "greedy")}
_YES_NO = {"use_resolution_binning": "bins", "batch_invariant": "batch-invariant"}
# keyword -> option, of all that an error may name
OPTIONS = {
    **_VALUES,
    **_REPEATED,
    **_PAIRS,
    **_OPTIONS,
    **{name: f"--{option}" for name, option in _YES_NO.items()},
    "seeds": "--seed",
    "transparent": "--transparent",
    "ip_adapter_image": "--image-prompt",
    "ip_adapter_scale": "--image-prompt",
    "ip_adapter_mask": "--image-prompt-mask",
    "ip_adapter_range": "--image-prompt-range",
    "attention_backend": "--attention",
    "model_options": "--model-option",
}
# of the commands of windows
_WINDOWS = {
    "weights": "--weights",
    "shift_from": "--shift-from",
    "window_batch": "--window-batch",
    "circular": "--circular",
    "sync": "--sync",
    "sync_distance": "--sync-distance",
    **{side: f"--{side}" for side in ("left", "right", "top", "bottom")},
    "recurrence": "--recurrence",
    "scale": "--scale",
    "noise_level": "--noise-level",
}
_SIDES = ("window", "stride")
_RESTORE = ("factor", "radius", "noise", "kind", "weight", "spread", "iterations")
COMMANDS = ("image", "panorama", "outpaint", "upscale", "restore", "layout")
# all that commands with few options take
_FEW = (
    *("num_images_per_prompt", "seed", "num_inference_steps", "sampler", "sampler_options", "schedule", "schedule_options"),
    *("guidance_scale", "guidance", "guidance_options", "guidance_interval", "cache", "cache_options", "lora_dir"),
)
_TAKEN = {"layout": (*_FEW, "negative_prompt"), "restore": (*_FEW, "height", "width", "mask", "task", "simulate", *_RESTORE)}


def as_command(call: Call, output: str = "picture.png", quality: int | None = None) -> str:
    """The line for a shell.

    quality: of a format that loses some, the usual one if None.
    ValueError says what no command has an option for.
    """
    return shlex.join(["fewstep", *as_arguments(call, output, quality)])


def as_arguments(call: Call, output: str = "picture.png", quality: int | None = None) -> list[str]:
    """The words after `fewstep`."""
    if call.method not in COMMANDS:
        raise ValueError(f"No command line says a call of {call.method!r} from plain data; take its Python instead.")
    rest = dict(call.arguments)
    if "joint_map" in rest:  # one option says both
        rest["joint"] = f"{rest.get('joint', '')}={rest.pop('joint_map')}"
    subjects = _subjects(call.method, rest)
    words: list[str] = []
    if call.method == "layout":
        subjects = [json.dumps(rest.pop("layout", {}))]
    _check_options(call, rest)
    if call.method == "panorama" and ("width" in rest or "height" in rest):
        width, height = rest.pop("width", None), rest.pop("height", None)
        if width is None or height is None:
            raise ValueError("A panorama on the command line has both sides or none; give width and height.")
        words.append(f"--size={width}x{height}")
    for name, value in rest.items():
        words += _words(call.method, name, value)
    words += [f"--lora={use.file}:{use.weight!r}" for use in call.adapters]
    words += [f"--model={call.model}", f"--output={output}"]
    if quality is not None:
        if call.method != "image":
            raise ValueError(f"The command {call.method!r} has no option for quality; take the Python of this call instead.")
        words.append(f"--quality={quality}")
    plain = not any(subject.startswith("-") for subject in subjects)
    return [call.method, *subjects, *words] if plain else [call.method, *words, "--", *subjects]


def _check_options(call: Call, rest: Mapping[str, Any]) -> None:
    taken = _TAKEN.get(call.method, tuple(rest))
    more = next((name for name in rest if name not in taken), None)
    if more is not None:
        raise ValueError(f"The command {call.method!r} has no option for {more}; take the Python of this call instead.")


def _subjects(method: str, rest: dict[str, Any]) -> list[str]:
    """What stands without an option: a picture, prompts or classes. Taken out of `rest`."""
    first = [_text("image", rest.pop("image"))] if method in ("outpaint", "upscale", "restore") and "image" in rest else []
    if "prompt" in rest and "class_labels" in rest:
        raise ValueError("The command line has prompts or classes, not both; take the Python of this call instead.")
    subject = rest.pop("class_labels", None) if "class_labels" in rest else rest.pop("prompt", None)
    subjects = subject if isinstance(subject, list) else [] if subject is None else [subject]
    return [*first, *map(str, subjects)]


def _words(method: str, name: str, value: Any) -> list[str]:
    """The words that say one argument."""
    if name in _VALUES:
        return [f"{_VALUES[name]}={_text(name, value)}"]
    if name == "control" and isinstance(value, Mapping):
        return [f"--control={kind}={_text(name, file)}" for kind, file in value.items()]
    if name in _REPEATED:
        return [f"{_REPEATED[name]}={_text(name, one)}" for one in (value if isinstance(value, list) else [value])]
    if name in _PAIRS:
        return [_PAIRS[name], *(repr(one) for one in value)]
    if name in _OPTIONS:
        return [f"{_OPTIONS[name]}={pair}" for pair in _pairs(name, value)]
    if name in _TWEAKS:
        return [f"--training-free-option={_TWEAKS[name]}.{pair}" for pair in _pairs(name, value)]
    if name in _YES_NO and method == "image":
        return [f"--{'' if value else 'no-'}{_YES_NO[name]}"]
    if name == "transparent" and method == "image":
        return ["--transparent"] * bool(value)
    if name == "regions":
        return [f"--region={adapter}={file}" for adapter, file in value.items()]
    if method == "restore" and name == "task":
        return [f"--task={value}"]
    if method == "restore" and name == "simulate":
        return ["--simulate"] * bool(value)
    if method == "restore" and name in _RESTORE:
        return [f"--option={pair}" for pair in _pairs(name, {name: value})]
    if method in ("panorama", "outpaint", "upscale") and name in _WINDOWS:
        return [f"{_WINDOWS[name]}={_text(name, value)}"]
    if method in ("panorama", "outpaint", "upscale") and name in _SIDES:
        height, width = value if isinstance(value, list) else (value, value)
        return [f"--{name}={width}x{height}"]
    raise ValueError(f"The command {method!r} has no option for {name}; take the Python of this call instead.")


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool | list | dict):
        raise ValueError(f"The command line has no way to say {name}={value!r:.80}; take the Python of this call instead.")
    return repr(value) if isinstance(value, float) else str(value)


def _pairs(name: str, options: Mapping[str, Any]) -> list[str]:
    try:
        return write_options(options)
    except ValueError as error:
        raise ValueError(f"{name}: {error} Take the Python of this call instead.") from None
