"""The hooks of the backbones: every place is called, in order, with what it says, and run() is the network's own work."""

import math

import pytest
import torch

from gen.nn.backbones.dit import DiT, DiTConfig
from gen.nn.backbones.uvit import UViT, UViTConfig
from samplers.denoiser import Condition, Context
from samplers.hooks import check_reached, with_hook

TINY = {"size": 4, "patch": 2, "channels": 3, "dim": 16, "depth": 3, "heads": 2}
TEXT = {"text_tokens": 4, "text_dim": 6}


def tiny(kind, **changes):
    """A tiny network in float64 with random weights everywhere."""
    net = (DiT(DiTConfig(**TINY | changes)) if kind == "dit" else UViT(UViTConfig(**TINY | changes))).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            spread = 0.3 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * spread)
    return net


def inputs(net, rows=4, columns=8):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, rows, columns, generator=g, dtype=torch.float64)
    tokens = torch.randn(2, 4, 6, generator=g, dtype=torch.float64) if net.config.text_dim else None
    return x, torch.tensor([3.0, 5.0], dtype=torch.float64), Condition(tokens=tokens)


@pytest.mark.parametrize(("kind", "changes", "extras"), [("dit", TEXT, 0), ("dit", {}, 0), ("uvit", TEXT, 5), ("uvit", {}, 1)])
@torch.no_grad()
def test_every_place_is_called_with_its_site(kind, changes, extras):
    net = tiny(kind, **changes)
    x, time, condition = inputs(net)
    sites, heads = [], []
    context = with_hook(Context(), "attention", lambda site, tokens, run: sites.append(site) or run())
    context = with_hook(context, "heads", lambda site, q, k, v, run: heads.append((site, q.shape)) or run(q, k, v))
    assert torch.equal(net(x, time, condition, context), net(x, time, condition))
    cross = ["cross"] if kind == "dit" and changes else []
    assert [(s.index, s.kind) for s in sites] == [(i, name) for i in range(3) for name in ["self", *cross]]
    assert all((s.count, s.extras, s.rows, s.columns) == (3, extras, 2, 4) for s in sites)
    assert [s.index for s, _ in heads] == [0, 1, 2] and all(shape == (2, extras + 8, 2, 8) for _, shape in heads)


@pytest.mark.parametrize("kind", ["dit", "uvit"])
@torch.no_grad()
def test_what_a_hook_returns_is_used(kind):
    """A zero attention output is an attention layer whose projection is zero; changed queries reach the softmax."""
    net = tiny(kind)
    x, time, condition = inputs(net)
    zero = with_hook(Context(), "attention", lambda site, tokens, run: torch.zeros_like(tokens))
    flat = with_hook(Context(), "heads", lambda site, q, k, v, run: run(0 * q, k, v))
    uniform = with_hook(Context(), "heads", lambda site, q, k, v, run: v.mean(1, keepdim=True).expand_as(v))
    torch.testing.assert_close(net(x, time, condition, flat), net(x, time, condition, uniform), rtol=1e-12, atol=1e-12)
    without = net(x, time, condition, zero)
    for block in net.blocks:
        block.attn.proj.weight.zero_(), block.attn.proj.bias.zero_()
    torch.testing.assert_close(without, net(x, time, condition), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_hooks_of_one_name_nest():
    """The one added last is asked first; what it hands to run() reaches the other, and what that returns comes back."""
    net, order = tiny("dit"), []
    x, time, condition = inputs(net)

    def scaling(name, factor):
        def hook(site, q, k, v, run):
            order.append((name, site.index))
            return run(q * factor, k, v)

        return hook

    context = with_hook(with_hook(Context(), "heads", scaling("outer", 3.0)), "heads", scaling("inner", 0.5))
    once = with_hook(Context(), "heads", scaling("once", 1.5))
    torch.testing.assert_close(net(x, time, condition, context), net(x, time, condition, once), rtol=1e-12, atol=1e-12)
    assert order[:4] == [("inner", 0), ("outer", 0), ("inner", 1), ("outer", 1)]

    blocks = with_hook(Context(), "block", lambda i, n, value, run: value if i == 1 else run())
    counted = []
    both = with_hook(blocks, "block", lambda i, n, value, run: counted.append(i) or run())
    assert torch.equal(net(x, time, condition, both), net(x, time, condition, blocks)) and counted == [0, 1, 2]


@torch.no_grad()
def test_attention_hook_leads_to_the_heads_hook():
    net, seen = tiny("uvit"), []
    x, time, condition = inputs(net)
    context = with_hook(Context(), "heads", lambda site, q, k, v, run: seen.append(site.index) or run(q, k, v))
    with_hook_outside = with_hook(context, "attention", lambda site, tokens, run: tokens if site.index == 1 else run())
    net(x, time, condition, with_hook_outside)
    assert seen == [0, 2]


def test_mistakes_are_sentences():
    with pytest.raises(ValueError, match="Unknown hook 'blocks': choose one of block, attention, heads"):
        with_hook(Context(), "blocks", math.sqrt)
    with pytest.raises(ValueError, match="TaylorSeer works through the network's 'block' hook"):
        check_reached(with_hook(Context(), "block", math.sqrt), "block", "TaylorSeer")
