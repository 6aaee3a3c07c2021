"""Guidance: denoisers around denoisers.

Linear rules act on the network's own output, non-linear ones on x0 (CFG-Zero* on the velocity), and all of them stack:

    Rescale(PerturbedAttention(ClassifierFree(net, 5), 3, (4,), base=net), 0.7)

A rule sees the result of those under it, so the order matters for non-linear ones. CFG++ alone is a solver around a solver.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from samplers.guidance.apg import AdaptiveProjected
from samplers.guidance.autoguidance import Autoguidance
from samplers.guidance.cfg import ClassifierFree
from samplers.guidance.cfg_zero import CFGZeroStar
from samplers.guidance.cfgpp import CFGPlusPlus
from samplers.guidance.conjunction import Conjunction
from samplers.guidance.embedded import EmbeddedGuidance
from samplers.guidance.nag import NormalizedAttention
from samplers.guidance.norm_rescale import NormRescale
from samplers.guidance.perturbed import PerturbedAttention, SkipLayer, SmoothedEnergy
from samplers.guidance.registry import GUIDANCE, GuidanceInfo, get_guidance, guidance_info, guidance_names, register_guidance
from samplers.guidance.rescale import Rescale
from samplers.guidance.schedule import Piecewise, PowerCosine
from samplers.guidance.threshold import Clip, DynamicThreshold
from samplers.prediction import Guided

if TYPE_CHECKING:
    from samplers.guidance.classifier import ClassifierGuided
    from samplers.guidance.greedy import Greedy
    from samplers.guidance.inverse import Posterior
    from samplers.guidance.multi_reference import MultiReference
    from samplers.guidance.negtome import NegativeMerging
    from samplers.guidance.recurrent import Recurrent
    from samplers.guidance.reference_batch import References
    from samplers.guidance.t2i_zero import ConceptSuppression
    from samplers.guidance.tfg import TFG, dps, freedom, lgd, mpgd
    from samplers.guidance.universal import Universal

# guidance by an energy or a measurement: loaded when it is used, because every start of a program passes here
_LATER = {
    "ClassifierGuided": "classifier",
    "ConceptSuppression": "t2i_zero",
    "Greedy": "greedy",
    "MultiReference": "multi_reference",
    "NegativeMerging": "negtome",
    "Posterior": "inverse",
    "Recurrent": "recurrent",
    "References": "reference_batch",
    "TFG": "tfg",
    "Universal": "universal",
    "dps": "tfg",
    "freedom": "tfg",
    "lgd": "tfg",
    "mpgd": "tfg",
}

__all__ = [
    "GUIDANCE",
    "TFG",
    "AdaptiveProjected",
    "Autoguidance",
    "CFGPlusPlus",
    "CFGZeroStar",
    "ClassifierFree",
    "ClassifierGuided",
    "Clip",
    "ConceptSuppression",
    "Conjunction",
    "DynamicThreshold",
    "EmbeddedGuidance",
    "Greedy",
    "GuidanceInfo",
    "Guided",
    "MultiReference",
    "NegativeMerging",
    "NormRescale",
    "NormalizedAttention",
    "PerturbedAttention",
    "Piecewise",
    "Posterior",
    "PowerCosine",
    "Recurrent",
    "References",
    "Rescale",
    "SkipLayer",
    "SmoothedEnergy",
    "Universal",
    "dps",
    "freedom",
    "get_guidance",
    "guidance_info",
    "guidance_names",
    "lgd",
    "mpgd",
    "register_guidance",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"samplers.guidance.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
