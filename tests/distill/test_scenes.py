"""Scenes: drawings placed where their caption says, as many as it says, without what is held out."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from distill.data.emoji.captions import HELD_OUT, MAX_WORDS, caption_length, pluralize
from distill.data.emoji.concepts import Concept, Matcher
from distill.data.emoji.data import EmojiConfig, EmojiData, split_of
from distill.data.emoji.scenes import (
    RELATIONS,
    DrawingScene,
    Placed,
    SceneConfig,
    arrange_count,
    arrange_pair,
    arrange_single,
    arrange_small,
    draw_scenes,
    has_mirror_image,
    warp,
)

SIZE = 32
NUMBER = {"one": 1, "1": 1, "two": 2, "2": 2, "three": 3, "3": 3, "four": 4, "4": 4}


@pytest.fixture(scope="module")
def shipped():
    """The shipped pictures, all as scenes of one kind or another."""
    return EmojiData(EmojiConfig(size=SIZE, scenes=SceneConfig(pairs=0.4, counts=0.3, sizes=0.2)))


def square(colour=(1.0, 0.0, 0.0)) -> torch.Tensor:
    """An opaque square in the middle of a transparent drawing, (4, SIZE, SIZE)."""
    drawing = torch.zeros(4, SIZE, SIZE)
    drawing[:3] = torch.tensor(colour)[:, None, None]
    drawing[3, 8:24, 8:24] = 1
    return drawing


def centre(alpha: torch.Tensor) -> tuple[float, float]:
    """The centre of mass of (h, w), in half sides from the middle: right and down."""
    place = (torch.arange(alpha.shape[-1]) + 0.5) / alpha.shape[-1] * 2 - 1
    return float((alpha.sum(0) * place).sum() / alpha.sum()), float((alpha.sum(1) * place).sum() / alpha.sum())


def test_a_thing_as_drawn_is_the_drawing():
    drawing = torch.rand(4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([drawing[:3] * drawing[3:], drawing[3:]])
    torch.testing.assert_close(warp(drawing[None], [Placed(0)], SIZE)[0], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(drawing[None], [Placed(0, flip=True)], SIZE)[0], expected.flip(-1), atol=1e-5, rtol=0)


def test_whole_pixels_and_quarter_turns_are_exact():
    drawing = torch.rand(4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    plain = warp(drawing[None], [Placed(0)], SIZE)[0]
    moved = warp(drawing[None], [Placed(0, x=8 / SIZE, y=-4 / SIZE)], SIZE)[0]  # four pixels right, two up
    torch.testing.assert_close(moved[:, : SIZE - 2, 4:], plain[:, 2:, : SIZE - 4], atol=1e-5, rtol=0)
    assert not moved[:, :, :4].any() and not moved[:, SIZE - 2 :].any()
    turned = warp(drawing[None], [Placed(0, degrees=90)], SIZE)[0]
    torch.testing.assert_close(turned, plain.rot90(-1, (1, 2)), atol=1e-5, rtol=0)  # clockwise


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3, 0.22])
def test_a_smaller_thing_covers_its_share_of_the_picture(scale):
    alpha = warp(square()[None], [Placed(0, scale=scale)], SIZE)[0, 3]
    assert alpha.mean() == pytest.approx(0.25 * scale**2, rel=0.08)  # edges fall between pixels


def test_later_things_lie_above_and_the_background_is_below():
    scene = DrawingScene((Placed(0), Placed(1, scale=0.5)))
    colours = torch.stack([square((1, 0, 0)), square((0, 1, 0))])
    out = draw_scenes([scene], lambda things: colours[[t.index for t in things]], torch.tensor([[0.0, 0.0, 1.0]]), SIZE)[0]
    assert out[:, 16, 16].tolist() == [0, 1, 0] and out[:, 10, 10].tolist() == [1, 0, 0] and out[:, 1, 1].tolist() == [0, 0, 1]


@pytest.mark.parametrize("relation", RELATIONS)
def test_the_first_of_two_is_where_the_relation_says(relation):
    for seed in range(50):
        things = arrange_pair((0, None), (1, None), relation, (False, False), random.Random(seed))
        alpha = [warp(square()[None], [thing], SIZE)[0, 3] for thing in things]
        (x0, y0), (x1, y1) = map(centre, alpha)
        assert {"left of": x0 < x1 - 0.5, "right of": x0 > x1 + 0.5, "above": y0 < y1 - 0.5, "below": y0 > y1 + 0.5}.get(
            relation, abs(x0 - x1) > 0.5
        )
        assert (alpha[0] * alpha[1]).sum() == 0  # apart


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_as_many_as_were_asked_for_and_all_within_the_picture(count):
    for seed in range(30):
        things = arrange_count(0, None, count, False, random.Random(seed))
        assert len(things) == count
        alpha = [warp(square()[None], [thing], SIZE)[0, 3] for thing in things]
        one = alpha[0].sum()
        assert all(float(a.sum()) == pytest.approx(float(one), rel=0.1) for a in alpha)
        assert torch.stack(alpha).sum(0).max() <= 1 + 1e-5


def test_single_and_small_things_stay_in_the_picture():
    for seed in range(200):
        rng = random.Random(seed)
        for thing in (arrange_small(0, None, "tiny", False, rng), arrange_small(0, None, "small", True, rng)):
            assert max(abs(thing.x), abs(thing.y)) + thing.scale <= 1 + 1e-9
        single = arrange_single(0, None, SceneConfig(), False, rng)
        assert 0.9 <= single.scale <= 1 and abs(single.degrees) <= 6 and max(abs(single.x), abs(single.y)) <= 0.06


def test_a_scene_is_what_its_caption_says(shipped):
    """The words of relation and number agree with the scene, the names with its things, and captions are short enough."""
    seen = Counter()
    words = {word: relation for relation, (_, words) in RELATIONS.items() for word in words}
    for counter in range(1500):
        scene, caption = shipped.scene(counter)
        assert caption_length(caption) <= MAX_WORDS
        if not caption:
            continue
        if scene.relation:
            seen[scene.relation] += 1
            assert len(scene.things) == 2
            assert any(f" {word} " in caption for word, relation in words.items() if relation == scene.relation), caption
            assert len({int(shipped.labels[thing.index]) for thing in scene.things}) == 2
            assert len({shipped.records[thing.index].style for thing in scene.things}) == 1
        elif scene.count:
            seen["count"] += 1
            first = caption.split()[0]
            asked = NUMBER.get(first, 2 if caption.startswith("a pair of") else 1)
            assert asked == scene.count == len(scene.things), caption
        elif scene.size:
            seen["size"] += 1
            assert any(word in caption for word in ("tiny", "very small", "small", "little"))
        if scene.background:
            assert f"{scene.background} background" in caption
    assert set(seen) == {*RELATIONS, "count", "size"}


def test_held_out_pairs_do_not_occur_in_scenes(shipped):
    for counter in range(3000):
        scene, caption = shipped.scene(counter)
        for thing in scene.things:
            assert thing.color not in shipped.names[thing.index].held_out
        for pair in HELD_OUT:
            assert not re.search(rf"\b{pair.colour} ({'|'.join(pair.words)})(s|es)?\b", caption), caption


def test_a_batch_of_scenes_is_the_union_of_its_samples(shipped):
    together = shipped.batch([7, 3, 11])
    for row, counter in enumerate((7, 3, 11)):
        alone = shipped.batch([counter])
        assert torch.equal(alone.images[0], together.images[row]) and alone.captions[0] == together.captions[row]
        assert alone.labels[0] == together.labels[row]
    assert together.images.min() >= -1 and together.images.max() <= 1


def test_scenes_leave_other_sources_as_they_were():
    plain, none = EmojiData(EmojiConfig(size=SIZE)), SceneConfig(pairs=0, counts=0, sizes=0, flip=0, shift=0, shrink=0, turn=0)
    still = EmojiData(EmojiConfig(size=SIZE, scenes=none))
    a, b = plain.batch(range(8)), still.batch(range(8))
    assert a.captions == b.captions
    torch.testing.assert_close(a.images, b.images, atol=1e-4, rtol=0)


def test_the_splits_are_disjoint_and_whole(shipped):
    everything = {record.file_name for record in shipped.records}
    train, held = (
        {record.file_name for record in EmojiData(EmojiConfig(size=8, split=split)).records} for split in ("train", "held_out")
    )
    assert train | held == everything and not train & held
    assert 0.08 < len(held) / len(everything) < 0.12
    assert all(split_of(record) == ("held_out" if record.file_name in held else "train") for record in shipped.records)


def test_what_is_handed_is_never_mirrored(shipped):
    labels = {record.label: has_mirror_image(record) for record in shipped.records}
    assert labels["cat face"] and labels["red apple"] and labels["rocket"]
    for label in ("calendar", "hundred points", "left-facing fist", "police car", "hospital", "musical note", "euro banknote"):
        assert not labels[label], label
    for counter in range(1000):
        assert not any(t.flip and not labels[shipped.records[t.index].label] for t in shipped.scene(counter)[0].things)


def test_shares_above_one_are_refused():
    with pytest.raises(ValueError, match="at most 1"):
        SceneConfig(pairs=0.6, counts=0.5)


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        ("cat", "cats"), ("red fox", "red foxes"), ("cherry", "cherries"), ("key", "keys"), ("mouse", "mice"),
        ("slice of pizza", "slices of pizza"), ("face with tongue", "faces with tongue"),
        ("sun behind cloud", "suns behind cloud"),
        ("witch", "witches"), ("maple leaf", "maple leaves"), ("fish", "fish"), ("bus", "buses"),
        ("bunch of grapes", "bunches of grapes"),
    ],
)  # fmt: skip
def test_plurals(name, plural):
    assert pluralize(name) == plural


def test_numbered_drawings_of_one_thing_are_all_kept():
    unit = Concept("1F600", "cat face", "g", "s", (), (), ())
    concepts = {"1F600": unit, "1F601": replace(unit, hex="1F601", label="dog")}
    found = Matcher(concepts, []).match_numbered(["cat-face-2", "cat-face-1", "dog", "unknown-1"])
    assert found == [("cat-face-1", "1F600", 1), ("cat-face-2", "1F600", 2), ("dog", "1F601", 1)]


def test_a_pair_of_one_part_shows_nothing_of_the_other(shipped):
    rest, taken = shipped.split(0.3)
    shown = [{t.index for n in range(300) for t in part.scene(n)[0].things} for part in (rest, taken)]
    assert not shown[0] & shown[1]
