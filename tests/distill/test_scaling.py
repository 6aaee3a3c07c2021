"""Scaling laws: planted exponents, intervals, the split of a budget against a grid, and the command on folders of runs.

2404.02883 fits powers of computing, size and data; 2203.15556 the law of size and data, and its split of a budget.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from distill.scaling.__main__ import main
from distill.scaling.budget import best_split
from distill.scaling.laws import PowerLaw, SaturatingLaw, bootstrap, fit_power, fit_saturating, frontier, percentiles, student
from distill.scaling.runs import cost_of
from gen.nn.registry import build

LAW = SaturatingLaw(floor=0.4, of_size=30.0, alpha=0.34, of_data=12.0, beta=0.28)
SIZES = np.repeat(np.geomspace(1e6, 3e8, 5), 6)
SAMPLES = np.tile(np.geomspace(2e4, 5e7, 6), 5)
RUNS = np.repeat(np.arange(5), 6)
DIMS = (32, 64, 128, 192)


def test_a_power_law_without_noise_is_found_exactly():
    x = np.geomspace(3, 5e9, 7)
    law = fit_power(x, 0.47 * x**0.02)
    assert (law.a, law.b) == pytest.approx((0.47, 0.02), rel=1e-10)
    assert law.slopes() == pytest.approx((0.02, 0.02), rel=1e-8)


def test_a_saturating_law_without_noise_is_found_exactly():
    law = fit_saturating(SIZES, SAMPLES, LAW.at(SIZES, SAMPLES))
    for name in ("floor", "of_size", "alpha", "of_data", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(LAW, name), rel=1e-8)
    assert not law.at_an_edge and law(SIZES[0], SAMPLES[0]) == pytest.approx(LAW(SIZES[0], SAMPLES[0]), rel=1e-10)


def test_one_outlier_does_not_move_the_saturating_law():
    """Huber's loss grows by the distance, not by its square."""
    values = LAW.at(SIZES, SAMPLES)
    values[7] *= 1.5
    law = fit_saturating(SIZES, SAMPLES, values)
    assert (law.alpha, law.beta, law.floor) == pytest.approx((LAW.alpha, LAW.beta, LAW.floor), rel=0.02)


def test_student_has_the_values_of_its_table():
    assert [student(n) for n in (1, 2, 5, 30)] == pytest.approx([6.3138, 2.9200, 2.0150, 1.6973], abs=2e-4)
    assert student(1_000_000) == pytest.approx(1.64485, abs=1e-3)


def test_intervals_of_a_power_law_hold_the_planted_exponent_nine_times_in_ten():
    draw, x, held, trials = np.random.default_rng(0), np.geomspace(1, 1e4, 6), 0, 1000
    for _ in range(trials):
        low, high = fit_power(x, 0.77 * x**0.11 * np.exp(0.02 * draw.standard_normal(6))).slopes()
        held += low <= 0.11 <= high
    assert held / trials == pytest.approx(0.9, abs=5 * math.sqrt(0.9 * 0.1 / trials))


@pytest.mark.parametrize("of_run", [0.0, 0.002])
def test_intervals_of_the_saturating_law_hold_the_planted_exponents(of_run):
    """of_run: an error that all points of a run share."""
    held, trials = 0, 3
    for seed in range(trials):
        draw = np.random.default_rng(seed)
        noise = 0.004 * draw.standard_normal(30) + of_run * draw.standard_normal(5)[RUNS]
        values = LAW.at(SIZES, SAMPLES) * np.exp(noise)
        laws = bootstrap(fit_saturating(SIZES, SAMPLES, values), SIZES, SAMPLES, values, RUNS, count=30, seed=seed)
        for name in ("alpha", "beta"):
            low, high = percentiles([getattr(law, name) for law in laws])
            held += low <= getattr(LAW, name) <= high
            assert 0 < high - low < 0.5
    assert held >= 2 * trials - 2


