"""The keywords that a call as plain data may have, by the method of `Generator` that is called. Torch is not imported here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gen.tasks.table import TASKS

# of `Generator.__call__`, without those that hold tensors or functions, or say where the pictures go
IMAGE = (
    *("prompt", "negative_prompt", "class_labels", "height", "width", "num_inference_steps", "guidance_scale"),
    *("num_images_per_prompt", "seed", "seeds", "sampler", "sampler_options", "schedule", "schedule_options"),
    *("guidance_interval", "guidance", "guidance_options", "cache", "cache_options", "use_resolution_binning"),
    *("batch_size", "batch_invariant", "prompt_syntax", "noise_kind", "lora_dir"),
)
_WINDOWS = ("window", "stride", "weights", "shift_from", "window_batch")
OWN: dict[str, tuple[str, ...]] = {  # method -> keywords beside those of `__call__`
    "image": (),
    "panorama": (*_WINDOWS, "circular", "sync", "sync_distance"),
    "outpaint": ("image", *_WINDOWS, "left", "right", "top", "bottom", "recurrence"),
    "upscale": ("image", *_WINDOWS, "scale", "strength", "noise_level"),
    "restore": (*("image", "task", "mask", "factor", "radius", "noise", "kind", "weight", "spread", "iterations", "simulate"),),
    "ambiguous": ("others", "view", "pixels_from"),
    "layout": ("layout",),
    "translate": ("image", "translator", "direction", "strength"),
    "estimate": ("image", "kind"),
    "search": ("reward", "method", "tries", "children", "parents", "strength", "reward_options", "keep", "seed"),
}
# keywords that are a picture's file, or a list of them; and those that map names to files
PICTURES = (
    *("image", "mask", "control", "negtome", "negtome_mask", "reference", "reference_mask", "ip_adapter_image"),
    *("ip_adapter_mask", "references", "references_mask", "translate", "joint_map", "joint_picture"),
)
# or files that are no pictures
FOLDERS = (
    *("controlnet", "refiner", "lora_dir", "ip_adapter", "ip_adapter_encoder", "transparency"),
    *("references_encoder", "references_vision", "translator", "joint_adapter"),
)
MAPPED = ("regions",)
WITH_FILES = ("pipeline_options", "guide_options", "greedy_options", "reward_options")  # options, some of which may be files
TENSORS = ("ip_adapter_image_embeds",)  # no plain data
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".safetensors", ".json", ".yaml")
NAMES_ONLY = (
    "guide",
    "greedy",
    "reward",
)  # a name of the tables of energies and rewards: a file of code is never run for a call


def keywords_of(method: str) -> tuple[str, ...]:
    """All that a method takes: its own, those of every call, those of tasks."""
    tasks = (name for row in TASKS.values() if not row.registered for name in row.options.keywords if name not in TENSORS)
    return tuple(dict.fromkeys((*OWN[method], *IMAGE, *tasks)))


def files_in(arguments: Mapping[str, Any]) -> Iterator[Path]:
    """Every file and folder that the arguments name."""
    for name, value in arguments.items():
        if name in (*PICTURES, *FOLDERS):
            yield from (Path(one) for one in flat(value) if (name, one) != ("negtome", "batch"))
        elif name in MAPPED and isinstance(value, Mapping):
            yield from map(Path, value.values())
        elif name == "layout" and isinstance(value, Mapping):
            regions = [*(value.get("regions") or ()), *(value.get("layers") or ())]
            places = [value.get("painting"), *(one.get("mask") for one in regions if isinstance(one, Mapping))]
            yield from (Path(one) for one in places if isinstance(one, str))
        elif name in WITH_FILES and isinstance(value, Mapping):
            yield from (Path(one) for one in flat(list(value.values())) if isinstance(one, str) and _may_be_file(one))


def _may_be_file(text: str) -> bool:
    """Could an option's text be a file or folder, for all that is known of it here?"""
    return "/" in text or "\\" in text or Path(text).suffix.lower() in ENDINGS or os.path.exists(text[:1000].replace("\0", ""))


def flat(value: Any) -> list[Any]:
    """The values in lists and tables within one another, in their order; one that is neither by itself."""
    value = list(value.values()) if isinstance(value, Mapping) else value
    return [one for inner in value for one in flat(inner)] if isinstance(value, list | tuple) else [value]
