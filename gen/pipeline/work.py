"""How much a recipe asks for: recipes come from anywhere, and one small file may ask for years of work.

Work is counted in megapixel evaluations: pixels that the network sees, times how often it is asked. A picture of 1024 x 1024 in
50 steps with guidance is about 105 of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from gen.io.validators import check_float, check_size
from gen.tasks.declaration import Options
from gen.tasks.table import TASKS

if TYPE_CHECKING:
    from gen.pipeline.recipe import Recipe
    from gen.pipeline.types import Item, Settings

MOST = 1e12  # of an option, as it is counted
LIMIT = 4000.0  # megapixel evaluations of a replay that nobody allowed more: some 40 such pictures
# options, of whatever takes part, that repeat the work of a step
_REPEATS = (
    "times",
    "steps",
    "iterations",
    "recurrence",
    "recurrences",
    "repeats",
    "draws",
    "interpolations",
    "samples",
    "order",
)


def check_work(recipe: Recipe, limit: float | None = None) -> None:
    """ValueError where the replay of a recipe would make or resize larger pictures than a call does, or evaluate the network
    more than `limit` megapixels."""
    for height, width in ((recipe.height, recipe.width), recipe.made_at or (1, 1)):
        check_size(height, width, 1, 1)
    limit = LIMIT if limit is None else check_float("max_work", limit, 0, 1e15)
    cost = work(recipe)
    if cost > limit:
        raise ValueError(
            f"The recipe asks for about {cost:,.0f} megapixel evaluations, and a replay makes {limit:,.0f} at most unless "
            f"allowed more; give max_work={_rounded_up(cost)} (--max-work {_rounded_up(cost)}) if you trust it."
        )


def asked_work(items: Sequence[Item], settings: Settings) -> float:
    """An estimate, from above, of the megapixel evaluations of a call's pictures, before any is drawn."""
    from gen.pipeline.task_table import record_of

    fields = {name: one.default for row in TASKS.values() for name, one in row.options.fields.items()}
    for name, task in settings.tasks.items():
        fields |= record_of(name, task, items)
    height, width = settings.shown or (settings.height, settings.width)
    asked: Any = SimpleNamespace(
        height=height,
        width=width,
        made_at=(settings.height, settings.width) if settings.shown else None,
        num_inference_steps=settings.steps,
        sampler=settings.sampler,
        sampler_options=settings.sampler_options,
        guidance_options=settings.guidance.guidance_options,
        batch=SimpleNamespace(size=len(items)),
        **fields,
    )
    return work(asked)


def work(recipe: Recipe) -> float:
    """An estimate, from above, of the megapixel evaluations of a replay."""
    height, width = recipe.made_at or (recipe.height, recipe.width)
    tasks = [row.options.work(recipe) for row in TASKS.values()]
    pixels = max((task.pixels for task in tasks if task.pixels is not None), default=float(height * width))
    steps = recipe.num_inference_steps * _evaluations(recipe.sampler)
    pictures = recipe.batch.size * (1 + sum(task.beside for task in tasks))
    branches = 2 + sum(task.branches for task in tasks)
    repeated = 1.0
    tables = [recipe.sampler_options, recipe.guidance_options, *(table for task in tasks for table in task.options)]
    for value in (*option_repeats(tables), *(task.repeats for task in tasks)):
        repeated *= max(value, 1.0)
    return pixels * steps * pictures * branches * repeated / 1e6


def _evaluations(sampler: str) -> int:
    from samplers.registry import solver_info

    try:
        info = solver_info(sampler)
    except ValueError:  # a solver of its maker's own, which no replay can make
        return 1
    return 100 if info.adaptive else max(info.evaluations, 1)


def option_repeats(tables: Iterable[Options]) -> Iterator[float]:
    """By how much each option repeats the work of a step."""
    for options in tables:
        for name, value in options.items():
            for number in value if isinstance(value, tuple | list) else (value,):
                if isinstance(number, bool) or not isinstance(number, int | float):
                    continue
                number = min(max(number, -MOST), MOST)  # whole numbers may have any number of digits
                if name in _REPEATS:
                    yield float(number)
                elif name in ("rtol", "atol"):  # of adaptive steps, which are more where they are smaller; 0.05 is usual
                    yield 0.05 / max(float(number), 1e-12)
            if name == "scales" and isinstance(value, tuple | list):
                yield float(len(value))


def _rounded_up(value: float) -> int:
    """To two digits, so that the number can be copied."""
    digits = max(len(str(int(value))) - 2, 0)
    return -(-int(value + 1) // 10**digits) * 10**digits
