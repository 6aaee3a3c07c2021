"""A sweep as a job of the queue: settings against one another, a picture for each cell. Nothing here knows the page."""

from __future__ import annotations

import io
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gen.calls.call import Call
from gen.calls.command import as_arguments
from gen.calls.sweep import Sweep, SweepCell
from gen.ui.checks import FieldError
from gen.ui.models import AUTOMATIC, chosen_model

if TYPE_CHECKING:
    from gen.ui.jobs import JobWatch
    from gen.ui.studio import Studio

MOST_CELLS = 400  # of a sheet that a page shows
_EACH = ("num_images_per_prompt", "batch_size", "seeds", "class_labels", "prompt")  # of a call, and not of a cell


@dataclass
class SweepSettings:
    """prompt: a sheet for each line. across, down, sheet: settings and their values, as `steps=4,8,20`; "" for none."""

    prompt: str = ""
    across: str = "steps=4,8,20"
    down: str = "sampler=euler,dpmpp_2m"
    sheet: str = ""

    def to_job(self, base: Call) -> SweepJob:
        """The job; FieldError names the field that holds what cannot be. base: what the tab "Draw" says of everything else."""
        from gen.calls.axes import read_axis

        axes = []
        for name in ("across", "down", "sheet"):
            if text := getattr(self, name).strip():
                try:
                    axes.append(read_axis(text))
                except ValueError as error:
                    raise FieldError(name, str(error)) from None
        if not axes:
            raise FieldError("across", "Say what is varied, for example steps=4,8,20.")
        call = {name: value for name, value in base.arguments.items() if name not in _EACH}
        prompts = [line.strip() for line in self.prompt.splitlines() if line.strip()]
        if not prompts and not any(axis.keyword == "prompt" and not axis.part for axis in axes):
            raise FieldError("prompt", "Say what to draw, a prompt a line.")
        try:
            sweep = Sweep.of(prompts or "", axes, call)
        except ValueError as error:
            raise FieldError("across", str(error)) from None
        if sweep.count > MOST_CELLS:
            raise FieldError(
                "across", f"These are {sweep.count} pictures, and {MOST_CELLS} are the most here; give fewer values."
            )
        return SweepJob(sweep, replace(base, model=_model(sweep, base)))


def _model(sweep: Sweep, base: Call) -> str:
    """The teacher, where any of the cells needs it."""
    if base.model != AUTOMATIC:
        return base.model
    calls = (replace(base, arguments={**cell.call, "prompt": ""}) for cell in sweep.cells() if "loras" not in cell.call)
    names = {chosen_model(call) for call in calls} or {"default"}
    return "fast" if names == {"fast"} else "default"


@dataclass
class SweepJob:
    """What the queue works on. made: position of a cell -> name of its picture in the gallery, filled on the way."""

    sweep: Sweep
    base: Call
    made: dict[tuple[int, ...], str] = field(default_factory=dict)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """As a call has them, for what describes jobs."""
        return {"prompt": list(self.sweep.prompts)}

    def work(self, studio: Studio, watch: JobWatch) -> None:
        """Draw every cell; what is drawn when it is stopped stays."""
        from gen.calls.adapters import put_adapters
        from gen.calls.run import python_arguments
        from gen.io.threads import lock_of

        generator = studio.opened(self.base.model, watch)
        call = {**python_arguments(self.sweep.call), "callback_on_step_end_tensor_inputs": ("denoised",)}
        done, total = 0, self.sweep.count

        def step(generator: Any, step: int, t: float, tensors: Mapping[str, Any]) -> None:
            if watch.stopped:
                generator.interrupt = True
                return
            preview = io.BytesIO()
            generator.preview(tensors["denoised"][:1])[0].save(preview, "PNG")
            watch.step(min(done + 1, total), total, done / total, preview.getvalue())

        call["callback_on_step_end"] = step
        sweep = Sweep(self.sweep.prompts, self.sweep.axes, call)
        with lock_of(generator.network):
            put_adapters(generator, self.base.adapters)
            sweep.check(generator)
            made = []
            for one in sweep.run(generator):
                if one.recipe.stopped_at is not None and watch.stopped:
                    break
                made.append(one)
                self.made[one.cell.position] = name = studio.gallery.save(one.image, one.recipe, watch.kind)
                done += 1
                watch.step(done, total, done / total)
                watch.made(name)
                if watch.stopped:
                    break
        for text in self.sweep.without_effect(made):
            watch.note(text)

    def grids(self) -> list[tuple[str, list[str], list[str], dict[tuple[int, int], SweepCell]]]:
        """(title, captions across, captions down, (column, row) -> cell) of every sheet."""
        axes, prompts = self.sweep.axes, self.sweep.prompts
        across = [axes[0].caption(i) for i in range(len(axes[0].values))]
        down = [axes[1].caption(i) for i in range(len(axes[1].values))] if len(axes) > 1 else [""]
        found: dict[tuple[int, ...], dict[tuple[int, int], SweepCell]] = {}
        for cell in self.sweep.cells():
            prompt, x, *rest = cell.position
            found.setdefault((prompt, *rest[1:]), {})[x, rest[0] if rest else 0] = cell
        titles = [", ".join(filter(None, [prompts[key[0]], *(axes[2].caption(i) for i in key[1:])])) for key in found]
        return [(title, across, down, cells) for title, cells in zip(titles, found.values(), strict=True)]

    # ---- as code ----

    def as_python(self) -> str:
        """A program that draws the same pictures."""
        vary = [f"{axis.name}={','.join(map(_quoted, axis.labels))}" for axis in self.sweep.axes]
        call = {name: tuple(value) if isinstance(value, list) else value for name, value in self.sweep.call.items()}
        lines = [
            "from gen import Generator",
            "from gen.calls.sweep import Sweep",
            "",
            f"generator = Generator.from_pretrained({self.base.model!r})",
            *(f"generator.load_adapter({use.file!r}, weight={use.weight!r})" for use in self.base.adapters),
            f"sweep = Sweep.of({list(self.sweep.prompts)!r}, {vary!r}, {call!r})",
            "made = list(sweep.run(generator))",
            "for number, (title, sheet) in enumerate(sweep.sheets(made)):",
            '    sheet.save(f"sweep-{number}.png")',
        ]
        return "\n".join([*lines, ""])

    def as_command(self) -> str:
        """The line for a shell; ValueError says what no option says."""
        call = Call(self.sweep.call, adapters=self.base.adapters, model=self.base.model)
        _, *words = as_arguments(call, "sweep.png")
        vary = [f"--vary={axis.name}={','.join(map(_quoted, axis.labels))}" for axis in self.sweep.axes]
        return shlex.join(["fewstep", "sweep", *filter(None, self.sweep.prompts), *vary, *words])


def _quoted(label: str) -> str:
    return f'"{label}"' if "," in label else label
