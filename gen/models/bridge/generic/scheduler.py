"""A pipeline's scheduler for one call: it hands each output of the network over, and is given the next latents.

It is a copy of the pipeline's own scheduler, of a subclass of its class, so that pipelines find every attribute and
signature that they look for.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.generic.handover import Desk
from gen.models.bridge.generic.noise import SchedulerNoise
from samplers.path import NoiseLevel


@dataclass(frozen=True)
class StepOutput:
    """What the network gave.

    sample: the latents that it was given.
    raw: its output, of sample's shape.
    index: which of the planned evaluations this was, counted from the first of the whole schedule.
    """

    sample: Tensor
    raw: Tensor
    index: int


@dataclass(frozen=True)
class Next:
    """What is evaluated next. level None: nothing, `latents` are the end of the run."""

    latents: Tensor
    level: NoiseLevel | None


@dataclass(frozen=True)
class TimestepPlan:
    """The evaluations of a run as far as they are known before it.

    levels: of every evaluation, in order.
    per_step: evaluations of one step, which a pipeline that begins late counts in.
    start: what unit noise is multiplied by.
    """

    levels: tuple[NoiseLevel, ...]
    per_step: int
    start: float


class Progress:
    """Where a run is: shared by the scheduler and the timesteps that the pipeline goes through."""

    def __init__(self, desk: Desk, noise: SchedulerNoise, plan: Callable[[Any, int | None], TimestepPlan]):
        self.desk, self.noise, self.plan = desk, noise, plan
        self.at: TimestepPlan | None = None
        self.timesteps: Tensor | None = None
        self.begin = 0  # the planned evaluation that the pipeline began with
        self.done = 0  # evaluations handed over
        self.upcoming: NoiseLevel | None = None
        self.level: NoiseLevel | None = None  # what is evaluated now
        self.known: dict[float, NoiseLevel] = {}

    def through(self, timesteps: Tensor, whole: bool) -> Iterator[Tensor]:
        """Timesteps as they are asked for, beginning with the first of what the pipeline left of the plan."""
        assert self.at is not None
        self.begin = len(self.at.levels) - len(timesteps)
        self.done, self.upcoming = 0, self.at.levels[self.begin]
        while self.upcoming is not None:
            level, self.upcoming = self.upcoming, None
            self.level = level
            value = self.noise.timestep(level)
            yield torch.tensor(round(value) if whole else value, device=timesteps.device, dtype=timesteps.dtype)

    def level_of(self, timestep: float) -> NoiseLevel:
        return self.known.get(round(timestep, 3)) or self.noise.level(timestep)

    def remember(self, level: NoiseLevel) -> float:
        timestep = self.noise.timestep(level)
        self.known[round(timestep, 3)] = level
        return timestep


_KEPT = ("__getitem__", "to", "clone", "detach", "contiguous", "cpu", "cuda")  # after which timesteps are still timesteps


class Timesteps(Tensor):
    """The planned timesteps (N,). A loop over them, or over their rest, takes those that the run asks for instead."""

    progress: Progress
    whole = False

    def __iter__(self) -> Iterator[Tensor]:
        return self.progress.through(self.plain(), self.whole)

    def plain(self) -> Tensor:
        return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **(kwargs or {}))
            if type(out) is Tensor and out.ndim == 1 and function.__name__ in _KEPT:
                return out.as_subclass(cls)
        return out


def handing_over(own: Any, progress: Progress) -> Any:
    """A scheduler like `own` that works for `progress`."""
    kind = type(own)

    @functools.wraps(kind.set_timesteps)
    def set_timesteps(self: Any, num_inference_steps: Any = None, *args: Any, **kwargs: Any) -> None:
        progress.desk.check()
        self.timesteps = self.sigmas = None
        kind.set_timesteps(self, num_inference_steps, *args, **kwargs)
        given = any(kwargs.get(name) is not None for name in ("timesteps", "sigmas", "original_inference_steps"))
        plan = progress.at = progress.plan(self, None if given else num_inference_steps)
        _install(self, plan, progress)

    @functools.wraps(kind.step)
    def step(self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        raw = model_output
        if raw.ndim > 1 and raw.shape[1] == 2 * sample.shape[1] and raw.shape[2:] == sample.shape[2:]:
            raw = raw[:, : sample.shape[1]]  # the other half is a learned variance
        index = progress.begin + progress.done
        self._step_index = index
        following = progress.desk.ask(StepOutput(sample, raw, index))
        progress.done += 1
        progress.upcoming = following.level
        _write(self, index + 1, progress, following.level)
        if kwargs.get("return_dict", True):
            return _Stepped(prev_sample=following.latents, pred_original_sample=following.latents)
        return following.latents, following.latents

    def scale_model_input(self: Any, sample: Tensor, timestep: Any = None) -> Tensor:
        progress.desk.check()
        scale = 1.0 if progress.level is None else progress.noise.input_scale(progress.level)
        return sample if scale == 1 else sample * scale

    def add_noise(self: Any, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return _noised(progress, original_samples, noise, timesteps)

    def scale_noise(self: Any, sample: Tensor, timestep: Any, noise: Tensor | None = None) -> Tensor:
        assert noise is not None
        return _noised(progress, sample, noise, timestep)

    def init_noise_sigma(self: Any) -> Any:
        return _own_sigma(kind, self) if progress.at is None else progress.at.start

    body = {
        "set_timesteps": set_timesteps,
        "step": step,
        "scale_model_input": scale_model_input,
        "add_noise": add_noise,
        "init_noise_sigma": property(init_noise_sigma, lambda self, value: None),
        "order": property(lambda self: progress.at.per_step if progress.at else 1),
        "__module__": kind.__module__,
        "hands_over": True,
    }
    if hasattr(kind, "scale_noise"):
        body["scale_noise"] = scale_noise
    made = copy.deepcopy(own)
    made.__class__ = type(kind.__name__, (kind,), body)
    return made


class _Stepped(dict):
    """What `step` returns: by attribute, by name, by number."""

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int | slice) else dict.__getitem__(self, key)


def own_start(scheduler: Any, noise: SchedulerNoise, level: NoiseLevel) -> float:
    """What a scheduler, set to its own timesteps, has unit noise multiplied by, in the scale that the network sees."""
    kind = type(scheduler).__mro__[1]
    return float(_own_sigma(kind, scheduler)) * (float(level.alpha) if noise.unscaled else 1.0)


def _own_sigma(kind: type, scheduler: Any) -> Any:
    found = getattr(kind, "init_noise_sigma", None)
    if isinstance(found, property):
        assert found.fget is not None
        return found.fget(scheduler)
    return scheduler.__dict__.get("init_noise_sigma", 1.0)


def _install(scheduler: Any, plan: TimestepPlan, progress: Progress) -> None:
    """The planned timesteps and sigmas in the place of the scheduler's own."""
    values = [progress.remember(level) for level in plan.levels]
    own = scheduler.timesteps
    whole = not own.is_floating_point() and all(abs(value - round(value)) < 1e-6 for value in values)
    dtype = own.dtype if own.is_floating_point() or whole else torch.float32
    kind = type("Timesteps", (Timesteps,), {"progress": progress, "whole": whole})
    plain = torch.tensor([round(value) for value in values] if whole else values, dtype=dtype, device=own.device)
    progress.timesteps = plain
    scheduler.timesteps = plain.as_subclass(kind)
    sigmas = [progress.noise.sigma(level) for level in plan.levels] + [0.0]
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float32, device=own.device)
    scheduler._step_index = scheduler._begin_index = None


def _write(scheduler: Any, index: int, progress: Progress, level: NoiseLevel | None) -> None:
    """What comes next, where a pipeline may look it up."""
    level = progress.noise.clean if level is None else level
    timestep = progress.remember(level)
    if progress.timesteps is not None and index < len(progress.timesteps):
        planned = progress.at.levels[index] if progress.at is not None else None
        if level is not planned:
            progress.timesteps[index] = timestep
            scheduler.sigmas[index] = progress.noise.sigma(level)


def _noised(progress: Progress, clean: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
    """alpha x0 + sigma eps at the levels of timesteps, one for all or one per sample."""
    values = torch.as_tensor(timesteps).as_subclass(Tensor).reshape(-1).tolist()
    levels = [progress.level_of(float(value)) for value in values]

    def per_sample(numbers: Sequence[float]) -> Tensor:
        return (
            torch.tensor(numbers, dtype=torch.float32, device=clean.device).to(clean.dtype).reshape(-1, *[1] * (clean.ndim - 1))
        )

    return per_sample([float(v.alpha) for v in levels]) * clean + per_sample([float(v.sigma) for v in levels]) * noise
