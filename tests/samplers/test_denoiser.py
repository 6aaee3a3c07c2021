"""Condition and Context: batching, cropping, emptying, and memory that lasts one run."""

from dataclasses import replace

import pytest
import torch

from samplers import Condition, Context, NetworkDenoiser, RectifiedFlow, VarianceExploding


def full(batch=2):
    return Condition(
        label=torch.arange(batch),
        tokens=torch.randn(batch, 5, 8),
        mask=torch.ones(batch, 5, dtype=torch.bool),
        pooled=torch.randn(batch, 6),
        image=torch.arange(batch * 16.0).reshape(batch, 1, 4, 4),
        extra={"size": torch.ones(batch, 2)},
    )


def test_cat_stacks_every_input():
    a, b = full(2), full(3)
    joined = a.cat([b])
    for name in ("label", "tokens", "mask", "pooled", "image"):
        assert torch.equal(getattr(joined, name), torch.cat([getattr(a, name), getattr(b, name)]))
    assert torch.equal(joined.extra["size"], torch.ones(5, 2))
    assert torch.equal(joined[2:].label, b.label) and torch.equal(joined[2:].extra["size"], b.extra["size"])


@pytest.mark.parametrize("name", ["label", "tokens", "mask", "pooled", "image", "size"])
def test_cat_refuses_different_inputs(name):
    without = replace(full(), extra={}) if name == "size" else replace(full(), **{name: None})
    for a, b in ((full(), without), (without, full())):
        with pytest.raises(ValueError, match=f"'{name}' is set in some and missing in others"):
            a.cat([b])


def test_slice_crops_the_aligned_image_only():
    condition = full()
    cropped = condition.slice((1, 2, 2, 1))
    assert torch.equal(cropped.image, condition.image[:, :, 1:3, 2:3])
    assert cropped.tokens is condition.tokens
    bare = Condition(label=torch.zeros(1))
    assert bare.slice((0, 0, 1, 1)) is bare


def test_null_is_unconditional():
    null = full().null()
    assert (null.label == -1).all() and not null.mask.any() and not null.tokens.any() and not null.pooled.any()
    assert torch.equal(null.image, full().image) and "size" in null.extra  # structure, not content
    assert Condition().null() == Condition()
    assert Condition(tokens=torch.ones(2, 5, 8)).null().mask.shape == (2, 5)  # even where no mask was given


def test_memo_computes_once_per_owner_branch_and_adapters():
    context, calls = Context(), []
    owner, other = object(), object()

    def compute():
        calls.append(1)
        return len(calls)

    assert [context.memo("k", (owner,), compute) for _ in range(3)] == [1, 1, 1]
    assert context.at(5).memo("k", (owner,), compute) == 1  # another step of the same run
    assert context.fork("null").memo("k", (owner,), compute) == 2
    assert Context(store=context.store, adapters={"a": 1.0}).memo("k", (owner,), compute) == 3
    assert context.memo("k", (other,), compute) == 4  # a new owner replaces the old
    assert context.memo("k", (owner,), compute) == 5
    assert context.memo("k", (owner, other), compute) == 6
    assert Context().memo("k", (owner,), compute) == 7  # another run


def test_branches_nest():
    context = Context().fork("tile", 3).fork("null")
    assert context.branch == ("tile", 3, "null")
    context.count(4)
    assert context.evaluations == 4


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_edm_preconditioning_uses_one_sigma_data_throughout(sigma_data):
    """A network that computes EDM's F for a known x0 from its scaled input gives that x0 back."""
    path, sigma, x0 = VarianceExploding(), 2.0, torch.full((2, 1, 3, 3), 0.7, dtype=torch.float64)
    total = sigma**2 + sigma_data**2

    def network(scaled, time, condition, context):
        x = scaled * total**0.5
        return (x0 - sigma_data**2 / total * x) / (sigma * sigma_data / total**0.5)

    denoiser = NetworkDenoiser(network, path, "edm", "log_sigma/4", "edm", sigma_data=sigma_data)
    x = x0 + sigma * torch.randn(x0.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    prediction = denoiser(x, path(sigma), Condition(), Context())
    torch.testing.assert_close(prediction.x0, x0, atol=1e-12, rtol=0)


def test_the_table_clock_needs_a_table():
    with pytest.raises(ValueError, match="RectifiedFlow has no table"):
        NetworkDenoiser(lambda *_: None, RectifiedFlow(), "eps", "index")


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        (lambda x: torch.cat([x, x], 1), {}, r"gave \(2, 6, 4, 4\) for x \(2, 3, 4, 4\); give .* say learned_var"),
        (lambda x: x, {"learned_variance": True}, r"give \(2, 6, 4, 4\), twice x's channels, as learned_variance=True says"),
        (lambda x: x[:1], {}, r"gave \(1, 3, 4, 4\)"),
        (lambda x: x[..., :2], {}, r"give \(2, 3, 4, 4\), x's own shape.$"),
        (lambda x: x.long(), {}, "gave torch.int64; it must return floating-point numbers"),
        (lambda x: x.to("meta"), {}, "output is on meta and x on cpu: move"),
        (lambda x: (x,), {}, "gave a tuple; it must return a tensor"),
    ],
)
def test_an_output_that_does_not_fit_x_is_refused(output, options, message):
    denoiser = NetworkDenoiser(lambda x, *_: output(x), RectifiedFlow(), "flow", **options)
    with pytest.raises(ValueError, match=message):
        denoiser(torch.ones(2, 3, 4, 4), RectifiedFlow()(0.5), Condition(), Context())


def test_an_output_of_lower_precision_comes_back_in_that_of_x():
    denoiser = NetworkDenoiser(lambda x, *_: x, RectifiedFlow(), "flow", dtype=torch.bfloat16)
    assert denoiser(torch.ones(2, 3, 4, 4), RectifiedFlow()(0.5), Condition(), Context()).raw.dtype == torch.float32
