"""Task routing: the windows of channels against the published table, and what a block does with them."""

import numpy as np
import pytest
import torch

from gen.nn.backbones.routing import Routing, route
from gen.nn.registry import build
from samplers.denoiser import Condition

TINY = {"size": 4, "patch": 2, "channels": 3, "dim": 16, "depth": 3, "heads": 2}


@pytest.mark.parametrize(("dim", "share", "power"), [(1152, 0.8, 4), (384, 0.8, 4), (100, 0.35, 1), (16, 0.8, 0.5)])
def test_windows_of_a_thousand_steps(dim, share, power):
    """As published: numpy's round of linspace(0, 1, 1000)^alpha times the channels left over."""
    masks = Routing(share=share, power=power).mask(torch.arange(1000), dim, torch.float32)[:, 0]
    width = int(dim * share)
    starts = ((np.linspace(0, 1, 1000) ** power) * (dim - width)).round().astype(int)
    expected = torch.zeros(1000, dim)
    for n, start in enumerate(starts):
        expected[n, start : start + width] = 1
    assert torch.equal(masks, expected)
    assert masks[0, :width].all() and masks[-1, -width:].all()


def test_beyond_the_ends_and_on_another_clock():
    routing = Routing(share=0.5, power=2, last=1.0)
    inside = routing.mask(torch.tensor([0.0, 1.0]), 10, torch.float64)
    assert torch.equal(routing.mask(torch.tensor([-0.1, 1.2]), 10, torch.float64), inside)
    half = routing.mask(torch.tensor([0.5**0.5]), 10, torch.bfloat16)[0, 0]  # half of the way: 2.5, and the even neighbour
    assert half.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0] and half.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["dit", "uvit"])
@torch.no_grad()
def test_all_channels_is_no_routing(kind):
    torch.manual_seed(0)
    plain, routed = (build({"type": kind, **TINY, "routing": routing}).eval() for routing in (None, {"share": 1.0}))
    for parameter in plain.parameters():
        parameter.normal_(std=0.2)
    routed.load_state_dict(plain.state_dict())
    x, time = torch.randn(2, 3, 4, 4), torch.tensor([1.0, 900.0])
    assert torch.equal(plain(x, time, Condition()), routed(x, time, Condition()))
    narrow = build({"type": kind, **TINY, "routing": {"share": 0.5}}).eval()
    narrow.load_state_dict(plain.state_dict())
    assert (narrow(x, time, Condition()) - plain(x, time, Condition())).abs().amin((1, 2, 3)).min() > 0


def test_the_others_pass_by_unchanged():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 16)
    active = Routing(share=0.5).mask(torch.tensor([0.0, 999.0]), 16, x.dtype)
    inside, rest = route(x, active)
    assert torch.equal(inside + rest, x) and inside[0, :, 8:].abs().max() == 0 and rest[1, :, 8:].abs().max() == 0
    assert route(x, None) == (x, None)
