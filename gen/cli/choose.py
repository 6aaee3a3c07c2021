"""Which of the packaged models `fewstep image` draws with: the few-step student wherever it serves, else its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEPS = 8  # of the fast model, at most; who asks for more means the default model
SCALES = (2.0, 8.0)  # the guidance scales that it learned
NAG = "nag"  # guidance that needs no evaluation without a prompt, and gives it negative prompts
TAKES = ("num_images_per_prompt", "seed", "height", "width", "batch_size", "batch_invariant", "prompt_syntax")
KEPT = ("quantize", "offload", "vae_tile")  # how its parts are kept, and where


def choose_model(model: str | None, fast: bool | None, keywords: Mapping[str, Any]) -> str:
    """The model named; without a name "fast", or "default" if `fast` is False or `keywords` ask for something (None
    and empty ask nothing) that the student was not made for. ValueError if `fast` is True all the same."""
    if model is not None:
        if fast is not None:
            raise ValueError(f"--{'' if fast else 'no-'}fast chooses a model, and so does --model {model}; give one of them.")
        return model
    if fast is False:
        return "default"
    takes = (*TAKES, *KEPT, *(("guidance_options", "negative_prompt") if keywords.get("guidance") == NAG else ()))
    other = next(
        (name for name, value in keywords.items() if not (value is None or _empty(value) or _takes(name, value, takes))), None
    )
    if fast and other is not None:
        option = "--" + other.removeprefix("num_inference_").removesuffix("_prompt").replace("_", "-")
        if (rule := keywords.get("guidance")) and not _takes("guidance", rule, takes):
            option = "--guidance"
        hint = " With --guidance nag alone it takes a negative prompt." if other == "negative_prompt" else ""
        raise ValueError(
            f"The fast model draws from prompts alone, in 1 to {STEPS} steps, at a guidance scale of {SCALES[0]:g} to "
            f"{SCALES[1]:g}; leave out {option}, or --fast.{hint}"
        )
    return "fast" if other is None else "default"


def _empty(value: Any) -> bool:
    return isinstance(value, list | tuple | dict | str) and not value


def _takes(name: str, value: Any, takes: tuple[str, ...]) -> bool:
    if name == "guidance":
        return value == NAG
    if name == "num_inference_steps":
        return value <= STEPS
    if name == "guidance_scale":
        return SCALES[0] <= value <= SCALES[1]
    return name in takes
