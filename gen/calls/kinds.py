"""What kind of value each keyword of a call takes, as JSON has it: a wrong kind is said before any code meets it.

Ranges and names are not looked at here: those who use a value know them. Torch is not imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WHOLE_END = 1 << 63  # whole numbers are below, and above its negative
LARGEST = 1e300  # of other numbers


@dataclass(frozen=True)
class ValueKind:
    """A kind of value. words: what an error says of it, after "give". takes: is a value of this kind?"""

    words: str
    takes: Callable[[Any], bool]

    def or_list(self, words: str = "") -> ValueKind:
        """This, or a list of it."""
        return ValueKind(words or f"{self.words}, or a list of such", lambda value: self.takes(value) or list_of(self)(value))

    def or_else(self, other: ValueKind) -> ValueKind:
        return ValueKind(f"{self.words}, or {other.words}", lambda value: self.takes(value) or other.takes(value))


def list_of(kind: ValueKind, count: int | None = None) -> Callable[[Any], bool]:
    """Whether a value is a list of a kind, of `count` entries where one is given."""
    return lambda value: isinstance(value, list) and len(value) == (count or len(value)) and all(map(kind.takes, value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -WHOLE_END < value < WHOLE_END


def _is_number(value: Any) -> bool:
    return _is_whole(value) or (isinstance(value, float) and abs(value) <= LARGEST)


FLAG = ValueKind("true or false", lambda value: isinstance(value, bool))
WHOLE = ValueKind("a whole number", _is_whole)
NUMBER = ValueKind("a number", _is_number)
TEXT = ValueKind("a text", lambda value: isinstance(value, str))
TEXTS = TEXT.or_list()
WHOLES = WHOLE.or_list()
NUMBERS = NUMBER.or_list()
TWO_WHOLES = ValueKind("a list of two whole numbers", list_of(WHOLE, 2))
RANGE = ValueKind("a list of two numbers, the lower one first", list_of(NUMBER, 2))
SIDES = WHOLE.or_else(ValueKind("a list of two, height first", TWO_WHOLES.takes))
FILES = TEXT.or_list("a picture, or a list of pictures")
NAMES = TEXT.or_list("a name, or a list of names")
OBJECT = ValueKind("an object of names and values", lambda value: isinstance(value, Mapping))
ANYTHING = ValueKind("anything", lambda value: True)
OPTION = ValueKind("a number, a text, true, false or a list of numbers", lambda value: _is_option(value))


def _is_option(value: Any) -> bool:
    return FLAG.takes(value) or NUMBER.takes(value) or TEXT.takes(value) or list_of(NUMBER)(value)


_OPTION_TABLES = (
    "sampler",
    "schedule",
    "guidance",
    "cache",
    "guide",
    "composition",
    "negtome",
    "reference",
    "concepts",
    "references_fusion",
)
KINDS: dict[str, ValueKind] = {
    **dict.fromkeys(("prompt", "negative_prompt", "prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"), TEXTS),
    **dict.fromkeys(("concepts", "aesthetic", "reference_prompt", "others", "view"), TEXTS),
    "class_labels": WHOLE.or_else(TEXT).or_list("a whole number or a name, or a list of such"),
    **dict.fromkeys(("sampler", "schedule", "prompt_syntax", "noise_kind", "composition", "hires_upscaler"), TEXT),
    **dict.fromkeys(("guide", "guide_method", "greedy", "weights", "sync_distance", "task", "kind"), TEXT),
    **dict.fromkeys(("guidance", "cache"), NAMES),
    **dict.fromkeys(("height", "width", "num_inference_steps", "num_images_per_prompt", "seed", "batch_size"), WHOLE),
    **dict.fromkeys(("window_batch", "recurrence", "left", "right", "top", "bottom", "iterations"), WHOLE),
    **dict.fromkeys(
        ("references_fusion", "hires_steps", "hires_window", "variation_seed", "clip_skip", "max_sequence_length"), WHOLE
    ),
    "seeds": ValueKind("a list of whole numbers", list_of(WHOLE)),
    **dict.fromkeys(("guidance_scale", "shift_from", "sync", "scale", "strength", "factor", "radius", "noise"), NUMBER),
    **dict.fromkeys(("weight", "spread", "pixels_from", "hires", "hires_strength", "variation_strength"), NUMBER),
    **dict.fromkeys(("guide_strength", "refiner_at", "translate_strength", "noise_level"), NUMBER),
    **dict.fromkeys(("joint_strength", "joint_scale"), NUMBER),
    **dict.fromkeys(("joint", "joint_shown", "joint_adapter"), TEXT),
    **dict.fromkeys(("reward", "method"), TEXT),
    **dict.fromkeys(("tries", "children", "parents", "keep"), WHOLE),
    **dict.fromkeys(("refiner", "transparency", "translator", "direction", "translate_direction"), TEXT),
    **dict.fromkeys(("use_resolution_binning", "batch_invariant", "simulate", "transparent"), FLAG),
    "circular": FLAG.or_else(TEXT),
    **dict.fromkeys(("window", "stride"), SIDES),
    **dict.fromkeys(("original_size", "crops_coords_top_left", "target_size"), TWO_WHOLES),
    **dict.fromkeys(("negative_original_size", "negative_crops_coords_top_left", "negative_target_size"), TWO_WHOLES),
    "guidance_interval": RANGE,
    **dict.fromkeys(("control_range", "ip_adapter_range"), RANGE.or_list()),
    "references_range": RANGE,
    **dict.fromkeys(("control_weight", "references_scale"), NUMBERS),
    "control_mode": WHOLES,
    "ip_adapter_scale": NUMBERS.or_else(ValueKind("an object of numbers by layer", OBJECT.takes)),
    **{f"{name}_options": OBJECT for name in (*_OPTION_TABLES, "aesthetic", "greedy", "pipeline", "reward")},
    **dict.fromkeys(("regions", "layout"), OBJECT),
    **dict.fromkeys(("image", "mask", "negtome", "negtome_mask", "reference", "reference_mask"), FILES),
    **dict.fromkeys(("references", "references_mask", "translate", "joint_map", "joint_picture"), FILES),
    "control": FILES.or_else(ValueKind("an object of names and pictures", OBJECT.takes)),
    **dict.fromkeys(("ip_adapter_image", "ip_adapter_mask"), FILES.or_list("pictures, or lists of such")),
    **dict.fromkeys(("references_encoder", "references_vision"), TEXT),
    **dict.fromkeys(("controlnet", "ip_adapter", "ip_adapter_encoder", "lora_dir"), NAMES),
}


def check_kinds(arguments: Mapping[str, Any]) -> None:
    """ValueError for the first argument whose value is of another kind than its keyword takes; None is left out."""
    for name, value in arguments.items():
        if value is None:
            continue
        check_kind_of(name, value, KINDS.get(name, ANYTHING))
        if name.endswith("_options") and name != "pipeline_options" and isinstance(value, Mapping):
            for option, one in value.items():
                check_kind_of(f"{name}[{shown(option)}]", one, OPTION)


def check_kind_of(name: str, value: Any, kind: ValueKind) -> None:
    """ValueError for a value of another kind."""
    if not kind.takes(value):
        raise ValueError(f"{name} is {shown(value)}; give {kind.words}.")


def shown(value: Any, most: int = 60) -> str:
    """A value as JSON has it, cut where it is long: what whoever sent it can find again."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > WHOLE_END:
        return "a number of many digits"
    try:
        text = json.dumps(value, ensure_ascii=False, default=lambda other: type(other).__name__)
    except (ValueError, TypeError, RecursionError):  # digits beyond what Python writes, say
        return "a value that cannot be shown"
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= most else f"{text[: most - 3]}..."
