"""Grids by name: the closed table that command lines, recipes and documentation read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from samplers import grids
from samplers.grids import Grid, comfy, tables
from samplers.grids.automatic import automatic
from samplers.grids.bong_tangent import bong_tangent
from samplers.grids.gits import gits


@dataclass(frozen=True)
class GridInfo:
    """What the tables say about a grid. `factory(path, steps, **options)` gives its levels."""

    name: str
    factory: Callable[..., Grid]
    description: str
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


_SIGMAS = ("sigma_min", "sigma_max")
_TABLE = ("shift", "entries")

GRIDS: dict[str, GridInfo] = {
    info.name: info
    for info in (
        GridInfo("karras", grids.karras, "even in (sigma / alpha)^(1/7): many steps at low noise", (), (*_SIGMAS, "rho")),
        GridInfo("exponential", grids.exponential, "even in log(sigma / alpha)", ("edm_ve",), _SIGMAS),
        GridInfo(
            "polyexponential", grids.polyexponential, "a power of an even ramp in log(sigma / alpha)", (), (*_SIGMAS, "rho")
        ),
        GridInfo("uniform_logsnr", grids.uniform_logsnr, "even in log-SNR", ("logsnr",), ("logsnr_min", "logsnr_max")),
        GridInfo(
            "uniform", grids.uniform_time, "even in the path's clock, from the noisiest level", ("uniform_time",), ("shift",)
        ),
        GridInfo(
            "trailing",
            partial(grids.uniform_time, rounded=True),
            "a table's whole timesteps from the last one down; as uniform on other paths",
            (),
            ("shift",),
        ),
        GridInfo(
            "leading",
            partial(grids.uniform_time, spacing="leading"),
            "multiples of N // steps of a table, from `offset` up",
            (),
            ("offset",),
        ),
        GridInfo(
            "linspace",
            partial(grids.uniform_time, spacing="linspace", rounded=True),
            "a table's whole timesteps, first and last included",
        ),
        GridInfo(
            "normal", grids.normal, "timesteps evenly, both ends included: AUTOMATIC1111's Uniform", ("Normal",), ("shift",)
        ),
        GridInfo("simple", grids.simple, "every (N / steps)-th timestep from the noisiest down", ("Simple",), ("shift",)),
        GridInfo(
            "ddim_uniform",
            grids.ddim_uniform,
            "timesteps 1, 1 + N // steps, ...: the DDIM code's",
            ("ddim_steps", "ddim", "comfy:ddim_uniform"),
            ("shift",),
        ),
        GridInfo(
            "sgm_uniform", grids.sgm_uniform, "a table's timesteps, evenly, the first left out", ("SGM Uniform",), ("shift",)
        ),
        GridInfo(
            "quadratic",
            grids.quadratic,
            "even in the clock's square root, down to t_min",
            ("time_quadratic",),
            ("t_min", "power"),
        ),
        GridInfo("beta", grids.beta, "the clock at quantiles of Beta(0.6, 0.6)", (), ("alpha", "beta", "shift")),
        GridInfo(
            "kl_optimal",
            grids.kl_optimal,
            "even in arctan(sigma / alpha), the angle of the cosine schedule",
            ("KL Optimal", "cosine"),
            _SIGMAS,
        ),
        GridInfo(
            "laplace", grids.laplace, "log(sigma / alpha) at quantiles of a Laplace distribution", (), (*_SIGMAS, "mu", "beta")
        ),
        GridInfo(
            "vp", grids.vp, "even on the continuous VP clock; rho=2 for DEIS's quadratic time", (), (*_SIGMAS, "eps_s", "rho")
        ),
        GridInfo("iddpm", grids.iddpm, "even indices of Improved DDPM's cosine schedule", (), _SIGMAS),
        GridInfo(
            "linear_quadratic",
            grids.linear_quadratic,
            "small even steps at high noise, then quadratic: Movie Gen",
            ("Linear Quadratic", "comfy:linear_quadratic"),
            ("threshold_noise", "linear_steps"),
        ),
        GridInfo(
            "dynamic_shift",
            grids.dynamic_shift,
            "rectified flow shifted for the number of image tokens: Flux, SD3",
            ("flux",),
            ("tokens", "base_tokens", "max_tokens", "base_shift", "max_shift", "terminal", "mu"),
        ),
        GridInfo(
            "align_your_steps",
            grids.align_your_steps,
            "optimised for sd15, sdxl or svd by Align Your Steps",
            ("ays", "Align Your Steps"),
            ("family",),
        ),
        GridInfo("turbo", grids.turbo, "a table's timesteps k N / steps - 1, rounded: Forge's Turbo", (), ("shift",)),
        GridInfo("trigflow", grids.trigflow, "even in arctan(sigma / alpha): Sana-Sprint", (), ("start", "middle")),
        GridInfo("automatic", automatic, "what AUTOMATIC1111 runs the sampler on: its Automatic", (), ("sampler", "discard")),
        GridInfo(
            "align_your_steps_11",
            partial(tables.visited_steps, which="11"),
            "Align Your Steps with its last value visited: AUTOMATIC1111's and Forge's",
            ("ays_11",),
            ("family",),
        ),
        GridInfo(
            "align_your_steps_32",
            partial(tables.visited_steps, which="32"),
            "Forge's Align Your Steps of 32 values",
            ("ays_32",),
            ("family",),
        ),
        GridInfo(
            "align_your_steps_gits",
            partial(tables.visited_steps, which="gits"),
            "Forge's Align Your Steps GITS",
            ("ays_gits",),
            ("family",),
        ),
        GridInfo(
            "optimal_steps", tables.optimal_steps, "OptimalSteps for flux, wan or chroma", ("OptimalSteps", "oss"), ("family",)
        ),
        GridInfo(
            "bong_tangent",
            bong_tangent,
            "two arctangents on a flow's clock: RES4LYF's",
            (),
            ("middle", "pivot_1", "pivot_2", "slope_1", "slope_2"),
        ),
        GridInfo(
            "beta57",
            partial(comfy.beta, alpha=0.5, beta=0.7),
            "ComfyUI's beta at Beta(0.5, 0.7): RES4LYF's",
            (),
            ("alpha", "beta", *_TABLE),
        ),
        GridInfo("comfy:karras", comfy.karras, "ComfyUI's karras: on flows in t", (), ("rho", *_TABLE)),
        GridInfo("comfy:exponential", comfy.exponential, "ComfyUI's exponential: on flows in log t", (), _TABLE),
        GridInfo("comfy:kl_optimal", comfy.kl_optimal, "ComfyUI's kl_optimal: on flows in arctan t", (), _TABLE),
        GridInfo("comfy:normal", comfy.normal, "ComfyUI's normal, on a shifted table too", (), _TABLE),
        GridInfo("comfy:simple", comfy.simple, "ComfyUI's simple, on a table of any length", (), _TABLE),
        GridInfo("comfy:sgm_uniform", comfy.sgm_uniform, "ComfyUI's sgm_uniform: down to the table's end", (), _TABLE),
        GridInfo("comfy:beta", comfy.beta, "ComfyUI's beta: whole entries of the table", (), ("alpha", "beta", *_TABLE)),
        GridInfo("comfy:gits", gits, "ComfyUI's GITS node: published levels for SD", ("GITSScheduler",), ("coeff",)),
        GridInfo("comfy:align_your_steps", tables.comfy_aligned_steps, "Align Your Steps by ComfyUI's digits", (), ("family",)),
        GridInfo(
            "trained",
            grids.trained,
            "the timesteps that latent consistency models were trained at; as uniform on paths without a table",
            (),
            ("original_steps", "shift"),
        ),
        GridInfo(
            "scheduler",
            grids.scheduler_timesteps,
            "a table's timesteps by the settings of a diffusers scheduler",
            (),
            (
                "spacing",
                "offset",
                "open_end",
                "rounded",
                "original_steps",
                "clipped",
                "sigmas",
                "bounds",
                *_SIGMAS,
                "largest",
                "clock",
                "final",
            ),
        ),
        GridInfo(
            "scheduler_flow",
            grids.scheduler_flow,
            "a flow's points by the settings of a diffusers scheduler",
            (),
            (
                "start",
                "shift",
                "time_shift",
                "tokens",
                "base_tokens",
                "max_tokens",
                "base_shift",
                "max_shift",
                "terminal",
                "mu",
                "sigmas",
                "size",
                "clock",
                "final",
                "final_sigma",
            ),
        ),
        GridInfo(
            "table",
            grids.table,
            "levels of your own: a JSON file that samplers.search saved, or values=",
            (),
            ("values", "unit", "pure_noise"),
        ),
    )
}
