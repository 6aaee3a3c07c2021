"""Sums, scales and lower ranks of adapters, against whole matrices."""

from __future__ import annotations

import json

import pytest
import torch

from customization.algebra import (
    Keep,
    Sparse,
    align,
    interpolate,
    resize,
    scale,
    similarity,
    sparse_merge,
    spectra,
    weighted_sum,
)
from customization.algebra.factors import factors_of
from customization.algebra.sum import block_weights
from gen.adapters import Adapter, AdapterError, Delta
from tests.customization.adapters import KINDS, adapter, change, changes, lora, normal

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def truncated(matrix: torch.Tensor, k: int) -> torch.Tensor:
    """The best approximation of rank k, by the decomposition of the whole matrix."""
    p, s, wt = torch.linalg.svd(matrix.flatten(1), full_matrices=False)
    return ((p[:, :k] * s[:k]) @ wt[:k]).reshape(matrix.shape)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "full"])
def test_factors_of_every_kind_are_its_change(kind):
    delta = KINDS[kind]()
    up, down = factors_of(delta)
    torch.testing.assert_close(delta.scale * (up @ down), change(delta).flatten(1), **EXACT)
    assert len(down) <= 12 * 9


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", ["lora", "loha", "full", "conv", "conv core"])
def test_a_sum_is_exact_for_every_pair_of_kinds(first, second):
    if first.startswith("conv") != second.startswith("conv"):
        return
    one, two = adapter("a", x=KINDS[first]()), adapter("b", x=KINDS[second](), y=lora(50))
    made, reports = weighted_sum([one, two], [0.3, -2.0])
    expected = 0.3 * change(one.layers["denoiser.x"]) - 2 * change(two.layers["denoiser.x"])
    torch.testing.assert_close(change(made.layers["denoiser.x"]), expected, **EXACT)
    torch.testing.assert_close(change(made.layers["denoiser.y"]), -2 * change(two.layers["denoiser.y"]), **EXACT)
    assert reports[0].norm == pytest.approx(float(expected.norm()), rel=1e-9) and reports[0].error < 1e-7
    assert made.layers["denoiser.x"].kind == ("full" if "full" in (first, second) else "lora")


def test_ranks_add_up_and_never_exceed_the_weight():
    parts = [adapter(name, x=lora(10 * i, rank=4), y=lora(10 * i + 5, rank=2)) for i, name in enumerate("abc")]
    made, reports = weighted_sum(parts)
    assert [delta.rank for delta in made.layers.values()] == [10, 6] and reports[0].ranks == (4, 4, 4)
    torch.testing.assert_close(changes(made)["denoiser.x"], sum(changes(part)["denoiser.x"] for part in parts), **EXACT)


def test_one_scale_for_all_is_kept_and_no_bit_of_a_factor_changes():
    one, two = (adapter(n, x=Delta({k: v.half() for k, v in lora(i).factors.items()}, 0.37)) for i, n in enumerate("ab"))
    made, _ = weighted_sum([one, two], [0.8, 0.8])
    delta = made.layers["denoiser.x"]
    assert delta.scale == 0.37 * 0.8 and delta.factors["up"].dtype == torch.float16
    assert torch.equal(delta.factors["up"], torch.cat([a.layers["denoiser.x"].factors["up"] for a in (one, two)], 1))
    assert torch.equal(delta.factors["down"], torch.cat([a.layers["denoiser.x"].factors["down"] for a in (one, two)]))


def test_biases_add_up():
    one = adapter("a", x=Delta({**lora(1).factors, "bias": normal(3, 10)}, 0.5), n=Delta({"bias": normal(4, 5)}))
    two = adapter("b", x=Delta({**lora(5).factors, "up_bias": normal(6, 10)}, 2.0), n=Delta({"bias": normal(7, 5)}))
    made, _ = weighted_sum([one, two], [2.0, 3.0])
    expected = 2 * normal(3, 10) + 3 * 2.0 * normal(6, 10)
    torch.testing.assert_close(made.layers["denoiser.x"].bias(torch.float64), expected, **EXACT)
    torch.testing.assert_close(made.layers["denoiser.n"].bias(torch.float64), 2 * normal(4, 5) + 3 * normal(7, 5), **EXACT)
    alone = scale(one, 2.0).layers["denoiser.x"]
    torch.testing.assert_close(alone.bias(torch.float64), 2 * normal(3, 10), **EXACT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4])
