"""Energies by name: what a picture can be guided to (`gen.tasks.energy_guidance`). The table is closed; a module is imported
when used.

An energy is called with pictures (B, 3, H, W), nominally in [0, 1], and the run's condition, and returns log-densities (B,):
-(distance / spread)^2 / 2 for those with a target. One with `for_prompts(prompts)` is asked for the energy of a batch.
Every reward of `gen.rewards` is an energy too, as `reward:NAME`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gen.rewards import reward_info
from samplers.lookup import build, check_options, find, register_own


@dataclass(frozen=True)
class EnergyInfo:
    """One row.

    external: it opens files or models that the caller names, so a recipe must not bring it about.
    gain: a method's default strength is times this, because the gradients of energies differ in size.
    method: the usual one of `samplers.guidance.energy_methods`.
    made_by: the factory itself, of an energy that the user registered.
    """

    name: str
    module: str
    factory: str
    description: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    external: bool = False
    gain: float = 1.0
    aliases: tuple[str, ...] = ()
    method: str = "tfg"
    made_by: Callable[..., Any] | None = None


ENERGIES: dict[str, EnergyInfo] = {
    info.name: info
    for info in (
        EnergyInfo(
            "brightness",
            "gen.tasks.energies.simple",
            "Brightness",
            "the mean brightness is `target`",
            ("target", "spread"),
            gain=4.0,
        ),
        EnergyInfo(
            "colour",
            "gen.tasks.energies.simple",
            "Colour",
            "the middle of the picture has this colour, a name or #rrggbb",
            ("colour", "spread", "width", "match", "share"),
            ("colour",),
            aliases=("color",),
        ),
        EnergyInfo(
            "composition",
            "gen.tasks.energies.simple",
            "CompositionEnergy",
            "what differs from the border has its centre at x, y (shares of the picture)",
            ("x", "y", "spread"),
            gain=4.0,
        ),
        EnergyInfo(
            "clip",
            "gen.tasks.energies.clip",
            "ClipSimilarity",
            "CLIP finds the picture close to `text`, or to the prompt",
            ("model", "text", "scale"),
            ("model",),
            external=True,
        ),
        EnergyInfo(
            "aesthetic",
            "gen.tasks.energies.clip",
            "AestheticScore",
            "a head on CLIP's embedding of the picture gives a high score",
            ("model", "head", "scale"),
            ("model", "head"),
            external=True,
        ),
    )
}


_registered: dict[str, EnergyInfo] = {}  # of the user's own, in this process


def register_energy(
    name: str, factory: Callable[..., Any], description: str, options: Sequence[str] = (), needs: Sequence[str] = (), **row: Any
) -> None:
    """Make an energy of your own known by name, for the rest of this process; no recipe can bring it about.

    factory: makes the energy from the options.
    options, needs: names of those it takes, and of those it must be given.
    row: gain, aliases and method of `EnergyInfo`.
    Raises ValueError for a name that is taken.
    """
    register_own(EnergyInfo, ENERGIES, _registered, "energy", name, factory, description, options, needs, **row)


PREFIX = "reward:"  # of energies that are rewards


def energy_info(name: str, more: Mapping[str, EnergyInfo] | None = None) -> EnergyInfo:
    """The record of an energy, by name or alias, or of `reward:NAME`; `more`: rows of other packages."""
    if isinstance(name, str) and name.startswith(PREFIX):
        return reward_energy(name.removeprefix(PREFIX))
    return find({**ENERGIES, **_registered, **(more or {})}, name, "energy")


def reward_energy(name: str) -> EnergyInfo:
    """The record of a reward as an energy. Its options are the reward's, and `weight`."""
    from gen.tasks.energies.rewarded import RewardEnergyFactory

    info = reward_info(name)
    return EnergyInfo(
        f"{PREFIX}{info.name}",
        "",
        "",
        info.description,
        (*info.options, "weight"),
        info.needs,
        external=info.external,
        made_by=RewardEnergyFactory(info),
    )


def get_energy(info: EnergyInfo, **options: Any) -> Any:
    """The energy itself; ValueError for an option it does not have, or one that is missing."""
    check_options(info, options, "energy")
    if missing := [name for name in info.needs if name not in options]:
        raise ValueError(f"The energy {info.name!r} needs {' and '.join(missing)}: give a value for each.")
    factory = info.made_by or getattr(importlib.import_module(info.module), info.factory)
    return build(info, "energy", factory, options=options)
