"""Recipes in the one-line grammar of AUTOMATIC1111's web UI, which most viewers and galleries read.

    a red heart
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.0, Seed: 7, Size: 128x128, Model: default

The grammar is ambiguous where a prompt itself looks like its last lines; the JSON chunk beside it is what we replay from.
"""

from __future__ import annotations

import json
import re

from gen.recipe import Recipe

# our names -> the labels that recipes in the wild carry
SAMPLERS = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_a": "Euler a",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "dpm_fast": "DPM fast",
    "dpm_adaptive": "DPM adaptive",
    "lms": "LMS",
    "pndm": "PLMS",
    "euler_cfg_pp": "DDIM CFG++",
    "dpmpp_2s": "DPM++ 2S",
    "dpmpp_2s_a": "DPM++ 2S a",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_heun": "DPM++ 2M SDE Heun",
    "dpmpp_3m": "DPM++ 3M",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "unipc": "UniPC",
    "lcm": "LCM",
    "restart": "Restart",
}
SCHEDULES = {
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "beta": "Beta",
    "normal": "Normal",  # the same as their Uniform, which ours is not
    "turbo": "Turbo",
    "sgm_uniform": "SGM Uniform",
    "kl_optimal": "KL Optimal",
    "simple": "Simple",
    "ddim_uniform": "DDIM",
    "automatic": "Automatic",
    "align_your_steps_11": "Align Your Steps 11",
    "align_your_steps_32": "Align Your Steps 32",
    "align_your_steps_gits": "Align Your Steps GITS",
    "align_your_steps": "Align Your Steps",
}
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n') else text


def _unquote(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        try:
            return json.loads(text, strict=False)
        except ValueError:
            return text
    return text.strip()


def to_infotext(recipe: Recipe) -> str:
    """The text of the `parameters` chunk."""
    denoiser = recipe.model.weights.get("denoiser")
    pairs: dict[str, object] = {
        "Steps": recipe.num_inference_steps,
        "Sampler": SAMPLERS.get(recipe.sampler, recipe.sampler),
        "Schedule type": SCHEDULES.get(recipe.schedule, recipe.schedule),
        "CFG scale": recipe.guidance_scale,
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}",
        **({"Denoising strength": recipe.start.strength} if recipe.start else {}),
        **({"Guidance": recipe.guidance} if recipe.guidance != "cfg" else {}),
        **({"Cache": recipe.cache} if recipe.cache else {}),
        **({"Composition": recipe.composition} if recipe.composition else {}),
        **({"Model hash": denoiser[:10]} if denoiser else {}),
        "Model": recipe.model.name,
        **({} if recipe.class_label is None else {"Class": recipe.class_label}),
        "Version": f"fewstep {recipe.machine.fewstep}",
    }
    lines = [recipe.prompt] + [f"Negative prompt: {recipe.negative_prompt}"] * bool(recipe.negative_prompt)
    return "\n".join([*lines, ", ".join(f"{name}: {_quote(value)}" for name, value in pairs.items())])


def from_infotext(text: str) -> dict[str, str]:
    """Names and values of such a text, whoever wrote it; "Prompt" and "Negative prompt" among them."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < 3:  # a prompt without settings
        lines, pairs = [*lines, last], []
    prompt, negative, current = [], [], None
    for line in lines:
        if line.startswith("Negative prompt:"):
            current, line = negative, line.removeprefix("Negative prompt:").strip()
        (prompt if current is None else negative).append(line)
    found = {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}
    return found | {name.strip(): _unquote(value) for name, value in pairs}
