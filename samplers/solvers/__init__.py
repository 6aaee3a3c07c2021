"""Solvers: rules that take a state from one noise level to the next."""

from samplers.solvers.consistency import TCD, BoundaryScaled, Consistency
from samplers.solvers.ddpm import DDPM
from samplers.solvers.er_sde import ERSDE
from samplers.solvers.evaluate import evaluate
from samplers.solvers.heun import Heun
from samplers.solvers.multistep import RULES, Multistep, adams_weights
from samplers.solvers.pndm import PNDM
from samplers.solvers.restart import Restart

__all__ = [
    "DDPM",
    "ERSDE",
    "PNDM",
    "RULES",
    "TCD",
    "BoundaryScaled",
    "Consistency",
    "Heun",
    "Multistep",
    "Restart",
    "adams_weights",
    "evaluate",
]
