"""Multistep solvers whose order falls towards the end of a run, by the number of steps, as diffusers' schedulers have it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.sample import Evaluation, State
from samplers.solvers.multistep import Multistep


@dataclass(frozen=True)
class LowerOrderFinal(Multistep):
    """`Multistep` of an order that is at most the number of steps left, in runs of fewer than `lower_below` steps.

    lower_below: 15 is the lower_order_final of DPM-Solver and DEIS in diffusers. (That of UniPC, in runs of any length, is the
    ending "count" of `Multistep`.)
    euler_at_final: the last step is of first order in runs of any length.
    second_order_rule: the `rule` of steps with two predictions, where it is another.
    A corrector of a step has one point more than that step's predictor.
    """

    lower_below: int = 0
    euler_at_final: bool = False
    second_order_rule: str | None = None

    def step(
        self,
        denoiser: Denoiser,
        state: State,
        s: NoiseLevel,
        t: NoiseLevel,
        condition: Condition,
        context: Context,
        noise: NoiseSource | None = None,
    ) -> State:
        left = max(context.steps - context.step, 1)
        made = sum(e.step != state.step for e in state.history) + 1  # predictions, this step's among them
        now, before = self._with_left(context.steps, left, made), self._with_left(context.steps, left + 1, made - 1)
        now["corrector_order"] = self.corrector_order  # so that enough is remembered for `before`, whose corrector it is
        return _Falling(**now, before=Multistep(**before)).step(denoiser, state, s, t, condition, context, noise)

    def _with_left(self, steps: int, left: int, made: int) -> dict[str, Any]:
        """The settings of a step of a run, from what is left of it and the predictions that there are."""
        order = self.order
        if steps < self.lower_below:
            order = min(order, left)
        if self.euler_at_final and left == 1:
            order = 1
        settings = {one.name: getattr(self, one.name) for one in fields(Multistep)}
        if self.corrector_order:
            settings["corrector_order"] = self.corrector_order - self.order + order
        if self.second_order_rule is not None and min(order, made) == 2:
            settings["rule"] = self.second_order_rule
        return {**settings, "order": order}


@dataclass(frozen=True)
class _Falling(Multistep):
    """One step; `before` is the solver of the step before it, which the corrector belongs to."""

    before: Multistep | None = None

    def correction(self, history: Sequence[Evaluation], left: int | None = None) -> dict[int, float]:
        return {} if self.before is None else self.before.correction(history, left)