def test_resizing_is_the_truncated_decomposition_of_the_whole_matrix(kind, k):
    delta = KINDS[kind]()
    made, [report] = resize(adapter("a", x=delta), Keep(rank=k))
    new, whole = made.layers["denoiser.x"], change(delta)
    possible = int(torch.linalg.matrix_rank(whole.flatten(1)))
    assert new.rank == min(k, possible)
    torch.testing.assert_close(change(new), truncated(whole, k), rtol=1e-10, atol=1e-10)
    assert report.error == pytest.approx(float((change(new) - whole).norm() / whole.norm()), abs=1e-10)
    if delta.kind not in ("full",):
        assert new.scale == delta.scale


def test_a_merge_to_a_rank_is_the_best_of_that_rank():
    one, two = adapter("a", x=lora(1, 40, 30, 8)), adapter("b", x=lora(7, 40, 30, 8, scale=2.0))
    made, [report] = weighted_sum([one, two], [1.0, 0.5], keep=Keep(rank=5))
    whole = change(one.layers["denoiser.x"]) + 0.5 * change(two.layers["denoiser.x"])
    torch.testing.assert_close(changes(made)["denoiser.x"], truncated(whole, 5), rtol=1e-10, atol=1e-10)
    assert report.rank == 5 and report.norm == pytest.approx(float(whole.norm()))


def test_norms_are_added_whole_whatever_the_rank():
    one = adapter("a", x=lora(1), n=Delta({"weight": normal(3, 7), "bias": normal(4, 7)}))
    two = adapter("b", x=lora(5), n=Delta({"weight": normal(5, 7)}))
    for made, _ in (
        weighted_sum([one, two], [2.0, -1.0], keep=Keep(rank=2)),
        sparse_merge([one, two], [2.0, -1.0], Sparse("dare", 1.0), keep=Keep(rank=2)),
    ):
        torch.testing.assert_close(made.layers["denoiser.n"].factors["weight"], 2 * normal(3, 7) - normal(5, 7), **EXACT)
        torch.testing.assert_close(made.layers["denoiser.n"].factors["bias"], 2 * normal(4, 7), **EXACT)
        assert made.layers["denoiser.x"].rank == 2
    assert spectra(one)[1].norm == pytest.approx(float(normal(3, 7).norm()))


def test_a_difference_that_cancels_is_zero():
    one = adapter("a", x=lora(1), y=lora(9))
    two = adapter("b", x=Delta({"down": 4 * lora(1).factors["down"], "up": lora(1).factors["up"]}, 0.125))
    made, reports = weighted_sum([one, two], [1.0, -1.0], keep=Keep(rank=2))
    assert changes(made)["denoiser.x"].abs().max() < 1e-14 * change(one.layers["denoiser.x"]).abs().max()
    assert reports[0].norm < 1e-13


def spectrum_of(values: list[float]) -> Delta:
    """A LoRA with these singular values."""
    q = torch.linalg.qr(normal(1, 12, len(values))).Q
    w = torch.linalg.qr(normal(2, 9, len(values))).Q
    return Delta({"up": q * torch.tensor(values, dtype=torch.float64), "down": w.T.contiguous()})


@pytest.mark.parametrize(
    ("rule", "rank"),
    [
        ({"sv_ratio": 4.0}, 3),  # 8, 4, 2 are at least 8 / 4
        ({"sv_ratio": 3.9}, 2),
        ({"sv_fro": (80 / 85) ** 0.5}, 2),  # 64, 80, 84, 85
        ({"sv_fro": 0.971}, 3),
        ({"sv_fro": 1.0}, 4),
        ({"sv_cumulative": 12 / 15}, 2),  # 8, 12, 14, 15
        ({"sv_cumulative": 0.81}, 3),
        ({"sv_cumulative": 0.81, "rank": 2}, 2),
        ({"sv_ratio": 1.5}, 1),
        ({"rank": 9}, 4),
    ],
)
def test_rules_of_rank(rule, rank):
    made, [report] = resize(adapter("a", x=spectrum_of([8, 4, 2, 1])), Keep(**rule))
    assert made.layers["denoiser.x"].rank == report.rank == rank
    s = torch.tensor([8.0, 4, 2, 1], dtype=torch.float64)
    assert report.error == pytest.approx(float(s[rank:].norm() / s.norm()), abs=1e-9)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        ({}, "Nothing says how many"),
        ({"sv_fro": 0.9, "sv_ratio": 2.0}, "sv_ratio and sv_fro are given"),
        ({"rank": 0}, "The rank is 0"),
        ({"rank": True}, "The rank is True"),
        ({"rank": 5000}, "from 1 to 4096"),
        ({"sv_fro": 1.5}, "up to 1"),
        ({"sv_ratio": float("nan")}, "a number above 1"),
        ({"sv_cumulative": 0.0}, "above 0"),
    ],
)
def test_rules_that_make_no_sense(rule, reason):
    with pytest.raises(AdapterError, match=reason):
        Keep(**rule)


