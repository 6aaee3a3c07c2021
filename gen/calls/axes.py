"""What a sweep varies: one setting of a call and the values that it takes, read from a text such as `steps=4,8,20`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from gen.calls.ranges import numbers, split_values
from samplers.lookup import nearest

SHORT = {
    "steps": "num_inference_steps",
    "negative": "negative_prompt",
    "bins": "use_resolution_binning",
}  # as commands call them
# keywords that are no setting of one picture
_APART = {
    *("output_type", "num_images_per_prompt", "batch_size", "progress", "lora_dir", "seeds", "class_labels"),
    *("callback_on_step_end_tensor_inputs", "pipeline_options", "regions"),
}
_KINDS = {"bool", "int", "float", "str", "tuple[float, float]", "tuple[int, int]"}
_OPTIONS = "Mapping[str, Any]"
LORA, PROMPT = "lora", "prompt"
UNSET = ("none", "default")  # values that leave a name to the model


@dataclass(frozen=True)
class Axis:
    """One setting with its values.

    name: as it was written.
    keyword: of a call, "lora" for the weight of one, "prompt" for words of it.
    part: the option of a table of options, the LoRA, or the words that values take the place of; "" for the keyword itself.
    values: plain values.
    labels: the values as they were written.
    """

    name: str
    keyword: str
    part: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]

    def change(self, call: Mapping[str, Any], number: int) -> dict[str, Any]:
        """A call with the value of that number. The weight of a LoRA goes into `loras`, a table of names and weights."""
        value, changed = self.values[number], dict(call)
        if self.keyword == LORA:
            changed["loras"] = {**changed.get("loras", {}), self.part: value}
        elif self.keyword == PROMPT and self.part:
            for keyword in ("prompt", "negative_prompt"):
                if isinstance(changed.get(keyword), str):
                    changed[keyword] = changed[keyword].replace(self.part, value)
        elif self.part:
            changed[self.keyword] = {**(changed.get(self.keyword) or {}), self.part: value}
        else:
            changed[self.keyword] = value
        return changed

    def caption(self, number: int) -> str:
        """`steps 8`, and a prompt's words alone."""
        return self.labels[number] if self.keyword == PROMPT else f"{self.name.replace('_', ' ')} {self.labels[number]}"


def read_axis(text: str) -> Axis:
    """An axis of NAME=VALUES. ValueError, in a sentence, for one that cannot be.

    NAME: a keyword of a call that takes plain data, as Python or the command line spells it; `sampler-option:eta` and the like
        for one option; `lora:NAME` for the weight of a loaded LoRA; `prompt:WORDS` for what stands in the place of these words.
    VALUES: with commas between, in double quotes where they hold one; numbers also as ranges (`gen.calls.ranges`); pairs of
        numbers as LOW:HIGH; for names also none, which leaves them to the model.
    """
    written, equals, values_text = text.partition("=")
    name, colon, part = written.strip().partition(":")
    if not equals or not name or bool(colon) != bool(part):
        raise ValueError(f"{text!r:.200} says no setting and its values; write NAME=VALUES, for example steps=4,8,20.")
    keyword = SHORT.get(name.replace("-", "_"), name.replace("-", "_"))
    if keyword in (LORA, PROMPT) and colon:
        kind = "float" if keyword == LORA else "str"
    else:
        keyword, kind = _keyword(keyword, part, name)
    values, labels = _values(written.strip(), values_text, kind)
    if len(set(labels)) < len(labels):
        twice = next(label for label in labels if labels.count(label) > 1)
        raise ValueError(f"{written.strip()} has the value {twice!r} twice; give it once.")
    return Axis(written.strip(), keyword, part, tuple(values), tuple(labels))


def _keyword(keyword: str, part: str, name: str) -> tuple[str, str]:
    """(keyword of a call, kind of its values). ValueError for a name that no call takes, or that takes nothing plain."""
    kinds = keyword_kinds()
    if part:
        table = f"{keyword}s"
        if kinds.get(table) != _OPTIONS:
            known = ", ".join(
                sorted(one.removesuffix("s").replace("_", "-") for one, kind in kinds.items() if kind == _OPTIONS)
            )
            raise ValueError(f"{name}:{part} names no option; before the colon stands one of lora, prompt, {known}.")
        return table, "plain"
    if kinds.get(keyword) == _OPTIONS:
        raise ValueError(f"{name} is a table of options; vary one of them: {name.removesuffix('s')}:NAME=VALUES.")
    if keyword not in kinds:
        settings = [one for one, kind in kinds.items() if kind != _OPTIONS]
        near = nearest(name, [*settings, *SHORT])
        hint = f"; did you mean {near!r}?" if near else "."
        raise ValueError(
            f"A sweep has no setting {name!r:.80}{hint} There are {', '.join(sorted({*settings, *SHORT}))}; and lora:NAME, "
            "prompt:WORDS and sampler-option:NAME and the like."
        )
    return keyword, kinds[keyword]


@cache
def keyword_kinds() -> dict[str, str]:
    """Keyword of a call -> the kind of plain values that it takes: one of _KINDS, or a table of options."""
    from gen.generator import Generator
    from gen.tasks.table import TASKS

    annotations = {name: str(one.annotation) for name, one in inspect.signature(Generator.__call__).parameters.items()}
    for row in TASKS.values():
        if not row.registered and row.options.arguments is not None:
            typed = {field.name: str(field.type) for field in fields(row.options.arguments)}
            annotations |= {name: typed[name] for name in row.options.keywords}
    kinds: dict[str, str] = {}
    for name, annotation in annotations.items():
        parts = re.split(r"\s*\|\s*", annotation)
        kind = next((part for part in parts if part in (*_KINDS, _OPTIONS)), None)
        if kind is not None and name not in _APART and not name.startswith("_"):
            kinds[name] = kind
    return kinds


def _values(name: str, text: str, kind: str) -> tuple[list[Any], list[str]]:
    """(values, labels)."""
    if kind in ("int", "float"):
        found = numbers(name, text, int if kind == "int" else float)
        return found, [f"{one:g}" if kind == "float" else str(one) for one in found]
    labels = split_values(name, text)
    if kind == "str":
        return [None if label in UNSET and not name.startswith(PROMPT) else label for label in labels], labels
    if kind == "plain" and re.search(r"\d-\s*[\d.]", text):  # a range of numbers
        found = numbers(name, text, float)
        return [int(one) if one.is_integer() and "." not in text else one for one in found], [f"{one:g}" for one in found]
    return [_one(name, label, kind) for label in labels], labels


def _one(name: str, text: str, kind: str) -> Any:
    if text.lower() in ("true", "false") and kind in ("bool", "plain"):
        return text.lower() == "true"
    if kind == "bool":
        raise ValueError(f"{name} is {text!r:.80}; give true or false.")
    if kind.startswith("tuple"):
        number = int if "int" in kind else float
        try:
            first, second = (number(part) for part in text.split(":"))
        except ValueError:
            raise ValueError(f"{name} is {text!r:.80}; give two numbers with a colon between, for example -3:2.") from None
        return first, second
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
