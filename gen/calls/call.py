"""A call of a `Generator` as plain data: what to call, with which values, on which model under which adapters."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from gen.calls.keywords import FOLDERS, MAPPED, NAMES_ONLY, OWN, PICTURES, files_in, flat, keywords_of
from gen.io.validators import check_float
from gen.tasks.table import TASKS

if TYPE_CHECKING:
    from gen.pipeline.recipe import Recipe

MOST_ADAPTERS = 64
DEPTH = 6  # of lists and dicts in an argument
LARGEST = 1_000_000  # characters of the arguments as JSON


@dataclass(frozen=True)
class AdapterUse:
    """A LoRA, a relative of it or learned words. file: safetensors, or a folder; weight: how strongly it acts."""

    file: str
    weight: float = 1.0


@dataclass(frozen=True)
class Call:
    """What makes pictures.

    arguments: keywords of the method with JSON values; pictures are paths of files. None is left out.
    method: of `Generator`, a name of `gen.calls.keywords.OWN`; "image" is the call itself.
    adapters: those that act, in their order.
    model: "default", "fast", a folder, a checkpoint's file or a hub id.
    Raises ValueError in a sentence for what no such call can have.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)
    method: str = "image"
    adapters: tuple[AdapterUse, ...] = ()
    model: str = "default"

    def __post_init__(self) -> None:
        if self.method not in OWN:
            raise ValueError(f"There is no method {self.method!r:.80} to make pictures; there are {', '.join(OWN)}.")
        if not isinstance(self.model, str) or not self.model:
            raise ValueError(f'The model is {self.model!r:.80}; give "default", "fast", a folder or a file.')
        if not isinstance(self.arguments, Mapping):
            raise ValueError(f"The arguments are {self.arguments!r:.80}; give names and values.")
        known = keywords_of(self.method)
        for name in self.arguments:
            if name not in known:
                from samplers.lookup import nearest  # imports torch, as all of `samplers` does

                near = nearest(str(name), list(known))
                hint = f"; did you mean {near!r}?" if near else "."
                raise ValueError(f"A call of {self.method!r} as plain data takes no {name!r:.80}{hint}")
        given = {name: _plain(name, value) for name, value in self.arguments.items() if value is not None}
        if len(json.dumps(given)) > LARGEST:
            raise ValueError(f"The arguments have more than {LARGEST:,} characters; make them shorter.")
        for name in NAMES_ONLY:
            if not str(given.get(name, "a")).isidentifier():
                kind = "a reward" if name == "reward" else "an energy"
                raise ValueError(f"{name} is {given[name]!r:.80}; give the name of {kind}. Files of code are not run here.")
        if not isinstance(given.get("layout", {}), Mapping):
            raise ValueError(f"layout is {given['layout']!r:.80}; give its values. A file of them is not read here.")
        _check_files(given)
        object.__setattr__(self, "arguments", given)
        object.__setattr__(self, "adapters", _adapters(self.adapters))

    def with_arguments(self, **arguments: Any) -> Call:
        """The same with other arguments; None takes one away."""
        return replace(self, arguments={**self.arguments, **arguments})

    def files(self) -> tuple[Path, ...]:
        """Every file and folder that it names, the model left out."""
        return (*files_in(self.arguments), *(Path(use.file) for use in self.adapters))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        adapters = [{"file": use.file, "weight": use.weight} for use in self.adapters]
        return {"method": self.method, "model": self.model, "arguments": dict(self.arguments), "adapters": adapters}

    @classmethod
    def from_dict(cls, value: Any) -> Self:
        """From JSON; ValueError says what is wrong."""
        names = ("method", "model", "arguments", "adapters")
        if not isinstance(value, Mapping) or not set(value) <= set(names):
            raise ValueError(f"A call is written as an object of {', '.join(names)}; this is {value!r:.80}.")
        adapters = value.get("adapters", ())
        if not isinstance(adapters, Sequence) or not all(
            isinstance(use, Mapping) and set(use) <= {"file", "weight"} for use in adapters
        ):
            raise ValueError(f"adapters is {adapters!r:.80}; give a list of objects of file and weight.")
        uses = tuple(AdapterUse(use.get("file", ""), use.get("weight", 1.0)) for use in adapters)
        return cls(value.get("arguments", {}), value.get("method", "image"), uses, value.get("model", "default"))

    @classmethod
    def from_recipe(cls, recipe: Recipe, adapter_files: Mapping[str, Path] | None = None) -> tuple[Self, tuple[str, ...]]:
        """(the call, what the recipe does not hold), from which the same settings make pictures anew.

        adapter_files: sha256 -> file, of those at hand.
        """
        missing = [f"the {name}" for name in recipe.unrecorded]
        arguments = {name: getattr(recipe, name) for name in _SAME if getattr(recipe, name) not in (None, {}, (), "")}
        arguments |= {"guidance_scale": recipe.guidance_scale, "num_images_per_prompt": 1, "prompt": recipe.prompt}
        if recipe.class_label is not None:
            arguments["class_labels"] = recipe.class_label
            arguments.pop("prompt", None)
        if recipe.schedule == "custom":
            missing.append("the noise levels of its maker")
            arguments.pop("schedule"), arguments.pop("schedule_options", None)
        if recipe.guide is not None:
            guide = recipe.guide
            if guide.energy:
                arguments |= {"guide": guide.energy, "guide_method": guide.method, "guide_strength": guide.strength}
                arguments["guide_options"] = dict(guide.options)
            else:
                missing.append("the energy that guided it")
        if recipe.encoding is not None:
            arguments |= {name: value for name in _READING if (value := getattr(recipe.encoding, name)) is not None}
            missing += ["the sizes that its model was told"] * bool(recipe.encoding.size_ids)
        if recipe.variation is not None:
            arguments |= {"variation_seed": recipe.variation.seed, "variation_strength": recipe.variation.strength}
        if recipe.transparent is not None:
            arguments["transparent"] = True
        if recipe.hires is not None:
            record = recipe.hires
            arguments |= {"hires": record.scale, **{f"hires_{name}": getattr(record, name) for name in _HIRES}}
            if recipe.made_at is not None:  # the second pass made the picture that large
                arguments |= dict(zip(("height", "width"), recipe.made_at, strict=True))
        missing += [_MISSING.get(name, f"its {name.replace('_', ' ')}") for name in _unread(recipe)]
        uses = []
        for name, weight in recipe.adapters.items():
            file = (adapter_files or {}).get((recipe.adapter_files or {}).get(name, ""))
            if file is None:
                missing.append(f"the adapter {name!r}")
            else:
                uses.append(AdapterUse(str(file), weight))
        if len(uses) < 2:
            arguments = {name: value for name, value in arguments.items() if not name.startswith("composition")}
        return cls(arguments, adapters=tuple(uses), model=recipe.model.name), tuple(missing)


