"""Reference encoders: what they add, against attention written out; sets of pictures; the word that stands for them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from gen.nn.backbones.dit import DiT
from gen.nn.learned_tokens import LearnedTokens
from gen.nn.reference import MASK, SCALE, SEEN, TOKENS, SubjectTokens, WithReferences
from gen.nn.reference_encoder import ReferenceEncoder, ReferenceEncoderConfig, attention_sizes
from gen.nn.registry import build
from samplers.denoiser import NULL, Condition, Context, NetworkDenoiser
from samplers.guidance.nag import NormalizedAttention
from samplers.hooks import with_hook
from samplers.path import RectifiedFlow
from tests.gen.conftest import randomise

SIZES = {"size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 3, "heads": 2, "text_tokens": 8, "text_dim": 16}
NETWORKS = {
    "dit": {"type": "dit", **SIZES, "modulation": "adaln_single", "pooled_text": True, "qkv_bias": False, "qk_norm": "rms"},
    "uvit": {"type": "uvit", **SIZES},
    "mmdit": {"type": "mmdit", **SIZES},
    "flux": {"type": "flux", **SIZES, "single_depth": 1, "axes": [4, 6, 6]},
}
PATH = RectifiedFlow()


def network(kind: str = "dit"):
    return randomise(build(NETWORKS[kind]), 1).eval().requires_grad_(False)


def encoder_for(base, seed: int = 3, zero: bool = False, **sizes) -> ReferenceEncoder:
    """A small encoder for a network; none of its weights is zero unless asked for."""
    own = {"channels": 4, "patch": 2, "size": 8, "dim": 16, "heads": 2, "depth": 1, **attention_sizes(base), **sizes}
    made = ReferenceEncoder(ReferenceEncoderConfig(**own))
    return (made if zero else randomise(made, seed)).eval().requires_grad_(False)


def latents(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def shown(encoder: ReferenceEncoder, pictures: torch.Tensor, rows: int, scale: float = 1.0, apart: bool = False) -> dict:
    """The condition's part for references "a" of pictures (1, N, 4, 8, 8), alike for all rows."""
    features = encoder.patches(pictures)
    encoded = encoder(features.transpose(0, 1) if apart else features)
    groups = len(encoded.tokens)
    values = {
        TOKENS: encoded.tokens,
        SEEN: encoded.seen,
        SCALE: torch.full((groups,), scale),
        NULL + SCALE: torch.zeros(groups),
    }
    return {f"{name}a": value[None].expand(rows, *value.shape) for name, value in values.items()}


def text(count: int, **extra) -> Condition:
    tokens = torch.randn(count, 8, 16, generator=torch.Generator().manual_seed(4))
    return Condition(tokens=tokens, mask=torch.arange(8) < torch.arange(3, 3 + count)[:, None], extra=extra)


def noisy(count: int) -> torch.Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(5))


def predicted(base, condition: Condition, encoder=None, context: Context | None = None, x=None) -> torch.Tensor:
    """What a network, with an encoder around it, predicts at a middle level."""
    denoiser = NetworkDenoiser(base, PATH, "x0", "1000t")
    denoiser = denoiser if encoder is None else WithReferences(denoiser, {"a": encoder})
    x = noisy(len(condition.tokens)) if x is None else x
    return denoiser(x, PATH(0.6), condition, context or Context()).raw


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_an_untrained_encoder_and_a_scale_of_zero_change_nothing_to_the_bit(kind):
    base = network(kind)
    plain = predicted(base, text(2))
    fresh, trained = encoder_for(base, zero=True), encoder_for(base)
    assert torch.equal(predicted(base, text(2, **shown(fresh, latents(1), 2)), fresh), plain)
    assert torch.equal(predicted(base, text(2, **shown(trained, latents(1), 2, scale=0.0)), trained), plain)
    assert (predicted(base, text(2, **shown(trained, latents(1), 2)), trained) - plain).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", NETWORKS)
