"""What guidance by gradients holds: nothing from one step to the next, and less with checkpoints."""

import gc
import weakref

import pytest
import torch

from samplers import Context
from samplers.denoiser import Condition
from samplers.guidance.cfg import ClassifierFree
from samplers.guidance.energy_methods import METHODS, guide
from samplers.guidance.greedy import Greedy
from samplers.noise import normal, seeded_noise
from samplers.registry import get_grid, get_solver
from samplers.sample import trajectory
from tests.benchmarks.guidance_cost import Saved, measure


class Watch:
    """A denoiser or energy whose results that carry a graph are remembered weakly: all those that are still alive."""

    def __init__(self, inner):
        self.inner, self.path, self.seen = inner, getattr(inner, "path", None), []

    def __call__(self, *arguments):
        out = self.inner(*arguments)
        raw = getattr(out, "raw", out)
        if raw.requires_grad:
            self.seen.append(weakref.ref(raw))
        return out

    def alive(self):
        gc.collect()
        return sum(one() is not None for one in self.seen)


def energy(z, condition):
    return -(z - 0.3).square().flatten(1).mean(1)


def run(tiny, build, solver="dpmpp_2m"):
    """(watched network, bytes saved when each step is over) of four steps; build(field, solver, levels, noise)."""
    levels, x = get_grid("uniform", tiny.denoiser.path, 4), normal([7], (4, 8, 8), "latents")
    tokens, mask = tiny.text_encoder.encode(["a cat"])
    network, noise, left = Watch(tiny.denoiser), seeded_noise([7], x), []
    with torch.no_grad(), Saved() as saved:
        field, around = build(ClassifierFree(network, 3.0), get_solver(solver), levels, noise)
        for state in trajectory(field, around, x, levels, Condition(tokens=tokens, mask=mask), noise=noise, context=Context()):
            assert not state.x.requires_grad and (state.prediction is None or not state.prediction.raw.requires_grad)
            assert all(not past.x0.requires_grad for past in state.history)
            left.append((network.alive(), saved.total))
    return network, left, saved.peak


@pytest.mark.parametrize("method", [name for name in METHODS if name != "classifier"])
def test_no_graph_is_kept_from_step_to_step(tiny, method):
    network, left, peak = run(
        tiny, lambda field, solver, levels, noise: guide(method, field, solver, energy, levels, 0.1, noise)
    )
    assert left == [(0, 0)] * 4
    assert (len(network.seen) > 0) == METHODS[method].through and peak > 0


def test_greedy_keeps_none_either(tiny):
    watched = Watch(energy)
    _, left, peak = run(tiny, lambda field, solver, levels, noise: (Greedy(field, watched, iterations=2), solver))
    assert left == [(0, 0)] * 4 and watched.alive() == 0 and len(watched.seen) == 8 and peak > 0


def test_a_graph_that_is_kept_is_seen(tiny):
    """The other way round: a value that an energy holds on to, and that nothing differentiates, shows."""
    kept = []

    def hoarding(z, condition):
        kept.append(energy(2 * z, condition))
        return energy(z, condition)

    _, left, _ = run(tiny, lambda field, solver, levels, noise: guide("dps", field, solver, hoarding, levels, 0.1, noise))
    assert left[-1][1] > left[1][1] > 0  # at pure noise nothing is guided


def test_the_command_says_what_steps_cost(tiny):
    rows = {row["step"]: row for row in measure(tiny, "a cat", 32, 4, 1)}
    plain, guided, checkpointed, cheap = rows.values()
    assert plain["memory (MiB)"] == 0 < checkpointed["memory (MiB)"] <= guided["memory (MiB)"]
    assert cheap["memory (MiB)"] < guided["memory (MiB)"] and all(row["time (ms)"] > 0 for row in rows.values())
