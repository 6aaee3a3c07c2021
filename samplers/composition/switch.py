"""LoRA switch: one adapter at a time, by noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from samplers.composition.adapter_batch import active_adapters, check_known, check_starts, count_reached
from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper

Turns = tuple[tuple[float, str], ...]  # (log-SNR at which it begins, adapter)

EVERY = 5  # steps per turn, as published


@dataclass(frozen=True)
class Switch(DenoiserWrapper):
    """Adapter `name` acts alone, at its own weight, from the log-SNR at which its turn begins until the next turn.

    turns: ((log-SNR, name), ...), rising; the first also holds before it begins. `taking_turns` makes them from a number of
    steps. Adapters in force that have no turn do nothing. A call costs what one adapter costs. Levels may be one per sample.

    Source: arXiv 2402.16843.
    """

    denoiser: Denoiser
    turns: Turns

    def __post_init__(self) -> None:
        if not self.turns:
            raise ValueError("A switch got no turns; give ((log-SNR, adapter), ...), or make them with taking_turns.")
        check_starts([start for start, _ in self.turns], "Turns of adapters")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        active = active_adapters(context, "A switch")
        check_known([name for _, name in self.turns], active, "A switch")
        if isinstance(level.logsnr, Tensor):
            logsnr = level.logsnr.expand(len(x)) if level.logsnr.ndim == 0 else level.logsnr
            return self.denoiser(x, level, condition, replace(context, adapters=[self._at(v, active) for v in logsnr.tolist()]))
        return self.denoiser(x, level, condition, replace(context, adapters=self._at(level.logsnr, active)))

    def _at(self, logsnr: float, active: dict[str, float]) -> dict[str, float]:
        name = self.turns[max(count_reached([start for start, _ in self.turns], logsnr) - 1, 0)][1]
        return {name: active[name]}


def taking_turns(names: Sequence[str], levels: Sequence[NoiseLevel], every: int = EVERY) -> Turns:
    """Turns for a run along `levels`: step i belongs to names[floor(i / every) mod N]."""
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"Adapters take turns every {every!r} steps; give a whole number of at least 1.")
    if not names:
        raise ValueError("No adapter is there to take turns; put at least one in force.")
    return tuple((float(levels[i].logsnr), names[n % len(names)]) for n, i in enumerate(range(0, len(levels) - 1, every)))
