"""`Generator.search`: the pictures of a prompt that a reward likes best.

    found = generator.search("a red cat", "brightness", method="tree", tries=32, seed=0)
    found.images[0].save("cat.png")

Every picture that is tried is an ordinary one, so whatever a call takes goes with it, and the best one's recipe replays it
without the search.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from gen.io.images import flat
from gen.io.validators import SEED_END, check_int
from gen.pipeline.output import Output
from gen.pipeline.subjects import draw_seeds
from gen.pipeline.types import Caller
from gen.rewards import Reward, get_reward
from gen.tasks.search.options import SearchArguments, TurnRecord
from samplers.search.noise_tree import TurnedNoise, plan_search, search_noise

if TYPE_CHECKING:
    from torch import Tensor

    from gen.pipeline.recipe import Recipe

__all__ = ["Searched", "search"]
AT_ONCE = 64  # pictures that are in memory at a time, beside those that are kept
JUDGED = 8  # at a time, as numbers on the model's device


@dataclass
class Searched(Output):
    """The best pictures of a search, the best first.

    rewards: theirs.
    first, first_seed: the reward and seed of the picture that the call would have made without a search.
    rounds: the best reward so far after each round.
    tries: pictures made.
    """

    rewards: tuple[float, ...] = ()
    first: float = 0.0
    first_seed: int = 0
    rounds: tuple[float, ...] = ()
    tries: int = 0


def search(
    generator: Caller,
    prompt: str,
    reward: str | Reward,
    *,
    method: str = "best_of",
    tries: int = 16,
    children: int | None = None,
    parents: int | None = None,
    strength: float | None = None,
    reward_options: Mapping[str, Any] | None = None,
    keep: int = 1,
    seed: int | None = None,
    **call: Any,
) -> Searched:
    """The `keep` best of `tries` pictures (PIL) of one prompt by a reward. Their recipes replay.

    reward: a name of `gen.rewards` with its options, or a function (pictures (B, 3, H, W) in [0, 1], prompts) -> (B,).
    method: best_of (a seed for each), zero_order (rounds of `children` neighbours (4) about the best so far, their noise turned
        by `strength` (0.2)), or tree (half of the tries from seeds, then rounds about the best `parents` (2), turned by
        `strength` (0.5) and half as far each round).
    seed: of the first picture, which is the one that is made without a search; random if None.
    call: what else a call takes, without seeds, latents and other numbers or types of pictures.
    Source: arXiv 2501.09732, sections 3.1 and 4. Raises ValueError in a sentence for what does not fit.
    """
    plan = plan_search(method, tries, children=children, parents=parents, strength=strength)
    keep = check_int("keep", keep, 1, plan.tries)
    if not isinstance(prompt, str):
        raise ValueError(f"A search is for one prompt, given as text; this is {prompt!r:.80}.")
    refused = ("seeds", "generator", "latents", "num_images_per_prompt", "output_type", "on_images", "variation_seed")
    if clash := next((name for name in refused if call.get(name) is not None), None):
        raise ValueError(f"A search takes no {clash}: it chooses noise by itself and returns PIL pictures; leave it out.")
    if isinstance(reward, str):
        judge = get_reward(reward, **(reward_options or {}))
    elif reward_options:
        raise ValueError("reward_options belong to a reward that is given by name; leave them out.")
    else:
        judge = reward
    first = draw_seeds(1, seed, None, None)[0]
    check_int("seed", first, 0, SEED_END - plan.tries)
    subject = "prompt" if generator.text_encoder is not None else "class_labels"
    kept: list[_Kept] = []
    rounds: list[float] = []

    def rewards_of(noises: Sequence[TurnedNoise]) -> list[float]:
        """Of a round."""
        parts = [noises[i : i + AT_ONCE] for i in range(0, len(noises), AT_ONCE)]
        rewards = [reward for part in parts for reward in rewards_of_few(part)]
        rounds.append(kept[0].reward)
        return rewards

    def rewards_of_few(noises: Sequence[TurnedNoise]) -> list[float]:
        turns = tuple(tuple(TurnRecord(seed=s, strength=u) for s, u in noise.turns) for noise in noises)
        output = generator(
            **{subject: [prompt] * len(noises)},
            **call,
            seeds=[noise.seed for noise in noises],
            _task_args={"search": SearchArguments(turns)},
        )
        if output.interrupted:
            raise ValueError("The search was interrupted before its round was done, so no picture is chosen.")
        rewards: list[float] = []
        for i in range(0, len(noises), JUDGED):
            pixels = _pixels(output.images[i : i + JUDGED]).to(generator.device)
            with torch.no_grad():
                rewards += judge(pixels, [prompt] * len(pixels)).cpu().double().tolist()
        kept.extend(map(_Kept, rewards, output.images, output.recipes))
        kept.sort(key=lambda one: -one.reward)  # stable, as the search's own order
        del kept[keep:]
        return rewards

    tried = search_noise(rewards_of, count(first), plan)
    return Searched(
        [one.picture for one in kept],
        [one.recipe for one in kept],
        [one.recipe.seed for one in kept],
        kept[0].recipe.nfe * len(tried) / keep,
        rewards=tuple(one.reward for one in kept),
        first=next(one.reward for one in tried if one.noise == TurnedNoise(first)),
        first_seed=first,
        rounds=tuple(rounds),
        tries=len(tried),
    )


class _Kept(NamedTuple):
    reward: float
    picture: Any
    recipe: Recipe


def _pixels(images: Sequence[Any]) -> Tensor:
    """(B, 3, H, W) in [0, 1] of PIL pictures, those with alpha on white."""
    return torch.stack([torch.from_numpy(np.array(flat(image))) for image in images]).permute(0, 3, 1, 2).float() / 255
