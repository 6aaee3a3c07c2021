"""Guidance by an energy, by name: one strength for each method, the rest by options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from samplers.denoiser import Denoiser
from samplers.guidance.classifier import ClassifierGuided
from samplers.guidance.energy import Energy, energy_name
from samplers.guidance.recurrent import Recurrent
from samplers.guidance.tfg import TFG, dps, lgd, mpgd
from samplers.guidance.universal import Universal
from samplers.lookup import build, check_options, find
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.sample import Solver


@dataclass(frozen=True)
class EnergyMethodInfo:
    """`factory(denoiser, energy, levels, strength, noise, **options)`; through: its gradients run through the denoiser."""

    name: str
    factory: Callable[..., Denoiser]
    description: str
    options: tuple[str, ...] = ()
    through: bool = True
    recurrence: int = 1  # passes of each step unless the caller says otherwise
    aliases: tuple[str, ...] = ()


def _tfg(denoiser, energy, levels, strength, noise, **options) -> Denoiser:
    return TFG(denoiser, energy, levels, **{"rho": strength, "mu": strength, "noise": noise, **options})


def _dps(denoiser, energy, levels, strength, noise, **options) -> Denoiser:
    return dps(denoiser, energy, levels, strength, **options)


def _lgd(denoiser, energy, levels, strength, noise, **options) -> Denoiser:
    return lgd(denoiser, energy, levels, strength, noise=noise, **options)


def _mpgd(denoiser, energy, levels, strength, noise, **options) -> Denoiser:
    return mpgd(denoiser, energy, levels, strength, **options)


def _ugd(denoiser, energy, levels, strength, noise, **options) -> Denoiser:
    return Universal(denoiser, energy, strength, **options)


def _classifier(denoiser, energy, levels, strength, noise, **options) -> Denoiser:
    if not hasattr(energy, "noisy"):
        raise ValueError(
            f"Classifier guidance needs a classifier of noisy images, and {energy_name(energy)} knows clean ones only; choose "
            "another method."
        )
    return ClassifierGuided(denoiser, energy.noisy, strength, unconditional=False, **options)


_COMMON = ("interval", "limit", "checkpoint", "branch", "recurrence")

METHODS: dict[str, EnergyMethodInfo] = {
    info.name: info
    for info in (
        EnergyMethodInfo(
            "tfg",
            _tfg,
            "TFG: gradients at x and at x0; rho and mu default to the strength",
            ("rho", "mu", "gamma", "samples", "iterations", "rho_shares", "mu_shares", "mu_on", *_COMMON),
            aliases=("training_free",),
        ),
        EnergyMethodInfo("dps", _dps, "DPS: a step along the gradient at x after every solver step", _COMMON),
        EnergyMethodInfo("lgd", _lgd, "LGD: DPS with the energy averaged about x0", ("gamma", "samples", *_COMMON)),
        EnergyMethodInfo("mpgd", _mpgd, "MPGD: gradients at x0 only, the cheapest", ("iterations", *_COMMON), through=False),
        EnergyMethodInfo("freedom", _dps, "FreeDoM: DPS with every step made twice", _COMMON, recurrence=2),
        EnergyMethodInfo(
            "ugd",
            _ugd,
            "universal guidance: as a score, the same for any number of steps; 1 is Bayes' rule",
            ("backward", "iterations", *_COMMON),
            aliases=("universal",),
        ),
        EnergyMethodInfo(
            "classifier",
            _classifier,
            "classifier guidance: the gradient of a classifier of noisy images at x; 1 is Bayes' rule",
            ("interval", "recurrence"),
            through=False,
        ),
    )
}


def method_info(name: str) -> EnergyMethodInfo:
    """The record of a method, by name or alias."""
    return find(METHODS, name, "guide method")


def guide(
    method: str,
    denoiser: Denoiser,
    solver: Solver,
    energy: Energy,
    levels: Sequence[NoiseLevel],
    strength: float,
    noise: NoiseSource | None = None,
    **options: Any,
) -> tuple[Denoiser, Solver]:
    """(denoiser, solver) guided by an energy, for a run along `levels`. noise: for gamma; recurrence draws the run's own.

    Raises ValueError for an unknown method or an option that it does not have.
    """
    info = method_info(method)
    check_options(info, options, "guide method")
    passes = options.pop("recurrence", info.recurrence)
    around = solver if passes == 1 else Recurrent(solver, passes)
    made = build(info, "guide method", info.factory, denoiser, energy, levels, strength, noise, options=options)
    return made, around