# fields of recipes that are keywords of a call by the same name
_SAME = (
    *("negative_prompt", "prompt_syntax", "seed", "height", "width", "num_inference_steps", "sampler", "sampler_options"),
    *("schedule", "schedule_options", "guidance", "guidance_options", "guidance_interval", "cache", "cache_options"),
    *("noise_kind", "composition", "composition_options"),
    *("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"),
)
_READING = ("clip_skip", "max_sequence_length")
_HIRES = ("strength", "steps", "upscaler", "window")
_READ = (*_SAME, "guide", "encoding", "variation", "hires", "transparent")  # of the fields of tasks
_MISSING = {  # fields of recipes that know pictures by their sha256 alone, or belong to methods of their own
    "start": "the picture it began with",
    "control": "the pictures it followed",
    "references": "the pictures it resembles",
    "refiner": "the model that finished it",
    "restore": "the picture that was restored",
    "translation": "the picture that was translated",
    "around": "the picture that it was painted around",
    "joint": "how it was joined to a map",
    "canvas": "its canvas of windows",
    "layout": "its layout of regions",
    "views": "its views",
    "turns": "the noise that its search found",
    "tweaks": "its training-free changes",
    "regions": "the masks of its adapters",
    "own_tasks": "tasks of its maker's own",
    "pipeline": "what its pipeline was given",
}


def _unread(recipe: Recipe) -> list[str]:
    """The fields of tasks that say something and that no call is made of."""
    own = ((name, one) for row in TASKS.values() for name, one in row.options.fields.items() if name not in _READ)
    return [name for name, one in own if getattr(recipe, name) != one.default] + ["own_tasks"] * bool(recipe.own_tasks)


def _plain(name: str, value: Any, depth: int = 0) -> Any:
    """A JSON value, tuples as lists; ValueError for any other."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value!r}; give a finite number.")
        return value
    if depth >= DEPTH:
        raise ValueError(f"{name} has lists within lists beyond {DEPTH} levels; make it flatter.")
    if isinstance(value, list | tuple):
        return [_plain(name, one, depth + 1) for one in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(f"{name}[{key!r:.80}]", one, depth + 1) for key, one in value.items()}
    if isinstance(value, Path):
        return str(value)
    raise ValueError(f"{name} is {value!r:.80}, which is no plain value; give a number, a text, a list or a file's path.")


def _check_files(arguments: Mapping[str, Any]) -> None:
    for name in (*PICTURES, *FOLDERS):
        value = arguments.get(name)
        if value is not None and not all(isinstance(one, str) and one and "\0" not in one for one in flat(value)):
            raise ValueError(f"{name} is {value!r:.80}; give the path of a file, or a list of them.")
    for name in MAPPED:
        value = arguments.get(name)
        if value is not None and not (isinstance(value, Mapping) and all(isinstance(one, str) for one in value.values())):
            raise ValueError(f"{name} is {value!r:.80}; give names with the path of a file for each.")


def _adapters(uses: Iterable[AdapterUse]) -> tuple[AdapterUse, ...]:
    checked = []
    for use in uses:
        if not isinstance(use.file, str) or not use.file:
            raise ValueError(f"The file of an adapter is {use.file!r:.80}; give the path of a safetensors file.")
        checked.append(AdapterUse(use.file, check_float(f"The weight of {Path(use.file).name}", use.weight, -100, 100)))
    if len(checked) > MOST_ADAPTERS:
        raise ValueError(f"{len(checked)} adapters were given; at most {MOST_ADAPTERS} act together.")
    return tuple(checked)
