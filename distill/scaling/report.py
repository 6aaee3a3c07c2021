"""What a study says, in lines for a terminal, and its plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.scaling.laws import LEVEL, percentiles
from distill.scaling.runs import ScalingRun, rises
from distill.scaling.study import NEXT, Study

FAR = 10  # times the largest or smallest network: what lies beyond is a guess
UNITS = {"computing": "C", "size": "N", "data": "D"}


def lines(study: Study, budget: float | None) -> list[str]:
    """budget: operations of what is to be trained next; none: ten times the largest run's."""
    wanted = NEXT * study.largest if budget is None else budget
    said = [*_runs(study), "", *_power(study, wanted), "", *_saturating(study)]
    if study.law is None:
        return [*said, "Without it no budget can be split."]
    given = "" if budget is not None else f", {NEXT} times the largest run's"
    return [*said, "", *_next(study, wanted, given)]


def _runs(study: Study) -> list[str]:
    rows = [("run", "parameters", "FLOP/sample", "samples", study.metric)]
    for run in sorted(study.runs, key=lambda run: run.size):
        rows.append((run.name, f"{run.size:,}", f"{run.operations:.3g}", f"{run.samples[-1]:,}", f"{run.values[-1]:.5g}"))
    return _table(rows)


def _power(study: Study, budget: float) -> list[str]:
    rows = [(f"{study.metric} =", f"exponent, {LEVEL:.0%} interval", "points")]
    for fit in study.power:
        letter = UNITS[fit.name]
        if fit.law is None:
            rows.append((f"a {letter}^b ({fit.name})", f"none: {fit.reason}", str(len(fit.points))))
            continue
        low, high = fit.law.slopes()
        rows.append(
            (f"{fit.law.a:.4g} {letter}^{fit.law.b:.4f} ({fit.name})", f"{low:.4f} to {high:.4f}", str(len(fit.points)))
        )
    law = study.power[0].law
    if law is None:
        return _table(rows)
    low, high = law.interval(budget)
    return [*_table(rows), f"By computing alone, C = {budget:.3g} FLOP gives {law(budget):.5g} ({low:.5g} to {high:.5g})."]


def _saturating(study: Study) -> list[str]:
    if study.law is None:
        return [f"No law of size and data together. {study.reason}"]
    law, drawn = study.law, study.drawn
    what = f"1 - {study.metric}" if rises(study.metric) else study.metric
    rows = [(f"{what} = E + A / N^alpha + B / D^beta", "", f"{LEVEL:.0%} interval")]
    for name, field in (("E", "floor"), ("A", "of_size"), ("alpha", "alpha"), ("B", "of_data"), ("beta", "beta")):
        low, high = percentiles([getattr(one, field) for one in drawn])
        rows.append((name, f"{getattr(law, field):.4g}", f"{low:.4g} to {high:.4g}"))
    warning = "An exponent is at the edge of what is looked for: these runs do not determine it; train more sizes, or longer."
    return [*_table(rows), *[warning] * law.at_an_edge]


def _next(study: Study, budget: float, given: str) -> list[str]:
    try:
        best, (low, high) = study.split(budget)
    except ValueError as error:
        return [str(error)]
    hours = f", {budget / study.rate / 3600:.3g} hours at these runs' speed" if study.rate else ""
    value, least, most = study.value(best.size, best.samples)
    said = [
        f"To train next with {budget:.3g} FLOP{given}{hours}:",
        f"  {best.size:,.0f} parameters ({low:,.0f} to {high:,.0f}) on {best.samples:,.0f} samples: {study.metric} "
        f"{value:.5g} ({least:.5g} to {most:.5g})",
    ]
    sizes = [run.size for run in study.runs]
    if not min(sizes) / FAR <= best.size <= max(sizes) * FAR:
        said.append(f"  That is more than {FAR} times beyond the sizes of these runs, so no more than a guess.")
    rows = [("or a network you have", "parameters", "steps", "batch", study.metric)]
    for run in _of_each_size(study.runs):
        samples = budget / run.operations
        value, least, most = study.value(run.size, samples)
        steps = f"{max(1, round(samples / run.batch)):,}"
        rows.append((run.name, f"{run.size:,}", steps, str(run.batch), f"{value:.5g} ({least:.5g} to {most:.5g})"))
    return [*said, *(f"  {line}" for line in _table(rows))]


def _of_each_size(runs: Sequence[ScalingRun]) -> list[ScalingRun]:
    """The longest run of every size."""
    longest = {run.size: run for run in sorted(runs, key=lambda run: run.samples[-1])}
    return [longest[size] for size in sorted(longest)]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def draw(study: Study, budget: float, target: Path) -> None:
    """A picture of the runs over computing with the frontier's law, and of what the budget gives by size.

    ValueError without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("A plot needs matplotlib; install it (pip install matplotlib), or leave -o out.") from None
    figure = Figure(figsize=(11, 4.5), layout="tight")
    left, right = figure.subplots(1, 2)
    _draw_runs(left, study, budget)
    if study.law is None:
        right.text(0.5, 0.5, "no law of size and data", ha="center")
        right.set_axis_off()
    else:
        _draw_budget(right, study, budget)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=120, format="png")


def _draw_runs(axes: Any, study: Study, budget: float) -> None:
    for run in sorted(study.runs, key=lambda run: run.size):
        cost = [run.operations * n for n in run.samples]
        axes.plot(cost, run.values, ".-", linewidth=0.7, label=f"{run.name}: {run.size / 1e6:.3g}M")
    fit = study.power[0]
    if fit.law is not None:
        grid = np.geomspace(fit.points[:, 0].min(), max(budget, fit.points[:, 0].max()), 50)
        axes.plot(grid, [fit.law(x) for x in grid], "k--", label=f"{fit.law.a:.3g} C^{fit.law.b:.3f}")
        low, high = zip(*(fit.law.interval(x) for x in grid), strict=True)
        axes.fill_between(grid, low, high, color="black", alpha=0.12)
    axes.set(xscale="log", yscale="log", xlabel="computing C (FLOP)", ylabel=study.metric)
    axes.legend(fontsize=7)


def _draw_budget(axes: Any, study: Study, budget: float) -> None:
    try:
        best = study.split(budget)[0].size
    except ValueError:
        best = float(np.median([run.size for run in study.runs]))
    sizes = [run.size for run in study.runs]
    grid = np.geomspace(min(best, *sizes) / 2, max(best, *sizes) * 2, 80)
    values = [study.value(size, budget / study.operations(size)) for size in grid]
    axes.plot(grid, [one[0] for one in values], "k")
    axes.fill_between(grid, [one[1] for one in values], [one[2] for one in values], color="black", alpha=0.12)
    axes.axvline(best, linestyle=":", color="black", label=f"best: {best / 1e6:.3g}M")
    axes.set(xscale="log", xlabel="parameters N", ylabel=f"{study.metric} for {budget:.3g} FLOP")
    axes.legend(fontsize=8)
