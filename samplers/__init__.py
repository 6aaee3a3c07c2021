"""The mathematics of sampling: paths, predictions, denoisers, grids, solvers and what is built on them.

A run is `sample(denoiser, get_solver("dpmpp_2m"), x, get_grid("karras", denoiser.path, 20), condition)`.
"""

from samplers.anytime import anytime
from samplers.brownian import brownian_noise
from samplers.cache import CACHES, CacheInfo, cache_names, get_cache, register_cache
from samplers.denoiser import CLOCKS, Condition, Context, Denoiser, Network, NetworkDenoiser
from samplers.guidance import (
    GUIDANCE,
    ClassifierFree,
    GuidanceInfo,
    get_guidance,
    guidance_info,
    guidance_names,
    register_guidance,
)
from samplers.noise import NoiseSource, fold, normal, seeded_noise
from samplers.path import (
    NoiseLevel,
    Path,
    RectifiedFlow,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
    VariancePreservingSDE,
)
from samplers.prediction import ROWS, Prediction, prediction_row
from samplers.registry import (
    GRIDS,
    SOLVERS,
    GridInfo,
    SolverInfo,
    get_grid,
    get_solver,
    grid_info,
    grid_names,
    parse_sampler,
    register_grid,
    register_solver,
    solver_info,
    solver_names,
)
from samplers.renamed import install as _install
from samplers.sample import Evaluation, Solver, State, sample, trajectory
from samplers.solvers import DDPM, ERSDE, PNDM, TCD, BoundaryScaled, Consistency, Heun, Multistep, Restart, evaluate

__all__ = [
    "CACHES",
    "CLOCKS",
    "DDPM",
    "ERSDE",
    "GRIDS",
    "GUIDANCE",
    "PNDM",
    "ROWS",
    "SOLVERS",
    "TCD",
    "BoundaryScaled",
    "CacheInfo",
    "ClassifierFree",
    "Condition",
    "Consistency",
    "Context",
    "Denoiser",
    "Evaluation",
    "GridInfo",
    "GuidanceInfo",
    "Heun",
    "Multistep",
    "Network",
    "NetworkDenoiser",
    "NoiseLevel",
    "NoiseSource",
    "Path",
    "Prediction",
    "RectifiedFlow",
    "Restart",
    "Solver",
    "SolverInfo",
    "State",
    "Trigonometric",
    "VarianceExploding",
    "VariancePreserving",
    "VariancePreservingSDE",
    "anytime",
    "brownian_noise",
    "cache_names",
    "evaluate",
    "fold",
    "get_cache",
    "get_grid",
    "get_guidance",
    "get_solver",
    "grid_info",
    "grid_names",
    "guidance_info",
    "guidance_names",
    "normal",
    "parse_sampler",
    "prediction_row",
    "register_cache",
    "register_grid",
    "register_guidance",
    "register_solver",
    "sample",
    "seeded_noise",
    "solver_info",
    "solver_names",
    "trajectory",
]

_install(__name__)
