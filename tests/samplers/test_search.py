"""Searching for grids: optima of small known problems, better grids on fresh noise, and files that can be trusted."""

import json
import math
from itertools import combinations, pairwise

import pytest
import torch

from samplers import Condition, Context, Multistep, RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, sample
from samplers.analytic import Mixture
from samplers.search import (
    Candidate,
    Search,
    Space,
    euler_costs,
    evolve,
    gits,
    optimise_grid,
    pick,
    read_search,
    read_table,
    save_search,
    save_table,
    select,
)

VE, VP, RF = VarianceExploding(0.05, 20.0), VariancePreserving.linear(), RectifiedFlow()


def noise(path, count, seed, levels):
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return levels[0].sigma * z


TARGET = (0, 3, 11, 17)


def distance(candidate):
    """Smallest at TARGET, with layer 2 left out at the second step only."""
    skips = sum(s != ((2,) if i == 1 else ()) for i, s in enumerate(candidate.skips))
    return sum((a - b) ** 2 for a, b in zip(candidate.steps, TARGET, strict=True)) + skips


def test_evolution_finds_the_optimum():
    """The best of 21.8 million candidates after measuring 600; as many random ones stay well short of it."""
    space = Space(24, 4, layers=4, max_skips=2)
    assert space.count == math.comb(24, 4) * 11**4
    *_, found = evolve(Search(space, seed=1), distance, 600)
    assert len(found.scores) == 600 and found.best[1] <= 1
    *_, blind = evolve(Search(space, seed=1), distance, 600, mutations=0, crossovers=0)
    assert blind.best[1] > 3


def test_evolution_uses_up_a_small_space():
    space = Space(6, 2, always=(0,))
    *_, found = evolve(Search(space), lambda c: -c.steps[1], 1000, population=3)
    assert len(found.scores) == space.count == 5
    assert found.best == (Candidate((0, 5), ((), ())), -5)


def test_children_belong_to_the_space():
    space = Space(12, 5, layers=3, max_skips=2, always=(0, 11))
    *_, found = evolve(Search(space, 3), lambda c: sum(c.steps), 200, population=20)
    assert found.generation > 5 and all(space.holds(c) for c in found.scores)


def test_a_search_is_a_function_of_its_seed_and_resumes(tmp_path):
    space = Space(24, 4, layers=2, max_skips=1)
    runs = [list(evolve(Search(space, seed), distance, 120, population=20)) for seed in (5, 5, 6)]
    assert runs[0][-1] == runs[1][-1] and runs[0][-1].scores != runs[2][-1].scores
    save_search(tmp_path / "s.json", runs[0][2])
    again = read_search(tmp_path / "s.json")
    assert again == runs[0][2]
    *_, resumed = evolve(again, distance, 120, population=20)
    assert resumed == runs[0][-1] and list(resumed.scores) == list(runs[0][-1].scores)


def test_infinite_scores_are_kept_and_nan_is_refused(tmp_path):
    *_, found = evolve(Search(Space(5, 2)), lambda c: math.inf if 0 in c.steps else 1.0, 10)
    save_search(tmp_path / "s.json", found)
    assert read_search(tmp_path / "s.json") == found and math.inf in found.scores.values()
    with pytest.raises(ValueError, match="not a number"):
        list(evolve(Search(Space(5, 2)), lambda c: math.nan, 10))


def test_step_search_beats_the_even_subset():
    """AutoDiffusion's use: which 4 of 16 levels bring Euler closest to the fine run; on noise that the search never saw."""
    pool, fine = get_grid("uniform_logsnr", VE, 16), get_grid("uniform_logsnr", VE, 60)
    mixture = Mixture.example(VE)
    starts = [noise(VE, count, seed, pool) for seed, count in ((0, 64), (9, 300))]
    goals = [sample(mixture, Multistep(2), x, fine) for x in starts]

    def error(candidate, i):
        return (sample(mixture, Multistep(1), starts[i], pick(pool, candidate)) - goals[i]).square().mean().item()

    search = Search(Space(16, 4, always=(0,)), seed=2)
    *_, found = evolve(search, lambda c: error(c, 0), 60, population=15, parents=5, mutations=7, crossovers=5)
    even = Candidate((0, 5, 10, 15), ((),) * 4)
    assert error(found.best[0], 1) < 0.8 * error(even, 1)


