"""Syntax of other tools in prompts that is read here as plain words: said once, as its words change the picture.

AUTOMATIC1111's and ComfyUI's: extra networks, prompt editing, alternation, composed and broken prompts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence

# what it is -> what it looks like; no expression looks at a character more than once for each beginning
_FORMS = {
    "<{}:...> loads a LoRA or the like; give its file with --lora FILE:WEIGHT (load_adapter)": re.compile(
        r"<(lora|lyco|hypernet):[^<>\n]{1,200}>", re.IGNORECASE
    ),
    "[a:b:0.5] changes words on the way; one prompt holds for all steps here": re.compile(
        r"\[[^\[\]:|\n]{0,200}(?::[^\[\]:|\n]{0,200})?:\s{0,20}\d{1,10}(?:\.\d{0,10})?\s{0,20}\]"
    ),
    "[a|b] takes words in turns; one prompt holds for all steps here": re.compile(
        r"\[[^\[\]|\n]{0,200}(?:\|[^\[\]|\n]{0,200}){1,20}\]"
    ),
    "AND joins prompts; use a layout for several (docs/regions.md)": re.compile(r"(?<=\S)\s+AND\s+(?=\S)"),
}
_BREAK = re.compile(r"(?<!\w)BREAK(?!\w)")


def foreign_syntax(prompt: str, breaks: bool = False) -> list[str]:
    """What of a prompt other tools read as more than words, each as a phrase. breaks: the text encoder knows BREAK."""
    kinds = []
    for meaning, form in _FORMS.items():
        if (match := form.search(prompt)) is not None:
            kinds.append(meaning.format(*match.groups()))
    if not breaks and _BREAK.search(prompt):
        kinds.append("BREAK begins a new part of 75 tokens for CLIP; this model's text encoder reads it as a word")
    return kinds


def warn_foreign(prompts: Sequence[str], breaks: bool = False) -> None:
    """One warning for all prompts of a call."""
    kinds: dict[str, None] = {}
    for prompt in dict.fromkeys(prompts):
        kinds |= dict.fromkeys(foreign_syntax(prompt, breaks))
    if kinds:
        warnings.warn(
            f"Of the prompt some is read as plain words that other tools read as more: {'; '.join(kinds)}.", stacklevel=3
        )
