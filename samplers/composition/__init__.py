"""Several adapters in one picture: denoisers that choose, call by call and row by row, which of `Context.adapters` act.

Merged adapters are what a network makes of `Context.adapters` by itself, W + sum w_i D_i. Here they take turns (`Switch`),
speak one by one and are averaged (`Composite`, `CachedComposite`) or weighed against the model (`Contrast`), or have a part of
the picture each (`Regional`).

All of them go around the network (and its caches) and under guidance: ClassifierFree(Composite(denoiser), 5). As they are
linear in the predictions, around linear guidance they compute the same.
"""

from samplers.composition.cached import CachedComposite
from samplers.composition.composite import Composite
from samplers.composition.contrast import Contrast
from samplers.composition.frequency import frequency, frequency_order
from samplers.composition.regional import AdapterRegion, Regional, two_stages
from samplers.composition.registry import COMPOSITIONS, CompositionInfo, composition_info, composition_names, get_composition
from samplers.composition.switch import Switch, taking_turns

__all__ = [
    "COMPOSITIONS",
    "AdapterRegion",
    "CachedComposite",
    "Composite",
    "CompositionInfo",
    "Contrast",
    "Regional",
    "Switch",
    "composition_info",
    "composition_names",
    "frequency",
    "frequency_order",
    "get_composition",
    "taking_turns",
    "two_stages",
]
