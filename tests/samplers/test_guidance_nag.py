"""Normalised attention guidance: the equations, and networks whose attention is written out a second time."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from samplers import ClassifierFree, Condition, Context, NetworkDenoiser, RectifiedFlow
from samplers.analytic import Mixture
from samplers.guidance import Conjunction, EmbeddedGuidance, NormalizedAttention, get_guidance
from samplers.guidance.nag import guide_attention
from tests.gen.test_hooks import TEXT, tiny

FLOW = RectifiedFlow()
LEVEL = FLOW(0.6)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = draw(0, 2, 3, 4, 8)
MASK = torch.tensor([[True, True, True, False], [True, True, False, False]])
PROMPT, NEGATIVE = Condition(tokens=draw(1, 2, 4, 6), mask=MASK), Condition(tokens=draw(2, 2, 4, 6), mask=MASK.flip(0))


def published(positive: torch.Tensor, negative: torch.Tensor, phi: float, tau: float, alpha: float) -> torch.Tensor:
    """The equations token by token, in plain numbers."""
    out = positive.clone()
    for place in torch.cartesian_prod(*[torch.arange(n) for n in positive.shape[:-1]]).tolist():
        plus, minus = positive[tuple(place)], negative[tuple(place)]
        led = [p + phi * (p - m) for p, m in zip(plus.tolist(), minus.tolist(), strict=True)]
        ratio = math.fsum(map(abs, led)) / math.fsum(map(abs, plus.tolist()))
        led = [v * min(ratio, tau) / ratio for v in led]
        blended = [alpha * v + (1 - alpha) * p for v, p in zip(led, plus.tolist(), strict=True)]
        out[tuple(place)] = torch.tensor(blended, dtype=torch.float64)
    return out


@pytest.mark.parametrize(("phi", "tau", "alpha"), [(4.0, 2.5, 0.25), (10.0, 1.2, 1.0), (0.5, 2.5, 0.5)])
def test_the_equations(phi, tau, alpha):
    positive, negative = draw(3, 2, 5, 8), draw(4, 2, 5, 8)
    found = guide_attention(positive, negative, phi + 1, tau, alpha)
    torch.testing.assert_close(found, published(positive, negative, phi, tau, alpha), atol=1e-12, rtol=0)


def test_lengths_are_bounded_and_nothing_is_no_number():
    positive, negative = draw(3, 2, 5, 8), 50 * draw(4, 2, 5, 8)
    positive[0, 0] = 0
    guided = guide_attention(positive, negative, 8.0, 2.0, 1.0)
    assert bool((guided.abs().sum(-1) <= 2.0 * positive.abs().sum(-1) + 1e-9).all()) and bool((guided[0, 0] == 0).all())
    assert torch.equal(guide_attention(positive, positive, 8.0, 2.0, 0.5), positive)
    half = guide_attention(200 * positive.half(), 50 * negative.half(), 8.0, 2.0, 0.5)
    assert half.dtype == torch.float16 and bool(half.isfinite().all())


def denoiser(kind: str, **changes) -> NetworkDenoiser:
    return NetworkDenoiser(tiny(kind, **TEXT, **changes), FLOW, "flow")


def plain_attention(q, k, v, mask=None):
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def dit_by_hand(net, monkeypatch, prompt: Condition, negative: Condition, scale: float, tau: float, alpha: float):
    """As published: the picture's rows alone go through the network, and cross-attention reads both prompts."""
    refused = net.network.read_text(negative, 2)
    for block, (k_minus, v_minus) in zip(net.network.blocks, refused.keys_values, strict=True):

        def forward(x, keys_values, visible, backend, hooks, cross=block.cross, k_minus=k_minus, v_minus=v_minus):
            q = cross.q(x).unflatten(-1, (cross.heads, -1))
            plus = plain_attention(q, *keys_values, visible).flatten(2)
            minus = plain_attention(q, k_minus, v_minus, refused.visible).flatten(2)
            return cross.proj(published(plus, minus, scale - 1, tau, alpha))

        monkeypatch.setattr(block.cross, "forward", forward)
    return net(X, LEVEL, prompt, Context()).raw


@pytest.mark.parametrize("changes", [{}, {"pooled_text": True}])
@torch.no_grad()
def test_cross_attention_reads_both_prompts(monkeypatch, changes):
    """With the prompt's own queries, and its own pooled text where that joins the time."""
    net, context = denoiser("dit", **changes), Context()
    found = NormalizedAttention(net, NEGATIVE, 4.0, 1.5, 0.6)(X, LEVEL, PROMPT, context).raw
    assert context.evaluations == 2 * len(X)
    expected = dit_by_hand(net, monkeypatch, PROMPT, NEGATIVE, 4.0, 1.5, 0.6)
    torch.testing.assert_close(found, expected, atol=1e-11, rtol=0)
    assert (found - denoiser("dit", **changes)(X, LEVEL, PROMPT, Context()).raw).abs().max() > 1e-3


