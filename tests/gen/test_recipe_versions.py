"""Recipes of versions 1 and 2 make the picture that they made, whatever the defaults are now."""

from __future__ import annotations

import json

import pytest

from gen.pipeline.recipe import Recipe
from samplers.registry import solver_info, solver_names

CALL = {"seed": 5, "num_inference_steps": 6, "progress": False}
COLOUR = {"colour": "teal", "match": "rgb"}
SMALL = {"guide": "colour", "guide_strength": 0.02}


def of_version_1(recipe: Recipe, *left_out: tuple[str, ...], version: int = 1) -> Recipe:
    """The recipe as that version wrote it: without the values at these places, which had no name then."""
    data = json.loads(recipe.to_json())
    assert data["version"] == 3
    data["version"] = version
    for place in left_out:
        part = data
        for key in place[:-1]:
            part = part[key]
        del part[place[-1]]
    return Recipe.from_json(json.dumps(data))


def same(generator, made, recipe) -> bool:
    assert recipe.version == 3
    return generator.replay(recipe, progress=False).images[0].tobytes() == made.images[0].tobytes()


CASES = {
    "a solver's ending": (
        {"sampler": "unipc", "sampler_options": {"ending": "full"}, "schedule": "normal"}, ("sampler_options", "ending")),
    "clip": ({"guidance": "clip", "guidance_options": {"limit": 1.0}}, ("guidance_options", "limit")),
    "threshold": ({"guidance": "apg + dynamic_threshold", "guidance_options": {"limit": 1.0}}, ("guidance_options", "limit")),
    "colour": (SMALL | {"guide_options": COLOUR}, ("guide", "options", "match")),
    "greedy": ({"greedy": "colour", "greedy_options": COLOUR | {"iterations": 1}}, ("tweaks", "greedy", "options", "match")),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_a_default_was_is_made_again(tiny, case):
    call, place = CASES[case]
    made = tiny("a cat", **CALL, **call)
    assert same(tiny, made, of_version_1(made.recipes[0], place))
    options = {name: {k: v for k, v in value.items() if k != place[-1]} for name, value in call.items() if "_options" in name}
    now = tiny("a cat", **CALL, **{**call, **options})
    assert now.images[0].tobytes() != made.images[0].tobytes()  # the default is another today


def test_every_solver_with_an_ending_had_the_full_one(tiny):
    recipe = tiny("a cat", **CALL).recipes[0]
    for name in solver_names():
        old = of_version_1(recipe.model_copy(update={"sampler": name, "sampler_options": {}}))
        then = {"ending": "full", "mix_length": 0.0}
        assert old.sampler_options == {option: then[option] for option in then if option in solver_info(name).options}


def test_what_a_recipe_says_itself_stays(tiny):
    recipe = tiny("a cat", **CALL, sampler="deis", sampler_options={"ending": "count"}).recipes[0]
    assert of_version_1(recipe).sampler_options == {"ending": "count"}
    own = recipe.model_copy(update={"sampler": "MySolver"})
    assert of_version_1(own).sampler == "MySolver"


@pytest.mark.parametrize("version", [1, 2])
def test_cached_compositions_kept_the_leaders_weight(tiny, version):
    recipe = tiny("a cat", **CALL).recipes[0]
    plain = recipe.model_copy(update={"composition": "cached", "composition_options": {"stride": 2}})
    assert of_version_1(plain, version=version).composition_options == {"stride": 2, "decay": 1.0}
    said = recipe.model_copy(update={"composition": "cached", "composition_options": {"decay": 0.7}})
    assert of_version_1(said, version=version).composition_options == {"decay": 0.7}
    assert of_version_1(recipe.model_copy(update={"composition": "switch"}), version=version).composition_options == {}


@pytest.mark.parametrize("version", [1, 2])
def test_automatic_gave_lcm_the_schedule_of_euler(tiny, version):
    recipe = tiny("a cat", **CALL).recipes[0]
    for sampler, options, then in (
        ("lcm", {}, {"sampler": "euler"}),
        ("euler", {"sampler": "lcm"}, {"sampler": "euler"}),
        ("dpmpp_2m", {}, {}),
    ):
        made = recipe.model_copy(update={"sampler": sampler, "schedule": "automatic", "schedule_options": options})
        assert of_version_1(made, version=version).schedule_options == then
