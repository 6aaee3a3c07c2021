"""From what a client asks for to a job of the engine, checked: no path, URL or module of a request is ever looked at."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gen.calls.call import Call
from gen.calls.choose import beyond_student
from gen.calls.keywords import FOLDERS, PICTURES
from gen.calls.run import python_arguments
from gen.io.validators import SEED_END, check_float, check_int
from gen.pipeline.work import option_repeats
from gen.serve.engine import ServingEngine
from gen.serve.http.errors import BadRequest
from gen.serve.http.settings import ServerSettings
from gen.serve.http.uploads import read_upload
from gen.serve.jobs import ServeJob
from gen.tasks.energies import energy_info

# of the keywords of a call, those that name files or say what is the server's to say
REFUSED = (
    *(*FOLDERS, "control", "control_weight", "control_range", "control_mode"),
    *("batch_size", "window_batch", "batch_invariant"),
)
MAX_REPEATS = 200
MAX_ADAPTERS = 8
_PLACE = re.compile(r"[/\\]|\.(safetensors|json|ya?ml|py|pt|pth|bin|ckpt|png)$", re.IGNORECASE)


@dataclass(frozen=True)
class PictureRequest:
    """A request in our words.

    method: of `gen.calls.keywords.OWN`. arguments: of the call as plain data, pictures left out. pictures: keyword -> PIL
    picture, or a list or table of them. model: None for whichever serves it. adapters: name -> weight. previews: steps between
    them. deadline: seconds, None for the server's.
    """

    arguments: Mapping[str, Any]
    pictures: Mapping[str, Any]
    model: str | None = None
    method: str = "image"
    adapters: Mapping[str, float] | None = None
    previews: int = 0
    deadline: float | None = None


class Intake:
    """Makes jobs. settings: of the server. engine: its."""

    def __init__(self, engine: ServingEngine, settings: ServerSettings) -> None:
        self.engine, self.settings = engine, settings

    def job(self, asked: PictureRequest, client: str) -> ServeJob:
        """The job of a request; BadRequest or ValueError says in a sentence what cannot be."""
        call = Call({name: value for name, value in asked.arguments.items() if value is not None}, asked.method)
        given = dict(call.arguments)
        check_texts_can_be_written(given)
        _check_names(given)
        count = check_int("the number of pictures", given.pop("num_images_per_prompt", 1), 1, self.settings.max_pictures)
        seeds = self._seeds(given.pop("seed", None), given.pop("seeds", None), count)
        prompt = given.get("prompt")
        if prompt is not None and not isinstance(prompt, str) and asked.method != "panorama":
            raise BadRequest("prompt is not a text; send one, and a request for each of several.", "prompt")
        self._check_work(given, asked)
        adapters = self._adapters(asked.adapters)
        keywords: dict[str, Any] = {**python_arguments(given), **asked.pictures}
        if self.settings.batch_invariant is not None:
            keywords["batch_invariant"] = self.settings.batch_invariant
        seconds = self.settings.timeout
        if asked.deadline is not None:
            seconds = min(check_float("deadline", asked.deadline, 0.0, 1e9), seconds)
        return ServeJob(
            self._model(asked, keywords),
            client,
            keywords,
            seeds,
            adapters,
            method="" if asked.method == "image" else asked.method,
            together=given.get("negtome") == "batch",
            previews=asked.previews,
            deadline=self.engine.clock() + seconds,
        )

    def _model(self, asked: PictureRequest, keywords: Mapping[str, Any]) -> str:
        """The model named; else the first, or the packaged student where the first two are it and its teacher and it serves."""
        names = list(self.engine.pool.sources)
        if asked.model is not None:
            return self.engine.pool.check(asked.model)
        if names[:2] == ["default", "fast"] and not asked.adapters and asked.method == "image":
            return "fast" if beyond_student(keywords) is None and "<lora:" not in str(keywords.get("prompt")) else "default"
        return names[0]

    def _seeds(self, seed: Any, seeds: Any, count: int) -> list[int]:
        if seeds is not None:
            if not isinstance(seeds, list) or len(seeds) != count:
                raise BadRequest(f"seeds must be a list of {count}, one for each picture.", "seeds")
            return [check_int(f"seeds[{i}]", one, 0, SEED_END - 1) for i, one in enumerate(seeds)]
        first = secrets.randbelow(1 << 32) if seed is None else check_int("seed", seed, 0, SEED_END - 1 - count)
        return list(range(first, first + count))

    def _check_work(self, given: Mapping[str, Any], asked: PictureRequest) -> None:
        """BadRequest beyond the server's limits of steps and pixels."""
        steps = given.get("num_inference_steps")
        if steps is not None and check_int("num_inference_steps", steps, 1, 1 << 30) > self.settings.max_steps:
            raise BadRequest(f"{steps} steps are asked for, and {self.settings.max_steps} are the most here.")
        repeated = 1.0
        for times in option_repeats([given, *(table for table in given.values() if isinstance(table, Mapping))]):
            repeated *= max(times, 1.0)
        if repeated > MAX_REPEATS:
            raise BadRequest(
                f"The options repeat the work of a step {repeated:,.0f} times, and {MAX_REPEATS} are the most here."
            )
        width, height = _size(given, asked)
        if width * height > self.settings.max_pixels:
            raise BadRequest(
                f"{width} x {height} pixels are asked for, and {self.settings.max_pixels} are the most here; ask for fewer."
            )

    def _adapters(self, adapters: Mapping[str, float] | None) -> dict[str, float]:
        if adapters is None:
            return {}
        if not isinstance(adapters, Mapping) or len(adapters) > MAX_ADAPTERS:
            raise BadRequest(f"adapters must be an object of at most {MAX_ADAPTERS} names and weights.", "adapters")
        return {str(name): check_float(f"the weight of {name!r:.80}", w, -100, 100) for name, w in adapters.items()}

    # ---- pictures in JSON ----

    def pictures(self, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(arguments without pictures, pictures) of arguments in which pictures are base64."""
        plain, left = dict(arguments), self.settings.max_inputs
        found: dict[str, Any] = {}

        def read(name: str, text: Any) -> Image.Image:
            nonlocal left
            left -= 1
            if left < 0:
                raise BadRequest(f"A request holds at most {self.settings.max_inputs} pictures.", name)
            return read_upload(name, text, self.settings.max_pixels)

        for name in PICTURES:
            value = plain.get(name)
            if value is None or name in REFUSED or (name, value) == ("negtome", "batch"):
                continue
            found[name] = [read(name, one) for one in value] if isinstance(value, list) else read(name, value)
            del plain[name]
        if isinstance(regions := plain.get("regions"), Mapping):
            found["regions"] = {str(key): read(f"regions[{key!r:.40}]", text) for key, text in regions.items()}
            del plain["regions"]
        if isinstance(layout := plain.pop("layout", None), Mapping):
            found["layout"] = self._layout(layout, read)
        elif layout is not None:
            raise BadRequest("layout is not an object; send its values.", "layout")
        return plain, found

    def _layout(self, layout: Mapping[str, Any], read: Any) -> dict[str, Any]:
        values = dict(layout)
        check_texts_can_be_written(values)
        if values.get("painting") is not None:
            values["painting"] = read("layout.painting", values["painting"])
        regions = values.get("regions")
        if not isinstance(regions, list) or not all(isinstance(region, Mapping) for region in regions):
            raise BadRequest("layout.regions is not a list of objects.", "layout")
        values["regions"] = [
            {**region, "mask": read(f"layout.regions[{i}].mask", region["mask"])} if region.get("mask") is not None else region
            for i, region in enumerate(regions)
        ]
        for side in ("height", "width"):
            if values.get(side) is not None:
                check_int(f"layout.{side}", values[side], 1, 1 << 14)
        return values


def _size(given: Mapping[str, Any], asked: PictureRequest) -> tuple[int, int]:
    """(width, height) of the picture that is made, as far as the request says it."""
    image = asked.pictures.get("image")
    first = image[0] if isinstance(image, list) and image else image
    width, height = first.size if isinstance(first, Image.Image) else (1, 1)
    layout = asked.pictures.get("layout", {})
    width = check_int("width", given.get("width") or layout.get("width") or width, 1, 1 << 24)
    height = check_int("height", given.get("height") or layout.get("height") or height, 1, 1 << 24)
    if asked.method == "upscale":
        scale = check_float("scale", given.get("scale", 2), 0.01, 64)
        return math.ceil(width * scale), math.ceil(height * scale)
    if asked.method == "restore":
        factor = check_float("factor", given.get("factor") or 1, 1, 64)
        return math.ceil(width * factor), math.ceil(height * factor)
    if asked.method == "outpaint":
        added = {side: check_int(side, given.get(side) or 0, 0, 1 << 24) for side in ("left", "right", "top", "bottom")}
        return width + added["left"] + added["right"], height + added["top"] + added["bottom"]
    return width, height


def _check_names(given: Mapping[str, Any]) -> None:
    """BadRequest for what would have a file opened."""
    for name in REFUSED:
        if name in given:
            raise BadRequest(f"{name} is not taken over HTTP; leave it out.", name)
    for name in ("guide", "greedy"):
        if name in given and energy_info(given[name]).external:
            raise BadRequest(f"{name} {given[name]!r} opens files, which is not done over HTTP; choose another.", name)
    if str(given.get("sync_distance", "latent")) not in ("latent", "pictures"):
        raise BadRequest("sync_distance opens a file, which is not done over HTTP; give latent or pictures.", "sync_distance")
    for name, value in given.items():
        if name != "aesthetic" and not name.endswith("_options"):
            continue
        for text in _texts(value):
            if _PLACE.search(text):
                raise BadRequest(f"{name} holds {text[:80]!r}, which looks like a file; files are not opened over HTTP.", name)


def check_texts_can_be_written(given: Any) -> None:
    """BadRequest for text that no file or terminal can hold: halves of characters, NUL."""
    for text in _texts(given):
        if "\0" in text or any(0xD800 <= ord(c) < 0xE000 for c in text):
            raise BadRequest("A text of the request holds NUL, or half of a character; send valid Unicode.")


def _texts(value: Any) -> list[str]:
    """Every text in plain data."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for key, one in value.items() for text in (*_texts(key), *_texts(one))]
    return [text for one in value for text in _texts(one)] if isinstance(value, list | tuple) else []
