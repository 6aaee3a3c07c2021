"""LoRA composite: every adapter speaks alone, and the predictions are averaged."""

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
class Composite(DenoiserWrapper):
    """raw = sum_i a_i raw(x; adapter i alone, at its own weight) / sum_i a_i, over the adapters in force.

    shares: name -> a_i >= 0, 1 where not given; what an adapter's own weight w_i means does not change. All adapters are
    evaluated as one batch of N B rows, so a call costs N evaluations per image. One adapter is that adapter, none is the
    network. ValueError for a name that is not in force, and where the samples of a batch have different adapters already.

    Source: arXiv 2402.16843.
    """

    denoiser: Denoiser
    shares: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        bad = [name for name, share in (self.shares or {}).items() if not is_number(share, 0)]
        if bad:
            raise ValueError(f"The share of {bad[0]!r} is {(self.shares or {})[bad[0]]!r}; give a finite number of at least 0.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        active, shares = active_adapters(context, "A composite"), self.shares or {}
        check_known(list(shares), active, "A composite")
        names = [name for name in active if shares.get(name, 1.0) > 0]
        if not names:
            if active:
                raise ValueError("All shares of the composite are 0; give at least one adapter more.")
            return self.denoiser(x, level, condition, context)
        predictions = predict_choices(self.denoiser, x, level, condition, context, [{name: active[name]} for name in names])
        if len(names) == 1:
            return predictions[0]
        total = sum(shares.get(name, 1.0) for name in names)
        return weighted_sum(predictions, [shares.get(name, 1.0) / total for name in names])  # LoRA composite (arXiv 2402.16843)
