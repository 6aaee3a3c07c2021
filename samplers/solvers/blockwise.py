"""Singlestep methods with their nodes on the grid: one evaluation per step, orders rising within blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.sample import State
from samplers.solvers.ending import check_ending, is_bounded
from samplers.solvers.evaluate import evaluate
from samplers.solvers.multistep import Multistep, adams_weights
from samplers.solvers.singlestep import advance, read_prediction, stage_weights, step_weights


def block_orders(steps: int, order: int) -> tuple[tuple[int, int], ...]:
    """(position in its block, from 1; length of the block) of every step: blocks of `order`, the last ones shorter.

    Order 3 ends on blocks of 2 and 1, or of 1, or of 2, as steps leaves 0, 1 or 2 over three; order 2 on 1 and 1, or on 1
    (DPM-Solver-fast, arXiv 2206.00927, section 3.3).
    """
    left = steps % order
    tail = [left] if left else list(range(order - 1, 0, -1)) or [1]
    if order == 2 and not left:
        tail = [1, 1]
    blocks = [order] * ((steps - sum(tail)) // order) + tail
    return tuple((position, block) for block in blocks for position in range(1, block + 1))


@dataclass(frozen=True)
class _Block:
    """Where the current block began and what was read since; `x` is the last result."""

    start: Tensor
    levels: tuple[NoiseLevel, ...]
    readings: tuple[Tensor, ...]
    x: Tensor


@dataclass(frozen=True)
class Blockwise:
    """DPM-Solver-fast and the singlestep DPM-Solver++ on a given grid: the levels of a block are the nodes of one step.

    A run of N steps takes exactly N evaluations. Within a block the k-th step goes from the block's start through the k
    readings made in it, so that only ends of blocks have the full order. The blocks follow from the number of steps; a state
    that was changed since the last step (re-noised, repainted) begins a block of its own, and a step of infinite length is
    the first-order one.

    predict: "eps" for DPM-Solver, "x0" for DPM-Solver++.
    rule: see `step_weights`.
    ending: "full", or "bounded", with which a long step that would amplify errors (`samplers.solvers.ending`) leaves the block
    and goes on from the last two readings; the next belongs to a block that began with this one.

    Source: arXiv 2206.00927, section 3.3; arXiv 2211.01095, section 4.
    """

    order: int = 3
    predict: str = "eps"
    rule: str = "published"
    ending: str = "full"

    def __post_init__(self) -> None:
        check_ending(self.ending, "Blockwise")
        if self.ending == "count":
            raise ValueError("Blockwise has lower orders at its end by its blocks: choose ending='full' or 'bounded'.")
        if self.order not in (1, 2, 3) or isinstance(self.order, bool):
            raise ValueError(f"Blockwise got order={self.order!r}; choose 1, 2 or 3.")
        if self.predict not in ("x0", "eps"):
            raise ValueError(f"Blockwise got predict={self.predict!r}; choose x0 (DPM-Solver++) or eps (DPM-Solver).")
        if self.rule not in ("published", "exact"):
            raise ValueError(f"Blockwise got rule={self.rule!r}; choose published or exact.")

    def init(self, x: Tensor) -> State:
        return State(x)

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
        keep, _, span = Multistep(1).transition(s, t)
        prediction = evaluate(denoiser, state, s, condition, context)
        if math.isinf(span):
            x = advance(state.x, s, t, keep, "x0", [prediction.x0], (1.0,))
            return replace(state, x=x, prediction=prediction, carry=None)

        position, length = block_orders(max(context.steps, context.step + 1), self.order)[context.step]
        block = state.carry
        if position == 1 or not isinstance(block, _Block) or block.x is not state.x:
            block = _Block(state.x, (), (), state.x)
        levels = (*block.levels, s)
        readings = (*block.readings, read_prediction(prediction, self.predict))

        start = levels[0]
        keep, _, span = Multistep(1).transition(start, t)
        nodes = tuple((level.logsnr - start.logsnr) / span for level in levels)
        if position == length:
            weights = step_weights(span, nodes, self.predict, self.rule)
        else:
            weights = stage_weights(span, nodes, 1.0, self.predict)
        h = t.logsnr - s.logsnr
        if self.ending == "bounded" and not is_bounded(weights, h, step_weights(h, (0.0,), self.predict, "exact")):
            x = self._linear(state.x, levels[-2:], readings[-2:], t)
            return replace(state, x=x, prediction=prediction, carry=_Block(state.x, levels[-1:], readings[-1:], x))
        x = advance(block.start, start, t, keep, self.predict, readings, weights)  # (3.4) or (9), see `singlestep`
        return replace(state, x=x, prediction=prediction, carry=_Block(block.start, levels, readings, x))

    def _linear(self, x: Tensor, levels: tuple[NoiseLevel, ...], readings: tuple[Tensor, ...], t: NoiseLevel) -> Tensor:
        """A step from the last of two levels through both readings, or through its own if the step is too long for that."""
        before, s = levels
        keep, _, h = Multistep(1).transition(s, t)
        signed = h if self.predict == "x0" else -h
        weights = adams_weights(signed, (0.0, (before.logsnr - s.logsnr) / h))
        if not is_bounded(weights, h):
            weights = adams_weights(signed, (0.0,))
        return advance(x, s, t, keep, self.predict, readings[::-1][: len(weights)], weights)
