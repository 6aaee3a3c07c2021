"""A run of a diffusers pipeline in which our solver takes the place of its scheduler.

    with PipelineRun(pipe, {"prompt": "a red heart", "num_inference_steps": 20}, solver) as run:
        x = sample(run.denoiser, run.solver, run.x, run.levels, noise=seeded_noise([7], run.x))
        images = run.finish(x)

The pipeline runs in a thread of its own, one thread at a time. It draws its noise, reads its prompts and pictures, calls its
networks and decodes as ever. Latents are (B, ...) as the pipeline has them, packed or not.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.io.threads import lock_of
from gen.models.bridge.generic.handover import Desk, Handover, Returned, Stopped
from gen.models.bridge.generic.noise import SchedulerNoise, scheduler_noise
from gen.models.bridge.generic.scheduler import Next, Progress, StepOutput, TimestepPlan, handing_over, own_start
from gen.models.decoding import is_out_of_memory
from samplers.denoiser import Condition, Context
from samplers.path import NoiseLevel, Path
from samplers.prediction import Prediction
from samplers.sample import Solver, State, trajectory
from samplers.solvers.adaptive import Adaptive
from samplers.solvers.comfy.own_steps import OwnAdaptive, OwnFast
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import SolverWrapper, Step

BACKBONES = ("unet", "transformer", "transformer_2", "decoder", "prior")  # the parts whose rows are counted
FINE = 100  # steps of the schedule that an adaptive solver's start is chosen from

# (the pipeline's own levels) -> those that are run
Regrid = Callable[[tuple[NoiseLevel, ...]], Sequence[NoiseLevel]]


class PipelineRun:
    """One call of a pipeline, from where it first asks its scheduler for the next latents.

    pipe: the pipeline; its scheduler is replaced for the length of the run.
    call: the arguments of its `__call__`.
    solver: what takes the steps.
    regrid: other noise levels than the pipeline's own.
    rows: how many of the batch's rows are pictures; the others are what guidance compares with.

    Raises ValueError for a scheduler that we have no equal of, and for whatever goes wrong inside the pipeline, with the cause.
    """

    def __init__(
        self, pipe: Any, call: Mapping[str, Any], solver: Solver, *, regrid: Regrid | None = None, rows: int | None = None
    ):
        self.pipe, self.call, self.name = pipe, dict(call), type(pipe).__name__
        self.noise = scheduler_noise(getattr(pipe, "scheduler", None), self.name)
        self.regrid, self.rows, self.inner = regrid, rows, solver
        self.adaptive = is_adaptive(solver)
        self.moves: bool | None = None  # the pipeline changes latents between evaluations, as inpainting does; None: not known
        self.count = RowCount()
        self.asked = 0  # evaluations after the first
        self._whole: tuple[NoiseLevel, ...] = ()  # the levels of the whole schedule
        self._planned: tuple[NoiseLevel, ...] = ()  # the levels of all evaluations, as far as they are known before the run
        self._stack = ExitStack()
        self._waiting: StepOutput | None = None

    def __enter__(self) -> PipelineRun:
        with ExitStack() as stack:
            stack.enter_context(lock_of(self.pipe))
            if getattr(self.pipe.scheduler, "hands_over", False):
                raise ValueError(f"{self.name} is running already; a callback cannot call it again.")
            stack.enter_context(_quiet_bar(self.pipe))
            stack.enter_context(self.count.watching(self.pipe))
            own, call, pipe, noise = self.pipe.scheduler, self.call, self.pipe, self.noise
            method = weakref.WeakMethod(self._plan)  # nothing in the thread keeps this run alive

            def plan(scheduler: Any, steps: int | None) -> TimestepPlan:
                bound = method()
                if bound is None:
                    raise Stopped
                return bound(scheduler, steps)

            def body(desk: Desk) -> Any:
                pipe.__dict__["scheduler"] = handing_over(own, Progress(desk, noise, plan))
                return pipe(**call)

            self._worker = Handover(body, f"fewstep {self.name}")
            stack.callback(pipe.__dict__.__setitem__, "scheduler", own)
            stack.callback(self._worker.close)
            first = self._work(self._worker.begin)
            if isinstance(first, Returned):
                raise ValueError(
                    f"{self.name} returned without a step of its scheduler, so no solver can take its place; "
                    "call the pipeline itself."
                )
            self._waiting = self._first = first.value
            self._begin(self._waiting)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def __del__(self) -> None:
        with suppress(RuntimeError):  # of a lock that another thread holds
            self._stack.close()

    @property
    def denoiser(self) -> PipelineDenoiser:
        return PipelineDenoiser(self)

    @property
    def solver(self) -> Solver:
        """The solver, as `follow` has it."""
        return self.follow(self.inner)

    def follow(self, solver: Solver) -> Solver:
        """A solver whose steps start from latents as the pipeline, which may change them, had them evaluated."""
        return FollowPipeline(solver, self)

    def finish(self, x: Tensor) -> Any:
        """What the pipeline returns for x (B, ...) at the end of the run: its pictures."""
        rows = x if self.rows is None or not self.moves else self._fill(x)
        said = self._work(lambda: self._worker.resume(Next(rows.to(self._first.sample.dtype), None)))
        if not isinstance(said, Returned):
            raise ValueError(f"{self.name} asks for more steps than its schedule has, so it cannot be run here.")
        return said.value

    # ---- inside ----

    def _plan(self, scheduler: Any, steps: int | None) -> TimestepPlan:
        """In the pipeline's thread: the evaluations to come."""
        own = self.noise.own_levels(scheduler, steps)
        start = own_start(scheduler, self.noise, own[0])
        levels = own if self.regrid is None else tuple(self.regrid(own))
        if levels[0] != own[0]:
            start = float(levels[0].sigma)
        self._whole = levels
        if self.adaptive:
            self._planned = levels[:-1]
            return TimestepPlan(self._planned, 1, start)
        asked = dry_run(self.inner, levels, self.noise)
        if "strength" in self.call:  # the pipeline begins at a step, which it finds by counting
            asked = padded(asked)
        self._planned = tuple(level for _, level in asked)
        # a pipeline that gave sigmas counts those; one that asked for steps counts steps
        return TimestepPlan(
            self._planned, 1 if steps is None else per_step([step for step, _ in asked], len(levels) - 1), start
        )

    def _begin(self, first: StepOutput) -> None:
        """The levels that are run, from where the pipeline began in its schedule (its strength), and the first latents."""
        begin = self._planned[first.index]
        levels = (begin, *(level for level in self._whole if level.logsnr > begin.logsnr))
        self.levels = (levels[0], levels[-1]) if self.adaptive and is_adaptive(self.inner, own_grid=False) else levels
        x = first.sample if self.rows is None else first.sample[: self.rows]
        self.x = x if x.dtype == torch.float64 else x.float()
        self.batch = len(first.sample)
        self._sent = first.sample

    def _work(self, wait: Callable[[], Any]) -> Any:
        """What the pipeline says next; its errors as ours."""
        self.count.rows = 0
        try:
            return wait()
        except Exception as error:
            if is_out_of_memory(error):
                raise
            if self.adaptive and self.asked >= len(self._planned):
                raise ValueError(
                    f"{self.name} cannot go on after {len(self._planned)} evaluations, and this sampler asks for more; choose "
                    "one of fixed steps, such as dpmpp_2m, or a larger tolerance."
                ) from error
            text = str(error).strip().splitlines()
            reason = (text[0][:300] if text else type(error).__name__).rstrip(".")
            raise ValueError(f"{self.name} failed: {reason}.") from error

    def evaluate(self, x: Tensor, level: NoiseLevel) -> tuple[Tensor, Tensor, int]:
        """(latents as the pipeline had them, output, rows that went through its network) for all rows of the batch."""
        if (first := self._waiting) is not None:
            self._waiting = None
            same = self.noise.timestep(level) == self.noise.timestep(self.levels[0])
            if same and torch.equal(first.sample, x.to(first.sample.dtype)):
                return first.sample, first.raw, self.count.rows or self.batch
        self.asked += 1
        sent = x.to(self._first.sample.dtype)
        said = self._work(lambda: self._worker.resume(Next(sent, level)))
        if isinstance(said, Returned):
            raise ValueError(f"{self.name} ended before the run did, so it cannot be run here with this sampler.")
        out = said.value
        self.moves = self.moves or not (out.sample is sent or torch.equal(out.sample, sent))
        self._sent = out.sample
        return out.sample, out.raw, self.count.rows or self.batch

    def _fill(self, x: Tensor) -> Tensor:
        """x (B, ...) for all rows of the batch."""
        return torch.cat([x] * (self.batch // len(x)))

    def moved(self) -> Tensor:
        """The latents of the last evaluation as the pipeline had them, pictures only."""
        return (self._sent if self.rows is None else self._sent[: self.rows]).to(self.x.dtype)


class RowCount:
    """Rows that went through a pipeline's networks."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next((kwargs[n] for n in ("hidden_states", "sample", "x") if n in kwargs), None)
        if isinstance(given, Tensor | list):
            self.rows += len(given)

    @contextmanager
    def watching(self, pipe: Any) -> Iterator[None]:
        networks = {getattr(pipe, name, None) for name in BACKBONES}
        hooks = [n.register_forward_pre_hook(self, with_kwargs=True) for n in networks if isinstance(n, nn.Module)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class PipelineDenoiser:
    """A run of a pipeline as a denoiser. Its condition is the pipeline's own call.

    Where guidance of ours compares rows, `Condition.label` says which row of the pipeline's batch a row of x is.
    """

    run: PipelineRun

    @property
    def path(self) -> Path:
        return self.run.noise.path

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        run = self.run
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError(f"{run.name} as a whole has no gradient; guidance by an energy needs a model opened natively.")
        if isinstance(level.t, Tensor):
            raise ValueError(f"{run.name} as a whole evaluates one noise level at a time; choose another sampler.")
        if condition.label is None:
            _, raw, rows = run.evaluate(x, level)
            context.count(rows)
        else:
            raw = self._rows(x, level, condition.label.tolist(), context)
        return Prediction(x, level, raw.to(x.dtype), run.noise.row(level))

    def _rows(self, x: Tensor, level: NoiseLevel, labels: list[int], context: Context) -> Tensor:
        """The outputs of the batch's rows `labels` for the rows of x; the rest of the batch is filled up and not looked at."""
        run = self.run
        if any(not 0 <= label < run.batch for label in labels) or len(set(labels)) < len(labels):
            raise ValueError(f"{run.name} as a whole takes guidance of two branches only; choose cfg, apg or cfg_zero.")
        filled = [x[labels.index(row) if row in labels else row % len(x)] for row in range(run.batch)]
        _, raw, rows = run.evaluate(torch.stack(filled), level)
        if rows > run.batch:
            raise ValueError(
                f"{run.name} guides by itself here, and that could not be turned off; leave guidance out for its own."
            )
        context.count(rows)
        return raw[labels]


@dataclass(frozen=True)
class FollowPipeline(SolverWrapper):
    """A solver over a pipeline that changes latents between evaluations: steps start from latents as they were evaluated.

    Not so for solvers that evaluate at levels of their own, which start where they ended.
    """

    inner: Solver
    run: PipelineRun

    def advance(self, step: Step, state: State) -> State:
        if self.run.moves is not False and step.context.step and not has_inside(self.inner, (OwnAdaptive, OwnFast)):
            prediction = evaluate(step.denoiser, state, step.s, step.condition, step.context)
            state = replace(state, prediction=prediction)
            if self.run.moves:
                x = self.run.moved()
                state = replace(state, x=x, prediction=replace(prediction, x=x))
        return step.by(self.inner, state)


class _Zero:
    """A denoiser that writes down what it is asked."""

    def __init__(self, noise: SchedulerNoise):
        self.noise, self.path, self.asked = noise, noise.path, list[tuple[int, NoiseLevel]]()

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        context.count(len(x))
        self.asked.append((context.step, level))
        return Prediction(x, level, 0.1 * x, self.noise.row(level))


def dry_run(solver: Solver, levels: Sequence[NoiseLevel], noise: SchedulerNoise) -> list[tuple[int, NoiseLevel]]:
    """(step, level) of every evaluation of a solver whose levels do not depend on what it sees."""
    zero, x = _Zero(noise), torch.ones(1, 1, 2, 2)
    for _ in trajectory(zero, solver, x, levels, noise=lambda s, t: torch.ones_like(x)):
        pass
    return zero.asked


def per_step(step_of: Sequence[int], steps: int) -> int:
    """Evaluations of a step, the same for all but the last, which may have fewer; 1 where they differ."""
    count = math.ceil(len(step_of) / steps)
    firsts = [step_of.index(step) if step in step_of else -1 for step in range(steps)]
    return count if firsts == [count * step for step in range(steps)] else 1


def padded(asked: Sequence[tuple[int, NoiseLevel]]) -> list[tuple[int, NoiseLevel]]:
    """Evaluations with some repeated, so that all steps have as many as the one that has most."""
    by_step: dict[int, list[tuple[int, NoiseLevel]]] = {}
    for evaluation in asked:
        by_step.setdefault(evaluation[0], []).append(evaluation)
    most = max(len(evaluations) for evaluations in by_step.values())
    return [one for found in by_step.values() for one in [*found, *[found[-1]] * (most - len(found))]]


def is_adaptive(solver: Any, own_grid: bool = True) -> bool:
    """Does a solver choose its own levels? own_grid: count those that read a grid's ends."""
    return has_inside(solver, (Adaptive, OwnAdaptive) if own_grid else (Adaptive,))


def has_inside(solver: Any, kinds: tuple[type, ...]) -> bool:
    """Is a solver, or one inside its wrappers, of some kinds?"""
    while solver is not None and not isinstance(solver, kinds):
        solver = getattr(solver, "inner", None)
    return solver is not None


@contextmanager
def _quiet_bar(pipe: Any) -> Iterator[None]:
    """Without the pipeline's own progress bar."""
    before = pipe.__dict__.get("_progress_bar_config")
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            pipe.__dict__.pop("_progress_bar_config", None)
        else:
            pipe.__dict__["_progress_bar_config"] = before
