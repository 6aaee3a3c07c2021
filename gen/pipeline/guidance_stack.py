"""The field that a batch is sampled from, by names: the network, caches around it, guidance around those.

    GuidanceStack.of("apg + rescale", {"momentum": -0.5, "factor": 0.7}, "first_block", {})

One guidance rule comes first (cfg where only modifiers are named), then modifiers, the outermost last. An option goes to
every rule that has it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from gen.io.validators import check_option_values

if TYPE_CHECKING:
    from samplers.denoiser import Condition, Denoiser
    from samplers.sample import Solver


class GuidanceRule(Protocol):
    """A guidance rule of the caller's own: a denoiser around another.

    denoiser: the network and its caches. scale: the guidance scale. negative: what the pictures should not be, None for the
    unconditional prediction (`condition.null()`). interval: (low, high) in log-SNR where guidance acts.
    """

    def __call__(
        self, denoiser: Denoiser, scale: float, negative: Condition | None, interval: tuple[float, float], /
    ) -> Denoiser: ...


def name_of(function: Any) -> str:
    """What messages and recipes call a function or object of the caller's own."""
    return str(getattr(function, "__name__", type(function).__name__))


@dataclass(frozen=True)
class GuidanceStack:
    """Guidance rules and caches by name, with their options: what `build` puts around a network.

    names: of the guidance rule and its modifiers, innermost first.
    guidance_options: option -> value; each rule takes those that it has.
    cache: names of caches, innermost first.
    cache_options: option -> value, likewise.
    neutral_scale: the guidance scale at which the rule does nothing.
    usual_scale: the rule's own usual guidance scale; None: the model's.
    reads_negatives: the rule reads negative prompts.
    negatives_always: a negative prompt acts at every guidance scale.
    acts_always: the rule acts at every guidance scale, with or without a prompt.
    keeps_both: the sampler is one under CFG++, which needs the conditional and the unconditional branch of one picture.
    own_rule, own_cache: functions of the caller's own in the place of names, which no recipe holds.
    """

    names: tuple[str, ...] = ("cfg",)
    guidance_options: Mapping[str, Any] = field(default_factory=dict)
    cache: tuple[str, ...] = ()
    cache_options: Mapping[str, Any] = field(default_factory=dict)
    neutral_scale: float = 1.0
    usual_scale: float | None = None
    reads_negatives: bool = True
    negatives_always: bool = False
    acts_always: bool = False
    keeps_both: bool = False
    own_rule: GuidanceRule | None = None
    own_cache: Callable[[Denoiser], Denoiser] | None = None

    def under(self, solver: Solver) -> GuidanceStack:
        """The rules for a sampler: one under CFG++ has that rule's scales, and takes classifier-free guidance only."""
        from samplers.solvers.comfy.null_branch import reads_both_branches

        if not reads_both_branches(solver):
            return self
        if self.names[0] != "cfg" or self.own_rule is not None:
            raise ValueError(
                f"A sampler under CFG++ guides by itself, from the branches of plain guidance; with guidance={self.name!r} "
                "choose another sampler."
            )
        return replace(self, keeps_both=True, neutral_scale=0.0, usual_scale=0.6)

    @classmethod
    def of(
        cls,
        guidance: object,
        guidance_options: object,
        cache: object,
        cache_options: object,
        usual: Mapping[str, Any] | None = None,
    ) -> GuidanceStack:
        """Checked, with aliases resolved; ValueError says what is unknown or missing. usual: option -> the model's own value,
        for the rules that have such an option and were not given one."""
        if guidance in (None, "cfg") and not (guidance_options or cache or cache_options):
            return cls()  # without importing the whole family
        if callable(guidance) or callable(cache):
            return cls._with_own(guidance, guidance_options, cache, cache_options, usual)
        from samplers.cache.registry import cache_info
        from samplers.guidance.registry import guidance_info

        named = [guidance_info(name) for name in _names("guidance", guidance)]
        rules = [info for info in named if not info.modifier] or [guidance_info("cfg")]
        if len(rules) > 1 or (named and named[0].modifier and rules[0] in named):
            raise ValueError(
                f"guidance is {guidance!r}; name one rule, then modifiers that go around it: 'apg + rescale', for example."
            )
        if twice := [info.name for info in named if info.inner and named.count(info) > 1]:
            raise ValueError(f"guidance is {guidance!r}, which names {twice[0]!r} twice; name it once.")
        if "weak" in rules[0].needs:
            raise ValueError(
                "Autoguidance needs a weaker model, which no name can give; build samplers.guidance.Autoguidance around "
                "generator.denoiser in Python."
            )
        stack = (*rules, *[info for info in named if info.modifier])
        caches = [cache_info(name) for name in _names("cache", cache)]
        known_options = {name for info in stack for name in info.options}
        options = {name: value for name, value in (usual or {}).items() if name in known_options}
        options |= check_option_values("guidance_options", guidance_options or {})
        if "layers" in options and not isinstance(options["layers"], tuple):
            options["layers"] = (options["layers"],)
        cached = check_option_values("cache_options", cache_options or {})
        _check("guidance_options", options, stack, reserved=("scale", "negative", "interval"))
        _check("cache_options", cached, caches)
        return cls(
            names=tuple(info.name for info in stack),
            guidance_options=options,
            cache=tuple(info.name for info in caches),
            cache_options=cached,
            neutral_scale=rules[0].off,
            usual_scale=rules[0].usual,
            reads_negatives=any("negative" in info.options for info in stack),
            negatives_always=any(info.inner and "negative" in info.options for info in stack),
            acts_always=rules[0].always,
        )

    @classmethod
    def _with_own(
        cls, guidance: Any, guidance_options: object, cache: Any, cache_options: object, usual: Mapping[str, Any] | None
    ) -> GuidanceStack:
        """With functions of the caller's own; what is not one is by name as ever."""
        for what, value, options in (("guidance", guidance, guidance_options), ("cache", cache, cache_options)):
            if callable(value) and options:
                raise ValueError(f"{what} is a function of your own, which takes no {what}_options; leave them out.")
        stack = cls.of(
            None if callable(guidance) else guidance, guidance_options, None if callable(cache) else cache, cache_options, usual
        )
        if callable(guidance):
            stack = replace(stack, names=(name_of(guidance),), own_rule=guidance)
        return replace(stack, cache=(name_of(cache),), own_cache=cache) if callable(cache) else stack

    @property
    def unrecorded(self) -> tuple[str, ...]:
        """What no recipe can hold."""
        return ("guidance",) * (self.own_rule is not None) + ("cache",) * (self.own_cache is not None)

    def effective_scale(self, scale: float) -> float:
        """A guidance scale as callers mean it: 0 is none, as in diffusers, not the unconditional picture; but rules that act at
        every scale tell the network 0."""
        return self.neutral_scale if scale == 0 and not self.acts_always else scale

    def _inner(self) -> list[str]:
        """The rules that go around the network, inside of all others."""
        if self.names == ("cfg",) or self.own_rule is not None:
            return []
        from samplers.guidance.registry import guidance_info

        return [name for name in self.names if guidance_info(name).inner]

    @property
    def name(self) -> str:
        return " + ".join(self.names)

    @property
    def cache_name(self) -> str:
        return " + ".join(self.cache)

    def build(
        self,
        denoiser: Denoiser,
        solver: Solver,
        scale: float,
        negative: Condition | None,
        interval: tuple[float, float] | None,
        guided: bool,
        inside: Callable[[Denoiser], Denoiser] | None = None,
        joined: Callable[[Denoiser], Denoiser] | None = None,
    ) -> tuple[Denoiser, Solver]:
        """(denoiser, solver) with the caches and rules around them, `inside` between those, and `joined` between inner and
        other rules. Not `guided`: rules that
        compare with an unconditional image are left out, those that need none (perturbations, thresholds) stay."""
        if self.own_cache is not None:
            denoiser = self.own_cache(denoiser)
        for name in () if self.own_cache is not None else self.cache:
            from samplers.cache.registry import cache_info, get_cache

            denoiser = get_cache(name, denoiser, **_of(cache_info(name), self.cache_options))
        denoiser = denoiser if inside is None else inside(denoiser)
        for name in self._inner():
            from samplers.guidance.registry import get_guidance, guidance_info

            options = _of(guidance_info(name), self.guidance_options)
            denoiser, solver = get_guidance(name, denoiser, solver, **options, negative=negative)
        denoiser = denoiser if joined is None else joined(denoiser)
        if self.own_rule is not None:
            bounds = interval or (-math.inf, math.inf)
            return (self.own_rule(denoiser, scale, negative, bounds) if guided else denoiser), solver
        if self.names == ("cfg",) and not self.guidance_options:  # the common case, without importing the family
            if not guided:
                return denoiser, solver
            from samplers.guidance.cfg import ClassifierFree

            return ClassifierFree(
                denoiser, scale, negative, interval or (-math.inf, math.inf), keep_both=self.keeps_both
            ), solver

        from samplers.guidance.registry import get_guidance, guidance_info

        acts = False
        for name in self.names:
            info = guidance_info(name)
            if info.inner:
                continue
            arguments = _of(info, self.guidance_options)
            if info.always:
                arguments["scale"] = scale
            elif not info.modifier:
                if not guided and "perturbed_scale" not in info.options:
                    continue
                arguments |= {"scale": scale if guided else 1.0, "negative": negative if guided else None}
                arguments |= {} if interval is None else {"interval": interval}
                arguments |= {"keep_both": True} if self.keeps_both and name == "cfg" else {}
                acts = True
            elif info.compares and not acts:
                continue
            denoiser, solver = get_guidance(name, denoiser, solver, **arguments)
        return denoiser, solver