def test_what_is_added_is_attention_to_the_tokens(kind):
    """Against softmax(q k^T / sqrt(d)) v of every layer written out, added to the patches' attention times a scale."""
    base = network(kind)
    encoder = encoder_for(base)
    condition = text(2, **shown(encoder, latents(2), 2, scale=0.7))
    tokens = condition.extra[f"{TOKENS}a"][:, 0].double()

    def found(site, q):
        key, value = encoder.keys[site.index], encoder.values[site.index]
        k, v = tokens @ key.weight.double().T + key.bias.double(), tokens @ value.weight.double().T
        k, v = k.unflatten(-1, (2, 16)), v.unflatten(-1, (2, 16))
        if encoder.config.layer_norm == "rms":
            k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        weights = (torch.einsum("bqhd,bkhd->bhqk", q.double(), k) / 4).softmax(-1)
        return 0.7 * torch.einsum("bhqk,bkhd->bqhd", weights, v).float()

    def cross(site, q, k, v, mask, run):
        return run(q, k, v, mask) + found(site, q)

    def heads(site, q, k, v, run):
        out = run(q, k, v)
        out[:, site.extras :] += found(site, q[:, site.extras :])
        return out

    name, hook = ("cross", cross) if kind == "dit" else ("heads", heads)
    by_hand = predicted(base, text(2), context=with_hook(Context(), name, hook))
    torch.testing.assert_close(predicted(base, condition, encoder), by_hand, rtol=1e-4, atol=1e-5)


FORMS = [{}, {"tokens": 5, "resampler_depth": 2}, {"features": "clip", "channels": 16, "patch": 1, "size": 1}]


