"""`python -m tests.benchmarks.solvers`: what a solver's own arithmetic costs, and what its steps buy.

1. Host time per step of ours, k-diffusion and diffusers in one process, on a denoiser that costs next to nothing.
2. Error against network evaluations on a Gaussian mixture with its exact denoiser, for every solver of the registry: the
   root mean square distance to the ODE's solution for those without noise, and for all of them the distance of the samples'
   distribution from the data's (sliced Wasserstein-1).

Prints tables; writes solvers.json and solvers.png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from gen.cli.show import table
from samplers import (
    Condition,
    Context,
    NoiseLevel,
    Prediction,
    VariancePreserving,
    brownian_noise,
    get_grid,
    get_solver,
    sample,
    seeded_noise,
)
from samplers.analytic import Mixture, reference_ode
from samplers.registry import SOLVERS, SolverInfo
from tests.samplers.references import k_diffusion, k_sigmas

SHAPE = (1, 4, 64, 64)
BUDGETS = (4, 6, 8, 12, 16, 24, 32, 48, 64)


class Constant:
    """A denoiser that always says the same: all of the time is the solver's."""

    def __init__(self, path, x0: Tensor):
        self.path, self.x0 = path, x0

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        return Prediction(x, level, self.x0, (1.0, 0.0))


# ---- host time ----


def contestants(steps: int) -> dict[str, dict[str, Callable[[], object]]]:
    """method -> library -> a whole run of `steps` steps."""
    import diffusers

    kd = k_diffusion()
    x0 = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    path = VariancePreserving.scaled_linear()
    levels = get_grid("karras", path, steps)
    sigmas = k_sigmas(levels).float()

    def ours(name: str) -> Callable[[], object]:
        denoiser, solver = Constant(path, x0), get_solver(name)
        return lambda: sample(denoiser, solver, x, levels)

    def theirs(function: Callable) -> Callable[[], object]:
        return lambda: function(lambda x, sigma: x0, x, sigmas, disable=True)

    def scheduler(cls, **options) -> Callable[[], object]:
        made = cls(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="sample", **options)

        def run() -> Tensor:
            made.set_timesteps(steps)
            current = x
            for t in made.timesteps:
                made.scale_model_input(current, t)  # every diffusers loop pays for this
                current = made.step(x0, t, current, return_dict=False)[0]
            return current

        return run

    return {
        "Euler": {
            "ours": ours("euler"),
            "k-diffusion": theirs(kd.sample_euler),
            "diffusers": scheduler(diffusers.EulerDiscreteScheduler),
        },
        "DDIM": {"ours": ours("ddim"), "diffusers": scheduler(diffusers.DDIMScheduler, clip_sample=False)},
        "DPM++ 2M": {
            "ours": ours("dpmpp_2m"),
            "k-diffusion": theirs(kd.sample_dpmpp_2m),
            "diffusers": scheduler(diffusers.DPMSolverMultistepScheduler),
        },
        "UniPC": {"ours": ours("unipc"), "diffusers": scheduler(diffusers.UniPCMultistepScheduler, solver_order=3)},
    }


def host_times(steps: int, repeats: int) -> list[dict]:
    """Medians in microseconds per step; the libraries take turns, so that a slow moment of the machine hits all."""
    rows = []
    for method, runs in contestants(steps).items():
        times: dict[str, list[float]] = {library: [] for library in runs}
        for _ in range(repeats + 1):  # the first round warms up
            for library, run in runs.items():
                start = time.perf_counter()
                run()
                times[library].append((time.perf_counter() - start) / steps * 1e6)
        medians = {library: statistics.median(values[1:]) for library, values in times.items()}
        fastest = min(value for library, value in medians.items() if library != "ours")
        rows.append({"method": method, **{f"{k} (us)": round(v, 1) for k, v in medians.items()},
                     "ours / faster peer": round(medians["ours"] / fastest, 2)})  # fmt: skip
    return rows


# ---- error against evaluations ----


class Exact:
    """Distances from a distribution given by many exact samples (M, d): sliced Wasserstein-1, the mean over 32 directions."""

    def __init__(self, samples: Tensor):
        angles = torch.randn(samples.shape[1], 32, generator=torch.Generator().manual_seed(0), dtype=samples.dtype)
        self.angles = angles / angles.norm(dim=0)
        self.sorted = (samples @ self.angles).sort(0).values

    def distance(self, x: Tensor) -> float:
        """Of samples (N, d), N at most M: to the exact samples' quantiles (i + 1/2) / N."""
        rows = (torch.arange(len(x)) + 0.5) / len(x) * len(self.sorted)
        return float(((x @ self.angles).sort(0).values - self.sorted[rows.long()]).abs().mean())