@pytest.mark.parametrize("coefficient", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 9])
def test_dynamic_programming_is_brute_force(steps, coefficient):
    costs = torch.rand(10, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64).triu(1)
    costs[costs == 0] = math.inf

    def total(chosen):
        return sum(coefficient**k * costs[i, j].item() for k, (i, j) in enumerate(pairwise(chosen)))

    best = min(((0, *middle, 9) for middle in combinations(range(1, 9), steps - 1)), key=total)
    assert tuple(select(costs, steps, coefficient)) == best


@pytest.mark.parametrize("path", [VE, VP, RF], ids=["VE", "VP", "RF"])
def test_costs_are_euler_errors(path):
    """By hand on the oracle: |y_i + (r_j - r_i) eps_i - y_j|; an Euler teacher makes none from a level to the next."""
    levels = [*(path.at_logsnr(v) for v in (-2.0, -1.0, 0.0, 1.5)), path(0.0)]
    mixture, x = Mixture.example(path), noise(path, 7, 1, levels)
    context = Context()
    costs = euler_costs(mixture, x, levels, context=context)
    assert context.evaluations == 7 * 4
    assert all(costs[i, i + 1] < 1e-13 for i in range(4)) and torch.isinf(costs.tril()[costs.tril() != 0]).all()
    y = {i: sample(mixture, Multistep(1), x, levels[: i + 1]) / levels[i].alpha for i in (1, 3)}
    r = [v.sigma / v.alpha for v in levels]
    eps = mixture(levels[1].alpha * y[1], levels[1], Condition(), Context()).eps
    assert math.isclose(costs[1, 3], (y[1] + (r[3] - r[1]) * eps - y[3]).norm(dim=1).mean(), rel_tol=1e-10)


def test_gits_beats_the_even_subset():
    fine, mixture = get_grid("uniform_logsnr", VE, 40), Mixture.example(VE)
    found = gits(mixture, noise(VE, 64, 0, fine), fine, 5)
    assert len(found) == 6 and found[0] == fine[0] and found[-1].sigma == 0 and set(found) <= set(fine)
    x = noise(VE, 256, 1, fine)
    exact = sample(mixture, Multistep(2), x, fine)
    grids = (found, get_grid("uniform_logsnr", VE, 5))
    errors = [(sample(mixture, Multistep(1), x, levels) - exact).square().mean() for levels in grids]
    assert errors[0] < 0.8 * errors[1]


def test_gits_from_pure_noise():
    fine = get_grid("uniform", RF, 20)
    found = gits(Mixture.example(RF, "flow"), noise(RF, 16, 0, fine), fine, 4, solver=Multistep(2))
    assert found[0].alpha == 0 and found[-1].sigma == 0 and len(found) == 5


@pytest.fixture(scope="module")
def optimised():
    grid, fine = get_grid("karras", VE, 5), get_grid("uniform_logsnr", VE, 60)
    mixture, solver = Mixture.example(VE), Multistep(2, rule="midpoint")
    return mixture, fine, optimise_grid(mixture, solver, noise(VE, 96, 0, fine), grid, fine, iterations=10)


