"""From what a client asks for to a job of the engine, checked: no path, URL or module of a request is ever looked at."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen.calls.call import Call
from gen.calls.choose import beyond_student
from gen.calls.keywords import FOLDERS
from gen.calls.kinds import KINDS, check_kinds, shown
from gen.calls.run import python_arguments
from gen.io.validators import SEED_END, check_float, check_int
from gen.models.control_names import NAMED
from gen.pipeline.exif import check_alpha
from gen.pipeline.work import option_repeats
from gen.serve.front import EngineFront
from gen.serve.http.errors import BadRequest
from gen.serve.http.fields import LONGEST_PROMPT
from gen.serve.http.formats import PNG, PictureFormat
from gen.serve.http.settings import ServerSettings
from gen.serve.http.uploads import check_texts_can_be_written, strings_in
from gen.serve.jobs import ServeJob
from gen.serve.limits import WorkLimit
from gen.serve.sent import SentPicture
from gen.tasks.energies import energy_info
from samplers.lookup import nearest

REGISTERED = ("controlnet", "ip_adapter")  # keywords that name what the server was started with
# of the keywords of a call, those that name files or say what is the server's to say
REFUSED = (
    *(name for name in FOLDERS if name not in REGISTERED),
    *("refiner_at", "batch_size", "window_batch", "batch_invariant"),
)
NEEDED = {"outpaint": "image", "upscale": "image", "restore": "image", "layout": "layout", "ambiguous": "others"}
MAX_REPEATS = 200
MAX_ADAPTERS = 8
_PLACE = re.compile(r"[/\\]|\.(safetensors|json|ya?ml|py|pt|pth|bin|ckpt|png)$", re.IGNORECASE)


@dataclass(frozen=True)
class PictureRequest:
    """A request in our words.

    method: of `gen.calls.keywords.OWN`. arguments: of the call as plain data, pictures left out. pictures: keyword -> picture
    as it was sent, or a list or table of them. model: None for whichever serves it. adapters: name -> weight. previews: steps
    between them. deadline: seconds, None for the server's. format: of the files that are sent.
    """

    arguments: Mapping[str, Any]
    pictures: Mapping[str, Any]
    model: str | None = None
    method: str = "image"
    adapters: Mapping[str, float] | None = None
    previews: int = 0
    deadline: float | None = None
    format: PictureFormat = PNG


class Intake:
    """Makes jobs. settings: of the server. engine: its."""

    def __init__(self, engine: EngineFront, settings: ServerSettings) -> None:
        self.engine, self.settings = engine, settings

    def job(self, asked: PictureRequest, client: str) -> ServeJob:
        """The job of a request; BadRequest or ValueError says in a sentence what cannot be."""
        given = {name: value for name, value in asked.arguments.items() if value is not None}
        check_texts_can_be_written(given)
        if any(len(text) > LONGEST_PROMPT for text in strings_in(given)):
            raise BadRequest(f"A text of the request has more than {LONGEST_PROMPT} characters; send a shorter one.")
        check_kinds(given)
        given = dict(Call(given, asked.method).arguments)
        check_alpha(f".{asked.format.ending}", given.get("transparent"))
        _check_names(given)
        if (needs := NEEDED.get(asked.method)) is not None and needs not in (*given, *asked.pictures):
            raise BadRequest(f"{needs} is missing; a request of {asked.method} has one.", needs)
        count = check_int("the number of pictures", given.pop("num_images_per_prompt", 1), 1, self.settings.max_pictures)
        varies = not given.keys().isdisjoint(("variation_seed", "variation_strength")) and given.get("variation_strength") != 0
        seeds = self._seeds(given.pop("seed", None), given.pop("seeds", None), count, varies)
        prompt = given.get("prompt")
        if prompt is not None and not isinstance(prompt, str) and asked.method != "panorama":
            raise BadRequest("prompt is a list; send one text, and a request for each of several.", "prompt")
        self._check_work(given, asked)
        adapters = self._adapters(asked.adapters)
        registered = self._registered(given)
        keywords: dict[str, Any] = {**python_arguments(given), **registered, **asked.pictures}
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
            together=given.get("negtome") == "batch" or varies,
            previews=asked.previews,
            deadline=self.engine.clock() + seconds,
            limit=WorkLimit(self.settings.max_pixels, self.settings.max_work),
        )

    def _model(self, asked: PictureRequest, keywords: Mapping[str, Any]) -> str:
        """The model named; else the first, or the packaged student where the first two are it and its teacher and it serves."""
        names = self.engine.models
        if asked.model is not None:
            return self.engine.check_model(asked.model)
        if names[:2] == ["default", "fast"] and not asked.adapters and asked.method == "image":
            return "fast" if beyond_student(keywords) is None and "<lora:" not in str(keywords.get("prompt")) else "default"
        return names[0]

    def _seeds(self, seed: Any, seeds: Any, count: int, alike: bool) -> list[int]:
        """One for each picture. alike: variations have the first one, unless the request gives each its own."""
        if seeds is not None:
            if len(seeds) != count:
                raise BadRequest(f"seeds has {len(seeds)} numbers; give {count}, one for each picture.", "seeds")
            return [check_int(f"seeds[{i}]", one, 0, SEED_END - 1) for i, one in enumerate(seeds)]
        first = secrets.randbelow(1 << 32) if seed is None else check_int("seed", seed, 0, SEED_END - 1 - count)
        return [first] * count if alike else list(range(first, first + count))

    def _check_work(self, given: Mapping[str, Any], asked: PictureRequest) -> None:
        """BadRequest for what is beyond the server's limits by the request alone; `WorkLimit` counts the rest, once the model's
        own size and steps are known."""
        if (steps := given.get("num_inference_steps")) is not None:
            check_int("num_inference_steps", steps, 1, self.settings.max_steps)
        repeated = 1.0
        for more in option_repeats([given, *(table for table in given.values() if isinstance(table, Mapping))]):
            repeated *= max(more, 1.0)
        if repeated > MAX_REPEATS:
            times = f"{repeated:,.0f}"
            raise BadRequest(f"The options repeat the work of a step {times} times; {MAX_REPEATS} are the most here.")
        width, height = _size(given, asked, self.settings.max_pixels)
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

    def _registered(self, given: dict[str, Any]) -> dict[str, Any]:
        """What the server was started with, in the place of the names that a request has for it. Taken out of `given`."""
        found: dict[str, Any] = {}
        controls = {**dict(zip(NAMED, map(Path, NAMED), strict=True)), **self.settings.controlnets}  # and the default model's
        tables = {"controlnet": controls, "ip_adapter": self.settings.ip_adapters}
        for keyword, table in tables.items():
            if (names := given.pop(keyword, None)) is not None:
                found[keyword] = [_of_table(keyword, one, table) for one in (names if isinstance(names, list) else [names])]
        if "ip_adapter" in found and self.settings.ip_adapter_encoder is not None:
            found["ip_adapter_encoder"] = self.settings.ip_adapter_encoder
        return found


def _of_table(keyword: str, name: str, table: Mapping[str, Path]) -> Path:
    if name not in table:
        near = nearest(name, table)
        hint = f" Did you mean {near!r}?" if near else ""
        known = f"there are {', '.join(table)}" if table else "the server was started with none"
        raise BadRequest(f"There is no {keyword} {shown(name)} here; {known}.{hint}", keyword)
    return table[name]


def _size(given: Mapping[str, Any], asked: PictureRequest, most: int) -> tuple[int, int]:
    """(width, height) of the picture that is made, as far as the request says it. most: pixels."""
    image = asked.pictures.get("image")
    first = image[0] if isinstance(image, list) and image else image
    width, height = first.size if isinstance(first, SentPicture) else (1, 1)
    layout = asked.pictures.get("layout", {})
    asked_width, asked_height = (given.get(side, layout.get(side)) for side in ("width", "height"))
    width = width if asked_width is None else check_int("width", asked_width, 1, most)
    height = height if asked_height is None else check_int("height", asked_height, 1, most)
    scale = 1.0
    if asked.method == "upscale":
        scale = check_float("scale", given.get("scale", 2), 1, 16)
    elif asked.method == "restore":
        scale = check_float("factor", given.get("factor", 1), 1, 64)
    elif "hires" in given:
        scale = check_float("hires", given["hires"], 1, 8)
    if asked.method == "outpaint":
        added = {side: check_int(side, given.get(side, 0), 0, most) for side in ("left", "right", "top", "bottom")}
        return width + added["left"] + added["right"], height + added["top"] + added["bottom"]
    return math.ceil(width * scale), math.ceil(height * scale)


def _check_names(given: Mapping[str, Any]) -> None:
    """BadRequest for what would have a file opened."""
    for name in given:
        if name in REFUSED or name not in KINDS:  # of a keyword that nobody has thought of here, none knows what it opens
            raise BadRequest(f"{name} is not taken over HTTP; leave it out.", name)
    for name in ("guide", "greedy"):
        if name in given and energy_info(given[name]).external:
            raise BadRequest(f"{name} {given[name]!r} opens files, which is not done over HTTP; choose another.", name)
    if given.get("sync_distance", "latent") not in ("latent", "pictures"):
        raise BadRequest("sync_distance opens a file, which is not done over HTTP; give latent or pictures.", "sync_distance")
    for name, value in given.items():
        if name != "aesthetic" and not name.endswith("_options"):
            continue
        for text in strings_in(value):
            if _PLACE.search(text):
                raise BadRequest(f"{name} holds {shown(text)}, which looks like a file; files are not opened over HTTP.", name)
