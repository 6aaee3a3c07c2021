"""Two or three settings of a call against one another: a picture for each combination, on sheets with their values beside.

sweep = Sweep.of("a red heart", ["steps=4,8,20", "sampler=euler,dpmpp_2m"], {"seed": 7})
sweep.check(generator)                       # what cannot be, before anything is drawn
made = list(sweep.run(generator))
sheets = sweep.sheets(made)                  # (title, picture), one for each prompt and value of the third setting
table = sweep.table(made)                    # every recipe, as plain data
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gen.calls.axes import LORA, PROMPT, Axis, read_axis

if TYPE_CHECKING:
    from PIL.Image import Image

    from gen.generator import Generator
    from gen.pipeline.recipe import Recipe

MOST_AXES, MOST_CELLS = 3, 1000
AT_ONCE = 8  # pictures that differ by prompt and seed alone and go through the network together


@dataclass(frozen=True)
class SweepCell:
    """One picture to make: position: the number of the prompt, then of each axis' value."""

    position: tuple[int, ...]
    call: Mapping[str, Any]


@dataclass(frozen=True)
class SweepPicture:
    """One that is made."""

    cell: SweepCell
    image: Image
    recipe: Recipe


@dataclass(frozen=True)
class Sweep:
    """Prompts, axes and the keywords of the call that they all have in common."""

    prompts: tuple[str, ...]
    axes: tuple[Axis, ...]
    call: Mapping[str, Any]

    @classmethod
    def of(cls, prompts: str | Sequence[str], vary: Sequence[str | Axis], call: Mapping[str, Any]) -> Sweep:
        """ValueError for axes that cannot be, or do not go together.

        prompts: one or several, each with sheets of its own.
        vary: texts as `read_axis` takes them: across the sheet, down it, and a sheet for each value.
        call: further keywords of a `Generator`'s call. Without a seed all pictures have seed 0.
        """
        axes = tuple(read_axis(one) if isinstance(one, str) else one for one in vary)
        texts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        if not 1 <= len(axes) <= MOST_AXES:
            raise ValueError(f"A sweep varies one to {MOST_AXES} settings, {len(axes)} were given; name them as steps=4,8,20.")
        targets = [(axis.keyword, axis.part) for axis in axes]
        if twice := next((axis.name for axis in axes if targets.count((axis.keyword, axis.part)) > 1), None):
            raise ValueError(f"{twice} is varied twice; give all its values at once.")
        if ("prompt", "") in targets:
            if any(texts):
                raise ValueError("The prompts are varied, and prompts are given beside; give them in one place.")
            texts = ("",)
        sweep = cls(texts or ("",), axes, {"seed": 0, **{name: value for name, value in call.items() if value is not None}})
        if (count := sweep.count) > MOST_CELLS:
            raise ValueError(f"This sweep is of {count} pictures, and {MOST_CELLS} are the most; give fewer values.")
        sweep._check_words()
        return sweep

    @property
    def count(self) -> int:
        """Of pictures."""
        total = len(self.prompts)
        for axis in self.axes:
            total *= len(axis.values)
        return total

    @property
    def text(self) -> str:
        """`12 pictures: steps (3) x sampler (4)`."""
        parts = [f"{axis.name} ({len(axis.values)})" for axis in self.axes]
        parts += [f"prompts ({len(self.prompts)})"] * (len(self.prompts) > 1)
        return f"{self.count} picture{'s' * (self.count > 1)}: {' x '.join(parts)}"

    def cells(self) -> list[SweepCell]:
        """All of them, sheet by sheet and row by row."""
        across, down, *sheets = [range(len(axis.values)) for axis in self.axes] + [range(1)] * (2 - len(self.axes))
        found = []
        for prompt, *sheet, y, x in itertools.product(range(len(self.prompts)), *sheets, down, across):
            position = (prompt, *(x, y, *sheet)[: len(self.axes)])
            call = {"prompt": self.prompts[prompt], **self.call}
            for axis, number in sorted(zip(self.axes, position[1:], strict=True), key=lambda one: one[0].part != ""):
                call = axis.change(call, number)  # a whole prompt before words of it
            found.append(SweepCell(position, call))
        return found

    def caption(self, cell: SweepCell) -> str:
        """The values of a cell, with commas between."""
        return ", ".join(axis.caption(number) for axis, number in zip(self.axes, cell.position[1:], strict=True))

    def check(self, generator: Generator) -> None:
        """Everything that a call refuses or warns of before it draws, for every cell; ValueError names the first that cannot
        be. LoRAs that are varied, and lie in the call's `lora_dir`, are loaded."""
        self._load(generator)
        for cell in self.cells():
            try:
                _call(generator, [cell], check=True)
            except ValueError as error:
                raise ValueError(f"With {self.caption(cell)}: {error}") from None

    def run(self, generator: Generator, on_picture: Callable[[SweepPicture], None] | None = None) -> Iterator[SweepPicture]:
        """Every picture as it is made. Stop whenever you like: what came is whole."""
        for cells in _together(self.cells()):
            output = _call(generator, cells, check=False)
            for cell, image, recipe in zip(cells, output.images, output.recipes, strict=False):
                made = SweepPicture(cell, image, recipe)
                if on_picture is not None:
                    on_picture(made)
                yield made
            if output.interrupted:
                return

    def without_effect(self, made: Iterable[SweepPicture]) -> list[str]:
        """A sentence for each axis whose values gave the same pixels: everywhere, or where."""
        pixels = {one.cell.position: hashlib.sha256(one.image.tobytes()).digest() for one in made}
        said = []
        for number, axis in enumerate(self.axes, 1):
            lines: dict[tuple[int, ...], set[bytes]] = {}
            counts: dict[tuple[int, ...], int] = {}
            for position, own in pixels.items():
                others = position[:number] + position[number + 1 :]
                lines.setdefault(others, set()).add(own)
                counts[others] = counts.get(others, 0) + 1
            whole = [others for others, count in counts.items() if count == len(axis.values) > 1]
            same = [others for others in whole if len(lines[others]) == 1]
            if same and len(same) == len(whole):
                said.append(f"{axis.name} has no effect here: all its pictures are the same.")
            elif same:
                said.append(f"{axis.name} has no effect with {'; '.join(self._where(number, same, whole))}.")
        return said

    def _where(self, number: int, same: Sequence[tuple[int, ...]], whole: Sequence[tuple[int, ...]]) -> list[str]:
        """In words, the lines of an axis among all `whole` ones: by one other value, where that is what they have in common."""
        names = [[f"the prompt {prompt!r:.60}" for prompt in self.prompts]]
        names += [[one.caption(i) for i in range(len(one.values))] for n, one in enumerate(self.axes, 1) if n != number]
        left, said = list(same), []
        for place, captions in reversed(list(enumerate(names))):
            for value, caption in enumerate(captions):
                lines = [line for line in whole if line[place] == value]
                if len(captions) > 1 and lines and set(lines) <= set(left):
                    said.append(caption)
                    left = [line for line in left if line[place] != value]
        for line in left:
            parts = [captions[value] for captions, value in zip(names, line, strict=True) if len(captions) > 1]
            said.append(", ".join(parts))
        return said

    def sheets(self, made: Iterable[SweepPicture]) -> list[tuple[str, Image]]:
        """(title, picture) of every sheet that has a picture; what was not made is left white."""
        from gen.io.labelled_grid import labelled_grid

        across = self.axes[0]
        down = self.axes[1] if len(self.axes) > 1 else None
        sheets: dict[tuple[int, ...], dict[tuple[int, int], Any]] = {}
        for one in made:
            prompt, x, *rest = one.cell.position
            sheets.setdefault((prompt, *rest[1:]), {})[x, rest[0] if rest else 0] = one.image
        found = []
        for key, pictures in sheets.items():
            above = [self.prompts[key[0]]] + [self.axes[2].caption(number) for number in key[1:]]
            title = ", ".join(part for part in above if part)
            columns = [across.caption(i) for i in range(len(across.values))]
            rows = [""] if down is None else [down.caption(i) for i in range(len(down.values))]
            found.append((title, labelled_grid(pictures, columns, rows, title)))
        return found

    def table(self, made: Iterable[SweepPicture]) -> dict[str, Any]:
        """Plain data, for JSON: the axes, and every picture's values and recipe."""
        cells = []
        for one in made:
            values = {axis.name: axis.values[i] for axis, i in zip(self.axes, one.cell.position[1:], strict=True)}
            cells.append({"prompt": self.prompts[one.cell.position[0]], **values, "recipe": one.recipe.named_values("json")})
        axes = [{"name": axis.name, "values": list(axis.labels)} for axis in self.axes]
        return {"prompts": list(self.prompts), "axes": axes, "cells": cells}

    def _check_words(self) -> None:
        """ValueError for words to replace that no prompt has."""
        whole = next((axis.values for axis in self.axes if (axis.keyword, axis.part) == (PROMPT, "")), self.prompts)
        texts = [*whole, str(self.call.get("negative_prompt") or "")]
        for axis in self.axes:
            if axis.keyword == PROMPT and axis.part and not any(axis.part in text for text in texts):
                raise ValueError(f"{axis.name}: {axis.part!r} stands in no prompt, so there is nothing to replace.")

    def _load(self, generator: Generator) -> None:
        wanted = {axis.part for axis in self.axes if axis.keyword == LORA}
        loaded = generator.loaded_adapters.loaded if generator.loaded_adapters else {}
        missing, folder = sorted(wanted - set(loaded)), self.call.get("lora_dir")
        if not missing or folder is None:
            return
        from gen.pipeline.scenes import lora_files

        files, before = lora_files(folder), dict(generator.adapters)
        for name in missing:
            if name in files:
                generator.load_adapter(files[name], name=name)
        generator.set_adapters(before)