@torch.no_grad()
def test_text_and_patches_in_one_sequence(monkeypatch):
    """Each prompt has a stream of its own, and the patches are the same beside both."""
    net = denoiser("uvit")
    found = NormalizedAttention(net, NEGATIVE, 4.0, 1.5, 0.6)(X, LEVEL, PROMPT, Context()).raw
    extras = net.network.config.extras
    for block in net.network.blocks:

        def forward(x, backend, hooks, attn=block.attn):
            q, k, v = attn.qkv(x).unflatten(-1, (3, attn.heads, -1)).unbind(2)
            out = plain_attention(q, k, v).flatten(2)
            led = published(out[:2, extras:], out[2:, extras:], 3.0, 1.5, 0.6)
            return attn.proj(torch.cat([out[:, :extras], torch.cat([led, led])], dim=1))

        monkeypatch.setattr(block.attn, "forward", forward)
    both = PROMPT.cat([NEGATIVE])
    expected = net(torch.cat([X, X]), LEVEL, both, Context()).raw
    torch.testing.assert_close(found, expected[:2], atol=1e-11, rtol=0)
    torch.testing.assert_close(expected[:2], expected[2:], atol=1e-11, rtol=0)


@torch.no_grad()
def test_the_negative_of_nothing_is_the_empty_prompt():
    net = denoiser("dit")
    empty = NormalizedAttention(net)(X, LEVEL, PROMPT, Context()).raw
    assert torch.equal(empty, NormalizedAttention(net, PROMPT.null())(X, LEVEL, PROMPT, Context()).raw)
    same = NormalizedAttention(net, PROMPT)(X, LEVEL, PROMPT, Context()).raw
    torch.testing.assert_close(same, net(X, LEVEL, PROMPT, Context()).raw, atol=1e-12, rtol=0)


@torch.no_grad()
def test_it_acts_where_it_is_asked_to_and_costs_nothing_elsewhere():
    net = denoiser("dit")
    plain = net(X, LEVEL, PROMPT, Context()).raw
    for rule in (NormalizedAttention(net, NEGATIVE, 1.0), NormalizedAttention(net, NEGATIVE, interval=(5.0, 9.0))):
        context = Context()
        assert torch.equal(rule(X, LEVEL, PROMPT, context).raw, plain) and context.evaluations == 2
    repeated = NormalizedAttention(net, NEGATIVE)(torch.cat([X, X]), LEVEL, PROMPT.cat([PROMPT]), Context()).raw
    alone = NormalizedAttention(net, NEGATIVE)(X, LEVEL, PROMPT, Context()).raw
    torch.testing.assert_close(repeated, torch.cat([alone, alone]), atol=1e-12, rtol=0)
    short = Condition(tokens=NEGATIVE.tokens[:1, :2], mask=torch.ones(1, 2, dtype=torch.bool))
    long = Condition(tokens=F.pad(short.tokens, (0, 0, 0, 2)), mask=F.pad(short.mask, (0, 2)))
    of_short, of_long = (NormalizedAttention(net, n)(X, LEVEL, PROMPT, Context()).raw for n in (short, long))
    assert torch.equal(of_short, of_long)


@torch.no_grad()
def test_under_classifier_free_guidance_the_other_branch_is_left_alone():
    net, context = denoiser("dit"), Context()
    led = NormalizedAttention(net, NEGATIVE)
    found = ClassifierFree(led, 3.0)(X, LEVEL, PROMPT, context)
    cond, null = led(X, LEVEL, PROMPT, Context()).raw, net(X, LEVEL, PROMPT.null(), Context()).raw
    torch.testing.assert_close(found.raw, null + 3 * (cond - null), atol=1e-11, rtol=0)
    assert context.evaluations == 3 * len(X)
    alone = ClassifierFree(led, 0.0)(X, LEVEL, PROMPT, Context()).raw
    torch.testing.assert_close(alone, null, atol=1e-12, rtol=0)


@torch.no_grad()
def test_it_goes_inside_of_joined_prompts_and_of_embedded_scales():
    net = denoiser("dit")
    other = Condition(tokens=draw(7, 2, 4, 6), mask=MASK)
    led, weights = NormalizedAttention(net, NEGATIVE), torch.tensor([[0.25, 0.5], [0.75, 0.5]], dtype=torch.float64)
    found = Conjunction(led, (other,), weights)(X, LEVEL, PROMPT, Context()).raw
    one, two = (led(X, LEVEL, c, Context()).raw for c in (PROMPT, other))
    shares = weights.view(2, 2, 1, 1, 1)
    torch.testing.assert_close(found, shares[0] * one + shares[1] * two, atol=1e-11, rtol=0)
    scaled = denoiser("dit", scalars=("guidance",))
    embedded = EmbeddedGuidance(NormalizedAttention(scaled, NEGATIVE), 4.0)(X, LEVEL, PROMPT, Context()).raw
    assert (embedded - EmbeddedGuidance(scaled, 4.0)(X, LEVEL, PROMPT, Context()).raw).abs().max() > 1e-3


def test_what_cannot_be_is_said():
    net = denoiser("dit")
    for wrong in ({"tau": 0.0}, {"alpha": 1.5}, {"alpha": -0.1}):
        with pytest.raises(ValueError, match="give tau above 0, and alpha from 0 to 1"):
            NormalizedAttention(net, **wrong)
    with pytest.raises(ValueError, match=r"guidance scale must be|scale must be a finite number"):
        NormalizedAttention(net, scale=math.nan)
    labelled = Mixture.example(FLOW, labelled=True)
    with pytest.raises(ValueError, match="'text' hook, and this network has none"):
        NormalizedAttention(labelled)(draw(0, 4, 2), LEVEL, Condition(label=torch.tensor([0, 1, 2, 1])), Context())
    assert get_guidance("nag", net, None, nag_scale=2.0, nag_tau=3.0)[0] == NormalizedAttention(net, None, 2.0, 3.0)