def test_a_rank_that_no_layer_can_have_is_refused_and_one_that_some_cannot_is_not():
    one = adapter("a", x=lora(1, 10, 12, 8), y=lora(2, 5, 12, 8))
    with pytest.raises(AdapterError, match="Rank 11 is more than any layer has rows or columns; give at most 10"):
        resize(one, Keep(rank=11))
    made, _ = resize(one, Keep(rank=7))
    assert [delta.rank for delta in made.layers.values()] == [7, 5]
    torch.testing.assert_close(changes(made)["denoiser.y"], changes(one)["denoiser.y"], **EXACT)


def test_blocks_have_weights_of_their_own():
    one = Adapter("a", {f"denoiser.{n}": lora(i) for i, n in enumerate(("mid.attn.qkv", "mid.mlp", "middle.x", "in.0.attn.q"))})
    one = Adapter("a", {**one.layers, "text_encoder.mid": lora(9)})
    made = scale(one, 2.0, {"mid": 0.5, "mid.attn": 3.0, "*.attn.q": 0.0, "text_encoder": -1.0})
    factor = {layer: made.layers[layer].scale / one.layers[layer].scale if layer in made.layers else 0 for layer in one.layers}
    assert factor == {
        "denoiser.mid.attn.qkv": 6.0, "denoiser.mid.mlp": 1.0, "denoiser.middle.x": 2.0, "denoiser.in.0.attn.q": 0,
        "text_encoder.mid": -2.0,
    }  # fmt: skip
    assert block_weights(["denoiser.a_b_c"], {"a.b": 4.0}) == {"denoiser.a_b_c": 4.0}
    with pytest.raises(AdapterError, match=r"The block 'mid\.atn' fits no layer; nearest: .*mid\.attn"):
        scale(one, 1.0, {"mid.atn": 2.0})
    with pytest.raises(AdapterError, match="Every layer has weight 0"):
        scale(one, 0.0)


def test_interpolation_has_both_ends():
    one, two = adapter("a", x=lora(1)), adapter("b", x=lora(5))
    for share in (0.0, 0.25, 1.0):
        made, _ = interpolate(one, two, share)
        expected = (1 - share) * changes(one)["denoiser.x"] + share * changes(two)["denoiser.x"]
        torch.testing.assert_close(changes(made)["denoiser.x"], expected, **EXACT)


def test_a_dora_is_refused_where_it_would_have_to_be_added_or_scaled():
    dora = Delta({**lora(1).factors, "magnitude": torch.ones(10, dtype=torch.float64)}, 0.5)
    one, two = adapter("a", x=dora, y=lora(3)), adapter("b", x=lora(2), y=lora(4))
    for call in (lambda: weighted_sum([one, two]), lambda: scale(one, 0.5), lambda: resize(one, Keep(rank=1))):
        with pytest.raises(AdapterError, match=r"denoiser\.x is a DoRA, .* extract a LoRA from that\.$"):
            call()
    assert scale(one).layers["denoiser.x"] is dora
    made, _ = weighted_sum([one, two], blocks={"y": 2.0, "x": 0.0})
    assert list(made.layers) == ["denoiser.y"]


def test_adapters_of_different_models_are_refused():
    one, two = adapter("one", x=lora(1)), adapter("two", x=lora(2, width=13))
    with pytest.raises(AdapterError, match=r"denoiser\.x is \(10, 13\) in two and \(10, 12\) in one: .* different models"):
        weighted_sum([one, two])
    two = adapter("two", z=lora(2))
    with pytest.raises(AdapterError, match=r"one has no layer in common with two.*denoiser\.x here, denoiser\.z there"):
        weighted_sum([one, two])
    assert len(weighted_sum([one, two], disjoint=True)[0].layers) == 2
    for bad, reason in (([1.0], "2 adapters and 1 weights"), ([1.0, float("nan")], "The weight of two is nan")):
        with pytest.raises(AdapterError, match=reason):
            weighted_sum([one, two], bad)
    for none in ([], [Adapter("empty", {})]):
        with pytest.raises(AdapterError, match=r"no adapters|empty has no layers"):
            weighted_sum(none)
    same = [Adapter("s", one.layers, sha256="f"), Adapter("t", one.layers, sha256="f")]
    with pytest.raises(AdapterError, match="t is given twice"):
        weighted_sum(same)


