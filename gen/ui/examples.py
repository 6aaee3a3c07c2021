"""What the tab "Methods" says of every solver, schedule, guidance rule and cache, and the small pictures it draws of each."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gen.calls.call import Call

if TYPE_CHECKING:
    from gen.ui.jobs import JobWatch
    from gen.ui.studio import Studio

PROMPT, SEED, STEPS = "a red heart", 7, 8
SMALL = ".examples"  # in the gallery's folder: pictures by their call
KINDS = {"sampler": "Samplers", "schedule": "Schedules", "guidance": "Guidance rules", "cache": "Caches"}


@dataclass(frozen=True)
class MethodRow:
    """A method as it is shown. cost: in words; source: an arXiv number, "" where its text has none."""

    kind: str
    name: str
    about: str
    cost: str
    source: str

    @property
    def call(self) -> Call | None:
        """That of its picture; None for what no plain call shows: parts of guidance, and what needs a model of its own."""
        own = {self.kind: f"cfg + {self.name}" if self.cost == AROUND else self.name}
        if self.kind == "guidance" and (self.cost == INSIDE or self.name in _NEED_MORE):
            return None
        if self.name == "table":
            return None
        return Call({"prompt": PROMPT, "seed": SEED, "num_inference_steps": STEPS, **own})


AROUND, INSIDE = "goes around another rule", "goes inside another rule"
_NEED_MORE = ("autoguidance", "embedded", "clip")


def method_rows() -> list[MethodRow]:
    """All of the registries; imports torch."""
    from samplers.cache import CACHES
    from samplers.guidance import GUIDANCE
    from samplers.registry import GRIDS, SOLVERS

    def evaluations(count: float) -> str:
        return f"{count:g} evaluation{'s' * (count != 1)} a step"

    rows = []
    for one in SOLVERS.values():
        noise = ", draws noise" if one.stochastic else ""
        cost = f"order {one.order}, {evaluations(one.evaluations)}{noise}"
        rows.append(MethodRow("sampler", one.name, one.description, cost, _source(one)))
    rows += [MethodRow("schedule", one.name, one.description, "costs nothing", _source(one)) for one in GRIDS.values()]
    for rule in GUIDANCE.values():
        cost = INSIDE if rule.inner else AROUND if rule.modifier else evaluations(rule.evaluations)
        rows.append(MethodRow("guidance", rule.name, rule.description, cost, _source(rule)))
    rows += [MethodRow("cache", one.name, one.description, f"spares {one.saves}", _source(one)) for one in CACHES.values()]
    return rows


def _source(info: Any) -> str:
    """The arXiv number in the text of what makes a method, or of its module."""
    make = getattr(info, "factory", None) or getattr(info, "build", None)
    make = getattr(make, "func", make)  # of a partial
    for place in (make, sys.modules.get(getattr(make, "__module__", ""))):
        if found := re.search(r"arXiv[: ]*(\d{4}\.\d{4,5})", inspect.getdoc(place) or "" if place is not None else ""):
            return found[1]
    return ""


def curve(name: str, width: int = 128, height: int = 128) -> str:
    """A schedule as the path of an SVG: its log-SNR over its steps, on the path of the default model."""
    from samplers.path import RectifiedFlow
    from samplers.registry import get_grid

    levels = get_grid(name, RectifiedFlow(), 20)
    heights = [min(max(2 * float(_log(level)), -12.0), 12.0) for level in levels]
    points = [
        f"{6 + (width - 12) * i / max(len(heights) - 1, 1):.1f},{height - 8 - (height - 16) * (one + 12) / 24:.1f}"
        for i, one in enumerate(heights)
    ]
    return "M" + "L".join(points)


def _log(level: Any) -> float:
    import math

    return math.log(max(level.alpha, 1e-12) / max(level.sigma, 1e-12))


def example_file(studio: Studio, call: Call) -> Path:
    """Where the picture of a call is kept."""
    key = hashlib.sha256(json.dumps(call.to_dict(), sort_keys=True).encode()).hexdigest()[:32]
    return studio.gallery.folder / SMALL / f"{key}.webp"


@dataclass
class ExamplesJob:
    """What the queue works on. made: name of a method -> its picture; failed: name -> why there is none."""

    rows: tuple[MethodRow, ...]
    made: dict[str, Path] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def work(self, studio: Studio, watch: JobWatch) -> None:
        """Draw those that were not drawn before."""
        from gen.calls.run import run
        from gen.io.threads import lock_of

        generator = studio.opened("default", watch)

        def step(generator: Any, *_: Any) -> None:
            if watch.stopped:
                generator.interrupt = True

        for number, row in enumerate(self.rows):
            call = row.call
            if call is None:
                continue
            target = example_file(studio, call)
            if not target.is_file():
                try:
                    with lock_of(generator.network):
                        output = run(call, generator, on_step=step)
                except ValueError as error:
                    self.failed[row.name] = str(error)
                    continue
                if watch.stopped:
                    return
                target.parent.mkdir(parents=True, exist_ok=True)
                unfinished = target.with_suffix(f".{secrets.token_hex(4)}.tmp")
                output.images[0].save(unfinished, "WEBP", quality=90)
                os.replace(unfinished, target)
            self.made[row.name] = target
            watch.step(number + 1, len(self.rows), (number + 1) / len(self.rows))
