"""Arithmetic of layers: Porter and Duff's equations by hand, in double precision."""

from __future__ import annotations

import pytest
import torch

from gen.io.alpha import completed, flattened, least_opacity, lifted, opaque, over, premultiply, resized, straighten, upon


def layer(seed: int, *shape: int) -> torch.Tensor:
    """A random layer (B, 4, H, W) with pixels that are wholly opaque and wholly transparent among the others."""
    straight = torch.rand(*(shape or (2, 4, 12, 10)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    straight[:, 3:] = (1.6 * straight[:, 3:] - 0.3).clamp(0, 1)
    return premultiply(straight)


def picture(seed: int, *size: int) -> torch.Tensor:
    return torch.rand(2, 3, *(size or (12, 10)), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_over_is_porter_and_duffs():
    """Straight colours: (a_t c_t + (1 - a_t) a_b c_b) / (a_t + (1 - a_t) a_b)."""
    top, bottom = layer(0), layer(1)
    a, b = top[:, 3:], bottom[:, 3:]
    alpha = a + (1 - a) * b
    colour = (a * straighten(top)[:, :3] + (1 - a) * b * straighten(bottom)[:, :3]) / alpha.clamp_min(1e-300)
    found = over(top, bottom)
    assert (found[:, 3:] - alpha).abs().max() < 1e-15
    assert ((straighten(found)[:, :3] - colour) * alpha).abs().max() < 1e-15


def test_over_has_an_identity_and_is_associative():
    a, b, c = layer(0), layer(1), layer(2)
    nothing = torch.zeros_like(a)
    assert torch.equal(over(a, nothing), a) and torch.equal(over(nothing, a), a)
    assert (over(over(a, b), c) - over(a, over(b, c))).abs().max() < 1e-15
    assert torch.equal(flattened([c, b, a]), over(a, over(b, c)))
    background = picture(3)
    assert (upon(over(a, b), background) - upon(a, upon(b, background))).abs().max() < 1e-15
    assert (over(a, opaque(background))[:, :3] - upon(a, background)).abs().max() < 1e-15


def test_the_limits():
    a, background = layer(0), picture(1)
    assert torch.equal(over(opaque(background), a), opaque(background))
    seen = upon(a, background)
    solid, clear = (a[:, 3:] == value for value in (1, 0))
    assert solid.any() and clear.any()
    assert torch.equal(seen[solid.expand_as(seen)], a[:, :3][solid.expand_as(seen)])
    assert torch.equal(seen[clear.expand_as(seen)], background[clear.expand_as(seen)])


def test_straight_colours_come_back_and_fill_what_is_clear():
    a = layer(4)
    straight = straighten(a)
    assert (premultiply(straight) - a).abs().max() < 1e-15
    assert straight.min() >= 0 and straight.max() <= 1
    red = torch.zeros(1, 4, 7, 5, dtype=torch.float64)
    red[:, 0, 2, 3], red[:, 3, 2, 3] = 0.25, 0.5
    assert torch.equal(straighten(red)[:, :3], torch.tensor([0.5, 0.0, 0.0]).double().view(1, 3, 1, 1).expand(1, 3, 7, 5))
    assert torch.equal(straighten(red)[:, 3:], red[:, 3:])
    nothing = torch.zeros(1, 4, 6, 6)
    assert torch.equal(straighten(nothing), nothing)


def test_the_colour_of_what_is_clear_is_that_of_the_nearest_square():
    two = torch.zeros(1, 4, 4, 8, dtype=torch.float64)
    two[:, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0, 1.0])  # red at the left
    two[:, :, 3, 7] = torch.tensor([0.0, 0.0, 0.5, 0.5])  # half-clear blue at the right
    colours = straighten(two)[0, :3]
    assert torch.equal(colours[:, 1, 1], torch.tensor([1.0, 0, 0]).double())
    assert torch.equal(colours[:, 2, 6], torch.tensor([0, 0, 1.0]).double())


@pytest.mark.parametrize("size", [(6, 5), (5, 7), (24, 30)])
def test_scaling_then_composing_is_composing_then_scaling_on_what_is_flat(size):
    a = layer(5)
    flat = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(1, 3, 1, 1).expand(2, 3, 12, 10)
    both = opaque(upon(a, flat))
    assert (upon(resized(a, *size), flat[..., :1, :1]) - resized(both, *size)[:, :3]).abs().max() < 1e-14
    straight = straighten(a)
    wrong = premultiply(resized(straight, *size))  # straight colours scaled: another picture
    assert (upon(wrong, flat[..., :1, :1]) - resized(both, *size)[:, :3]).abs().max() > 0.02


def test_a_layer_lifted_off_its_background_is_the_layer():
    a, background = layer(6), picture(7)
    seen = upon(a, background)
    assert (lifted(seen, a[:, 3:], background) - a).abs().max() < 1e-15


def test_the_least_opacity_is_the_least_that_explains_a_picture():
    seen, background = picture(11), picture(12)
    least = least_opacity(seen, background)
    top = lifted(seen, least, background)
    assert (upon(top, background) - seen).abs().max() < 1e-14
    less = lifted(seen, 0.99 * least, background)
    assert ((upon(less, background) - seen).abs().amax(1, keepdim=True) > 1e-4 * least).all()
    assert not least_opacity(seen, seen).any()


def test_any_background_is_completed_so_that_the_picture_is_kept():
    """Whatever opacity and background are guessed, the two layers together are the picture, and both have colours."""
    alpha, guess, seen = layer(8)[:, 3:], picture(9), picture(10)
    top = lifted(seen, alpha, guess)
    background = completed(seen, top, guess)
    assert (upon(top, background) - seen).abs().max() < 1e-14
    assert (top[:, :3] >= 0).all() and (top[:, :3] <= alpha).all()
    hidden = (alpha == 1).expand_as(seen)
    assert torch.equal(background[hidden], guess[hidden])  # nothing is known of what is hidden
    right = completed(upon(top, guess), top, guess)
    assert ((right - guess) * (1 - alpha)).abs().max() < 1e-15  # a right guess stays
