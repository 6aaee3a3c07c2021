"""Guidance by an energy, as a call asks for it: the energy by name or a function, a method, a strength."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gen.io.user_code import run_file
from gen.io.validators import check_float, check_option_values
from gen.pipeline.finite import CheckedEnergy
from gen.pipeline.guidance_stack import name_of
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.energy_guidance.options import GuideKeywords, GuideRecord

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.tasks.energies import EnergyInfo
    from samplers.denoiser import Condition, Denoiser
    from samplers.noise import NoiseSource
    from samplers.path import NoiseLevel
    from samplers.sample import Solver

# where the effect of an energy of spread 0.05 is plain to see on the default model and most of the picture stays, by eye
STRENGTHS = {"tfg": 0.7, "dps": 0.7, "lgd": 0.7, "mpgd": 2.0, "freedom": 0.5, "ugd": 1.0, "classifier": 3.0}


@dataclass(frozen=True)
class Guide(Task):
    """A checked request. energy: (pictures (B, 3, H, W) in [0, 1], condition) -> (B,); record: what recipes say of it."""

    energy: Callable[..., Tensor]
    guide: GuideRecord
    method_options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_call(cls, model: Model, args: GuideKeywords, settings: Settings) -> tuple[Guide | None, Settings]:
        given = args.guide, args.guide_strength, args.guide_method, args.guide_options
        return make_guide(*given, model.energies), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> GuideKeywords | None:
        return replayed_guide(recipe.guide, keywords.get("guide"), model.energies, keywords.get("guide_options"))

    @property
    def traits(self) -> TaskTraits:
        unrecorded = () if self.guide.energy else ("energy of the guide",)
        return TaskTraits(label=name_of(self.energy), unrecorded=unrecorded)

    def wrap_guided(self, denoiser: Denoiser, solver: Solver, batch: SamplingBatch) -> tuple[Denoiser, Solver]:
        return self.build(batch.model, denoiser, solver, batch.settings.levels, batch.seeded_noise(), batch.prompts)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"guide": self.guide}

    def build(
        self,
        model: Model,
        denoiser: Denoiser,
        solver: Solver,
        levels: Sequence[NoiseLevel],
        noise: NoiseSource,
        prompts: Sequence[str],
    ) -> tuple[Denoiser, Solver]:
        """(denoiser, solver) with the guide around them, outside all other guidance."""
        from samplers.guidance.energy_methods import guide

        energy = on_latents(model, self.energy, prompts)
        record, options = self.guide, self.method_options
        return guide(record.method, denoiser, solver, energy, levels, record.strength, noise, **options)


def on_latents(model: Model, energy: Callable[..., Tensor], prompts: Sequence[str]) -> Callable[..., Tensor]:
    """An energy of what the denoiser works on, for these prompts."""
    name = name_of(energy)
    if hasattr(energy, "for_prompts"):
        energy = energy.for_prompts(prompts)
    energy = CheckedEnergy(energy, name)
    return energy if getattr(energy, "space", "pictures") == "latents" else OnPictures(model, energy)


@dataclass(frozen=True)
class OnPictures:
    """An energy of pictures as one of what the denoiser works on: through the decoder, which is differentiated too."""

    model: Model
    energy: Callable[..., Tensor]

    @property
    def __name__(self) -> str:
        return name_of(self.energy)

    def __call__(self, x0: Tensor, condition: Condition) -> Tensor:
        return self.energy(decode_open(self.model, x0), condition)


def decode_open(model: Model, latents: Tensor) -> Tensor:
    """`Generator.decode` without its clamp, for gradients: (B, 3, H, W), nominally in [0, 1]."""
    images = latents.float()
    if model.autoencoder is not None:
        images = model.autoencoder.decode(images / model.config.latent_scale).float()
    return images / 2 + 0.5


def make_guide(
    energy: Any,
    strength: object,
    method: object,
    options: Mapping[str, Any] | None,
    more: Mapping[str, EnergyInfo] | None = None,
) -> Guide | None:
    """None where no energy is given. An option goes to the energy and to the method, whichever has it."""
    if energy is None:
        orphans = [n for n, v in (("strength", strength), ("method", method), ("options", options)) if v]
        if orphans:
            raise ValueError(f"guide_{orphans[0]} was given without a guide; give guide too, an energy's name or a function.")
        return None
    from gen.tasks.energies import energy_info, get_energy
    from samplers.guidance.energy_methods import method_info

    chosen = check_option_values("guide_options", options or {})
    info = None
    if isinstance(energy, str):
        info = energy_info(energy, more)
    elif not callable(energy):
        raise ValueError(f"guide is {energy!r}; give an energy's name, or a function (pictures, condition) -> (B,).")
    usual = "classifier" if hasattr(energy, "noisy") else info.method if info else "tfg"
    way = method_info(usual if method is None else method)  # type: ignore[arg-type]
    default = STRENGTHS[way.name] * (info.gain if info else 1.0)
    amount = check_float("guide_strength", default if strength is None else strength, 0, 1e6)
    takes = (*way.options, *(info.options if info else ()))
    for name in chosen:
        if name not in takes:
            of = f"{way.name} takes {', '.join(way.options)}"
            if info:
                of += f"; {info.name} takes {', '.join(info.options)}"
            raise ValueError(f"guide_options has no {name!r}: {of}.")
    method_options = {name: value for name, value in chosen.items() if name in way.options}
    if info is not None:
        energy = get_energy(info, **{name: value for name, value in chosen.items() if name in info.options})
    recordable = info is not None and not info.external
    recorded_options = chosen if recordable else method_options
    record = GuideRecord(
        energy=info.name if info is not None and recordable else "", method=way.name, strength=amount, options=recorded_options
    )
    return Guide(energy, record, method_options)


def replayed_guide(
    record: GuideRecord | None,
    given: Any,
    more: Mapping[str, EnergyInfo] | None = None,
    options: Mapping[str, Any] | None = None,
) -> GuideKeywords | None:
    """The keywords of a recipe's guide. Code and models of the maker's own are not in it: `given` is that energy again,
    `options` say which files it opens."""
    if record is None:
        if given is not None:
            raise ValueError("The picture was made without a guide; leave it out.")
        return None
    from gen.tasks.energies import energy_info

    unrecorded = not record.energy or energy_info(record.energy, more).external
    if unrecorded and given is None:
        raise ValueError(
            "The picture was guided by code or a model of its maker's own, which no recipe may name; give it again as guide "
            "(--guide FILE.py:FUNCTION)."
        )
    if not unrecorded and given is not None:
        raise ValueError(f"The picture was guided by the energy {record.energy!r}, which its recipe names; leave guide out.")
    if options and not unrecorded:
        raise ValueError("The recipe holds its guide's options; leave guide_options out.")
    energy = given if unrecorded else record.energy
    return GuideKeywords(energy, record.strength, record.method, {**record.options, **(options or {})})


def read_function(text: str, option: str = "--guide") -> Callable[..., Tensor]:
    """The function that "FILE.py:NAME", typed by the user after `option`, says: the file is run as the user's own code."""
    file, _, name = text.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"{option} {text}: {path} is not a file; write FILE.py:FUNCTION, or an energy's name.")
    try:
        module = run_file(path, f"_guide_{path.stem}")
    except Exception as error:
        raise ValueError(f"{option} {text}: {path} failed: {type(error).__name__}: {error}.") from error
    if module is None:
        raise ValueError(f"{option} {text}: {path} is not Python source; give a .py file.")
    function = getattr(module, name, None)
    if not callable(function):
        has = ", ".join(n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__)
        raise ValueError(f"{option} {text}: {path} has no function {name!r}; it has {has or 'none'}.")
    return function
