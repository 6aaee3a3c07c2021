"""Negative token merging and multi-reference attention: their identities, and against the equations written out apart."""

import math

import pytest
import torch

from samplers import Condition, Context, NetworkDenoiser, RectifiedFlow, get_grid, get_solver, sample
from samplers.guidance import ClassifierFree
from samplers.guidance.multi_reference import MultiReference, attend
from samplers.guidance.negtome import NegativeMerging, push_apart
from samplers.guidance.reference_batch import References
from samplers.hooks import Site, with_hook
from tests.gen.test_hooks import tiny

FLOW, LEVEL = RectifiedFlow(), RectifiedFlow()(0.8)
EVERYWHERE = (-math.inf, math.inf)
LABELS = Condition(label=torch.tensor([1, 3]))


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, IMAGES = noise(2, 3, 4, 8), noise(2, 3, 4, 8, seed=1)
REFERENCES = References(IMAGES, noise(2, 2, 3, 4, 8, seed=2))
NETS = {kind: tiny(kind, num_classes=5) for kind in ("dit", "uvit")}


def net(kind="dit"):
    return NetworkDenoiser(NETS[kind], FLOW, "flow")


def call(rule, x=X, condition=LABELS, context=None):
    with torch.no_grad():
        return rule(x, LEVEL, condition, context or Context()).raw


def close(a, b, tolerance=1e-10):
    assert (a - b).abs().max() < tolerance


# ---- negative token merging ----


def test_a_permuted_copy_of_itself_changes_nothing():
    """The nearest token is looked for among the reference's; along the other axis this fails by the size of the tokens."""
    tokens = noise(3, 7, 5)
    shuffled = tokens[:, torch.randperm(7, generator=torch.Generator().manual_seed(0))]
    close(push_apart(tokens, shuffled, 0.9, 0.5), tokens, 1e-12)
    wrong = (tokens @ shuffled.transpose(1, 2)).argmax(-2)
    assert (tokens - shuffled.gather(1, wrong[..., None].expand_as(tokens))).abs().max() > 1


def test_merging_is_the_published_formula_token_by_token():
    tokens, reference = noise(2, 6, 4), noise(2, 9, 4, seed=3)
    allowed = torch.arange(9) != 4
    found, moved = push_apart(tokens, reference, 0.8, 0.5, allowed), 0
    for b in range(2):
        for i in range(6):
            cosines = torch.stack([torch.cosine_similarity(tokens[b, i], r, dim=0) for r in reference[b]])
            cosines[4] = -1
            j = int(cosines.argmax())
            expected = 1.8 * tokens[b, i] - 0.8 * reference[b, j] if cosines[j] > 0.5 else tokens[b, i]
            moved += bool(cosines[j] > 0.5)
            close(found[b, i], expected, 1e-12)
    assert 3 < moved < 12
    assert torch.equal(push_apart(tokens, reference, 0.8, 0.5, torch.zeros(9, dtype=torch.bool)), tokens)


def by_hand(kind, x, condition, scale, threshold, layers=None):
    """The run of pictures and references apart, attention outputs of the references kept and used."""
    network, kept = net(kind), []
    for r in range(len(IMAGES)):
        noisy = LEVEL.alpha * IMAGES[r] + LEVEL.sigma * REFERENCES.noise[:, r]
        seen = {}
        context = with_hook(Context(), "attention", lambda site, t, run, seen=seen: seen.setdefault(site.index, run()))
        call(network, noisy, condition, context)
        kept.append(seen)

    def away(site, tokens, run):
        out, e = run(), site.extras
        if layers is not None and site.index not in layers:
            return out
        reference = torch.cat([one[site.index][:, e:] for one in kept], dim=1)
        return torch.cat([out[:, :e], push_apart(out[:, e:], reference, scale, threshold)], dim=1)

    return call(network, x, condition, with_hook(Context(), "attention", away))


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_references_in_the_batch_are_references_apart(kind):
    found = call(NegativeMerging(net(kind), REFERENCES, 0.5, 0.3))
    close(found, by_hand(kind, X, LABELS, 0.5, 0.3))
    assert (found - call(net(kind))).abs().max() > 1e-2
    close(call(NegativeMerging(net(kind), REFERENCES, 0.5, 0.3, layers=(1,))), by_hand(kind, X, LABELS, 0.5, 0.3, (1,)))


