"""A strength for each method and the best of TFG, all by the score of pictures that the table does not show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from samplers.search import Beam, search_strengths
from tests.benchmarks.guidance.measure import Bench, Setting
from tests.benchmarks.guidance.tasks import Task

METHODS = ("dps", "lgd", "mpgd", "freedom", "ugd", "tfg")


@dataclass
class Found:
    """What a search chose and tried: setting -> mean score. note: what TFG's search came to."""

    settings: dict[str, Setting] = field(default_factory=dict)
    tried: dict[str, dict[Setting, float]] = field(default_factory=dict)
    note: str = ""


def climb(score: Callable[[float], float], start: float, trials: int, factor: float = 4.0) -> dict[float, float]:
    """{strength: score} of `trials` strengths: up or down from the start by `factor`, and by its root about a peak."""
    tried = {start: score(start)}
    while len(tried) < trials:
        best = max(tried, key=lambda s: tried[s])
        around = [best * factor, best / factor]
        if min(tried) < best:  # it rose to the best from below: up first; else down
            around.sort(reverse=True)
        elif len(tried) > 1:
            around.sort()
        new = next((s for s in around if not any(math.isclose(s, t) for t in tried)), None)
        if new is None:
            factor = math.sqrt(factor)
            continue
        tried[new] = score(new)
    return tried


def as_tfg(setting: Setting) -> Setting:
    """The same thing as numbers of TFG."""
    own, s = dict(setting.options), setting.strength
    options: dict = {"rho": s, "mu": 0.0, "rho_shares": "step", "mu_shares": "constant"}
    if setting.method == "mpgd":
        options |= {"rho": 0.0, "mu": s}
    elif setting.method == "ugd":
        options |= {"rho_shares": "score", "mu_on": "x0", "mu": own.get("backward", 0.0) if own.get("iterations") else 0.0}
        options["iterations"] = max(1, own.get("iterations", 0))
    elif setting.method == "lgd":
        options |= {"gamma": own["gamma"], "samples": own["samples"]}
    if setting.passes > 1:
        options["recurrence"] = setting.passes
    return Setting("tfg", 1.0, tuple(sorted(options.items())))


def neighbours(setting: Setting, found: dict[str, Setting]) -> list[Setting]:
    """TFG with one thing changed: the term that is missing added, a strength moved, recurrence, averaging."""
    own, new, wide = dict(setting.options), [], dict(found["lgd"].options)
    halves = {"mu": found["mpgd"].strength / 2, "rho": found["dps"].strength / 2}
    for term, half in halves.items():
        if own[term] == 0:
            new.append(setting.but(**{term: half}))
    new.append(setting.but(recurrence=3 - own.get("recurrence", 1)))
    for term in ("rho", "mu"):
        if own[term]:
            new.append(setting.but(**{term: own[term] * math.sqrt(2)}))
    new.append(setting.but(gamma=0.0 if own.get("gamma") else wide["gamma"], samples=wide["samples"]))
    for term in ("rho", "mu"):
        if own[term]:
            new.append(setting.but(**{term: own[term] / math.sqrt(2)}))
    if own["mu"]:
        new.append(setting.but(iterations=1 if own.get("iterations", 1) > 1 else 2))
    return new


def search(
    bench: Bench, task: Task, trials: int, tfg_trials: int, samples: int, finals: int, say: Callable[[str], None]
) -> Found:
    """`trials` settings of each method on `samples` pictures of the split "search".

    TFG starts from the best two of the others, which are in its space and were measured already, and has `tfg_trials` of its
    own: it has more numbers to choose. The best of each method and the best three that it found meet again on `finals`
    pictures, and the best three of these on three times as many.
    """
    found = Found()

    def score(setting: Setting) -> float:
        return bench.measure(task, setting, "search", samples).mean()

    def strengths(method: str, start: float, count: int, **options) -> None:
        base = Setting(method).but(**options)
        for strength, value in climb(lambda s: score(base.but(s)), start, count).items():
            found.tried.setdefault(method, {})[base.but(strength)] = value
        best(method)

    def best(method: str) -> None:
        found.settings[method] = max(found.tried[method], key=lambda s: found.tried[method][s])
        say(f"{task.name}: {method} {found.settings[method]}: {found.tried[method][found.settings[method]]:.4g}")

    strengths("dps", task.start, trials)
    near = found.settings["dps"].strength  # the others begin where they move a picture about as far
    strengths("mpgd", 4 * near, trials)
    strengths("freedom", near, trials)
    strengths("lgd", near, trials - 1, gamma=0.1, samples=2)
    wide = found.settings["lgd"].but(gamma=1.0)
    found.tried["lgd"][wide] = score(wide)
    best("lgd")
    strengths("ugd", near * 2, trials - 1, iterations=0)
    inner = found.settings["ugd"].but(iterations=2, backward=found.settings["mpgd"].strength / 2)
    found.tried["ugd"][inner] = score(inner)
    best("ugd")

    others = {as_tfg(s): found.tried[m][s] for m, s in found.settings.items()}
    ranked = sorted(others, key=lambda s: -others[s])
    beam = Beam(tuple(ranked[:2]), others)  # type: ignore[arg-type]
    around = lambda s: neighbours(s, found.settings)  # noqa: E731
    *_, beam = search_strengths(beam, score, len(others) + tfg_trials, neighbours=around)  # type: ignore[arg-type]
    found.tried["tfg"] = {**beam.scores}  # type: ignore[dict-item]

    fresh = [s for s in sorted(beam.scores, key=lambda s: -beam.scores[s]) if s not in others][:3]
    # halving: what looks best is looked at three times as long, so that it is not luck
    left: list[Setting] = [*found.settings.values(), *fresh]  # type: ignore[list-item]
    for count, kept in ((finals, 3), (3 * finals, 1)):
        means = {s: bench.measure(task, s, "search", count).mean() for s in left}
        left = sorted(left, key=lambda s: -means[s])[:kept]
    known = {s: method for method, s in found.settings.items()}
    found.note = f"{known[left[0]]} itself" if left[0] in known else "a setting of its own"
    found.note += ", of " + ", ".join(f"{known.get(s, s)} {means[s]:.4g}" for s in sorted(means, key=lambda s: -means[s]))
    found.settings["tfg"] = as_tfg(left[0]) if left[0] in known else left[0]
    say(f"{task.name}: tfg {found.settings['tfg']}: {found.note}")
    return found


def rows(task: Task, found: Found, methods: tuple[str, ...]) -> Iterator[tuple[str, Setting]]:
    """(name, setting) of the table's rows."""
    yield "unguided", Setting("unguided")
    if task.operator is not None:
        yield "restore", Setting("posterior")
    if task.name == "text":
        yield "best of 3", Setting("best of 3")
    for method in methods:
        yield method, found.settings[method]
