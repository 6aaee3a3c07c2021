"""The table as plain values and markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.benchmarks.concepts.measure import Cell, Scorer

MEASURES = {
    "both": "both", "style": "style", "subject": "subject", "style, not asked": "style, not asked",
    "subject, not asked": "subject, not asked", "alignment": "alignment", "top-5": "top-5", "background": "background",
}  # fmt: skip
COSTS = ("evaluations", "seconds", "cpu seconds")


def row(name: str, cells: Mapping[str, Cell], scorer: Scorer) -> dict:
    """The means over all pictures that a measure is about, with standard errors, and by prompt."""
    by_prompt = {template: scorer(template, cell.images) for template, cell in cells.items()}
    found: dict = {"method": name}
    for measure in MEASURES:
        values = [v for scores in by_prompt.values() for v in scores.get(measure, ())]
        if values:
            found[measure] = mean = sum(values) / len(values)
            spread = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
            found[f"{measure} (standard error)"] = (spread / len(values)) ** 0.5
    count = sum(len(cell.images) for cell in cells.values())
    for cost in COSTS:
        found[cost] = sum(cell.cost[cost] * len(cell.images) for cell in cells.values()) / count
    found["prompts"] = {t: {n: sum(v) / len(v) for n, v in scores.items()} for t, scores in by_prompt.items()}
    return found


def markdown(table: Sequence[Mapping], ceilings: Mapping[str, Mapping[str, float]]) -> str:
    """The rows as a table, and how far the measures of likeness can be believed."""
    shown = [m for m in MEASURES if any(m in line for line in table)]
    lines = ["| " + " | ".join(["method", *shown, *COSTS]) + " |", "|---" + "|--:" * (len(shown) + len(COSTS)) + "|"]
    for line in table:
        cells = [f"{line[m]:.2f}" if m in line else "" for m in shown] + [f"{line[c]:.2f}" for c in COSTS]
        lines.append("| " + " | ".join([line["method"], *cells]) + " |")
    lines.append("")
    for name, found in ceilings.items():
        lines.append(
            f"{name}: of {found['own pictures']} held-out pictures {found['own recognised']:.0%} have a likeness above 0.5, of "
            f"{found['other pictures']} others {found['others taken for it']:.0%}; AUC {found['auc']:.3f}."
        )
    return "\n".join(lines) + "\n"
