"""Guidance by name: the closed table that command lines, recipes and documentation read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from samplers.denoiser import Denoiser
from samplers.guidance.apg import AdaptiveProjected
from samplers.guidance.autoguidance import Autoguidance
from samplers.guidance.cfg import ClassifierFree
from samplers.guidance.cfg_zero import CFGZeroStar
from samplers.guidance.cfgpp import CFGPlusPlus
from samplers.guidance.embedded import EmbeddedGuidance
from samplers.guidance.nag import NormalizedAttention
from samplers.guidance.norm_rescale import NormRescale
from samplers.guidance.perturbed import Perturbed, PerturbedAttention, SkipLayer, SmoothedEnergy
from samplers.guidance.rescale import Rescale
from samplers.guidance.threshold import Clip, DynamicThreshold
from samplers.lookup import build, check_options, find, register
from samplers.sample import Solver


@dataclass(frozen=True)
class GuidanceInfo:
    """What the tables say about a guidance method. `factory(denoiser, **options)` builds it around a plain denoiser.

    `solver`, where there is one, must go around the solver too. `evaluations` is the number of network evaluations per image
    where guidance acts. modifier: a rule that goes around another guidance, not around a plain denoiser; compares: one that
    must find a guided image and the conditional one there. always: acts without a prompt too, and at every scale. off: the
    scale at which nothing is guided; usual: one that is.
    """

    name: str
    factory: Callable[..., Denoiser]
    description: str
    evaluations: int = 2
    solver: Callable[[Solver], Solver] | None = None
    modifier: bool = False
    inner: bool = False
    compares: bool = False
    always: bool = False
    off: float = 1.0
    usual: float | None = None  # None: the model's
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()  # of the options, those without a default


def _perturbed(
    rule: type[Perturbed],
    denoiser: Denoiser,
    scale: float = 1.0,
    perturbed_scale: float = 2.8,
    layers: tuple[int, ...] | None = None,
    perturbed_interval: tuple[float, float] | None = None,
    blur: float | None = None,
    **options: Any,
) -> Denoiser:
    """A perturbed network around classifier-free guidance of `scale`; scale 1 evaluates no unconditional branch."""
    extra: dict[str, Any] = {} if perturbed_interval is None else {"interval": perturbed_interval}
    if blur is not None:
        extra["blur"] = blur
    return rule(
        ClassifierFree(denoiser, scale, **options),
        perturbed_scale,
        None if layers is None else tuple(layers),
        base=denoiser,
        **extra,
    )


def _normalized_attention(
    denoiser: Denoiser,
    negative: Any = None,
    nag_scale: float = 5.0,
    nag_tau: float = 2.5,
    nag_alpha: float = 0.25,
    nag_interval: tuple[float, float] | None = None,
) -> Denoiser:
    """By the names of the published pipelines."""
    extra: dict[str, Any] = {} if nag_interval is None else {"interval": nag_interval}
    return NormalizedAttention(denoiser, negative, nag_scale, nag_tau, nag_alpha, **extra)


_CFG = ("scale", "negative", "interval")
_PERTURBED = (*_CFG, "perturbed_scale", "layers", "perturbed_interval")

GUIDANCE: dict[str, GuidanceInfo] = {
    info.name: info
    for info in (
        GuidanceInfo(
            "cfg",
            ClassifierFree,
            "classifier-free guidance; scale 1 is off",
            aliases=("classifier_free",),
            options=(*_CFG, "channels"),
            needs=("scale",),
        ),
        GuidanceInfo(
            "cfg++",
            partial(ClassifierFree, keep_both=True),
            "CFG++: guided image, unguided noise; scale 0 to 1, at most about 2",
            solver=CFGPlusPlus,
            off=0.0,
            usual=0.6,
            options=_CFG,
            needs=("scale",),
        ),
        GuidanceInfo(
            "cfg_zero",
            CFGZeroStar,
            "CFG-Zero*: guidance with a fitted unconditional velocity, for flow models",
            aliases=("cfg_zero*", "cfg_zero_star"),
            options=(*_CFG, "optimised", "zero_until"),
            needs=("scale",),
        ),
        GuidanceInfo(
            "apg",
            AdaptiveProjected,
            "adaptive projected guidance: high scales without oversaturation",
            aliases=("adaptive_projected",),
            options=(*_CFG, "eta", "threshold", "momentum"),
            needs=("scale",),
        ),
        GuidanceInfo(
            "embedded",
            EmbeddedGuidance,
            "a scale that the network reads itself, for models distilled so (Flux.1 dev)",
            evaluations=1,
            always=True,
            options=("scale",),
            needs=("scale",),
        ),
        GuidanceInfo(
            "autoguidance",
            Autoguidance,
            "away from a weaker model's prediction",
            options=("weak", "scale", "interval"),
            needs=("weak", "scale"),
        ),
        GuidanceInfo(
            "pag",
            partial(_perturbed, PerturbedAttention),
            "perturbed-attention guidance, with or without classifier-free guidance",
            evaluations=3,
            aliases=("perturbed_attention",),
            options=_PERTURBED,
        ),
        GuidanceInfo(
            "slg",
            partial(_perturbed, SkipLayer),
            "skip-layer guidance, with or without classifier-free guidance",
            evaluations=3,
            aliases=("skip_layer",),
            options=_PERTURBED,
        ),
        GuidanceInfo(
            "seg",
            partial(_perturbed, SmoothedEnergy),
            "smoothed-energy guidance, with or without classifier-free guidance",
            evaluations=3,
            aliases=("smoothed_energy",),
            options=(*_PERTURBED, "blur"),
        ),
        GuidanceInfo(
            "nag",
            _normalized_attention,
            "normalised attention guidance: negative prompts for models of few steps too; goes into other guidance",
            1,
            modifier=True,
            inner=True,
            aliases=("normalized_attention", "normalised_attention"),
            options=("negative", "nag_scale", "nag_tau", "nag_alpha", "nag_interval"),
        ),
        GuidanceInfo(
            "rescale", Rescale, "CFG rescale: against overexposure", 0, modifier=True, compares=True, options=("factor", "on")
        ),
        GuidanceInfo(
            "norm_rescale",
            NormRescale,
            "the conditional output's length for the guided one: Qwen-Image",
            0,
            modifier=True,
            compares=True,
            aliases=("cfg_norm",),
            options=("patch", "shrink", "rows"),
        ),
        GuidanceInfo(
            "dynamic_threshold",
            DynamicThreshold,
            "draws a predicted image into its range, by a percentile",
            0,
            modifier=True,
            aliases=("dynamic_thresholding",),
            options=("percentile", "limit"),
        ),
        GuidanceInfo("clip", Clip, "clamps a predicted image to its range", 0, modifier=True, options=("limit",)),
    )
}


def guidance_names() -> tuple[str, ...]:
    return tuple(GUIDANCE)


def guidance_info(name: str) -> GuidanceInfo:
    """The record of a guidance method, by name or alias."""
    return find(GUIDANCE, name, "guidance")


def register_guidance(
    name: str, factory: Callable[..., Denoiser], description: str = "", options: tuple[str, ...] = _CFG, **properties: Any
) -> None:
    """Make a guidance rule of your own known by name, in this process.

    name: what users type; any spelling of it is found. Files can use it, but never register one.
    factory: factory(denoiser, **options) -> a denoiser around that one.
    options: the names of the options that it may be given, by default those of two-branch rules (scale, negative, interval).
    properties: the other fields of `GuidanceInfo` (evaluations, aliases, off, needs, ...).
    Raises ValueError where the name is taken.
    """
    register(GUIDANCE, GuidanceInfo(name, factory, description, options=tuple(options), **properties), "guidance")


def get_guidance(
    name: str | Callable[..., Denoiser], denoiser: Denoiser, solver: Solver, **options: Any
) -> tuple[Denoiser, Solver]:
    """(denoiser, solver) under a guidance method by name or alias, or by a function (denoiser, **options) -> denoiser.

    The solver is changed by cfg++ alone.
    Modifiers go around what an earlier call returned. Raises ValueError for an unknown name, an option that the method does
    not have, or one that it needs and was not given.
    """
    if callable(name):
        return name(denoiser, **options), solver
    info = guidance_info(name)
    check_options(info, options, "guidance")
    if missing := [name for name in info.needs if name not in options]:
        raise ValueError(f"The guidance {info.name!r} needs {' and '.join(missing)}: give a value for each.")
    return build(info, "guidance", info.factory, denoiser, options=options), solver if info.solver is None else info.solver(
        solver
    )