def test_names_with_dots_and_with_underscores_are_the_same_layers():
    one = Adapter("kohya", {"denoiser.a_b": lora(1)}, format="kohya")
    two = Adapter("dots", {"denoiser.a.b": lora(2)})
    [entry] = align([one, two])
    assert entry.layer == "denoiser.a_b" and len(entry.present) == 2
    with pytest.raises(AdapterError, match="with underscores"):
        align([one, Adapter("both", {"denoiser.a.b": lora(2), "denoiser.a_b": lora(3)})])


def test_a_one_by_one_convolution_meets_a_matrix():
    one, two = adapter("a", x=lora(1)), adapter("b", x=lora(2, kernel=(1, 1)))
    made, _ = weighted_sum([one, two])
    assert made.layers["denoiser.x"].dims == (10, 12, 1, 1)
    expected = change(one.layers["denoiser.x"]) + change(two.layers["denoiser.x"])[:, :, 0, 0]
    torch.testing.assert_close(change(made.layers["denoiser.x"])[:, :, 0, 0], expected, **EXACT)


def test_values_beyond_half_precision_are_refused():
    big = Delta({"down": torch.full((1, 4), 2.0**15).half(), "up": torch.ones(4, 1).half()})
    small = Delta({"down": torch.ones(1, 4).half(), "up": torch.ones(4, 1).half()}, 1e-4)
    with pytest.raises(AdapterError, match="beyond float16"):
        weighted_sum([adapter("a", x=small), adapter("b", x=Delta({**big.factors, "up": torch.full((4, 1), 10.0).half()}))])


def test_metadata_are_kept_and_merged():
    texts = {"ss_base_model_version": "sd_v1", "ss_network_dim": "3", "ss_network_alpha": "1.5", "sshs_model_hash": "old"}
    tags = ('{"5_cat": {"cat": 3, "red": 1}}', '{"5_cat": {"cat": 4}, "2_dog": {}}')
    one, two = (
        Adapter(name, {"denoiser.x": lora(i)}, {**texts, "modelspec.title": name, "ss_tag_frequency": tag, "ss_epoch": str(i)})
        for i, (name, tag) in enumerate(zip("ab", tags, strict=True))
    )
    made, _ = weighted_sum([one, two], [1.0, 0.5])
    history = json.loads(made.metadata.pop("fewstep.made_from"))
    assert dict(made.metadata) == {
        "ss_base_model_version": "sd_v1", "ss_network_dim": "6", "ss_network_alpha": "3", "modelspec.title": "a + b",
        "modelspec.merged_from": "a, b", "ss_tag_frequency": '{"5_cat": {"cat": 7, "red": 1}, "2_dog": {}}',
    }  # fmt: skip
    assert history["weights"] == [1.0, 0.5] and [source["name"] for source in history["adapters"]] == ["a", "b"]
    again, _ = resize(one, Keep(rank=2))
    assert again.metadata["ss_network_dim"] == "2" and again.metadata["ss_network_alpha"] == "1"
    other = Adapter("c", {"denoiser.x": lora(8)}, {"ss_base_model_version": "sd_v2"})
    assert "name different models: a on sd_v1, c on sd_v2" in weighted_sum([one, other])[0].notes[0]


def test_spectra_are_those_of_the_whole_matrix():
    for kind, make in KINDS.items():
        delta = make()
        [found] = spectra(adapter("a", x=delta))
        s = torch.linalg.svdvals(change(delta).flatten(1))
        own = torch.tensor(found.s, dtype=torch.float64)
        torch.testing.assert_close(own, s[: len(own)], rtol=1e-9, atol=1e-9, msg=kind)
        assert s[len(own) :].sum() < 1e-6 * s[0] and found.norm == pytest.approx(float(change(delta).norm()))
    [found] = spectra(adapter("a", x=spectrum_of([8, 4, 2, 1])))
    assert found.stable_rank == pytest.approx(85 / 64) and found.needed == (2, 3) and found.spectral == pytest.approx(8)


def test_similarity_is_the_cosine_of_whole_changes():
    parts = [adapter("a", x=KINDS["loha"](), y=lora(2)), adapter("b", x=KINDS["full"](), y=lora(2))]
    parts += [adapter("c", y=lora(2, scale=-1.0))]
    shapes = {"denoiser.x": 96, "denoiser.y": 120}
    zero = {layer: torch.zeros(size, dtype=torch.float64) for layer, size in shapes.items()}
    whole = [torch.cat([changes(part).get(layer, zero[layer]).flatten() for layer in shapes]) for part in parts]
    cosine = [[float(a @ b / a.norm() / b.norm()) for b in whole] for a in whole]
    torch.testing.assert_close(torch.tensor(similarity(parts)), torch.tensor(cosine))
