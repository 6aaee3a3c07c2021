"""Greedy guidance by an energy's name or a function of the user's (`samplers.guidance.greedy`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gen.io.validators import check_option_values
from gen.tasks.energies import energy_info, get_energy
from gen.tasks.energy_guidance.task import on_latents
from gen.tasks.training_free.options import TrainingFreeRecord
from gen.tasks.training_free.task import TrainingFreeMethod, as_list, not_in_recipe
from samplers.denoiser import Denoiser
from samplers.guidance.greedy import Greedy, draws, guidance_scales, interpolations, together

if TYPE_CHECKING:
    from gen.models.model import Model

OWN = ("iterations", "rate", "interval", "limit")
CANDIDATES = ("scales", "interpolations", "draws", "spread")
ITERATIONS, RATE, SPREAD = 5, 0.05, 0.3  # where nothing is said


@dataclass(frozen=True)
class GreedyChoice(TrainingFreeMethod):
    energy: Callable[..., Tensor]
    record: TrainingFreeRecord
    unrecorded: tuple[str, ...] = ()
    own: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def make(cls, model: Model, keywords: Mapping[str, Any], height: int, width: int) -> GreedyChoice:
        source = keywords[""]
        chosen = check_option_values("greedy_options", keywords.get("options") or {})
        info = energy_info(source, model.energies) if isinstance(source, str) else None
        if info is None and not callable(source):
            raise ValueError(f"greedy is {source!r}; give an energy's name, or a function (pictures, condition) -> (B,).")
        takes = (*OWN, *CANDIDATES, *(info.options if info else ()))
        for name in chosen:
            if name not in takes:
                raise ValueError(f"greedy_options has no {name!r}: it takes {', '.join(takes)}.")
        greedy_options = {name: value for name, value in chosen.items() if name in (*OWN, *CANDIDATES)}
        energy = source if info is None else get_energy(info, **{n: v for n, v in chosen.items() if n in info.options})
        recordable = info is not None and not info.external
        record = TrainingFreeRecord(
            energy=info.name if info is not None and recordable else "", options=chosen if recordable else greedy_options
        )
        choice = cls(energy, record, () if recordable else ("heuristic of greedy",), greedy_options)
        choice._choose(model.denoiser, energy, lambda s, t: None)  # options are checked here
        return choice

    @classmethod
    def keywords_from_record(cls, record: TrainingFreeRecord, keywords: Mapping[str, Any]) -> dict[str, Any]:
        if record.energy and keywords:
            raise ValueError(f"The picture was chosen by {record.energy!r}, which its recipe names; leave greedy out.")
        if not record.energy and not keywords:
            raise not_in_recipe("a heuristic of its maker's own", "greedy, --greedy FILE.py:FUNCTION")
        return dict(keywords) or {"": record.energy}

    def wrap_guided(self, model, denoiser, noise, prompts) -> Denoiser:
        return self._choose(denoiser, on_latents(model, self.energy, prompts), noise)

    def _choose(self, denoiser: Denoiser, heuristic: Callable[..., Tensor], noise: Any) -> Denoiser:
        options, sources = dict(self.own), []
        spread = options.pop("spread", SPREAD)
        if (scales := options.pop("scales", None)) is not None:
            sources.append(guidance_scales(as_list(scales)))
        if (count := options.pop("interpolations", None)) is not None:
            sources.append(interpolations(count))
        if (count := options.pop("draws", None)) is not None:
            sources.append(draws(noise, count, spread))
        if not sources:
            options = {"iterations": ITERATIONS, "rate": RATE, **options}
        return Greedy(denoiser, heuristic, together(sources), **options)
