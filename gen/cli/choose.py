"""Which of the packaged models `fewstep image` draws with: the few-step student wherever it serves, else its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gen.calls.choose import SCALES, STEPS, beyond_student, served


def choose_model(model: str | None, fast: bool | None, keywords: Mapping[str, Any]) -> str:
    """The model named; without a name "fast", or "default" if `fast` is False or `keywords` ask for something (None
    and empty ask nothing) that the student was not made for. ValueError if `fast` is True all the same."""
    if model is not None:
        if fast is not None:
            raise ValueError(f"--{'' if fast else 'no-'}fast chooses a model, and so does --model {model}; give one of them.")
        return model
    if fast is False:
        return "default"
    other = beyond_student(keywords)
    if fast and other is not None:
        option = "--" + other.removeprefix("num_inference_").removesuffix("_prompt").replace("_", "-")
        if (rule := keywords.get("guidance")) and not served("guidance", rule):
            option = "--guidance"
        hint = " With --guidance nag alone it takes a negative prompt." if other == "negative_prompt" else ""
        raise ValueError(
            f"The fast model draws from prompts alone, in 1 to {STEPS} steps, at a guidance scale of {SCALES[0]:g} to "
            f"{SCALES[1]:g}; leave out {option}, or --fast.{hint}"
        )
    return "fast" if other is None else "default"
