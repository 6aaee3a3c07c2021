"""The sampler of networks that predict policies (pi-Flow): many small steps for each evaluation of the network."""

from __future__ import annotations

from dataclasses import dataclass, replace

from samplers.path import check_falling
from samplers.policy import PolicyPrediction, follow, straight_time
from samplers.sample import State
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import PlainSolver, Step


@dataclass(frozen=True)
class FollowPolicy(PlainSolver):
    """The ODE dz/dtau = (z - x0(z, tau)) / tau of a policy, from one level to the next, by Euler steps without the network.

    substeps: how many of them the whole path has, even in the policy's time; a step takes its share, at least one.
    A network that predicts no policy says the same x0 all along, and the step is DDIM's.

    Source: pi-Flow, arXiv 2510.14974, section 3.1.
    """

    substeps: int = 128

    def __post_init__(self) -> None:
        if self.substeps < 1:
            raise ValueError(f"The policy sampler got substeps={self.substeps}; give a whole number of at least 1.")

    def advance(self, step: Step, state: State) -> State:
        s, t = step.s, step.t
        check_falling(s, t)
        prediction = evaluate(step.denoiser, state, s, step.condition, step.context)
        if not isinstance(prediction, PolicyPrediction):
            return replace(state, x=t.mix(prediction.x0, prediction.eps), prediction=prediction)
        start, end, policy = float(straight_time(s)), float(straight_time(t)), prediction.policy
        count = max(round((policy.time(start) - policy.time(end)) * self.substeps), 1)
        z = follow(prediction.clean, policy, state.x / (s.alpha + s.sigma), start, end, count)
        return replace(state, x=(t.alpha + t.sigma) * z, prediction=prediction)
