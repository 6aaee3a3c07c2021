"""CFG++: the image guided, the noise not."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Guided, Prediction
from samplers.sample import Solver, State
from samplers.solvers.evaluate import evaluate
from samplers.wrappers import DenoiserWrapper, SolverWrapper, Step


@dataclass(frozen=True)
class CFGPlusPlus(SolverWrapper):
    """Any solver under CFG++: from s to t it steps with the unconditional prediction, then moves the image by guidance,

        x_t = step(x_s; x0_null, eps_null) + alpha_t (x0_guided - x0_null).

    For one-step solvers that is the published x_t = alpha_t x0_guided + sigma_t eps_null; with a solver's history, and with
    further evaluations in a step (the last one moves the image), it is the authors' DPM-Solver++ 2M and 2S. The denoiser
    handed to `step` is ClassifierFree(denoiser, scale, keep_both=True) with scale the paper's lambda, 0 to 1 (up to about 2 in
    practice), or a rule around it. Where guidance does not act (outside its interval) the step is the solver's own.

    A solver that spreads one step over several levels (dpm_fast) begins anew at each, because the image moved in between.

    It is a solver, not a denoiser, because renoising is a solver's affair: guided x0 and unconditional eps agree with no x.

    Source: arXiv 2406.08070, Algorithm 2 and appendix (the higher-order solvers).
    """

    inner: Solver

    def advance(self, step: Step, state: State) -> State:
        guided = evaluate(step.denoiser, state, step.s, step.condition, step.context)
        null = _null(guided)
        if null is None:
            return step.by(self.inner, replace(state, prediction=guided))
        last = _NullOf(step.denoiser, [guided])
        result = step.by(self.inner, replace(state, prediction=null), denoiser=last)
        final = last.guided[-1]
        move = final.x0 - (_null(final) or final).x0
        # Algorithm 2 (arXiv 2406.08070): only the image is guided
        return replace(result, x=torch.add(result.x, move, alpha=step.t.alpha), prediction=guided)


@dataclass(frozen=True)
class _NullOf(DenoiserWrapper):
    """The unconditional branch of a guided denoiser, for the further evaluations of one step; `guided` collects them."""

    denoiser: Denoiser
    guided: list[Prediction] = field(default_factory=list)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        guided = self.denoiser(x, level, condition, context)
        self.guided.append(guided)
        return _null(guided) or guided


def _null(prediction: Prediction) -> Prediction | None:
    """The unconditional branch; None where guidance does not act. Raises ValueError for a denoiser that does not guide."""
    if not isinstance(prediction, Guided):
        raise ValueError(
            "CFG++ renoises with the unconditional branch, and this denoiser has none: give "
            "ClassifierFree(denoiser, scale, keep_both=True), or a rule around it."
        )
    return prediction.null
