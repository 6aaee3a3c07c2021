"""Prompts that change on the way: what every picture of a batch is told at each step of the schedule.

A scene is one reading of all the texts of a batch, without the syntax of `gen.models.prompt_syntax`. Most batches have one.
Scenes follow the noise levels of the whole schedule, so a run of its last part (an edit) keeps the place of every change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from gen.models.prompt_syntax import (
    SYNTAXES,
    PromptSchedule,
    parse_schedule,
    split_conjunction,
    take_loras,
    unescaped,
    without_breaks,
)
from gen.pipeline.types import Item, Settings, texts_of
from samplers.lookup import nearest

if TYPE_CHECKING:
    from gen.models.model import Model

MAX_JOINED = 16  # prompts of one picture
MAX_FILES = 10_000  # looked at in a folder of LoRAs


@dataclass(frozen=True)
class Scene:
    """One reading of a batch.

    items: the pictures, with the first of their joined prompts.
    settings: with the adapters that the prompts name, and the texts of tasks, as they are now.
    joined: prompts beside the first, each one for every picture.
    weights: of the first and of those, each one for every picture.
    """

    items: tuple[Item, ...]
    settings: Settings
    joined: tuple[tuple[str, ...], ...] = ()
    weights: tuple[tuple[float, ...], ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Everything that tells it from another scene of its batch."""
        own = [text for item in self.items for text in _texts(item)]
        tasks = [text for task in self.settings.tasks.values() for text in texts_of(task)]
        loras = [f"{name}:{weight!r}" for name, weight in self.settings.adapters.items()]
        return (*own, *tasks, *(text for part in self.joined for text in part), *loras)


def _texts(item: Item) -> list[str]:
    """Every text that a picture is made from."""
    return [item.prompt, item.negative_prompt, *(text for text in (*item.others, *item.negative_others) if text)]


@lru_cache(maxsize=512)
def _read(prompt: str) -> tuple[tuple[PromptSchedule, float], ...]:
    return tuple((parse_schedule(text), weight) for text, weight in split_conjunction(prompt))


def _is_plain(text: str) -> bool:
    """Without a character that any of the syntax needs: read as it is, the common case."""
    return not any(mark in text for mark in ("[", "AND", "BREAK", "<", "\\"))


def scenes_of(model: Model, items: Sequence[Item], settings: Settings) -> tuple[list[Scene], list[int]]:
    """(scenes, which of them each step of the schedule has) of a batch; one scene for all where nothing changes."""
    tasks = [text for task in settings.tasks.values() for text in texts_of(task)]
    texts = dict.fromkeys([*tasks, *(text for item in items for text in _texts(item))])
    if settings.prompt_syntax == "weights" or all(map(_is_plain, texts)):
        return [Scene(tuple(items), settings)], [0]
    steps = len(settings.grid) - 1
    changes = any(schedule.changes for text in texts for schedule, _ in _read(text))
    scenes: dict[tuple[str, ...], tuple[int, Scene]] = {}
    order = []
    for step in range(1, steps + 1) if changes else (1,):
        scene = _scene(model, items, settings, step, steps)
        number, _ = scenes.setdefault(scene.texts, (len(scenes), scene))
        order.append(number)
    return [scene for _, scene in scenes.values()], order


def _scene(model: Model, items: Sequence[Item], settings: Settings, step: int, steps: int) -> Scene:
    def plain(text: str) -> str:
        return _plain(model, "".join(schedule.at(step, steps) for schedule, _ in _read_whole(text)))

    def joined_plain(text: str) -> str:
        return _plain(model, take_loras(text)[0])

    parts = [[(schedule.at(step, steps), weight) for schedule, weight in _read(item.prompt)] for item in items]
    loras = [take_loras(" ".join(text for text, _ in own))[1] for own in parts]
    prompts = [[joined_plain(text) for text, _ in own] for own in parts]
    tasks = {name: task.map_texts(plain) for name, task in settings.tasks.items()}
    count = max(map(len, parts))
    return Scene(
        items=tuple(
            replace(
                item,
                prompt=own[0],
                negative_prompt=plain(item.negative_prompt),
                others=tuple(text and plain(text) for text in item.others),
                negative_others=tuple(text and plain(text) for text in item.negative_others),
            )
            for item, own in zip(items, prompts, strict=True)
        ),
        settings=replace(settings, tasks=tasks, adapters={**settings.adapters, **loras[0]}),
        joined=tuple(tuple(own[k] for own in prompts) for k in range(1, count)),
        weights=tuple(tuple(own[k][1] for own in parts) for k in range(count)) if count > 1 else (),
    )


@lru_cache(maxsize=512)
def _read_whole(text: str) -> tuple[tuple[PromptSchedule, float], ...]:
    """A text in which AND is a word: negative prompts, and those of regions and views."""
    return ((parse_schedule(text), 1.0),)


def _plain(model: Model, text: str) -> str:
    return unescaped(text if getattr(model.text_encoder, "breaks", False) else without_breaks(text))


def group_of(item: Item, settings: Settings) -> tuple:
    """What pictures of one batch have in common: how many prompts are joined, and which LoRAs the prompt names when."""
    if settings.prompt_syntax == "weights" or _is_plain(item.prompt):
        return ()
    steps = len(settings.grid) - 1
    parts = _read(item.prompt)
    if not take_loras(item.prompt)[1]:
        return (len(parts), ()) if len(parts) > 1 else ()
    named = [take_loras(" ".join(part.at(step, steps) for part, _ in parts))[1] for step in range(1, steps + 1)]
    return len(parts), tuple(tuple(sorted(loras.items())) for loras in named)