def settings(info: SolverInfo, path, budget: int) -> tuple[dict, int]:
    """(options, steps) that spend about `budget` evaluations; an adaptive solver gets a tolerance in place of steps."""
    if info.adaptive:
        return {"rtol": 2.0 / budget**2, "atol": 2.0 / budget**2}, 2
    return {}, max(1, round((budget - info.extra) / info.evaluations))


def all_at_once(source: Callable, start: Tensor) -> Callable[[NoiseLevel, NoiseLevel], Tensor]:
    """Noise for all samples as if they were one image: a seed for each would take most of the time."""
    draw = source([0], start[None])

    def noise(s: NoiseLevel, t: NoiseLevel) -> Tensor:
        return draw(s, t)[0]

    if hasattr(draw, "fork"):
        noise.fork = lambda *key: lambda s, t: draw.fork(*key)(s, t)[0]
    return noise


def error_curves(count: int, solvers: dict[str, SolverInfo]) -> dict[str, list[dict]]:
    """solver -> one row per budget of evaluations that it can meet."""
    path = VariancePreserving.scaled_linear()
    denoiser = Mixture.example(path)
    draw = torch.Generator().manual_seed(0)
    start = path(1.0).sigma * torch.randn(count, 2, generator=draw, dtype=torch.float64)
    data = Exact(denoiser.sample(1 << 18, path(0.0), draw))
    truth = reference_ode(denoiser, start[:256], path(1.0), path.at_logsnr(9.0), 2000)
    floor = data.distance(denoiser.sample(count, path(0.0), draw))

    curves: dict[str, list[dict]] = {"(exact samples)": [{"budget": 0, "nfe": 0, "distribution": floor}]}
    for name, info in tqdm(solvers.items(), desc="solvers"):
        rows, noise = [], all_at_once(brownian_noise if info.brownian else seeded_noise, start)
        for budget in BUDGETS:
            options, steps = settings(info, path, budget)
            context = Context()
            x = sample(
                denoiser, get_solver(name, **options), start, get_grid(info.grid, path, steps), noise=noise, context=context
            )
            nfe = context.evaluations / count
            row = {"budget": budget, "steps": steps, "nfe": nfe, "distribution": data.distance(x)}
            if not info.stochastic:
                row["error"] = float((x[:256] - truth).square().mean().sqrt())
            if nfe <= 1.5 * budget or info.adaptive:
                rows.append(row)
        curves[name] = rows
    return curves


def error_table(curves: dict[str, list[dict]]) -> str:
    """Solvers without noise by error, then the others by distance; an adaptive one says how many evaluations it took."""

    def cell(name: str, row: dict) -> str:
        value = row.get("error", row["distribution"])
        return f"{value:.1e}" + (f" @{row['nfe']:.0f}" if SOLVERS[name].adaptive else "")

    text = []
    for noise, title in ((False, "RMS error"), (True, "distance of the distribution")):
        rows = []
        for name, found in curves.items():
            if name in SOLVERS and SOLVERS[name].stochastic == noise:
                cells = {row["budget"]: cell(name, row) for row in found}
                rows.append((name, SOLVERS[name].grid, *(cells.get(budget, "") for budget in BUDGETS)))
        text.append(table((title, "grid", *(f"{budget} nfe" for budget in BUDGETS)), rows))
    floor = curves["(exact samples)"][0]["distribution"]
    return "\n\n".join(text) + f"\n(as many exact samples are {floor:.1e} away)"


def plot(curves: dict[str, list[dict]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(15, 7))
    titles = ("RMS error of the ODE's solution", "distance of the distribution (stochastic dashed)")
    for axis, key, title in zip(axes, ("error", "distribution"), titles, strict=True):
        for name, rows in curves.items():
            points = [(row["nfe"], row[key]) for row in rows if key in row and row["nfe"]]
            if points and min(value for _, value in points) > 0:
                axis.plot(*zip(*points, strict=True), "--" if SOLVERS[name].stochastic else "-", label=name, linewidth=1.2)
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", title=title)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend(fontsize=6, ncol=2)
    if floor := curves.get("(exact samples)"):
        axes[1].axhline(floor[0]["distribution"], color="black", linewidth=0.8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.solvers", description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=50, help="steps of the timed runs")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--samples", type=int, default=8192, help="samples from the mixture")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)

    times = host_times(given.steps, given.repeats)
    columns = list(dict.fromkeys(key for row in times for key in row))
    print(f"Host time per step, {given.steps} steps on {SHAPE}, torch {torch.__version__}:")
    print(table(columns, [[str(row.get(column, "")) for column in columns] for row in times]), "\n")

    curves = error_curves(given.samples, SOLVERS)
    print(error_table(curves))
    (given.out / "solvers.json").write_text(json.dumps({"host_time": times, "curves": curves}, indent=1))
    plot(curves, given.out / "solvers.png")
    print(f"Written: {given.out / 'solvers.json'}, {given.out / 'solvers.png'}")


if __name__ == "__main__":
    main()