def test_branches_of_guidance_are_matched_with_themselves_and_pictures_apart():
    """cond and null as one batch of four are cond and null by themselves, and a picture is what it is alone."""
    rule = NegativeMerging(net(), REFERENCES, 0.5, 0.3)
    null = LABELS.null()
    expected = torch.lerp(by_hand("dit", X, null, 0.5, 0.3), by_hand("dit", X, LABELS, 0.5, 0.3), 3.0)
    close(call(ClassifierFree(rule, 3.0)), expected)
    alone = References(IMAGES, REFERENCES.noise[1:])
    one = call(ClassifierFree(NegativeMerging(net(), alone, 0.5, 0.3), 3.0), X[1:], LABELS[1:])
    close(one, expected[1:])


def test_within_a_batch_the_first_picture_is_what_the_others_leave():
    batch, labels = torch.cat([X, X[:1]]), Condition(label=torch.tensor([1, 3, 1]))
    rule = ClassifierFree(NegativeMerging(net(), None, 0.5, 0.3), 3.0)
    plain = ClassifierFree(net(), 3.0)
    found = call(rule, batch, labels)
    close(found[0], call(plain, batch, labels)[0])
    close(found[2], found[0])  # the same picture again: its own tokens are the nearest
    assert (found[1] - call(plain, batch, labels)[1]).abs().max() > 1e-2
    close(call(rule, batch[:2], labels[:2]), found[:2])


def test_merging_off_is_the_plain_run_at_its_cost():
    for rule in (
        NegativeMerging(net(), REFERENCES, 0.0),
        NegativeMerging(net(), REFERENCES, 0.9, 1.0),
        NegativeMerging(net(), REFERENCES, interval=(0.0, 1.0)),
        MultiReference(net(), REFERENCES, interval=(0.0, 1.0)),
    ):
        context = Context()
        assert torch.equal(call(rule, context=context), call(net())) and context.evaluations == 2


def test_evaluations_are_counted():
    """Evaluations are those of the plain run, times one more for every reference."""
    levels = get_grid("karras", FLOW, 4)

    def evaluations(rule):
        context = Context()
        with torch.no_grad():
            sample(rule, get_solver("euler"), X, levels, LABELS, context=context)
        return context.evaluations

    assert evaluations(net()) == evaluations(NegativeMerging(net(), None, interval=EVERYWHERE)) == 8
    assert evaluations(NegativeMerging(net(), REFERENCES, interval=EVERYWHERE)) == 8 * 3
    assert evaluations(MultiReference(net(), REFERENCES)) == 8 * 3
    assert evaluations(ClassifierFree(MultiReference(net(), REFERENCES), 3.0)) == 16 * 3


# ---- multi-reference self-attention ----


def masks(*values):
    return torch.stack([torch.as_tensor(v, dtype=torch.float64).expand(1, 2, 4) for v in values])


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_multi_reference_attention_is_the_dense_softmax(kind):
    """Every column written out: own tokens without a bias, the reference's with theirs, minus infinity outside its mask."""
    network, weights = net(kind), (3.0, -0.5)
    half = torch.zeros(1, 2, 4, dtype=torch.float64)
    half[:, :, :2] = 1
    inside = [half.flatten() > 0.5, torch.ones(8, dtype=torch.bool)]
    references = References(IMAGES, REFERENCES.noise, masks(half, 1.0))
    kept = []
    for r in range(2):
        noisy, seen = LEVEL.alpha * IMAGES[r] + LEVEL.sigma * REFERENCES.noise[:, r], {}
        hook = lambda site, q, k, v, run, seen=seen: (seen.setdefault(site.index, (k, v)), run(q, k, v))[1]  # noqa: E731
        call(network, noisy, LABELS, with_hook(Context(), "heads", hook))
        kept.append(seen)

    def dense(site, q, k, v, run):
        if site.index not in (1, 2):
            return run(q, k, v)
        scores, values = [torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])], [v]
        for r in range(2):
            key, value = (part[:, site.extras :] for part in kept[r][site.index])
            score = torch.einsum("bqhd,bkhd->bhqk", q, key) / math.sqrt(q.shape[-1]) + weights[r]
            scores.append(score.masked_fill(~inside[r], -math.inf))
            values.append(value)
        shares = torch.cat(scores, -1).softmax(-1)
        close(shares.sum(-1), torch.ones_like(shares[..., 0]), 1e-12)
        return torch.einsum("bhqk,bkhd->bqhd", shares, torch.cat(values, 1))

    expected = call(network, X, LABELS, with_hook(Context(), "heads", dense))
    close(call(MultiReference(network, references, weights, layers=(1, 2))), expected)
    assert (expected - call(network)).abs().max() > 1e-2


