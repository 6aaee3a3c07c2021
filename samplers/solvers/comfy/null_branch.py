"""The unconditional branch, for the samplers under CFG++."""

from __future__ import annotations

from samplers.prediction import Guided, Prediction
from samplers.sample import Solver


def null_branch(prediction: Prediction) -> Prediction:
    """The unconditional branch; the prediction itself where guidance does not act, for there both are one."""
    if isinstance(prediction, Guided) and prediction.null is not None:
        return prediction.null
    return prediction


def reads_both_branches(solver: Solver) -> bool:
    """Whether a solver is one under CFG++, which wants guidance to keep both branches at every scale."""
    return bool(getattr(solver, "both_branches", False))
