"""Adapters by region: normalised blends, no leaks, and the two stages."""

import math

import pytest
import torch

from samplers import Condition, Context, get_grid, get_solver, sample
from samplers.composition import AdapterRegion as Region
from samplers.composition import Composite, Regional, two_stages
from samplers.composition.regional import scaled_mask
from samplers.guidance import ClassifierFree
from tests.samplers.adapted import FLOW, Adapted, randn

X = randn(2, 3, 6, 6)
LABELS = Condition(label=torch.tensor([0, 3]))
WEIGHTS = {"a": 0.8, "b": 1.0, "c": -0.5}
LEVEL = FLOW(0.6)
CLOSE = {"rtol": 1e-13, "atol": 1e-13}
LEFT, TOP, NOTHING = torch.zeros(6, 6), torch.zeros(6, 6), torch.zeros(6, 6)
LEFT[:, :4] = 1
TOP[:2] = 1


def call(denoiser, weights=WEIGHTS, level=LEVEL, condition=LABELS):
    return denoiser(X, level, condition, Context(adapters=weights)).raw


def test_a_region_is_its_adapters_and_the_rest_is_the_others():
    net = Adapted()
    got = call(Regional(net, (Region(LEFT, ("a",)), Region(TOP, "b"))))
    rest, left, top = (call(net, {n: WEIGHTS[n] for n in names}) for names in ("c", "ca", "cb"))
    want = torch.where(LEFT > 0, torch.where(TOP > 0, (left + top) / 2, left), torch.where(TOP > 0, top, rest))
    torch.testing.assert_close(got, want, **CLOSE)
    assert len(net.seen[0]) == 6  # one batch of three
    soft = call(Regional(net, (Region(0.25 * LEFT, ("a",)),)), {"a": 0.8})
    plain, own = call(net, {}), call(net, {"a": 0.8})
    torch.testing.assert_close(soft, torch.where(LEFT > 0, 0.75 * plain + 0.25 * own, plain), **CLOSE)


def summed(predictions, masks, base):
    """Overlaps as a plain sum: base outside, and every region's prediction added inside its mask."""
    outside = (torch.stack(masks).sum(0) == 0).to(base)
    return outside * base + sum(m * p for m, p in zip(masks, predictions, strict=True))


def test_equal_predictions_stay_what_they_are():
    """Adapters of weight 0 change nothing, whatever their regions; a sum doubles where two overlap."""
    net, none = Adapted(), {"a": 0.0, "b": 0.0}
    for masks in ((LEFT, TOP), (0.3 * LEFT, 0.9 * TOP), (NOTHING, LEFT), (torch.ones(6, 6), torch.ones(6, 6))):
        got = call(Regional(net, (Region(masks[0], "a"), Region(masks[1], "b"))), none)
        torch.testing.assert_close(got, call(net, {}), **CLOSE)
    base = call(net, {})
    wrong = summed([base, base], [LEFT, TOP], base)
    corner = (LEFT * TOP).bool()
    torch.testing.assert_close(wrong[..., corner], 2 * base[..., corner], **CLOSE)


def test_without_regions_in_effect_it_is_plain():
    net = Adapted()
    rest = {"c": WEIGHTS["c"]}
    torch.testing.assert_close(call(Regional(net, (Region(NOTHING, "a"), Region(NOTHING, "b")))), call(net, rest), **CLOSE)
    late = Regional(net, (Region(LEFT, "a"), Region(TOP, "b")), start=1.0)
    net.seen.clear()
    assert torch.equal(call(late, level=FLOW.at_logsnr(0.99)), call(net, rest, level=FLOW.at_logsnr(0.99)))
    assert [len(rows) for rows in net.seen] == [2, 2]  # and costs one evaluation
    at = FLOW.at_logsnr(1.0)
    assert not torch.allclose(call(late, level=at), call(net, rest, level=at))


def test_a_region_that_covers_all_spares_the_rest():
    net = Adapted()
    got = call(Regional(net, (Region(torch.ones(6, 6), "a"),)))
    torch.testing.assert_close(got, call(net), **CLOSE)
    assert len(net.seen[0]) == 2


def test_a_region_does_not_leak():
    """What an adapter does at a pixel outside its mask is nothing, to the last bit, in value and in gradient."""
    net = Adapted()
    regions = (Region(LEFT, "a"), Region(TOP, "b"))
    one, other = (call(Regional(net, regions), {"a": w, "b": 1.0}) for w in (0.8, -3.0))
    outside = LEFT == 0
    assert torch.equal(one[..., outside], other[..., outside]) and not torch.allclose(one, other)