def test_references_without_a_place_or_equal_to_the_picture_change_nothing():
    empty = References(IMAGES, REFERENCES.noise, masks(0.0, 0.0))
    assert torch.equal(call(MultiReference(net(), empty)), call(net()))
    # every reference is x itself: a softmax over copies is the softmax
    copies = References(X[:1].expand(2, -1, -1, -1), noise(1, 2, 3, 4, 8))
    object.__setattr__(copies, "at", lambda level, rows: X[:1].repeat(2, 1, 1, 1))
    close(call(MultiReference(net(), copies, 0.0, layers=(0, 1, 2)), X[:1], LABELS[:1]), call(net())[:1])


def test_the_null_branch_is_left_alone_unless_asked_for():
    plain, rule = net(), MultiReference(net(), REFERENCES)
    null, cond = call(plain, condition=LABELS.null()), call(rule)
    close(call(ClassifierFree(rule, 3.0)), torch.lerp(null, cond, 3.0))
    both = MultiReference(net(), REFERENCES, null=True)
    close(call(ClassifierFree(both, 3.0)), torch.lerp(call(both, condition=LABELS.null()), cond, 3.0))


def test_references_may_have_a_condition_of_their_own():
    own = References(IMAGES[:1], REFERENCES.noise[:, :1], conditions=(Condition(label=torch.tensor([4])),))
    rule, seen = MultiReference(net(), own), []

    def watch(x, time, condition, context):
        seen.append(condition.label.tolist())
        return NETS["dit"](x, time, condition, context)

    call(ClassifierFree(MultiReference(NetworkDenoiser(watch, FLOW, "flow"), own), 3.0))
    assert seen == [[1, 3, -1, -1, 4, 4, -1, -1]]
    same = References(own.images, own.noise)
    assert (call(rule) - call(MultiReference(net(), same))).abs().max() > 1e-4


def test_attention_with_a_bias_on_keys():
    q, k, v = noise(2, 3, 2, 4), noise(2, 5, 2, 4, seed=1), noise(2, 5, 2, 4, seed=2)
    bias = torch.tensor([0.0, 0.0, 3.0, -1.0, 0.5], dtype=torch.float64)
    shares = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 2 + bias).softmax(-1)
    close(attend(q, k, v, bias), torch.einsum("bhqk,bkhd->bqhd", shares, v), 1e-12)


def test_masks_are_brought_to_the_grid_of_tokens():
    mask = torch.zeros(1, 1, 16, 32)
    mask[..., :8, :] = 1
    references = References(IMAGES[:1], REFERENCES.noise[:, :1], mask)
    assert references.allowed(Site(0, 1, 0, 2, 4)).tolist() == [[True] * 4 + [False] * 4]


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: References(IMAGES, REFERENCES.noise[:, :1]), "need noise"),
        (lambda: References(IMAGES, REFERENCES.noise, torch.ones(1, 1, 4, 8)), r"give \(2, 1, H, W\)"),
        (lambda: References(IMAGES, REFERENCES.noise, conditions=(None,)), "one each, or none"),
        (lambda: call(NegativeMerging(net(), REFERENCES, layers=(9,))), "has blocks 0 to 2"),
        (lambda: call(MultiReference(net(), REFERENCES, layers=(-1,))), "numbers of blocks"),
        (lambda: NegativeMerging(net(), REFERENCES, interval=(1.0, 1.0)), "lowest, highest"),
        (lambda: NegativeMerging(net(), REFERENCES, math.inf), "finite number"),
        (lambda: MultiReference(net(), REFERENCES, (1.0,)), "1 weights for 2 references"),
        (lambda: call(NegativeMerging(net(), REFERENCES), X[:1], LABELS[:1]), "made for 2 pictures"),
        (lambda: call(NegativeMerging(NetworkDenoiser(lambda x, *_: x, FLOW, "flow"), REFERENCES)), "has none: use another"),
    ],
)
def test_mistakes_are_sentences(build, says):
    with pytest.raises(ValueError, match=says):
        build()