def test_a_frontier_is_what_nothing_cheaper_beats():
    x, y = np.array([1.0, 2, 2, 3, 4, 5]), np.array([5.0, 4, 3, 3, 6, 1])
    assert frontier(x, y, rises=False).tolist() == [True, False, True, False, False, True]
    assert frontier(x, y, rises=True).tolist() == [True, False, False, False, True, False]


@pytest.mark.parametrize("gamma", [1.0, 0.8])
def test_the_best_split_is_the_best_of_a_grid(gamma):
    operations, budget = PowerLaw(6.0, gamma), 1e17
    best = best_split(LAW, operations, budget)
    assert operations(best.size) * best.samples == pytest.approx(budget, rel=1e-12)
    grid = best.size * np.exp(np.linspace(-2, 2, 40_001))
    values = LAW.at(grid, budget / (6.0 * grid**gamma))
    assert grid[values.argmin()] == pytest.approx(best.size, rel=2e-4)
    assert best.value <= values.min() * (1 + 1e-12)


def test_the_best_split_is_the_published_one():
    """2203.15556, equation 4: N = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta))."""
    both = LAW.alpha + LAW.beta
    constant = (LAW.alpha * LAW.of_size / (LAW.beta * LAW.of_data)) ** (1 / both)
    found = best_split(LAW, PowerLaw(6.0, 1.0), 1e18)
    assert found.size == pytest.approx(constant * (1e18 / 6) ** (LAW.beta / both), rel=1e-12)
    assert found.samples == pytest.approx((1e18 / 6) ** (LAW.alpha / both) / constant, rel=1e-12)


def network(dim: int) -> dict:
    return {"type": "dit", "size": 16, "patch": 2, "channels": 4, "dim": dim, "depth": 4, "heads": 4, "num_classes": 10}


def write_run(folder, config, rows):
    (folder / "step-00001000").mkdir(parents=True)
    (folder / "step-00001000" / "state.json").write_text(json.dumps({"step": 1000, "config": config}))
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Runs of four sizes, whose validation loss is LAW's but for an odd first step, and whose top1 rises as 1 - LAW does."""
    law, made = replace(LAW, of_size=3.0, of_data=2.0, floor=0.05), []
    for dim in DIMS:
        config = {"objective": {"type": "diffusion"}, "network": network(dim), "batch_size": 32, "schedule": {"warmup": 100}}
        size = cost_of(network(dim))[0]
        rows = [{"time": 0.0, "step": 50, "samples_per_second": 100.0, "validation/loss": 9.0}]
        for step in (200, 400, 1000, 3000, 10_000):
            loss = law(size, 32 * step)
            rows.append(
                {"time": 1.0, "step": step, "samples_per_second": 200.0, "loss": 1 + loss, "validation/loss": loss}
                | {"evaluation/4/top1": 1 - loss}
            )
        made.append(write_run(tmp_path / f"dim{dim}", config, rows))
    return law, made