def test_regions_have_conditions_of_their_own_around_guidance():
    net = Adapted()
    theirs = Condition(label=torch.tensor([7]))
    guided = ClassifierFree(net, 3.0)
    got = call(Regional(guided, (Region(LEFT, "a", theirs),)), {"a": 0.8})
    wide = Condition(label=torch.tensor([7, 7]))
    want = torch.where(LEFT > 0, call(guided, {"a": 0.8}, condition=wide), call(guided, {}))
    torch.testing.assert_close(got, want, **CLOSE)
    inside, outside = (f((Region(LEFT, "a"), Region(TOP, "b"))) for f in (
        lambda r: ClassifierFree(Regional(net, r), 3.0), lambda r: Regional(guided, r)))  # fmt: skip
    torch.testing.assert_close(call(inside), call(outside), **CLOSE)
    per_picture = torch.stack([LEFT, TOP])[:, None]
    got = call(Regional(net, (Region(per_picture, "a"),)))
    for i, mask in enumerate((LEFT, TOP)):
        torch.testing.assert_close(got[i], call(Regional(net, (Region(mask, "a"),)))[i], **CLOSE)


def test_masks_are_scaled_by_averaging():
    mask = torch.zeros(8, 8)
    mask[:3] = 1
    assert scaled_mask(mask[None, None], (4, 4))[0, 0, :, 0].tolist() == [1, 0.5, 0, 0]
    assert scaled_mask(mask[None, None], (16, 16))[0, 0, :, 0].tolist() == [1] * 6 + [0] * 10
    big = Region(torch.nn.functional.interpolate(LEFT[None, None], (24, 24)), "a")
    torch.testing.assert_close(call(Regional(Adapted(), (big,))), call(Regional(Adapted(), (Region(LEFT, "a"),))), **CLOSE)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_two_stages_begin_alike_and_differ_where_they_should(solver):
    """The picture is the one of a run from the start; the layout, of a run without the concepts."""
    net, levels = Adapted(), get_grid("karras", FLOW, 6)
    start = levels[2].logsnr
    regions = (Region(LEFT, "a"), Region(TOP, "b"))
    given = []

    def cut(layout):
        given.append(layout)
        return regions

    def wrap(field):
        return ClassifierFree(field, 2.0)

    context = Context(adapters=WEIGHTS)
    made = two_stages(net, get_solver(solver), X, levels, cut, ("a", "b"), LABELS, start=start, wrap=wrap, context=context)
    layout = sample(wrap(net), get_solver(solver), X, levels, LABELS, context=Context(adapters={"c": -0.5}))
    whole = sample(
        wrap(Regional(net, regions, start)), get_solver(solver), X, levels, LABELS, context=Context(adapters=WEIGHTS)
    )
    if solver == "heun":  # looks ahead to the start, where the second stage has regions already
        assert (made.picture - whole).abs().max() < 0.2 * (made.picture - layout).abs().max()
    else:
        torch.testing.assert_close(made.picture, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.layout, layout, rtol=1e-12, atol=1e-12)
    assert given[0] is made.layout and made.regions == regions
    assert (made.picture - layout).abs().max() > 0.01


def test_errors_say_what_is_wrong():
    net = Adapted()
    for make, why in (
        (lambda: Regional(net, ()), "at least one"),
        (lambda: Region(torch.ones(2, 3, 4, 4)), r"\(B, 1, H, W\)"),
        (lambda: Region(2 * LEFT), "outside 0 to 1"),
        (lambda: Region(LEFT * math.nan), "outside 0 to 1"),
        (lambda: call(Regional(net, (Region(LEFT, "aa"),))), "'aa', which is not in force"),
        (lambda: call(Regional(net, (Region(LEFT, "a"),)), [{"a": 1.0}, {}]), "one weight per adapter"),
        (lambda: call(Composite(Regional(net, (Region(LEFT, "a"),)))), "one weight per adapter"),
        (lambda: call(Regional(net, (Region(LEFT, "a"),)), level=FLOW(torch.tensor([0.3, 0.4]))), "give one level"),
    ):
        with pytest.raises(ValueError, match=why):
            make()
