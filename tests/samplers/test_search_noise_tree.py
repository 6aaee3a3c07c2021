"""Searching noise by trying: which noises are tried, how many, and what is chosen."""

from __future__ import annotations

from itertools import count

import pytest

from samplers.search.noise_tree import METHODS, TurnedNoise, plan_search, search_noise


def rewarding(best: dict[int, float]):
    """A judge that looks at the last seed of a noise, and the rounds it was asked."""
    asked: list[list[TurnedNoise]] = []

    def judge(noises):
        asked.append(list(noises))
        return [best.get(n.turns[-1][0] if n.turns else n.seed, 0.0) for n in noises]

    return judge, asked


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tries", [1, 2, 7, 16, 33])
def test_every_search_makes_as_many_pictures_as_it_may_and_begins_with_the_plain_one(method, tries):
    plan = plan_search(method, tries)
    judge, asked = rewarding({})
    tried = search_noise(judge, count(40), plan)
    assert plan.tries == len(tried) == sum(map(len, asked)) == tries
    assert asked[0][0] == TurnedNoise(40) == tried[0].noise  # of equals the earlier
    every = [seed for n in tried for seed in ((n.noise.turns[-1][0],) if n.noise.turns else (n.noise.seed,))]
    assert sorted(every) == list(range(40, 40 + tries))  # no noise twice


def test_the_best_of_several_is_the_best():
    judge, asked = rewarding({3: 2.0, 5: 4.0, 6: 4.0})
    tried = search_noise(judge, count(), plan_search("best_of", 8))
    assert [one.noise.seed for one in tried[:3]] == [5, 6, 3] and len(asked) == 1


def test_zero_order_goes_on_from_the_best_so_far():
    judge, asked = rewarding({0: 1.0, 2: 3.0, 5: 2.0, 9: 4.0})
    tried = search_noise(judge, count(), plan_search("zero_order", 10, children=3, strength=0.1))
    parents = [noises[0].turns[:-1] for noises in asked[1:]]
    assert [len(noises) for noises in asked] == [1, 3, 3, 3]
    assert parents == [(), ((2, 0.1),), ((2, 0.1),)]  # 5 is no better than 2
    assert tried[0].noise == TurnedNoise(0, ((2, 0.1), (9, 0.1))) and (tried[0].reward, tried[0].round) == (4.0, 3)


def test_a_tree_shares_its_children_among_the_best_and_comes_nearer():
    judge, asked = rewarding({1: 5.0, 3: 4.0, 8: 6.0})
    search_noise(judge, count(), plan_search("tree", 16, children=4, parents=2, strength=0.5))
    assert [len(noises) for noises in asked] == [8, 4, 4]
    assert [n.seed for n in asked[1]] == [1, 3, 1, 3] and {n.turns[0][1] for n in asked[1]} == {0.5}
    assert [n.turns[:-1] for n in asked[2]] == [((8, 0.5),), (), ((8, 0.5),), ()]
    assert {n.turns[-1][1] for n in asked[2]} == {0.25}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"method": "zero-order"}, "did you mean 'zero_order'"),
        ({"method": "best_of", "children": 3}, "has no children; leave it out, or use zero_order or tree"),
        ({"method": "zero_order", "parents": 3}, "use tree"),
        ({"tries": 0}, "from 1"),
        ({"tries": True}, "whole number"),
        ({"method": "tree", "children": 0}, "children is 0"),
        ({"method": "tree", "strength": 0.0}, "above 0"),
        ({"method": "tree", "strength": float("nan")}, "above 0"),
    ],
)
def test_wrong_plans_are_refused_in_a_sentence(arguments, said):
    with pytest.raises(ValueError, match=said):
        plan_search(**{"method": "best_of", "tries": 8, **arguments})


def test_a_reward_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        search_noise(lambda noises: [float("nan")] * len(noises), count(), plan_search("best_of", 2))
