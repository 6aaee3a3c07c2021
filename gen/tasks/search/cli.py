"""`fewstep search`: the best picture of a prompt by a reward."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.energies import add_rewards
from gen.cli.groups import grouped
from gen.cli.lora import OpenOptions
from gen.cli.options import Negative, PlaceOptions, RuleOptions, SamplingOptions, SizeOptions
from gen.cli.output import check_png, make_and_save, save_free, say
from gen.cli.values import parse_options


@grouped
def search(
    *,
    prompt: Annotated[str, typer.Argument(help="What the picture shows, in quotes.")],
    reward: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What is sought: evaluator, colour, brightness, clip, pickscore, ... (preference.md)."
        ),
    ] = "evaluator",
    reward_option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the reward; repeatable.")] = None,
    method: Annotated[str, typer.Option(help="best_of, zero_order, tree.")] = "best_of",
    tries: Annotated[int, typer.Option(metavar="N", help="Pictures that are made.")] = 16,
    children: Annotated[
        int | None, typer.Option(metavar="N", help="Neighbours in a round, of zero_order and tree. [default: 4]")
    ] = None,
    parents: Annotated[int | None, typer.Option(metavar="N", help="Of the tree: how many best go on. [default: 2]")] = None,
    strength: Annotated[
        float | None, typer.Option(help="How far noise is turned, 0 to 1. [default: 0.2; of a tree 0.5, halved each round]")
    ] = None,
    sampling: SamplingOptions,
    negative: Negative = None,
    size: SizeOptions,
    rules: RuleOptions,
    model: OpenOptions,
    grid: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also save a sheet: the picture without a search, and those found.")
    ] = None,
    place: PlaceOptions,
) -> int:
    """Make many pictures of a prompt and keep the best (-n of them) by a reward; see docs/guidance.md."""
    target = place.target()
    sheet = None if grid is None else check_png(grid)
    options = parse_options(reward_option or [])

    from gen.rewards import reward_info
    from samplers.search.noise_tree import plan_search

    generator = model.opened(place)
    add_rewards()
    if missing := [name for name in reward_info(reward).needs if name not in options]:
        raise ValueError(f"The reward {reward!r} needs {' and '.join(missing)}; give --reward-option {missing[0]}=VALUE.")
    of_method: dict[str, Any] = {"children": children, "parents": parents, "strength": strength}
    plan_search(method, tries, **of_method)
    call = {**sampling.keywords(), **size.keywords(), **rules.keywords(), **of_method, "negative_prompt": negative}
    keep = call.pop("num_images_per_prompt")
    if keep > tries:
        raise ValueError(f"--number is {keep}, but --tries {tries} makes no more than {tries}; raise --tries.")

    result, took = make_and_save(
        generator.search, target, prompt, place.quiet, prompt, reward, method=method, tries=tries,
        reward_options=options, keep=keep, **call,
    )  # fmt: skip
    for number, best in enumerate(result.rounds[:-1], 1):
        say(f"round {number}: the best has {best:.4g}", place.quiet)
    say(f"{reward}: {result.first:.4g} without a search, {result.rewards[0]:.4g} of {result.tries} tries, {took}", place.quiet)
    if sheet is not None:
        from gen.io.contact_sheet import contact_sheet

        plain = result.recipes[0].model_copy(update={"seed": result.first_seed, "turns": None})
        before = generator.replay(plain, progress=False).images
        captions = [f"no search\n{result.first:.4g}", *(f"found\n{value:.4g}" for value in result.rewards)]
        print(save_free(contact_sheet([*before, *result.images], captions), sheet), flush=True)
    return 0


IMAGE, REPLAY, COMMANDS = None, None, (search,)
