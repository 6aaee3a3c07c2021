"""Jobs to pictures: those of equal settings share network calls, and a job that cannot be made keeps no other from it."""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from gen.batch.rows import PictureJob
from gen.batch.settings import BatchSettings
from gen.batch.store import Painted, encode_picture
from gen.calls.call import Call
from gen.calls.errors import sentence
from gen.calls.run import run
from gen.models.prompt_syntax import take_loras
from gen.pipeline.output import Output
from gen.pipeline.subjects import read_labels

WINDOW = 32  # network calls whose jobs are looked at together, so that few of them go alone
NOTES = 5  # warnings that are told
VARYING = ("prompt", "negative_prompt", "seed", "class_labels")  # among the pictures of one call


def open_generator(settings: BatchSettings, model: str) -> Any:
    """The model of a batch."""
    from gen.generator import Generator

    return Generator.from_pretrained(model, settings.device, settings.dtype, **settings.model_arguments)


def check_defaults(settings: BatchSettings, generator: Any) -> None:
    """ValueError for options that no row could be drawn with, before the first is. Options of a sampler and the like are left
    to the rows, which may name another one."""
    if not settings.defaults or any(name.endswith("_options") for name in settings.defaults):
        return
    subject: dict[str, Any] = {"prompt": "a picture"} if generator.text_encoder is not None else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator.check(**subject, **settings.defaults)


def model_identity(generator: Any) -> dict[str, Any]:
    """What of a model decides about pixels, as plain values."""
    return {
        "weights": dict(generator.weights),
        "device": generator.device.type,
        "dtype": str(generator.dtype).removeprefix("torch."),
        "quantize": generator.quantize,
    }


def group_of_job(job: PictureJob) -> str:
    """What jobs of one call have in common."""
    call = job.call
    fixed = {name: value for name, value in call.arguments.items() if name not in VARYING}
    given = [name for name in VARYING if name in call.arguments]
    loras = sorted(take_loras(job.prompt)[1].items())
    return json.dumps([fixed, given, loras, [[use.file, use.weight] for use in call.adapters]], sort_keys=True)


class Painter:
    """Makes pictures of jobs.

    generator: a `Generator` of the batch's model.
    batch: the hash of the batch, which pictures carry.
    note: told of warnings, of each once, and of a few of them.
    """

    def __init__(self, settings: BatchSettings, generator: Any, batch: str, note: Callable[[str], None] | None = None):
        self.settings, self.generator, self.batch, self.note = settings, generator, batch, note
        self._noted = set[str]()

    @property
    def window(self) -> int:
        return WINDOW * self.settings.batch_size

    def paint(
        self, jobs: Sequence[PictureJob], done: Callable[[Painted], None], failed: Callable[[PictureJob, str], None]
    ) -> None:
        """Every job ends in one call of `done` or `failed`.

        done: may be called with a picture whose PNG is not encoded yet.
        failed: gets the reason, in a sentence.
        """
        groups: dict[str, list[PictureJob]] = defaultdict(list)
        for job in jobs:
            groups[group_of_job(job)].append(job)
        for alike in groups.values():
            self._together(alike, done, failed)

    def _together(
        self, jobs: list[PictureJob], done: Callable[[Painted], None], failed: Callable[[PictureJob, str], None]
    ) -> None:
        waiting: dict[tuple, deque[PictureJob]] = defaultdict(deque)
        left = {job.index: job for job in jobs}
        not_taken: list[BaseException] = []  # what `done` raised: no fault of a job

        def deliver(output: Output) -> None:
            for image, recipe in zip(output.images, output.recipes, strict=True):
                job = waiting[recipe.prompt, recipe.negative_prompt, recipe.seed, recipe.class_label].popleft()
                del left[job.index]
                try:
                    done(Painted(job, partial(encode_picture, image, recipe, job, self.batch, *form(job))))
                except BaseException as error:
                    not_taken.append(error)
                    raise

        def form(job: PictureJob) -> tuple[str, int | None]:
            """(ending, quality) of its file: one that waits to be packed is a PNG."""
            ending = PurePosixPath(job.name).suffix.lower() if self.settings.kind == "files" else ""
            return (ending or ".png"), self.settings.quality

        try:
            for job in jobs:
                waiting[self._key(job)].append(job)
            self._call(jobs, deliver)
        except Exception as error:
            if not_taken or (os.environ.get("FEWSTEP_TRACEBACK") and not isinstance(error, ValueError)):
                raise
            rest = list(left.values())
            if len(rest) == 1:
                failed(rest[0], sentence(error))
            else:  # halves, until the one that is at fault is alone
                self._together(rest[: len(rest) // 2], done, failed)
                self._together(rest[len(rest) // 2 :], done, failed)

    def _call(self, jobs: Sequence[PictureJob], deliver: Callable[[Output], None]) -> None:
        settings, first = self.settings, self._call_of(jobs[0])
        arguments = {
            **{name: value for name, value in first.arguments.items() if name not in VARYING},
            "seeds": [job.seed for job in jobs],
        }
        for name in VARYING:
            if name != "seed" and name in first.arguments:
                arguments[name] = [self._call_of(job).arguments[name] for job in jobs]
        if settings.lora_dir is not None:
            arguments["lora_dir"] = str(settings.lora_dir)
        together = {"batch_size": settings.batch_size, "batch_invariant": settings.batch_invariant or None}
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            run(replace(first, arguments={**arguments, **together}), self.generator, on_images=deliver)
        self._tell([str(one.message) for one in warned if issubclass(one.category, UserWarning)])

    def _tell(self, texts: Sequence[str]) -> None:
        """A table of a million rows may have a warning for each."""
        for text in texts:
            if self.note is not None and text not in self._noted and len(self._noted) < NOTES:
                self._noted.add(text)
                self.note(f"Note: {text}{' Further notes are left out.' if len(self._noted) == NOTES else ''}")

    def _call_of(self, job: PictureJob) -> Call:
        """A prompt that is meant for a model of classes names one."""
        arguments: Mapping[str, Any] = job.call.arguments
        if self.generator.text_encoder is None and self.generator.classes and "class_labels" not in arguments:
            return job.call.with_arguments(class_labels=arguments.get("prompt", -1), prompt=None)
        return job.call

    def _key(self, job: PictureJob) -> tuple:
        """As the recipe of its picture has it."""
        arguments, label = self._call_of(job).arguments, None
        if self.generator.classes:
            label = read_labels(arguments.get("class_labels", -1), self.generator.config.classes, self.generator.classes)[0]
        return arguments.get("prompt", ""), arguments.get("negative_prompt", ""), job.seed, label
