"""Our networks of text and patches: what each input does, hooks, bits whatever the batch, recomputed gradients."""

from __future__ import annotations

import pytest
import torch

from distill.parallel.recompute import enable
from gen.nn.backbones.fused import pack
from gen.nn.backbones.joint_blocks import RMSNorm, angles, rotate
from gen.nn.batch_invariance import BatchInvariantNetwork, batch_invariance
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from samplers.hooks import with_hook
from tests.gen.conftest import randomise
from tests.gen.joint import OWN

KINDS = list(OWN)


def network(kind, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    return randomise(build(OWN[kind] | changes), 1).to(dtype).eval().requires_grad_(False)


def inputs(batch=3, size=(8, 8), tokens=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, 4, *size, generator=generator).to(dtype)
    mask = torch.arange(tokens) < torch.tensor([tokens, 2, 3, 1])[:batch, None]
    text = torch.randn(batch, tokens, OWN["mmdit"]["text_dim"], generator=generator).to(dtype)
    return x, torch.tensor([0.1, 0.5, 0.9, 0.4])[:batch], Condition(tokens=text, mask=mask)


def close(a, b, tolerance=1e-5):
    assert (a - b).abs().max() < tolerance * b.abs().max()


def test_rotation_and_norm_are_their_equations():
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    turned = rotate(x, angles(torch.tensor([[0, p] for p in range(5)]), (2, 6), 100.0, x.dtype))
    for position in range(5):
        for pair, angle in enumerate((0.0, position, position * 100.0 ** (-2 / 6), position * 100.0 ** (-4 / 6))):
            a, b = x[:, position, :, 2 * pair], x[:, position, :, 2 * pair + 1]
            c, s = torch.tensor(angle).double().cos(), torch.tensor(angle).double().sin()
            expected = torch.stack([a * c - b * s, a * s + b * c], -1)
            torch.testing.assert_close(turned[:, position, :, 2 * pair : 2 * pair + 2], expected, atol=1e-6, rtol=1e-6)
    norm = RMSNorm(8, 1e-3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(8))
    expected = torch.nn.functional.rms_norm(x, (8,), norm.weight, 1e-3)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_network_is_zero_and_learns_everywhere(kind):
    fresh = build(OWN[kind] | {"scalars": ["guidance"], "num_classes": 3}).train()
    x, time, condition = inputs()
    extra = {"guidance": torch.tensor([1.0, 2.0, 3.0])}
    condition = Condition(torch.tensor([0, -1, 2]), condition.tokens, condition.mask, extra=extra)
    assert not fresh(x, time, condition).any()
    randomise(fresh, 3)
    mixed = Condition(condition.label, condition.tokens, condition.mask & torch.tensor([[True], [False], [True]]), extra=extra)
    fresh(x, time, mixed).square().sum().backward()
    assert not [name for name, p in fresh.named_parameters() if p.grad is None]
    still = {name for name, p in fresh.named_parameters() if not p.grad.any()}
    # the published layout of Qwen-Image has weights for text that no block reads any more
    spare = "blocks.1.text." if kind == "qwen_image" else "\0"
    assert not {name for name in still if not name.startswith(spare)}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_input_matters_and_padding_does_not(kind):
    net = network(kind)
    x, time, condition = inputs()
    out = net(x, time, condition)
    assert out.shape == x.shape and out.std() > 0.05
    changed = condition.tokens.clone()
    changed[:, 0] += 1
    for other in (net(x, time + 0.03, condition), net(x, time, Condition(tokens=changed, mask=condition.mask))):
        assert (other - out).flatten(1).abs().max(1).values.min() > 1e-3
    hidden = torch.where(condition.mask[..., None], condition.tokens, torch.randn_like(condition.tokens))
    close(net(x, time, Condition(tokens=hidden, mask=condition.mask)), out)
    short = condition[1:2].map(lambda v: v[:, :2])  # the second row without its padding
    close(net(x[1:2], time[1:2], short), out[1:2])
    nothing = net(x, time, Condition())
    close(net(x, time, condition.null()), nothing)
    null = Condition(tokens=net.null_text.expand(3, -1, -1))
    close(net(x, time, null), nothing)
    for size in ((4, 8), (6, 8)):
        assert net(x[..., : size[0], : size[1]], time, condition).shape[2:] == size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_bits_do_not_depend_on_the_batch(kind, dtype):
    """Rows of a batch, with prompts of other lengths beside them, and each alone."""
    net = network(kind, dtype)
    if dtype == torch.bfloat16:
        pack(net)
    x, time, condition = inputs(4, dtype=dtype)
    with batch_invariance(True):
        together = BatchInvariantNetwork(net)(x, time, condition, Context())
        for i in range(4):
            length = int(condition.mask[i].sum())
            alone = Condition(tokens=condition.tokens[i : i + 1, :length], mask=condition.mask[i : i + 1, :length])
            assert torch.equal(BatchInvariantNetwork(net)(x[i : i + 1], time[i : i + 1], alone, Context()), together[i : i + 1])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_hooks_that_change_nothing_and_hooks_that_do(kind):
    net = network(kind)
    x, time, condition = inputs()
    plain, seen = net(x, time, condition, Context()), {}

    def note(name, site):
        seen.setdefault(name, []).append(site)

    def block(index, count, tokens, run):
        note("block", (index, count))
        out = run()
        assert out.shape == tokens.shape
        return out

    def attention(site, tokens, run):
        note("attention", site)
        out = run()
        assert out.shape == tokens.shape == (3, site.extras + 16, 32)
        return out

    def heads(site, q, k, v, run):
        note("heads", site)
        assert q.shape == k.shape == v.shape
        return run(q, k, v)

    def text(site, run):
        note("text", site)
        out = run(None)
        assert out.shape == (3, 16, 32)
        return out

    context = Context()
    for name, hook in (("block", block), ("attention", attention), ("heads", heads), ("text", text)):
        context = with_hook(context, name, hook)
    close(net(x, time, condition, context), plain)
    count = len(seen["block"])
    assert [index for index, _ in seen["block"]] == list(range(count)) and {total for _, total in seen["block"]} == {count}
    for name in ("attention", "heads", "text"):
        assert [site.index for site in seen[name]] == list(range(count))
        assert all((site.count, site.rows, site.columns) == (count, 4, 4) for site in seen[name])
    without = with_hook(Context(), "heads", lambda site, q, k, v, run: v)
    skipped = with_hook(Context(), "block", lambda index, count, tokens, run: tokens if index == 0 else run())
    silent = with_hook(Context(), "text", lambda site, run: torch.zeros_like(run(None)))
    cached = with_hook(Context(), "attention", lambda site, tokens, run: torch.zeros_like(tokens))
    for hooked in (without, skipped, silent, cached):
        assert (net(x, time, condition, hooked) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_gradients_are_the_same(kind):
    grads = []
    for recompute in (False, True):
        net = network(kind).train().requires_grad_(True)
        if recompute:
            assert enable(net) >= net.config.depth
        net(*inputs()).square().sum().backward()
        grads.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_text_is_read_once_per_run(kind):
    net = network(kind)
    x, time, condition = inputs()
    read, context = [], Context()
    net.text_embed.register_forward_hook(lambda *args: read.append(1))
    first = net(x, time, condition, context)
    for _ in range(3):
        assert torch.equal(net(x, time, condition, context), first)
    assert len(read) == 1
    net(x, time, condition.null(), context)
    assert len(read) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_a_sentence(kind):
    net = network(kind)
    x, time, condition = inputs()
    for change, message in (
        ({"text_tokens": 0, "text_dim": 0}, "this network is of text and patches"),
        ({"null_length": 9}, "null_length is 9, more than the 6 text tokens"),
        ({"heads": 3}, "multiple of"),
        ({"evil": 1}, "evil"),
    ):
        with pytest.raises(ValueError, match=message):
            build(OWN[kind] | change)
    with pytest.raises(ValueError, match=r"takes images of shape \(B, 4, H, W\)"):
        net(x[:, :3], time, condition)
    with pytest.raises(ValueError, match="has room for 6 text tokens and was given 8"):
        net(x, time, condition.map(lambda v: torch.cat([v, v], 1)))
    with pytest.raises(ValueError, match="takes no label"):
        net(x, time, Condition(torch.tensor([0, 1, 2]), condition.tokens, condition.mask))


def test_what_the_empty_prompt_gives_goes_where_the_weights_are():
    """An offloaded network is told it while its weights are elsewhere."""
    told = network("flux", pictures=1)
    tokens = torch.randn(1, 3, told.config.text_dim)
    told.set_null(Condition(tokens=tokens, pooled=torch.randn(1, told.config.pooled_dim or 1)))
    found, _, _ = told.double().with_null(Condition(), 2)
    assert torch.equal(found, tokens.double().expand(2, -1, -1))


def test_an_mmdit_says_what_it_lacks():
    net = network("mmdit", pooled_dim=5, pooled_text=False)
    x, time, condition = inputs()
    with pytest.raises(ValueError, match=r"give condition.pooled as \(3, 5\); it is missing"):
        net(x, time, condition)
    with pytest.raises(ValueError, match="table of positions covers 4 by 4 patches, and the picture has 5 by 4"):
        net(torch.randn(3, 4, 10, 8), time, Condition())
    for change, message in (
        ({"dual_blocks": 4}, "dual_blocks is 4, more than the 3 blocks"),
        ({"position_grid": 3}, "smaller than the trained grid of 4"),
        ({"pooled_dim": 5}, "give one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            build(OWN["mmdit"] | change)
