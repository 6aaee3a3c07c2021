"""The one place where a solver asks its denoiser: once per point, even when a wrapper has asked already."""

from __future__ import annotations

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.sample import State


def evaluate(denoiser: Denoiser, state: State, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
    """The prediction at (state.x, level).

    A wrapper that has a prediction for this step (guidance, search) hands it over as `replace(state, prediction=p)`; it is
    used if `p.x` is the very tensor `state.x` and `p.level` is `level`, so a left-over from an earlier x never is.
    Raises ValueError where the output does not determine x0: an eps prediction at pure noise.
    """
    handed_over = state.prediction
    if handed_over is not None and handed_over.x is state.x and handed_over.level == level:
        return handed_over
    prediction = denoiser(state.x, level, condition, context)
    if level.alpha == 0 and prediction.row[0] == 0:
        raise ValueError(
            "At pure noise (alpha = 0) an eps prediction says nothing about the image: use a model that predicts x0, v or "
            "flow, or start the grid at a level with alpha > 0."
        )
    return prediction
