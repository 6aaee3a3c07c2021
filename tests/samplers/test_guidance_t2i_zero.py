"""Several concepts in a prompt: the correction and the suppression against their definitions, entry by entry."""

import math

import pytest
import torch

from samplers import Condition, Context, NetworkDenoiser, RectifiedFlow
from samplers.guidance import ClassifierFree
from samplers.guidance.t2i_zero import ConceptSuppression, _smoothed, correct_by_similarities, suppress_overlap
from samplers.hooks import with_hook
from tests.gen.test_hooks import tiny

FLOW = RectifiedFlow()
LEVEL = FLOW(0.7)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b, tolerance=1e-12):
    assert (a - b).abs().max() < tolerance


def test_correction_is_its_definition():
    f = noise(8, 5)
    found = correct_by_similarities(f, [3, 7], strength=0.2, window=2, quantile=0.6)
    for c, near in ((3, range(1, 6)), (7, range(5, 8))):
        products = [[float(f[c, d] * f[j, d]) for d in range(5)] for j in near]
        flat = sorted(v for row in products for v in row)
        place = 0.6 * (len(flat) - 1)
        cut = flat[int(place)] + (place - int(place)) * (flat[int(place) + 1] - flat[int(place)])
        for d in range(5):
            gathered = sum(
                (row[d] if row[d] > cut else 0) / flat[-1] * float(f[j, d]) for row, j in zip(products, near, strict=True)
            )
            assert float(found[c, d]) == pytest.approx(0.8 * float(f[c, d]) + 0.2 * gathered, abs=1e-6)
    others = [i for i in range(8) if i not in (3, 7)]
    assert torch.equal(found[others], f[others])
    assert torch.equal(correct_by_similarities(f, [3], strength=0.0), f) and torch.equal(correct_by_similarities(f, []), f)


def test_suppression_is_its_definition():
    """Maps of two heads over 3 x 4 patches; concept 0 has two tokens, concept 1 one, token 0 none."""
    maps, owners = noise(1, 2, 12, 5).softmax(-1), torch.tensor([[-1, 0, 1, 0, -1]])
    maps[..., 2] *= 2
    found, kernel = (
        suppress_overlap(maps, owners, 3, 4),
        torch.tensor([math.exp(-0.5), 1.0, math.exp(-0.5)], dtype=torch.float64),
    )
    kernel = kernel / kernel.sum()
    wins = {0: 0, 1: 0}
    for h in range(2):

        def claim(tokens, row, column, h=h):
            grid, total = maps[0, h, :, tokens].sum(-1).reshape(3, 4), 0.0
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    at = grid[min(max(row + i, 0), 2), min(max(column + j, 0), 3)]
                    total += float(kernel[i + 1] * kernel[j + 1] * at)
            return total

        for place in range(12):
            row, column = divmod(place, 4)
            winner = 0 if claim([1, 3], row, column) >= claim([2], row, column) else 1
            wins[winner] += 1
            lost = [2] if winner == 0 else [1, 3]
            expected = maps[0, h, place].clone()
            expected[lost] = 0
            close(found[0, h, place], expected)
    assert min(wins.values()) >= 2
    assert float((found[..., [1, 3]].sum(-1) * found[..., 2]).abs().max()) == 0  # disjoint
    close(suppress_overlap(maps, owners, 3, 4, 0.3), 0.7 * maps + 0.3 * found)


def test_suppression_identities():
    maps = noise(2, 1, 6, 4).softmax(-1)
    for owners in ([[-1] * 4] * 2, [[0, 0, -1, -1]] * 2):
        assert torch.equal(suppress_overlap(maps, torch.tensor(owners), 2, 3), maps)
    mixed = suppress_overlap(maps, torch.tensor([[0, 1, -1, -1], [-1, 1, -1, -1]]), 2, 3)
    close(mixed[1], maps[1])  # the other picture's concepts are no claim here
    assert (mixed[0] - maps[0]).abs().max() > 0.01
    assert torch.equal(suppress_overlap(maps, torch.tensor([[0, 1, -1, -1]] * 2), 2, 3, 0.0), maps)
    close(_smoothed(torch.ones(1, 3, 3, dtype=torch.float64)), torch.ones(1, 3, 3, dtype=torch.float64))


NET, UVIT = (tiny(kind, text_tokens=4, text_dim=6) for kind in ("dit", "uvit"))
X, TOKENS = noise(2, 3, 4, 8), noise(2, 4, 6, seed=1)
CONDITION = Condition(tokens=TOKENS, mask=torch.tensor([[True] * 4, [True] * 3 + [False]]))
OWNERS = torch.tensor([[-1, 0, 1, 1], [-1, 0, 1, -1]])


def call(rule, condition=CONDITION, context=None):
    with torch.no_grad():
        return rule(X, LEVEL, condition, context or Context()).raw


@pytest.mark.parametrize("packed", [False, True])
def test_the_hook_is_cross_attention_and_changes_only_the_condition(packed):
    """At a strength that shows nothing it is the network's own attention, masks and packing included; the null branch stays."""
    network = NetworkDenoiser(NET, FLOW, "flow")
    NET.packed_text = packed
    try:
        plain = call(network)
        close(call(ConceptSuppression(network, OWNERS, 1e-15)), plain, 1e-11)
        context = with_hook(Context(), "cross", lambda site, q, k, v, mask, run: run(q, k, v, mask))
        close(call(network, context=context), plain, 1e-12)
        changed = call(ConceptSuppression(network, OWNERS))
        assert (changed - plain).abs().max() > 1e-3
        null = call(network, CONDITION.null())
        close(call(ClassifierFree(ConceptSuppression(network, OWNERS), 3.0)), torch.lerp(null, changed, 3.0), 1e-11)
        context = Context()
        outside = ConceptSuppression(network, OWNERS, interval=(1.0, 2.0))
        assert torch.equal(call(outside, context=context), plain) and context.evaluations == 2
    finally:
        NET.packed_text = None


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: correct_by_similarities(TOKENS[0], [1], strength=2.0), "strength=2.0; give a number from 0 to 1"),
        (lambda: correct_by_similarities(TOKENS[0], [1], window=-1), "window=-1"),
        (lambda: ConceptSuppression(None, OWNERS, 1.5), "from 0 .off. to 1"),
        (lambda: ConceptSuppression(None, OWNERS.double()), "of integers"),
        (lambda: call(ConceptSuppression(NetworkDenoiser(NET, FLOW, "flow"), OWNERS[:1])), "and 2 came"),
        (lambda: call(ConceptSuppression(NetworkDenoiser(UVIT, FLOW, "flow"), OWNERS)), "'cross' hook"),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(build, says):
    with pytest.raises(ValueError, match=says):
        build()
