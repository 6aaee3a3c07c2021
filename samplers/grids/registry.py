"""Grids by name: the closed table that command lines, recipes and documentation read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from samplers import grids
from samplers.grids import Grid


@dataclass(frozen=True)
class GridInfo:
    """A grid: `function(path, steps, **options)`."""

    name: str
    function: Callable[..., Grid]
    description: str
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


_SIGMAS = ("sigma_min", "sigma_max")

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
        GridInfo("normal", grids.normal, "timesteps evenly, first and last included", ("Normal",), ("shift",)),
        GridInfo("simple", grids.simple, "every (N / steps)-th timestep from the noisiest down", ("Simple",), ("shift",)),
        GridInfo(
            "ddim_uniform", grids.ddim_uniform, "timesteps 1, 1 + N // steps, ...: the DDIM code's", ("ddim_steps",), ("shift",)
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
            ("Linear Quadratic",),
            ("threshold_noise", "linear_steps"),
        ),
        GridInfo(
            "dynamic_shift",
            grids.dynamic_shift,
            "rectified flow shifted for the number of image tokens: Flux, SD3",
            ("flux",),
            ("tokens", "base_tokens", "max_tokens", "base_shift", "max_shift", "terminal"),
        ),
        GridInfo(
            "align_your_steps",
            grids.align_your_steps,
            "optimised for sd15, sdxl or svd by Align Your Steps",
            ("ays", "Align Your Steps"),
            ("family",),
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
