"""From rows to jobs: a checked call for every picture, by its number in the batch. A row that cannot be is a `BadRow`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gen.batch.columns import Columns
from gen.batch.names import NameTemplate
from gen.batch.readers import BadLine, RowSource
from gen.batch.settings import BatchSettings
from gen.calls.call import AdapterUse, Call
from gen.calls.choose import beyond_student
from gen.calls.keywords import MAPPED, PICTURES
from gen.calls.kinds import check_kinds
from gen.calls.values import parse_value
from gen.calls.wildcards import Combinations, WildcardFiles, expand
from gen.io.validators import (
    MAX_SCALE,
    MAX_STEPS,
    SEED_END,
    check_float,
    check_int,
    check_interval,
    check_option_values,
    check_text,
)
from gen.models.control_names import NAMED
from gen.models.control_pictures import check_kind
from gen.pipeline.exif import check_alpha
from samplers.lookup import nearest
from samplers.registry import grid_info, parse_sampler, solver_info

TEXTS = (
    *("prompt", "prompt_2", "prompt_3", "negative_prompt", "negative_prompt_2", "negative_prompt_3", "sampler", "schedule"),
    *("guidance", "cache", "prompt_syntax", "guide", "guide_method", "composition", "lora", "image", "mask", "control"),
)
WHOLE = {"num_inference_steps": (1, MAX_STEPS), "height": (1, 16_384), "width": (1, 16_384), "seed": (0, SEED_END - 1)}
REAL = {"guidance_scale": (0.0, MAX_SCALE), "strength": (0.0, 1.0)}
OPTION_TABLES = (
    "sampler_options",
    "schedule_options",
    "guidance_options",
    "cache_options",
    "guide_options",
    "composition_options",
)


@dataclass(frozen=True)
class PictureJob:
    """One picture. index: its number in the batch; line: of the source; extra: columns that are carried along."""

    index: int
    line: int
    call: Call
    name: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.call.arguments["seed"]

    @property
    def prompt(self) -> str:
        return str(self.call.arguments.get("prompt", ""))


@dataclass(frozen=True)
class BadRow:
    """A row, or a picture of one, that cannot be made, and why. It keeps its `pictures` numbers in the batch, from `index`."""

    index: int
    line: int
    reason: str
    row: Mapping[str, Any] = field(default_factory=dict)
    pictures: int = 1


class RowReader:
    """Jobs of a batch, in order, always the same. seed: of the batch (`BatchSettings.seed`, or as it was drawn)."""

    def __init__(self, settings: BatchSettings, source: RowSource, seed: int, model: str):
        self.settings, self.source, self.seed, self.model = settings, source, seed, model
        self.files = WildcardFiles(settings.wildcards)
        self.name = NameTemplate(settings.name, None if settings.extra else ())
        self.loras: Mapping[str, Path] | None = None
        self.columns = Columns(settings.columns, settings.extra)
        self.columns.options(settings.defaults)
        self.columns.check(source)
        check_arguments(settings.defaults)  # what is wrong with all rows is said once
        Call(settings.defaults, adapters=settings.adapters, model=model)

    def in_columns(self, sentence: str) -> str:
        """What is wrong with a row, as whoever wrote the rows called it."""
        return self.columns.respelt(sentence)

    def __iter__(self) -> Iterator[PictureJob | BadRow]:
        return self.jobs(lambda index: True)

    def jobs(self, wanted: Callable[[int], bool]) -> Iterator[PictureJob | BadRow]:
        """Those with a wanted number. Rows of which none is wanted are not looked into, if it is known how many they have."""
        settings, index = self.settings, 0
        for line, row in self.source.rows():
            pictures = settings.number
            if not settings.combinatorial and not any(map(wanted, range(index, index + pictures))):
                index += pictures
                continue
            try:
                if isinstance(row, BadLine):
                    raise ValueError(row.reason)
                call, extra = self.call_of(row)
                prompts = self.prompts_of(call)
            except ValueError as error:
                yield BadRow(index, line, self.in_columns(str(error)), {} if isinstance(row, BadLine) else row, pictures)
                index += pictures
                continue
            for prompt in prompts:
                for copy in range(pictures):
                    if wanted(index):
                        try:
                            yield self.job(index, line, call, prompt, copy, extra)
                        except ValueError as error:
                            yield BadRow(index, line, self.in_columns(str(error)), row)
                    index += 1

    def prompts_of(self, call: Call) -> Sequence[str | None]:
        """Every prompt of a row; None stands for one that is drawn for each picture."""
        prompt = call.arguments.get("prompt")
        if not (self.settings.templates and isinstance(prompt, str)):
            return (prompt,)
        return Combinations(prompt, self.files) if self.settings.combinatorial else (None,)

    def job(self, index: int, line: int, call: Call, prompt: str | None, copy: int, extra: Mapping[str, Any]) -> PictureJob:
        given = call.arguments
        own = given.get("seed")
        changed: dict[str, Any] = {"seed": ((self.seed + index) if own is None else own + copy) % SEED_END}
        if self.settings.templates and "prompt" in given:
            changed["prompt"] = expand(given["prompt"], self.seed, index, self.files) if prompt is None else prompt
        if self.settings.templates and given.get("negative_prompt"):
            changed["negative_prompt"] = expand(given["negative_prompt"], self.seed, -1 - index, self.files)
        call = call.with_arguments(**changed)
        if self.model == "fast" and (other := beyond_student(call.arguments)) not in (None, "negative_prompt"):
            raise ValueError(f"the fast model was not made for its {other}; give --no-fast, or another --model")
        name = self.name.fill(index, line, changed["seed"], str(call.arguments.get("prompt", "")), extra)
        check_alpha(PurePosixPath(name).suffix, call.arguments.get("transparent"))
        return PictureJob(index, line, call, name, extra)

    def call_of(self, row: Mapping[str, Any]) -> tuple[Call, dict[str, Any]]:
        """(what a row asks for, columns carried along); ValueError says what cannot be."""
        settings, row = self.settings, {str(column): value for column, value in row.items()}
        taken = self.columns.keywords(row)
        values = {
            taken[str(column)]: _value(taken[str(column)], value) for column, value in row.items() if str(column) in taken
        }
        extra = {str(column): value for column, value in row.items() if str(column) not in taken and _is_plain(value)}
        adapters = settings.adapters if "lora" not in values else self.adapters_of(values.pop("lora"))
        arguments = {**settings.defaults, **{name: value for name, value in values.items() if value is not None}}
        self._confine(arguments, values)
        check_arguments(arguments)
        check_kinds(values)
        return Call(arguments, adapters=adapters, model=self.model), extra

    def _confine(self, arguments: dict[str, Any], own: Mapping[str, Any]) -> None:
        """Pictures that a row names, those of a layout too, are files below the folder of its source."""
        for name in (*PICTURES, *MAPPED):
            if name not in own or own[name] == "batch":
                continue
            value = own[name]
            if isinstance(value, Mapping):
                arguments[name] = {key: self._file(name, one) for key, one in value.items()}
            else:
                arguments[name] = (
                    [self._file(name, one) for one in value] if isinstance(value, list) else self._file(name, value)
                )

        if isinstance(layout := own.get("layout"), Mapping):
            arguments["layout"] = self._confined_layout(layout)

    def _confined_layout(self, layout: Mapping[str, Any]) -> dict[str, Any]:
        """A layout whose painting and masks are files below that folder."""
        confined = dict(layout)
        if layout.get("painting") is not None:
            confined["painting"] = self._file("layout's painting", layout["painting"])
        for name in ("regions", "layers"):
            if isinstance(parts := layout.get(name), list):
                confined[name] = [
                    {**part, "mask": self._file("layout's mask", part["mask"])}
                    if isinstance(part, Mapping) and part.get("mask") is not None
                    else part
                    for part in parts
                ]
        return confined

    def _file(self, name: str, value: Any) -> str:
        base = self.source.base
        if base is None or not isinstance(value, str) or "\0" in value:
            raise ValueError(f"its {name} is {value!r:.80}; give the path of a file below the folder that the rows come from")
        path = (base / value).resolve()
        if not path.is_relative_to(base.resolve()):
            raise ValueError(
                f"its {name} {value!r:.80} lies outside of {base}, the folder that the rows come from; move it there"
            )
        if not path.is_file():
            raise ValueError(f"its {name} {value!r:.80} is no file in {base}; check the name")
        return str(path)

    def adapters_of(self, text: Any) -> tuple[AdapterUse, ...]:
        """`style:0.8, other`: names of files in the folder of LoRAs."""
        from gen.pipeline.scenes import lora_files

        if self.settings.lora_dir is None or not isinstance(text, str):
            raise ValueError(
                "its column lora names files of a folder; give the folder (--lora-dir), and names with commas between"
            )
        if self.loras is None:
            self.loras = lora_files(self.settings.lora_dir)
        uses = []
        for part in filter(None, map(str.strip, text.split(","))):
            name, _, weight = part.partition(":")
            if (name := name.strip()) not in self.loras:
                near = nearest(name, self.loras)
                hint = f" Did you mean {near!r}?" if near else ""
                raise ValueError(f"its lora {name!r} is no file of {self.settings.lora_dir}.{hint}")
            value = parse_value(weight.strip()) if weight.strip() else 1.0
            uses.append(AdapterUse(str(self.loras[name]), check_float(f"the weight of {name}", value, -100, 100)))
        return tuple(uses)


def _value(name: str, value: Any) -> Any:
    """A cell as a call takes it: CSV has texts alone, in which numbers and JSON are read where the keyword is no text, and
    NAME=FILE where it is a control."""
    if name == "control" and isinstance(value, str) and (parts := value.partition("="))[0] in NAMED and parts[1]:
        return {parts[0]: parts[2]}
    if not isinstance(value, str) or name in TEXTS:
        return value
    text = value.strip()
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its {name} is no JSON ({error})") from None
    return parse_value(text) if text else None


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool) and len(str(value)) < 10_000


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """ValueError for what no model could make: numbers out of range, names that are in no table."""
    for name, value in arguments.items():
        if value is None:
            continue
        if name in ("prompt", "negative_prompt"):
            check_text(name, value)
        elif name in WHOLE:
            check_int(name, value, *WHOLE[name])
        elif name in REAL:
            check_float(name, value, *REAL[name])
        elif name in OPTION_TABLES:
            check_option_values(name, value)
        elif name == "guidance_interval":
            check_interval(name, value)
        elif name == "sampler":
            solver_info(parse_sampler(value)[0])
        elif name == "schedule" and value != "table":
            grid_info(value)
        elif name == "joint":
            check_kind(value)


def student_serves(settings: BatchSettings, source: RowSource) -> bool:
    """Was the few-step student made for every row that can be made? Not where there is none."""
    reader = RowReader(settings, source, 0, "default")
    served = False
    for _, row in source.rows():
        try:
            call = None if isinstance(row, BadLine) else reader.call_of(row)[0]
        except ValueError:  # said where its picture would be made
            continue
        if call is not None and (call.adapters or beyond_student(call.arguments) is not None):
            return False
        served = served or call is not None
    return served
