"""Solvers: rules that take a state from one noise level to the next."""

from samplers.solvers.evaluate import evaluate
from samplers.solvers.heun import Heun
from samplers.solvers.multistep import RULES, Multistep, adams_weights

__all__ = ["RULES", "Heun", "Multistep", "adams_weights", "evaluate"]
