"""Every adapter with a strength of its own, as guidance: away from the prediction without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from samplers.composition.adapter_batch import active_adapters, check_known, is_number, predict_choices, weighted_sum
from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class Contrast(DenoiserWrapper):
    """raw = raw(x; rest) + sum_i g_i (raw(x; rest and adapter i) - raw(x; rest)), g_i = strengths[i].

    rest: the adapters in force that have no strength here. A strength of 1 for a single adapter is that adapter; 0 is none;
    more than 1 exaggerates what it does, as guidance does with a prompt. Costs 1 + N evaluations per image, as one batch.

    Source: the guidance of content and style of arXiv 2503.10614, written for any number of adapters.
    """

    denoiser: Denoiser
    strengths: Mapping[str, float]

    def __post_init__(self) -> None:
        bad = [name for name, strength in self.strengths.items() if not is_number(strength)]
        if bad or not self.strengths:
            raise ValueError(f"Strengths are {dict(self.strengths)}; give a finite number for at least one adapter.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        active = active_adapters(context, "A contrast")
        check_known(list(self.strengths), active, "A contrast")
        chosen = {name: strength for name, strength in self.strengths.items() if strength != 0}
        rest = {name: w for name, w in active.items() if name not in self.strengths}
        choices = [rest, *({n: w for n, w in active.items() if n in rest or n == name} for name in chosen)]
        weights = [1 - sum(chosen.values()), *chosen.values()]
        if weights[0] == 0:
            choices, weights = choices[1:], weights[1:]
        return weighted_sum(predict_choices(self.denoiser, x, level, condition, context, choices), weights)
