"""What is set on the page for the next picture: from fields to a call, and from a call back into fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from gen.calls.call import AdapterUse, Call
from gen.calls.values import write_value
from gen.ui.checks import FieldError, number_in, whole_in
from gen.ui.forms import Catalogue, MethodChoice
from gen.ui.gallery import FileKind
from gen.ui.models import AUTOMATIC


@dataclass
class DrawSettings:
    """None and "" are left to the model.

    suffix, quality: of the files that pictures are kept in; no part of a call.
    at_once: pictures per network call.
    rule, modifiers, caches: names; each method's options are texts as typed.
    adapters: file -> weight.
    image, control, ip_image: files of the gallery's own.
    """

    prompt: str = ""
    negative: str = ""
    model: str = AUTOMATIC
    suffix: str = ".png"
    quality: int | None = None
    width: int | None = None
    height: int | None = None
    number: int = 1
    at_once: int | None = 1
    steps: int | None = None
    sampler: str = ""
    sampler_options: dict[str, Any] = field(default_factory=dict)
    schedule: str = ""
    schedule_options: dict[str, Any] = field(default_factory=dict)
    scale: float | None = None
    rule: str = ""
    modifiers: list[str] = field(default_factory=list)
    guidance_options: dict[str, Any] = field(default_factory=dict)
    interval_low: float | None = None
    interval_high: float | None = None
    caches: list[str] = field(default_factory=list)
    cache_options: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    adapters: dict[str, float] = field(default_factory=dict)
    composition: str = ""
    composition_options: dict[str, Any] = field(default_factory=dict)
    guide: str = ""
    guide_method: str = ""
    guide_strength: float | None = None
    guide_options: dict[str, Any] = field(default_factory=dict)
    image: str = ""
    strength: float | None = None
    controlnet: str = ""
    control: str = ""
    control_weight: float | None = None
    ip_adapter: str = ""
    ip_image: str = ""
    ip_scale: float | None = None
    hires: float | None = None
    hires_strength: float | None = None
    hires_steps: int | None = None
    hires_upscaler: str = ""
    hires_window: int | None = None
    variation_seed: int | None = None
    variation_strength: float | None = None
    transparent: bool = False
    more: dict[str, Any] = field(default_factory=dict)  # keywords of a call that was loaded and that have no field

    def to_call(self, catalogue: Catalogue | None = None) -> Call:
        """The call; FieldError names the field that holds what cannot be. catalogue: for options, left out without one."""
        arguments: dict[str, Any] = {**self.more, "prompt": self.prompt}
        arguments |= {"negative_prompt": self.negative or None, "seed": self.whole("seed", 0, (1 << 63) - 1)}
        arguments |= {
            "num_images_per_prompt": self.whole("number", 1, 10_000) or 1,
            "batch_size": self.whole("at_once", 1, 1024),
        }
        arguments |= {"num_inference_steps": self.whole("steps", 1, 1000), "guidance_scale": self.number_of("scale", 0, 100)}
        arguments |= {side: self.whole(side, 8, 16_384) for side in ("width", "height")}
        arguments |= {"sampler": self.sampler or None, "schedule": self.schedule or None}
        rules = " + ".join([*([self.rule] if self.rule else []), *self.modifiers])
        arguments |= {"guidance": rules or None, "cache": " + ".join(self.caches) or None}
        low, high = self.number_of("interval_low", -1000, 1000), self.number_of("interval_high", -1000, 1000)
        if low is not None or high is not None:
            arguments["guidance_interval"] = [-1000.0 if low is None else low, 1000.0 if high is None else high]
        if self.guide:
            arguments |= {"guide": self.guide, "guide_method": self.guide_method or None}
            arguments["guide_strength"] = self.number_of("guide_strength", 0, 1e6)
        if self.image:
            arguments |= {"image": self.image, "strength": self.number_of("strength", 0, 1)}
        arguments |= self._conditions() | self._second_pass()
        if self.transparent:
            if self.suffix in (".jpg", ".jpeg"):
                raise FieldError("transparent", "A JPEG has no alpha; keep pictures as PNG, WebP or AVIF, or turn this off.")
            arguments["transparent"] = True
        uses = tuple(AdapterUse(file, weight) for file, weight in self.adapters.items())
        if len(uses) > 1 and self.composition:
            arguments["composition"] = self.composition
        for name, methods in self.methods(catalogue).items():
            if options := self._options(name, methods):
                arguments[name] = {**arguments.get(name, {}), **options}
        return Call(arguments, adapters=uses, model=self.model)

    def _conditions(self) -> dict[str, Any]:
        """A picture to follow, and one that is a prompt, each with the network that reads it."""
        arguments: dict[str, Any] = {}
        for picture, network, weight, what in (
            ("control", "controlnet", "control_weight", "a ControlNet"),
            ("ip_image", "ip_adapter", "ip_scale", "an IP-Adapter"),
        ):
            if not (getattr(self, picture) or getattr(self, network)):
                continue
            for name, missing in ((picture, "a picture"), (network, what)):
                if not getattr(self, name):
                    raise FieldError(name, f"Choose {missing} too: a picture and {what} go together.")
            arguments |= {_KEYWORDS.get(name, name): getattr(self, name) for name in (picture, network)}
            arguments[_KEYWORDS.get(weight, weight)] = self.number_of(weight, -100, 100)
        return arguments

    def _second_pass(self) -> dict[str, Any]:
        """Hires and variations."""
        arguments: dict[str, Any] = {
            "variation_seed": self.whole("variation_seed", 0, (1 << 63) - 1),
            "variation_strength": self.number_of("variation_strength", 0, 1),
            "hires": self.number_of("hires", 1, 8),
        }
        own = {
            "hires_strength": self.number_of("hires_strength", 0, 1),
            "hires_steps": self.whole("hires_steps", 1, 1000),
            "hires_upscaler": self.hires_upscaler or None,
            "hires_window": self.whole("hires_window", 0, 16_384),
        }
        if arguments["hires"] is None and any(value is not None for value in own.values()):
            raise FieldError("hires", "Say how many times as large; without it there is no second pass.")
        return arguments | own

    def kind(self) -> FileKind:
        """Of the files that pictures are kept in; FieldError as above."""
        return FileKind(self.suffix, None if self.suffix == ".png" else self.whole("quality", 1, 100))

    def methods(self, catalogue: Catalogue | None) -> dict[str, list[MethodChoice]]:
        """The methods that are chosen, by the field of their options."""
        if catalogue is None:
            return {}
        chosen: dict[str, tuple[Mapping[str, MethodChoice], list[str]]] = {
            "sampler_options": (catalogue.samplers, [self.sampler]),
            "schedule_options": (catalogue.schedules, [self.schedule]),
            "guidance_options": (catalogue.guidance, [self.rule, *self.modifiers]),
            "cache_options": (catalogue.caches, self.caches),
            "composition_options": (catalogue.compositions, [self.composition] if len(self.adapters) > 1 else []),
            "guide_options": (catalogue.energies, [self.guide]),
        }
        found = {name: [table[one] for one in names if one in table] for name, (table, names) in chosen.items()}
        if self.guide and self.guide_method in catalogue.methods:
            found["guide_options"].append(catalogue.methods[self.guide_method])
        return found

    def _options(self, name: str, methods: list[MethodChoice]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        for option in (option for method in methods for option in method.fields):
            try:
                value = option.read(getattr(self, name).get(option.name))
            except ValueError as error:
                raise FieldError(f"{name}.{option.name}", str(error)) from None
            if value is not None:
                options[option.name] = value
            elif option.needed:
                raise FieldError(f"{name}.{option.name}", f"{option.name} is needed; give a value.")
        return options

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A field's whole number; FieldError if it is none from low to high."""
        return whole_in(name, getattr(self, name), low, high)

    def number_of(self, name: str, low: float, high: float) -> float | None:
        """A field's number, likewise."""
        return number_in(name, getattr(self, name), low, high)

    def load(self, call: Call) -> None:
        """Take over the settings of a call; what has no field is kept in `more`."""
        blank = DrawSettings()
        for one in fields(self):
            if one.name not in ("suffix", "quality"):
                setattr(self, one.name, getattr(blank, one.name))
        rest = dict(call.arguments)
        prompt = rest.pop("prompt", rest.pop("class_labels", ""))
        self.prompt = " ".join(map(str, prompt)) if isinstance(prompt, list) else str(prompt)
        for keyword, name in FIELDS.items():
            if keyword in rest:
                setattr(self, name, rest.pop(keyword))
        rules, self.caches = (_named(rest.pop(keyword, "")) for keyword in ("guidance", "cache"))
        self.rule, self.modifiers = (rules[0], rules[1:]) if rules else ("", [])
        if interval := rest.pop("guidance_interval", None):
            self.interval_low, self.interval_high = interval
        for name in OPTIONS:
            setattr(self, name, {option: _typed(value) for option, value in rest.pop(name, {}).items()})
        self.adapters = {use.file: use.weight for use in call.adapters}
        self.model = call.model
        self.more = rest


def _named(names: Any) -> list[str]:
    """Of "cfg++ + rescale"."""
    parts = names if isinstance(names, list) else re.split(r"\s+\+\s+", str(names))
    return [part.strip() for part in parts if part.strip()]


def _typed(value: Any) -> Any:
    try:
        return value if isinstance(value, bool) else write_value(value)
    except ValueError:
        return value


OPTIONS = (
    *("sampler_options", "schedule_options", "guidance_options", "cache_options", "composition_options", "guide_options"),
)
FIELDS = {  # keyword of a call -> field
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "guidance_scale": "scale",
    "num_images_per_prompt": "number",
    "batch_size": "at_once",
    "ip_adapter_image": "ip_image",
    "ip_adapter_scale": "ip_scale",
    **{
        name: name
        for name in (
            *("width", "height", "seed", "sampler", "schedule", "composition", "guide", "guide_method", "guide_strength"),
            *("image", "strength", "control", "controlnet", "control_weight", "ip_adapter", "variation_seed"),
            *("variation_strength", "hires", "hires_strength", "hires_steps", "hires_upscaler", "hires_window"),
            "transparent",
        )
    },
}
_KEYWORDS = {field: keyword for keyword, field in FIELDS.items()}
