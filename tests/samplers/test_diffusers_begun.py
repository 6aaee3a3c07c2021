"""Where diffusers' schedulers with memory differ from ours in a run that begins in the middle, as docs/names.md says."""

from __future__ import annotations

import pytest
import torch

from samplers import Condition, Context, VariancePreserving, get_solver, sample
from samplers.denoiser import Prediction
from samplers.solvers.blockwise import Blockwise

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
PATH = VariancePreserving.scaled_linear()
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
X = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
STEPS = 9


class Toy:
    path = PATH

    def __call__(self, x, level, condition, context):
        return Prediction(x, level, torch.tanh(x), (0.0, 1.0))


def begun(scheduler, x, index):
    """Their run from one of its timesteps on, and ours of the same levels."""
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(index)
    levels = [*(PATH.discrete(int(t)) for t in scheduler.timesteps), PATH(0.0)]
    for t in scheduler.timesteps[index:]:
        inner = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.tanh(inner), t, x, return_dict=False)[0]
    return x, levels


def test_lms_begun_in_the_middle_takes_weights_that_do_not_sum_to_the_step():
    scheduler = diffusers.LMSDiscreteScheduler(**SD)
    scheduler.set_timesteps(STEPS)
    scheduler.set_begin_index(4)
    t, (s, n) = scheduler.timesteps[4], scheduler.sigmas[4:6].tolist()
    x = s * X
    eps = torch.tanh(scheduler.scale_model_input(x, t))
    theirs = scheduler.step(eps, t, x, return_dict=False)[0]
    weight = scheduler.get_lms_coefficient(4, 4, 0)
    torch.testing.assert_close(theirs, x + weight * eps, atol=1e-5, rtol=0)  # the newest of four, and no other is there
    assert abs(weight / (n - s) - 1) > 0.3
    levels = [PATH.discrete(int(t)) for t in scheduler.timesteps[4:6]]
    ours = sample(Toy(), get_solver("lms"), levels[0].alpha * x, levels) / levels[1].alpha
    torch.testing.assert_close(ours, x + (n - s) * eps, atol=2e-4, rtol=3e-4)  # anew: a Euler step


@pytest.mark.parametrize(("index", "same"), [(0, True), (3, True), (1, False), (2, False), (4, False)])
def test_singlestep_lays_its_blocks_over_the_whole_schedule(index, same):
    """Begun inside a block it ends that block at a lower order; ours, told the whole run's place, would too."""
    solver = Blockwise(order=3, predict="x0", rule="exact")
    theirs, levels = begun(diffusers.DPMSolverSinglestepScheduler(**SD, solver_order=3, solver_type="heun"), X, index)
    state = solver.init(X)
    for i in range(index, STEPS):
        state = solver.step(Toy(), state, levels[i], levels[i + 1], Condition(), Context(step=i, steps=STEPS))
    torch.testing.assert_close(state.x, theirs, atol=2e-4, rtol=0)
    ours = sample(Toy(), solver, X, levels[index:])  # whose blocks are laid over what is run
    assert ((ours - theirs).abs().max() < 2e-4) == same
