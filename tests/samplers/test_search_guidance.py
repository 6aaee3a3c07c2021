"""Beam search over TFG's strengths, against the published procedure by hand and the best of the whole grid."""

import math

import pytest
import torch

from samplers import VariancePreserving, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.guidance import TFG
from samplers.search import Beam, Strengths, search_strengths


def peak(at):
    """Unimodal in each number, highest at `at`."""
    return lambda s: -sum((math.log(a) - math.log(b)) ** 2 for a, b in zip(s, at, strict=True))


def run(score, budget=1000.0, **options):
    *_, last = search_strengths(Beam(), score, budget, **options)
    return last


@pytest.mark.parametrize("at", [(0.25, 0.25, 0.001), (2.0, 0.5, 0.01), (0.25, 4.0, 0.1), (1.0, 1.0, 1.0)])
def test_a_peak_within_reach_is_found(at):
    beam = run(peak(at), sweeps=8)
    assert beam.best == (Strengths(*at), 0.0) and beam.kept[0] == Strengths(*at)
    assert beam.done and len(beam.scores) < 216 / 4  # of 6 x 6 x 4 in the grid


def test_the_first_sweeps_are_those_of_the_paper():
    sweeps = list(search_strengths(Beam(), peak((8.0, 0.25, 0.001)), 1000))
    first = [(0.25, 0.25, 0.001), (0.5, 0.25, 0.001), (0.25, 0.5, 0.001), (0.25, 0.25, 0.01)]
    assert [tuple(s) for s in sweeps[0].scores] == first
    assert [tuple(s) for s in sweeps[0].kept] == [(0.5, 0.25, 0.001), (0.25, 0.25, 0.001)]
    assert [tuple(s) for s in sweeps[1].scores][4:] == [(1.0, 0.25, 0.001), (0.5, 0.5, 0.001), (0.5, 0.25, 0.01)]
    assert len(sweeps) <= 6 and all(s.rho <= 8 and s.mu <= 8 and s.gamma <= 1 for s in sweeps[-1].scores)


def test_no_trial_is_made_twice_and_the_budget_holds():
    seen = []

    def score(strengths):
        seen.append(strengths)
        return peak((8.0, 8.0, 1.0))(strengths)

    beam = run(score, 10)
    assert len(seen) == len(set(seen)) == len(beam.scores) == 10 and beam.done
    seen.clear()
    run(score, 10, cost=lambda s: 3.0)
    assert len(seen) == 3


def test_other_neighbours_make_a_search_of_anything_from_what_is_known():
    """Words, letter by letter, from one whose score is known: it is not measured again, and the nearest word is found."""
    measured = []

    def score(word):
        measured.append(word)
        return -sum(abs(ord(a) - ord(b)) for a, b in zip(word, "dab", strict=True))

    def around(word):
        return [word[:i] + chr(ord(c) + 1) + word[i + 1 :] for i, c in enumerate(word)]

    *_, beam = search_strengths(Beam(("aaa",), {"aaa": -4.0}), score, 50, neighbours=around, sweeps=9)
    assert beam.best == ("dab", 0.0) and "aaa" not in measured and len(measured) == len(set(measured))
    measured.clear()
    *_, beam = search_strengths(Beam(("aaa",), {"aaa": -4.0}), score, 3, neighbours=around)
    assert len(measured) == 2 and beam.done


def test_a_search_goes_on_where_it_stopped():
    whole = run(peak((4.0, 2.0, 0.1)))
    half = next(iter(search_strengths(Beam(), peak((4.0, 2.0, 0.1)), 1000)))
    *_, rest = search_strengths(half, peak((4.0, 2.0, 0.1)), 1000)
    assert rest == whole


def test_what_cannot_be_is_refused():
    for options, says in (
        ({"width": 0}, "width"),
        ({"sweeps": 0}, "sweeps"),
        ({"factors": Strengths(2.0, 1.0, 2.0)}, "above 1"),
        ({"budget": 0.5}, "pays for no trial"),
    ):
        with pytest.raises(ValueError, match=says):
            run(peak((1, 1, 1)), **options)
    with pytest.raises(ValueError, match="not a number"):
        run(lambda s: math.nan)
    assert run(lambda s: -math.inf if s.mu > 0.3 else s.rho).best[0].mu == 0.25


def test_it_finds_strengths_that_serve_a_real_energy():
    path = VariancePreserving.linear()
    levels, mixture = get_grid("karras", path, 6), Mixture.example(path)
    x = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * levels[0].sigma

    def energy(x0, condition):
        return -(x0 - 0.5).square().sum(1)

    def score(s):
        field = TFG(mixture, energy, levels, rho=s.rho, mu=s.mu)
        ends = sample(field, get_solver("euler"), x, levels)
        return (energy(ends, None) + 0.3 * mixture.log_density(ends, path(1e-3))).mean().item()

    start = Strengths(0.01, 0.01, 0.001)
    *_, beam = search_strengths(Beam((start,)), score, 16)
    assert beam.best[1] > max(beam.scores[start], score(Strengths(0.0, 0.0, 0.0))) + 0.05
