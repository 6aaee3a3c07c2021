"""The sampler of flow maps: networks that predict where a whole step ends, and receive the time of its end."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from samplers.path import check_falling
from samplers.sample import State
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import PlainSolver, Step


@dataclass(frozen=True)
class FlowMap(PlainSolver):
    """x_t = alpha_t x0 + sigma_t eps; the network predicts x0 and eps at s, and receives t's clock in extra["target_time"].

    On straight paths it is x_t = x_s - (s - t) u(x_s, t, s), with u the mean velocity of the step.

    Source: MeanFlow, arXiv 2505.13447, equation 12; IMM, arXiv 2503.07565, section 3 (pushforward sampling).
    """

    def advance(self, step: Step, state: State) -> State:
        denoiser, s, t, condition, context = step.denoiser, step.s, step.t, step.condition, step.context
        check_falling(s, t)
        end = torch.full((len(state.x),), float(t.t), device=state.x.device)
        with_target = replace(condition, extra={**condition.extra, "target_time": end})
        prediction = evaluate(denoiser, state, s, with_target, context)
        return replace(state, x=t.mix(prediction.x0, prediction.eps), prediction=prediction)  # equation 12 (arXiv 2505.13447)