def _together(cells: Sequence[SweepCell]) -> Iterator[list[SweepCell]]:
    """Cells in their order, neighbours that differ by prompt and seed alone together."""
    group: list[SweepCell] = []
    for cell in cells:
        alone = cell.call.get("variation_seed") is not None  # which counts up over pictures of one seed in a call
        if group and (alone or len(group) == AT_ONCE or _rest(cell) != _rest(group[0])):
            yield group
            group = []
        group.append(cell)
    if group:
        yield group


def _rest(cell: SweepCell) -> dict[str, Any]:
    return {name: value for name, value in cell.call.items() if name not in ("prompt", "seed")}


def _call(generator: Generator, cells: Sequence[SweepCell], *, check: bool) -> Any:
    """The pictures of cells that differ by prompt and seed alone, or what a call says of them before it draws. The weights of
    LoRAs hold for this call."""
    from gen.io.threads import lock_of

    call = _rest(cells[0])
    loras = call.pop("loras", None)
    prompts, seeds = [cell.call["prompt"] for cell in cells], [cell.call["seed"] for cell in cells]
    subject: dict[str, Any] = {"prompt": prompts}
    if generator.text_encoder is None:
        subject = {"class_labels": [prompt or -1 for prompt in prompts]} if generator.classes else {}
    with lock_of(generator.network):
        before = dict(generator.adapters)
        try:
            if loras is not None:
                generator.set_adapters({**before, **loras})
            return generator(**subject, **call, seeds=seeds, progress=False, _check_only=check)
        finally:
            if loras is not None:
                generator.set_adapters(before)