def token_counts(model: Model, item: Item, settings: Settings) -> tuple[int, ...]:
    """Of all that is read for a picture, where padding to the longest prompt of a batch would change its last bits."""
    if not settings.batch_invariant or not getattr(model.text_encoder, "varies", False):
        return ()
    counts = []
    for scene in scenes_of(model, [item], settings)[0]:
        prompts = [scene.items[0].prompt, *(text for part in scene.joined for text in part)]
        for text, negative in [*((prompt, False) for prompt in prompts), (scene.items[0].negative_prompt, True)]:
            read = model.encode_prompt([text], scene.settings.adapters, negative=negative, reading=settings.reading)
            counts.append(0 if read.mask is None else int(read.mask.sum()))
    return tuple(counts)


# ---- before a run ----


def check_syntax(value: object) -> str:
    if value is None:
        return "full"
    if value not in SYNTAXES:
        raise ValueError(
            f"prompt_syntax is {value!r}; give 'full', or 'weights' for prompts in which only weights in brackets count."
        )
    return str(value)


def check_prompts(model: Model, items: Sequence[Item], settings: Settings) -> None:
    """ValueError for prompts that this run cannot follow, before it begins."""
    if settings.prompt_syntax == "weights":
        return
    own = {text for task in settings.tasks.values() for text in texts_of(task)}
    refused = {text for item in items for text in _texts(item)[1:]}
    for text in own | refused:
        if take_loras(text)[1]:
            raise ValueError(f"LoRAs are named in prompts alone, not in {text!r:.100}; write them there, or give adapters.")
    for text in own:
        if len(split_conjunction(text)) > 1:
            raise ValueError(
                f"AND joins prompts of a whole picture, not those of its regions or views, as in {text!r:.100}; write one "
                "region for each."
            )
    composed = getattr(settings.tasks.get("composition"), "name", "merge") != "merge"
    for prompt in {item.prompt for item in items}:
        parts = _read(prompt)
        if len(parts) > MAX_JOINED:
            raise ValueError(f"A prompt joins {len(parts)} by AND; at most {MAX_JOINED} go together.")
        if len(parts) > 1 and (task := next((n for n, t in settings.tasks.items() if t.traits.one_prompt), None)):
            raise ValueError(f"AND joins prompts, which does not go with {task}; leave one of them out.")
        loras = take_loras(prompt)[1]
        model.active_adapters(dict.fromkeys(loras, 0.0))
        if composed and loras and fixed_loras(prompt) is None:
            raise ValueError(
                "A composition of adapters takes those that act from beginning to end, and the prompt has some that come or "
                "go; leave the composition out."
            )
    if settings.own_steps:
        for text in own | refused | {item.prompt for item in items}:
            if any(schedule.counts_steps for schedule, _ in _read(text)):
                raise ValueError(
                    f"The sampler {settings.sampler!r} chooses its own steps, so prompts change after a share of the schedule, "
                    "as in [a:b:0.5]; alternation [a|b] and numbers of steps need another sampler."
                )


def fixed_loras(prompt: str) -> dict[str, float] | None:
    """The LoRAs of a prompt, where none of them comes or goes; None where one does."""
    loras = take_loras(prompt)[1]
    return loras if take_loras(" ".join(schedule.fixed for schedule, _ in _read(prompt)))[1] == loras else None


def adapters_for(model: Model, prompts: Iterable[str], folder: object, syntax: str) -> dict[str, float]:
    """The adapters of a call whose prompts name LoRAs: the model's, with those that all prompts name alike in force, and the
    others known and without weight. Those that are not loaded come from `folder` (a LoRA's name is its file's), and stay
    loaded. ValueError for a name that is nowhere, and a folder that is none."""
    if folder is not None and not isinstance(folder, str | Path):
        raise ValueError(f"lora_dir is {type(folder).__name__} {folder!r:.80}; give the path of a folder of LoRA files.")
    prompts = list(dict.fromkeys(prompts))
    named = {name for prompt in prompts for name in take_loras(prompt)[1]} if syntax == "full" else set()
    if not named:
        return model.adapters
    loaded = () if model.loaded_adapters is None else model.loaded_adapters.loaded
    missing = sorted(named - set(loaded))
    files = lora_files(folder) if missing and folder is not None else {}
    for name in missing:
        if name not in files:
            known = sorted({*loaded, *files})
            near = nearest(name, known)
            listed = f"known are {', '.join(known[:20])}" if known else "none is loaded"
            raise ValueError(
                f"The prompt names the LoRA {name!r}, and {listed}; load it (load_adapter, --lora), or give its folder as "
                f"lora_dir (--lora-dir).{f' Did you mean {near!r}?' if near else ''}"
            )
        before = dict(model.adapters)
        model.load_adapter(files[name], name, weight=0.0)
        model.set_adapters(before)
    alike = [fixed_loras(prompt) for prompt in prompts]
    common = alike[0] if alike[0] is not None and all(loras == alike[0] for loras in alike) else {}
    return {**model.adapters, **{name: 0.0 for name in sorted(named) if name not in model.adapters}, **common}


def lora_files(folder: object) -> Mapping[str, Path]:
    """name -> file of the safetensors files in a folder and those below it. ValueError for two of one name."""
    path = Path(str(folder))
    if not path.is_dir():
        raise ValueError(f"lora_dir is {str(folder)!r}, which is not a folder; give the folder that LoRA files are in.")
    files: dict[str, Path] = {}
    for count, file in enumerate(sorted(path.rglob("*.safetensors"))):
        if count == MAX_FILES:
            raise ValueError(f"lora_dir {str(folder)!r} holds more than {MAX_FILES} files; give a folder within it.")
        if file.stem in files:
            raise ValueError(
                f"lora_dir has two files named {file.stem!r}, {files[file.stem]} and {file}; give a folder within it."
            )
        files[file.stem] = file
    return files
