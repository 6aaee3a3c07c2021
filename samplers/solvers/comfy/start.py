"""Where ComfyUI begins what it writes in log-SNR: just below pure noise on a flow."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from samplers.grids.common import check_positive
from samplers.path import NoiseLevel, Path, RectifiedFlow, VarianceExploding, VariancePreserving
from samplers.sample import Solver, State
from samplers.wrappers import SolverWrapper, Step


def at_percent(path: Path, percent: float, shift: float = 1.0) -> NoiseLevel:
    """The level at a fraction of training time, 0 pure noise and 1 clean data, as ComfyUI's percent_to_sigma.

    On a table timestep (1 - percent) (N - 1), between entries in log sigma; on a variance-exploding path the logarithm of sigma
    goes evenly from sigma_max to sigma_min; on a flow t = 1 - percent, shifted; on other paths the clock.
    """
    if percent <= 0:
        return path(path.t_noise)
    if percent >= 1:
        return path(0.0)
    left = 1 - percent
    if isinstance(path, VarianceExploding):
        return path(path.sigma_max**left * path.sigma_min**percent)
    if isinstance(path, VariancePreserving):
        size = len(path.table)
        return path((left * (size - 1) + 1) / size)
    if isinstance(path, RectifiedFlow):
        return path(shift * left / (1 + (shift - 1) * left))
    return path(left * path.t_noise)


@dataclass(frozen=True)
class StartBelow(SolverWrapper):
    """`inner`, which takes pure noise on a flow as if it stood a ten-thousandth of training time below, as ComfyUI does.

    Its exact first step from pure noise is of first order; this one is as long as it comes out. shift: the resolution shift of
    the model, which moves that level. eta, s_noise: those of `inner`, unless None.
    """

    inner: Solver
    shift: float = 1.0
    eta: float | None = None
    s_noise: float | None = None

    def __post_init__(self) -> None:
        check_positive("shift", self.shift)
        _ = self.solver

    @property
    def solver(self) -> Solver:
        known = {one.name for one in fields(self.inner)}  # type: ignore[arg-type]
        settings: dict[str, Any] = {"eta": self.eta, "s_noise": self.s_noise}
        return replace(self.inner, **{name: v for name, v in settings.items() if v is not None and name in known})  # type: ignore[type-var]

    def init(self, x: Tensor) -> State:
        return self.solver.init(x)

    def advance(self, step: Step, state: State) -> State:
        path = step.denoiser.path
        if isinstance(path, RectifiedFlow) and step.s.alpha == 0:
            step = replace(step, s=at_percent(path, 1e-4, self.shift))
        return step.by(self.solver, state)