def with_usual_rule(guidance: object, usual: str) -> object:
    """Guidance by names, with the model's own in front where only rules are named that go inside of another."""
    if not isinstance(guidance, str) or not guidance.strip():
        return guidance
    from samplers.guidance.registry import guidance_info

    names = _names("guidance", guidance)
    return f"{usual} + {guidance}" if all(guidance_info(name).inner for name in names) else guidance


def warn_layers(network: Any, stack: GuidanceStack) -> None:
    """A warning where skip-layer guidance leaves out a block without which a network draws nothing."""
    layers = stack.guidance_options.get("layers", ()) if "slg" in stack.names else ()
    count = len(getattr(network, "blocks", ())) or 2 * len(getattr(network, "in_blocks", ())) + 1
    if layers and count > 2 and {0, count - 1} & set(layers):
        warnings.warn(
            f"Skip-layer guidance leaves out block 0 or {count - 1}, the first or the last, which destroys the picture as a "
            f"rule; choose layers between (without any, usual ones are chosen).",
            stacklevel=4,
        )


def _names(what: str, value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        value = value.replace("cfg++", "cfgpp").split("+")
    if not isinstance(value, Sequence) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{what} is {value!r}; give a name, or several with + between.")
    return [name.strip() for name in value if name.strip()]


def _of(info: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in info.options}


def _check(what: str, options: Mapping[str, Any], rules: Sequence[Any], reserved: Sequence[str] = ()) -> None:
    known = sorted({name for rule in rules for name in rule.options} - set(reserved))
    stack = " + ".join(rule.name for rule in rules)
    for name in options:
        if name in reserved:
            keyword = {"scale": "guidance_scale", "negative": "negative_prompt", "interval": "guidance_interval"}[name]
            raise ValueError(f"{what} has {name!r}, which is given by {keyword} itself.")
        if name not in known:
            takes = f"{stack} takes {', '.join(known)}" if known else f"{stack or 'no cache'} takes none"
            raise ValueError(f"{what} has no {name!r}: {takes}.")
    for rule in rules:
        missing = [name for name in getattr(rule, "needs", ()) if name not in options and name not in reserved]
        if missing:
            raise ValueError(f"{rule.name} needs {' and '.join(missing)} in {what}.")