@torch.no_grad()
@pytest.mark.parametrize("sizes", FORMS, ids=["patches", "resampled", "clip"])
def test_pictures_are_a_set(sizes):
    """Their order changes nothing that is attended to, and missing ones, whatever stands there, change nothing at all."""
    encoder = encoder_for(network(), **sizes)
    features = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[True, True, False], [True, False, True]])
    torch.manual_seed(0)
    queries = torch.randn(2, 4, 2, 16)

    def told(features, present):
        encoded = encoder(features, present)
        k, v = encoder.keys_values(1, encoded.tokens)
        scores = torch.einsum("bqhd,bkhd->bhqk", queries[: len(k)], k).masked_fill(~encoded.seen[:, None, None], -torch.inf)
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v), encoded.summary

    first = told(features, present)
    order = torch.tensor([2, 0, 1])
    for a, b in zip(first, told(features[:, order], present[:, order]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    spoiled = torch.where(present[..., None, None], features, float("nan"))
    for a, b in zip(first, told(spoiled, present), strict=True):
        assert torch.equal(a, b)
    alone = told(features[:1, :2], present[:1, :2])
    for a, b in zip(first, alone, strict=True):
        torch.testing.assert_close(a[:1], b, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(told(features, torch.ones_like(present))[0], first[0], atol=1e-3)


@torch.no_grad()
def test_without_any_picture_nothing_is_added():
    base = network()
    encoder = encoder_for(base, tokens=4, resampler_depth=1)
    none = encoder(torch.full((1, 2, 16, 16), float("nan")), torch.zeros(1, 2, dtype=torch.bool))
    values = {TOKENS: none.tokens, SEEN: none.seen, SCALE: torch.ones(1)}
    extra = {f"{name}a": value[None].expand(2, *value.shape) for name, value in values.items()}
    assert torch.equal(predicted(base, text(2, **extra), encoder), predicted(base, text(2))) and not none.summary.any()


@torch.no_grad()
def test_rows_have_references_and_scales_of_their_own():
    base = network()
    encoder = encoder_for(base)
    parts = [shown(encoder, latents(1, seed), 1, scale) for seed, scale in ((1, 1.0), (2, 0.4), (3, 0.0))]
    condition = text(3, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    together, x = predicted(base, condition, encoder), noisy(3)
    alone = torch.cat([predicted(base, condition[i : i + 1], encoder, x=x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(together[2], predicted(base, text(3))[2])


@torch.no_grad()
def test_a_mask_says_where_a_reference_counts():
    """Each group's part is cut to its mask, at the resolution of the patches; full masks of both are their sum."""
    base = network()
    encoder = encoder_for(base)
    extra, seen = shown(encoder, latents(2), 2, apart=True), {}
    left = torch.zeros(1, 2, 8, 8).expand(2, -1, -1, -1).clone()
    left[:, 0, :, :4], left[:, 1, :, 4:] = 1, 1
    added = {}
    for name, groups in (("both", {}), ("masked", {f"{MASK}a": left})):

        def keep(site, q, k, v, mask, run, name=name):
            out = run(q, k, v, mask)
            if site.index == 0:
                seen[name] = (q, out)
            return out

        predicted(base, text(2, **extra, **groups), encoder, with_hook(Context(), "cross", keep))
    for g in range(2):
        one = {name: value[:, g : g + 1] for name, value in extra.items()}

        def difference(site, q, k, v, mask, run, g=g):
            return added.setdefault((g, site.index), run(q, k, v, mask))

        predicted(base, text(2, **one), encoder, with_hook(Context(), "cross", difference))
    assert set(seen) == {"both", "masked"} and {g for g, _ in added} == {0, 1}
    wrapper = WithReferences(NetworkDenoiser(base, PATH, "x0", "1000t"), {"a": encoder})
    full = {**extra, f"{MASK}a": torch.ones(2, 2, 8, 8)}
    torch.testing.assert_close(
        wrapper(noisy(2), PATH(0.6), text(2, **full), Context()).raw, predicted(base, text(2, **extra), encoder)
    )
    empty = {**extra, f"{MASK}a": torch.zeros(2, 2, 8, 8)}
    assert torch.equal(wrapper(noisy(2), PATH(0.6), text(2, **empty), Context()).raw, predicted(base, text(2)))


@torch.no_grad()
def test_nag_leaves_references_in_both_of_its_branches():
    base = network()
    encoder = encoder_for(base)
    condition = text(2, **shown(encoder, latents(1), 2))
    inside = WithReferences(NetworkDenoiser(base, PATH, "x0", "1000t"), {"a": encoder})
    led = NormalizedAttention(inside, scale=4.0)(noisy(2), PATH(0.6), condition, Context()).raw
    plain = NormalizedAttention(inside, scale=1.0)(noisy(2), PATH(0.6), condition, Context()).raw
    assert torch.equal(plain, predicted(base, condition, encoder)) and (led - plain).abs().max() > 1e-3


@torch.no_grad()
def test_copied_keys_are_those_of_self_attention():
    """From the features that a block sees at one time, so that a patch's own token is what it finds most."""
    base = network()
    encoder = ReferenceEncoder.of(base, 8, 0.0, depth=0, attention="joint")
    assert encoder.config.attention == "joint" and encoder.config.layer_norm == "rms"
    x, c = torch.randn(1, 16, 32), torch.nn.functional.silu(base.embed(torch.full((1,), 700.0)))
    for layer, block in enumerate(base.typed_blocks()):
        shift, scale = (block.table + base.shared_modulation(c).unflatten(-1, (6, -1)))[0, :2]
        norm = torch.nn.functional.layer_norm(x, (32,), eps=1e-6)
        k = block.attn.qkv(norm * (1 + scale) + shift).unflatten(-1, (3, 2, 16))[:, :, 1]
        k = k / (k.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        torch.testing.assert_close(encoder.keys_values(layer, norm)[0], k, rtol=1e-4, atol=1e-4)
    plain = predicted(base, text(2))
    assert torch.equal(predicted(base, text(2, **shown(encoder, latents(1), 2)), encoder), plain)


@torch.no_grad()
@pytest.mark.parametrize("modulation", ["adaln", "adaln_single"])
def test_copied_blocks_are_those_of_the_network_at_one_time(modulation):
    base = randomise(build({**NETWORKS["dit"], "modulation": modulation}), 2).eval()
    assert isinstance(base, DiT)
    encoder = ReferenceEncoder.of(base, 8, 200.0, depth=2)
    x, c = torch.randn(2, 16, 32), torch.nn.functional.silu(base.embed(torch.full((2,), 200.0)))
    shared = c if modulation == "adaln" else base.shared_modulation(c).unflatten(-1, (6, -1))
    for mine, block in zip(encoder.blocks, base.typed_blocks(), strict=False):
        block.cross = None
        torch.testing.assert_close(mine(x), block(x, shared, None, None), rtol=1e-4, atol=1e-4)
    picture = latents(1)
    tokens = base.patch_embed(picture[0]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder.embed(encoder.patches(picture)[:, 0]), tokens, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="depth is 9; the network has 3 blocks"):
        ReferenceEncoder.of(base, 8, 0.0, depth=9)


@torch.no_grad()
def test_words_of_rows_are_learned_words_of_each():
    vectors, ids = torch.randn(2, 1, 6), torch.tensor([[1, 9, 3], [9, 2, 1]])
    embedded = torch.randn(2, 3, 6)
    rows = SubjectTokens({"<ref>": vectors}, 9).fill(embedded, ids)
    for i in range(2):
        assert torch.equal(rows[i], LearnedTokens({"<ref>": vectors[i]}, 9).fill(embedded[i : i + 1], ids[i : i + 1])[0])
    assert torch.equal(SubjectTokens({"<ref>": vectors[:1]}, 9).fill(embedded, ids)[1, 0], vectors[0, 0])


@torch.no_grad()
def test_the_words_token_alone_is_fused():
    encoder = encoder_for(network(), subject="fused", text_dim=16)
    tokens, summary = torch.randn(2, 8, 16), torch.randn(2, 16)
    places = torch.zeros(2, 8, dtype=torch.bool)
    places[0, 2], places[1, 5] = True, True
    fused = encoder.fuse(tokens, summary, places)
    assert torch.equal(fused[~places], tokens[~places])
    for row, place in ((0, 2), (1, 5)):
        read = encoder.subject(torch.cat([summary[row], tokens[row, place]])[None])[0]
        torch.testing.assert_close(fused[row, place], tokens[row, place] + read)
    fresh = encoder_for(network(), zero=True, subject="fused", text_dim=16)
    assert torch.equal(fresh.fuse(tokens, summary, places), tokens)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"layers": 0}, "tells nobody of its pictures"),
        ({"tokens": 4}, "tokens and resampler_depth go together"),
        ({"subject": "word"}, "a subject needs the width of the text"),
        ({"layer_heads": 3}, "must be a positive multiple of layer_heads 3"),
        ({"size": 7}, "size 7 must be a multiple of patch 2"),
        ({"heads": 3}, "dim 16 must be a multiple of 4 and of heads 3"),
    ],
)
def test_sizes_that_do_not_fit_are_one_sentence(sizes, said):
    with pytest.raises(ValueError, match=said):
        encoder_for(network(), **sizes)


@torch.no_grad()
def test_another_networks_encoder_is_refused():
    base = network()
    encoder = encoder_for(base, layers=2)
    with pytest.raises(ValueError, match="for 2 attentions of 2 heads and width 32, and this network has 3"):
        predicted(base, text(2, **shown(encoder, latents(1), 2)), encoder)
    with pytest.raises(ValueError, match="reads latents of 8 by 8; these are 16 by 16"):
        encoder.patches(torch.zeros(1, 1, 4, 16, 16))
    assert replace(text(1), extra={}).extra == {}
