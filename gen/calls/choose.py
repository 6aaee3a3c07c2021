"""What the packaged few-step student was made for; whatever else a call asks for is its teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEPS = 8  # of the fast model, at most; who asks for more means the default model
SCALES = (2.0, 8.0)  # the guidance scales that it learned
NAG = "nag"  # guidance that needs no evaluation without a prompt, and gives it negative prompts
TAKES = (
    *("prompt", "num_images_per_prompt", "seed", "seeds", "height", "width"),
    *("batch_size", "batch_invariant", "prompt_syntax", "noise_kind"),
    *("variation_seed", "variation_strength", "transparent", "transparency"),
    *("translate", "translate_direction", "translate_strength"),
)
KEPT = ("quantize", "offload", "vae_tile", "attention_backend", "compile", "cuda_graphs")  # how its parts are kept, and where


def beyond_student(keywords: Mapping[str, Any]) -> str | None:
    """The first keyword of a call that the student was not made for, None if it serves; None and empty values ask nothing."""
    takes = (*TAKES, *KEPT, *(("guidance_options", "negative_prompt") if keywords.get("guidance") == NAG else ()))
    return next((n for n, value in keywords.items() if not (value is None or _empty(value) or served(n, value, takes))), None)


def _empty(value: Any) -> bool:
    return isinstance(value, list | tuple | dict | str) and not value


def served(name: str, value: Any, takes: tuple[str, ...] = (*TAKES, *KEPT)) -> bool:
    """Does the student serve this value of a keyword?"""
    if name == "guidance":
        return value == NAG
    if name == "translator":
        return value == "default"  # the shipped one, which changes the student
    if name == "num_inference_steps":
        return value <= STEPS
    if name == "guidance_scale":
        return SCALES[0] <= value <= SCALES[1]
    return name in takes
