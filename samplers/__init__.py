"""The mathematics of sampling: paths, predictions, denoisers, grids, solvers and what is built on them.

A run is `sample(denoiser, get_solver("dpmpp_2m"), x, get_grid("karras", denoiser.path, 20), condition)`.
"""

from samplers.denoiser import CLOCKS, Condition, Context, Denoiser, Network, NetworkDenoiser
from samplers.guidance.cfg import ClassifierFree
from samplers.noise import NoiseSource, fold, normal, seeded_noise
from samplers.path import NoiseLevel, Path, RectifiedFlow, VarianceExploding, VariancePreserving
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
    solver_info,
    solver_names,
)
from samplers.sample import Evaluation, Solver, State, sample, trajectory
from samplers.solvers import Heun, Multistep, evaluate

__all__ = [
    "CLOCKS",
    "GRIDS",
    "ROWS",
    "SOLVERS",
    "ClassifierFree",
    "Condition",
    "Context",
    "Denoiser",
    "Evaluation",
    "GridInfo",
    "Heun",
    "Multistep",
    "Network",
    "NetworkDenoiser",
    "NoiseLevel",
    "NoiseSource",
    "Path",
    "Prediction",
    "RectifiedFlow",
    "Solver",
    "SolverInfo",
    "State",
    "VarianceExploding",
    "VariancePreserving",
    "evaluate",
    "fold",
    "get_grid",
    "get_solver",
    "grid_info",
    "grid_names",
    "normal",
    "parse_sampler",
    "prediction_row",
    "sample",
    "seeded_noise",
    "solver_info",
    "solver_names",
    "trajectory",
]