def test_five_optimised_steps_beat_karras_and_uniform_on_fresh_noise(optimised):
    mixture, fine, found = optimised
    assert found.loss < found.start_loss and all(a.logsnr < b.logsnr for a, b in pairwise(found.levels))
    x = noise(VE, 1000, 5, fine)
    exact = sample(mixture, Multistep(2), x, fine)

    def error(levels):
        return (sample(mixture, Multistep(2, rule="midpoint"), x, levels) - exact).square().mean().sqrt().item()

    others = [error(get_grid(name, VE, 5)) for name in ("karras", "uniform_logsnr", "kl_optimal")]
    assert error(found.levels) < 0.8 * min(others)


def test_optimisation_is_deterministic(optimised):
    mixture, fine, found = optimised
    grid = get_grid("karras", VE, 5)
    again = optimise_grid(mixture, Multistep(2, rule="midpoint"), noise(VE, 96, 0, fine), grid, fine, iterations=10)
    assert again == found


def test_one_free_level_is_found_by_hand():
    """Two steps have one level to move; a scan over it has the same minimum."""
    mixture, start = Mixture.example(RF), RF.at_logsnr(-3.0)
    fine = [RF.at_logsnr(-3 + 6 * i / 40) for i in range(41)]
    x, end = noise(RF, 32, 3, fine), fine[-1]
    found = optimise_grid(mixture, Multistep(1), x, [start, RF.at_logsnr(1.5), end], fine, bounds=(-3.0, 3.0))
    goal = sample(mixture, Multistep(1), x, fine)

    def error(value):
        made = sample(mixture, Multistep(1), x, [start, RF.at_logsnr(value), end])
        return (made - goal).square().mean().sqrt().item()

    assert math.isclose(found.loss, error(found.levels[1].logsnr), rel_tol=1e-12)
    nearby = found.levels[1].logsnr
    assert found.loss < min(error(nearby - 0.05), error(nearby + 0.05)) and found.loss < found.start_loss
    assert found.start_loss == pytest.approx(error(1.5))


def test_optimising_from_pure_noise():
    grid, fine = get_grid("uniform", RF, 3), get_grid("uniform", RF, 30)
    found = optimise_grid(Mixture.example(RF, "flow"), Multistep(1), noise(RF, 64, 0, grid), grid, fine, iterations=5)
    assert found.levels[0].alpha == 0 and found.levels[-1].sigma == 0 and found.loss < 0.95 * found.start_loss


@pytest.mark.parametrize(
    ("path", "grid"), [(VE, "karras"), (VP, "beta"), (RF, "uniform"), (RF, "karras")], ids=["VE", "VP", "pure noise", "RF"]
)
def test_tables_come_back(path, grid, tmp_path):
    levels, file = get_grid(grid, path, 7), tmp_path / "grid.json"
    save_table(file, levels, {"solver": "dpmpp_2m"})
    table = read_table(file)
    back = table.levels(path)
    assert table.note == {"solver": "dpmpp_2m"} and len(back) == 8
    assert back[0].alpha == levels[0].alpha or math.isclose(back[0].logsnr, levels[0].logsnr, rel_tol=1e-12)
    for a, b in zip(back[1:-1], levels[1:-1], strict=True):
        assert math.isclose(a.logsnr, b.logsnr, rel_tol=1e-11, abs_tol=1e-11)
    assert [p.name for p in tmp_path.iterdir()] == ["grid.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "grid.json"
    save_table(file, get_grid("karras", VE, 3))
    before = file.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_table(file, get_grid("karras", VE, 5))
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["grid.json"]


GOOD = {"format": "fewstep-grid", "version": 1, "sigmas": [9.0, 1.0, 0.1], "pure_noise": False, "note": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a fewstep-grid file of version 1"),
        ({"version": 2}, "of version 1"),
        ({"sigmas": [1.0, 2.0]}, "fall strictly, 1.0 is followed by 2.0"),
        ({"sigmas": [1.0, 1.0]}, "fall strictly"),
        ({"sigmas": [math.inf, 1.0]}, "finite number from"),
        ({"sigmas": [math.nan]}, "finite number from"),
        ({"sigmas": [1.0, 0.0]}, "finite number from"),
        ({"sigmas": [1.0, -1.0]}, "finite number from"),
        ({"sigmas": [10**400, 1.0]}, "finite number from"),
        ({"sigmas": [1.0, True]}, "list of at most"),
        ({"sigmas": ["1.0"]}, "list of at most"),
        ({"sigmas": "9, 1"}, "list of at most"),
        ({"sigmas": [1 + 1 / (i + 1) for i in range(10001)]}, "at most 10000"),
        ({"sigmas": []}, "at least one level"),
        ({"pure_noise": 1}, "true or false"),
        ({"note": {"a": [1]}}, "strings"),
        ({"extra": 1}, "unknown keys extra"),
    ],
)
def test_hostile_tables_are_refused(change, message, tmp_path):
    file = tmp_path / "grid.json"
    file.write_text(json.dumps(GOOD))
    assert read_table(file).sigmas == (9.0, 1.0, 0.1)
    file.write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=message):
        read_table(file)


