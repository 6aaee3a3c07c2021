"""Recipes in the one-line grammar of AUTOMATIC1111's web UI, which most viewers and galleries read.

    a red heart
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 3.0, Seed: 7, Size: 128x128, Model: default

The grammar is ambiguous where a prompt itself looks like its last lines: a line of a prompt that begins with "Negative prompt:"
is written with a backslash before it. The JSON chunk beside it is what we replay from.

Texts come from anywhere, so reading takes time in proportion to their length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from gen.pipeline.recipe import Recipe

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
NEGATIVE = "Negative prompt:"
_ESCAPED = re.compile(rf"^([^\S\n]*\\*)({NEGATIVE})", re.MULTILINE)
_STEPS = re.compile(r"^Steps:", re.MULTILINE)
_NAME = re.compile(r"\w[\w \-/]+")
_NAME_OR_END = re.compile(r"[:,\n]")
_VALUE_END = re.compile(r"[,\n]|\Z")
_NOTHING_MORE = re.compile(r"[^\S\n]*(?:[,\n]|\Z)")
_INSIDE = re.compile(r'["{}\[\]]')
_QUOTED = re.compile(r'"(?:[^\\"]|\\.)*"', re.DOTALL)


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ',:"\n\r') else text


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
        "Size": "{1}x{0}".format(*_size(recipe)),
        **_hires(recipe),
        **({"Denoising strength": recipe.start.strength} if recipe.start and recipe.start.strength is not None else {}),
        **({"Variation seed": recipe.variation.seed} if recipe.variation else {}),
        **({"Variation seed strength": recipe.variation.strength} if recipe.variation else {}),
        **({"Guidance": recipe.guidance} if recipe.guidance != "cfg" else {}),
        **({"Cache": recipe.cache} if recipe.cache else {}),
        **({"Composition": recipe.composition} if recipe.composition else {}),
        **({"Model hash": denoiser[:10]} if denoiser else {}),
        "Model": recipe.model.name,
        **({} if recipe.class_label is None else {"Class": recipe.class_label}),
        "Version": f"fewstep {recipe.machine.fewstep}",
    }
    lines = [_written(recipe.prompt)]
    lines += [f"{NEGATIVE} {_written(recipe.negative_prompt)}"] * bool(recipe.negative_prompt)
    return "\n".join([*lines, ", ".join(f"{name}: {_quote(value)}" for name, value in pairs.items())])


def _size(recipe: Recipe) -> tuple[int, int]:
    """Height and width, of the first pass where there are two."""
    return recipe.made_at if recipe.hires and recipe.made_at else (recipe.height, recipe.width)


def _hires(recipe: Recipe) -> dict[str, object]:
    """The second pass, in the words of hires fix."""
    if recipe.hires is None:
        return {}
    return {
        "Denoising strength": recipe.hires.strength,
        "Hires upscale": recipe.hires.scale,
        "Hires steps": recipe.hires.steps,
        "Hires upscaler": "Latent" if recipe.hires.upscaler == "latent" else "Lanczos",
    }


def _written(prompt: str) -> str:
    """With a backslash before what would be read as the beginning of the negative prompt."""
    return _ESCAPED.sub(r"\1\\\2", _lines(prompt))


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def from_infotext(text: str) -> dict[str, str]:
    """Names and values of such a text, whoever wrote it; "Prompt" and "Negative prompt" among them."""
    text = _lines(text.removeprefix("\ufeff")).strip()
    prompts, fields = text, []
    for start in _beginnings(text):
        pairs = _pairs(text[start:])
        if len(pairs) >= 3:  # fewer are a prompt without settings
            prompts, fields = text[:start].removesuffix("\n"), pairs
            break
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in prompts.split("\n"):
        if line.lstrip().startswith(NEGATIVE):
            part, line = negative, line.lstrip().removeprefix(NEGATIVE).strip()
        if (escaped := _ESCAPED.match(line)) and escaped[1]:
            line = escaped[1][:-1] + line[escaped.start(2) :]
        part.append(line)
    return {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)} | dict(fields)


def _beginnings(text: str) -> list[int]:
    """Where settings may begin: at the last line that starts with "Steps:" and lies in no value that began above it, for such
    values have lines of their own; else at the last line."""
    last = text.rfind("\n") + 1
    lines = [match.start() for match in _STEPS.finditer(text)]
    if not lines:
        return [last]
    values = [(begin, end) for _, begin, end in _values(text, lines[0])]
    outside, at = [], 0
    for line in lines:
        while at < len(values) and values[at][1] <= line:
            at += 1
        if at == len(values) or line < values[at][0]:
            outside.append(line)
    return [outside[-1], last]  # the first of the lines lies in no value


def _pairs(text: str) -> list[tuple[str, str]]:
    """Names and values."""
    return [(name, _unquote(text[begin:end])) for name, begin, end in _values(text) if name]


def _values(text: str, at: int = 0) -> Iterator[tuple[str, int, int]]:
    """Each value's name ("" where it has none), and where it begins and ends: at a comma or line break outside of quotes and of
    JSON's brackets."""
    brackets = True
    while (stop := _NAME_OR_END.search(text, at)) is not None:
        name, at = _name(text[at : stop.start()]), stop.end()
        if stop[0] != ":":
            continue
        while text[at : at + 1] in (" ", "\t"):
            at += 1
        end = None
        if text[at : at + 1] == '"':
            quoted = _QUOTED.match(text, at)
            end = quoted and quoted.end()
        elif text[at : at + 1] in ("{", "[") and brackets:
            end = _closed(text, at)
        after = None if end is None else _NOTHING_MORE.match(text, end)
        if after is None:
            # what opens no value now is not looked for again: reading stays linear in the text
            brackets = brackets and text[at : at + 1] not in ("{", "[")
            after = _VALUE_END.search(text, at)
            assert after is not None  # it matches the end of the text
            end = after.start()
        assert end is not None
        yield name, at, end
        at = after.end()


def _name(text: str) -> str:
    """The name that stands before a colon, without what stands before it; "" for none."""
    begin = len(text := text.strip())
    while begin and (text[begin - 1].isalnum() or text[begin - 1] in "_ -/"):
        begin -= 1
    rest = text[begin:].lstrip(" -/")
    return rest if _NAME.fullmatch(rest) else ""


def _closed(text: str, start: int) -> int | None:
    """Where the bracket at `start` ends, quotes inside of it passed over; None where it never does."""
    depth, at = 0, start
    while (mark := _INSIDE.search(text, at)) is not None:
        at = mark.end()
        if mark[0] == '"':
            quoted = _QUOTED.match(text, mark.start())
            if quoted is None:
                return None
            at = quoted.end()
            continue
        depth += 1 if mark[0] in "{[" else -1
        if not depth:
            return at
    return None
