"""Rewards by name: how good a picture is, for guidance (`reward:NAME` is an energy), the search for noise (ReNO) and tuning.

A reward is called with pictures (B, 3, H, W) in [0, 1] and their B prompts, and returns (B,), higher for better; it is
differentiable in the pictures. The table is closed to files, and a module is imported when used. Other packages add rows of
their own to `REWARDS`, users theirs by `register_reward`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from samplers.lookup import build, check_options, find, register_own

if TYPE_CHECKING:
    from torch import Tensor


class Reward(Protocol):
    """How good pictures (B, 3, H, W) in [0, 1] are for their prompts: (B,), differentiable."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class RewardInfo:
    """One row.

    options, needs: names of the options it takes, and of those that must be given.
    external: it opens files or models that the caller names, so a recipe must not bring it about.
    scale: what a reward counts as a log-density, where it guides and no other scale is given.
    reads_prompts: it judges how well a picture fits its prompt.
    made_by: the factory itself, of a reward that the user registered.
    """

    name: str
    module: str
    factory: str
    description: str
    options: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    external: bool = False
    scale: float = 1.0
    reads_prompts: bool = False
    aliases: tuple[str, ...] = ()
    made_by: Callable[..., Any] | None = None


REWARDS: dict[str, RewardInfo] = {
    info.name: info
    for info in (
        RewardInfo("brightness", "gen.rewards.pixels", "BrightnessReward", "the mean brightness", scale=20.0),
        RewardInfo(
            "colour",
            "gen.rewards.pixels",
            "ColourReward",
            "how far the middle of the picture goes towards a colour, a name or #rrggbb",
            ("colour", "width"),
            ("colour",),
            scale=40.0,
            aliases=("color",),
        ),
        RewardInfo(
            "clip",
            "gen.rewards.clip",
            "ClipReward",
            "CLIP's cosine of picture and prompt, times 100",
            ("model", "scale"),
            ("model",),
            external=True,
            reads_prompts=True,
        ),
        RewardInfo(
            "pickscore",
            "gen.rewards.clip",
            "pick_score",
            "PickScore: a CLIP H/14 taught which of two pictures people pick",
            ("model",),
            ("model",),
            external=True,
            reads_prompts=True,
        ),
        RewardInfo(
            "hps",
            "gen.rewards.clip",
            "human_preference_score",
            "HPS v2: a CLIP H/14 taught by rankings of people",
            ("model",),
            ("model",),
            external=True,
            scale=100.0,
            reads_prompts=True,
            aliases=("hpsv2",),
        ),
        RewardInfo(
            "hpsv3",
            "gen.rewards.hps3",
            "HumanPreference3",
            "HPS v3: a Qwen2-VL that reads the prompt beside the picture, taught by people's choices",
            ("model", "head"),
            ("model", "head"),
            external=True,
            reads_prompts=True,
        ),
        RewardInfo(
            "aesthetic",
            "gen.rewards.clip",
            "AestheticReward",
            "a head on CLIP's embedding of the picture",
            ("model", "head"),
            ("model", "head"),
            external=True,
        ),
        RewardInfo(
            "image_reward",
            "gen.rewards.blip",
            "ImageReward",
            "ImageReward: a head on BLIP's reading of the prompt beside the picture",
            ("model", "head"),
            ("model", "head"),
            external=True,
            reads_prompts=True,
        ),
    )
}
_registered: dict[str, RewardInfo] = {}  # of the user's own, in this process


def register_reward(
    name: str, factory: Callable[..., Any], description: str, options: Sequence[str] = (), needs: Sequence[str] = (), **row: Any
) -> None:
    """Make a reward of your own known by name, for the rest of this process; no recipe can bring it about.

    factory: makes the reward from the options.
    options, needs: names of those it takes, and of those it must be given.
    row: scale, reads_prompts and aliases of `RewardInfo`.
    Raises ValueError for a name that is taken.
    """
    register_own(RewardInfo, REWARDS, _registered, "reward", name, factory, description, options, needs, **row)


def reward_info(name: str) -> RewardInfo:
    """The record of a reward, by name or alias."""
    return find({**REWARDS, **_registered}, name, "reward")


def get_reward(name: str, **options: Any) -> Reward:
    """The reward itself; ValueError for an option it does not have, or one that is missing."""
    info = reward_info(name)
    check_options(info, options, "reward")
    if missing := [option for option in info.needs if option not in options]:
        raise ValueError(f"The reward {info.name!r} needs {' and '.join(missing)}: give a value for each.")
    factory = info.made_by or getattr(importlib.import_module(info.module), info.factory)
    return build(info, "reward", factory, options=options)