@pytest.mark.parametrize("text", ["", "{", "[" * 100000, "\x00", "null", "[1]"])
def test_what_is_no_table_is_refused(text, tmp_path):
    file = tmp_path / "grid.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"grid\.json is not"):
        read_table(file)
    with pytest.raises(ValueError, match="is not a file"):
        read_table(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not JSON"):
        read_table(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": {"size": 4}}, "must hold whole numbers"),
        ({"space": {"size": 4, "steps": 9, "layers": 0, "max_skips": 0, "always": []}}, "1 to 4 of 4 levels"),
        ({"seed": 0.5}, "whole numbers"),
        ({"scores": [[[0, 9], [[], []], 1.0]]}, "does not belong"),
        ({"scores": [[[1, 0], [[], []], 1.0]]}, "does not belong"),
        ({"scores": [[[0, 1], [[], [0]], 1.0]]}, "does not belong"),
        ({"scores": [[[0, 1], [[], []], 1.0], [[0, 1], [[], []], 2.0]]}, "stands there twice"),
        ({"scores": [[[0, 1], [[], []], "1"]]}, "steps, skips, number"),
        ({"scores": [[[0, 1], [[], []], math.nan]]}, "steps, skips, number"),
        ({"scores": {}}, "steps, skips, number"),
    ],
)
def test_hostile_searches_are_refused(change, message, tmp_path):
    file = tmp_path / "s.json"
    *_, found = evolve(Search(Space(4, 2)), lambda c: 1.0, 3)
    save_search(file, found)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        read_search(file)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, g, x: optimise_grid(m, Multistep(1), x, get_grid("karras", VE, 1), g), "at least 2 steps"),
        (lambda m, g, x: optimise_grid(m, Multistep(1), x, get_grid("karras", VE, 4, sigma_max=5.0), g), "not at the grid's"),
        (lambda m, g, x: optimise_grid(m, Multistep(1), x, g, g, bounds=(0.0, 1.0)), "within the bounds"),
        (lambda m, g, x: select(torch.zeros(4, 4), 4), "thinned to 1 to 3 steps"),
        (lambda m, g, x: select(torch.zeros(4, 4), 2, 0.0), "coefficient must be"),
        (lambda m, g, x: Space(4, 5), "1 to 4 of 4 levels"),
        (lambda m, g, x: Space(4, 2, layers=1, max_skips=2), "max_skips must lie"),
        (lambda m, g, x: Space(4, 2, always=(7,)), "does not fit"),
        (lambda m, g, x: next(evolve(Search(Space(4, 2)), len, 0)), "budget, population"),
        (lambda m, g, x: save_table("unused", g[:-1]), "must be clean data"),
    ],
)
def test_errors_are_sentences(call, message):
    levels = get_grid("karras", VE, 4)
    with pytest.raises(ValueError, match=message):
        call(Mixture.example(VE), levels, noise(VE, 4, 0, levels))