def said(capsys, *arguments):
    code = main([str(one) for one in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("metric", ["validation/loss", "evaluation/4/top1"])
def test_the_command_finds_what_was_planted(runs, metric, capsys):
    law, folders = runs
    code, out, err = said(capsys, *folders, "--metric", metric, "--budget", "1e16")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    found = {words[0]: float(words[1]) for words in lines if words and words[0] in ("E", "A", "alpha", "B", "beta")}
    assert found == pytest.approx(
        {"E": law.floor, "A": law.of_size, "alpha": law.alpha, "B": law.of_data, "beta": law.beta}, rel=1e-3
    )
    costs = [(run, *cost_of(network(dim))) for run, dim in zip(folders, DIMS, strict=True)]
    for run, size, flops in costs:
        row = next(line for line in reversed(out.splitlines()) if line.strip().startswith(run.name))
        samples = 1e16 / (3 * flops)
        expected = law(size, samples) if metric.endswith("loss") else 1 - law(size, samples)
        assert row.split()[1:4] == [f"{size:,}", f"{round(samples / 32):,}", "32"]
        assert float(row.split()[4]) == pytest.approx(expected, rel=1e-4)
    assert "To train next with 1e+16 FLOP" in out and "exponent is at the edge" not in out


def test_a_budget_may_be_hours_and_a_plot_is_written(runs, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    _, folders = runs
    target = tmp_path / "plots" / "scaling.png"
    code, out, _ = said(capsys, *folders, "--metric", "validation/loss", "--budget", "2h", "-o", target)
    rates = sorted(200 * 3 * cost_of(network(dim))[1] for dim in DIMS)
    assert code == 0 and f"with {7200 * (rates[1] + rates[2]) / 2:.3g} FLOP, 2 hours at these runs' speed" in out
    assert target.read_bytes().startswith(b"\x89PNG")


def test_two_sizes_give_powers_and_no_split(runs, capsys):
    _, folders = runs
    again = write_run(folders[0].parent / "again", *_of(folders[0]))
    code, out, _ = said(capsys, folders[0], folders[1], again, "--metric", "validation/loss")
    assert code == 0 and "C^-" in out and "three sizes" in out and "no budget can be split" in out


def _of(run):
    config = json.loads((run / "step-00001000" / "state.json").read_text())["config"]
    return config, [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_a_network_that_the_objective_makes_is_read_from_the_export(runs, capsys):
    _, folders = runs
    config, rows = _of(folders[2])
    alike = write_run(folders[0].parent / "student", config | {"network": {}}, rows)
    arguments = (folders[0], folders[1], alike, "--metric", "validation/loss", "--budget", "1e16")
    code, _, err = said(capsys, *arguments)
    assert code == 2 and "no export says of what size" in err
    (alike / "export" / "denoiser").mkdir(parents=True)
    (alike / "export" / "denoiser" / "config.json").write_text(json.dumps(network(DIMS[2])))
    code, out, _ = said(capsys, *arguments)
    assert code == 0 and f"{cost_of(network(DIMS[2]))[0]:,}" in out


def test_parameters_are_those_of_the_network():
    made = build(network(32))
    assert cost_of(network(32))[0] == sum(p.numel() for p in made.parameters())


def test_what_cannot_be_fitted_is_refused_by_a_sentence(runs, capsys, tmp_path):
    _, folders = runs
    first, rows = _of(folders[0])
    other = write_run(tmp_path / "other", first | {"objective": {"type": "mean_flow"}}, rows)
    odd = write_run(tmp_path / "odd", first | {"network": {"type": "text_encoder"}}, rows)
    alike = [write_run(tmp_path / f"alike{i}", first, rows) for i in range(2)]
    broken = write_run(tmp_path / "broken", first, rows)
    (broken / "log.jsonl").write_text("{\n" + (broken / "log.jsonl").read_text())
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "log.jsonl").write_text(json.dumps(rows[0]))
    three = folders[:3]
    for arguments, sentence in (
        (folders[:2], "2 runs are too few for a law; give three or more."),
        ([folders[0]] * 3, "1 run is too few"),
        ([folders[0], *alike], f"All 3 runs have one size, {cost_of(network(DIMS[0]))[0]:,} parameters"),
        ([*three, "--metric", "validation/los"], "did you mean 'validation/loss'?"),
        ([*three, "--budget", "soon"], "--budget is 'soon'; give operations, as 1e18, or hours, as 12h."),
        ([*three, "--budget", "0h"], "--budget is '0h'"),
        ([*three, other], "give runs of one objective"),
        ([*three, odd], "operations of a text_encoder are in no table; known are uvit, dit,"),
        ([*three, broken], "line 1 is no row of a log"),
        ([*three, bare], "has no checkpoint"),
        ([*three, tmp_path / "nowhere"], "is no folder"),
    ):
        code, out, err = said(capsys, *arguments)
        assert code == 2 and sentence in err and err.startswith("fewstep: ") and err.count("\n") == 1, (err, out)
