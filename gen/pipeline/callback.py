"""Callbacks on every step of a run, as diffusers has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from samplers.sample import Solver, State
from samplers.wrappers import SolverWrapper, Step

if TYPE_CHECKING:
    from gen.models.model import Model

TENSORS = ("latents", "denoised")


@dataclass
class WithCallback(SolverWrapper):
    """A solver that hands every new state to the caller, who may change it or stop the run."""

    inner: Solver
    model: Model
    callback: Callable[..., Mapping[str, Tensor] | None]
    inputs: Sequence[str]
    edited: bool = field(default=False, init=False)

    def advance(self, step: Step, state: State) -> State:
        after = step.by(self.inner, state)
        tensors = {"latents": after.x, "denoised": clean(after)}
        requested = {name: tensors[name] for name in self.inputs}
        version, before = after.x._version, after.x.clone()  # which a callback may write into
        returned = self.callback(self.model, step.context.step, step.t.t, dict(requested))
        if returned is None:
            returned = {}
        if not isinstance(returned, Mapping) or not set(returned) <= set(TENSORS):
            what = sorted(map(str, returned)) if isinstance(returned, Mapping) else type(returned).__name__
            raise ValueError(f"callback_on_step_end returned {what}; return None or a dict with the latents.")
        latents = returned.get("latents", after.x)
        if not isinstance(latents, Tensor) or latents.shape != after.x.shape:
            shape = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
            raise ValueError(f"callback_on_step_end returned latents of {shape}; they must stay {tuple(after.x.shape)}.")
        if latents is after.x and after.x._version == version:
            return after
        self.edited = True
        if not bool(latents.isfinite().all()) and bool(before.isfinite().all()):
            raise ValueError(
                f"callback_on_step_end made NaN or infinite values of the latents after step {step.context.step + 1}; "
                "return finite ones, or None to leave them."
            )
        return replace(after, x=latents.to(after.x))


def clean(state: State) -> Tensor:
    """The clean picture that a state points to, or its own x before any prediction."""
    return state.x if state.prediction is None else state.prediction.x0


def check_inputs(callback: object, inputs: object) -> tuple[str, ...]:
    """The tensor names a callback asks for."""
    if callback is not None and not callable(callback):
        raise ValueError(f"callback_on_step_end is {callback!r}, which cannot be called; give a function.")
    if isinstance(inputs, str) or not isinstance(inputs, Sequence) or not set(inputs) <= set(TENSORS):
        raise ValueError(f"callback_on_step_end_tensor_inputs is {inputs!r}; name some of {', '.join(TENSORS)}.")
    return tuple(inputs)
