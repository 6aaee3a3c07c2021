"""TIES and DARE against a plain statement of both, and TIES against peft's."""

from __future__ import annotations

import pytest
import torch

from customization.algebra import Keep, Sparse, sparse_merge, weighted_sum
from customization.algebra.sparse import drop, elect, trim
from gen.adapters import AdapterError, Delta
from tests.customization.adapters import KINDS, adapter, change, changes, lora, normal

merge_utils = pytest.importorskip("peft.utils.merge_utils")


def ties_entry(values: list[float]) -> float:
    """TIES of one entry, as the paper says it, number by number."""
    total = sum(values)
    agreeing = [v for v in values if v * total > 0]
    return sum(agreeing) / len(agreeing) if agreeing else 0.0


def trimmed(matrix: torch.Tensor, density: float) -> list[float]:
    values = matrix.flatten().tolist()
    kept = sorted(range(len(values)), key=lambda i: -abs(values[i]))[: int(density * len(values))]
    return [v if i in kept else 0.0 for i, v in enumerate(values)]


def three():
    return [adapter("a", x=lora(1, 12, 8)), adapter("b", x=KINDS["loha"]()), adapter("c", x=KINDS["full"]())]


@pytest.mark.parametrize("density", [0.2, 0.55, 1.0])
def test_ties_number_by_number(density):
    weights = [1.0, 0.3, -0.5]
    made, [report] = sparse_merge(three(), weights, Sparse("ties", density))
    columns = [trimmed(changes(part)["denoiser.x"], density) for part in three()]
    expected = [ties_entry([w * v for w, v in zip(weights, entry, strict=True)]) for entry in zip(*columns, strict=True)]
    own = made.layers["denoiser.x"]
    assert own.kind == "full" and report.norm == pytest.approx(float(change(own).norm()))
    torch.testing.assert_close(change(own).flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_ties_is_pefts_at_equal_weights():
    whole = [changes(part)["denoiser.x"] for part in three()]
    theirs = merge_utils.ties(whole, torch.full((3,), 0.7, dtype=torch.float64), 0.4)
    made, _ = sparse_merge(three(), [0.7] * 3, Sparse("ties", 0.4))
    torch.testing.assert_close(changes(made)["denoiser.x"], theirs, rtol=1e-12, atol=1e-12)


def test_trim_and_elect_at_their_edges():
    assert trim(torch.tensor([1.0, -5, 2, 3]), 0.5).tolist() == [0, -5, 0, 3]
    assert trim(torch.tensor([1.0, -5, 2, 3]), 0.01).tolist() == [0, -5, 0, 0]
    ones = [torch.tensor([1.0, 1, 0, 2]), torch.tensor([-1.0, 3, 0, -1])]
    assert elect(ones).tolist() == [0, 2, 0, 2]  # a tie has no sign


def test_dare_keeps_the_mean_and_the_share():
    whole = normal(1, 60, 50)
    draws = torch.stack([drop(whole, 0.3, seed, "x") for seed in range(400)])
    kept = draws != 0
    assert kept.double().mean() == pytest.approx(0.3, abs=0.002)
    torch.testing.assert_close(draws[kept], (whole / 0.3).expand_as(draws)[kept])
    error = (draws.mean(0) - whole) / (whole.abs() * ((1 - 0.3) / 0.3 / 400) ** 0.5)  # in standard errors
    assert float(error.square().mean()) == pytest.approx(1.0, abs=0.1) and float(error.mean().abs()) < 0.08


def test_dare_is_a_function_of_seed_layer_and_adapter():
    def merged(seed: int, **layers: Delta) -> dict[str, torch.Tensor]:
        state = torch.random.get_rng_state()
        made, _ = sparse_merge([adapter("a", **layers), adapter("b", **layers)], [1.0, 1.0], Sparse("dare", 0.5, seed))
        assert torch.equal(torch.random.get_rng_state(), state)
        return changes(made)

    alone, both, other = merged(3, x=lora(1)), merged(3, y=lora(1), x=lora(1)), merged(4, x=lora(1))
    assert torch.equal(alone["denoiser.x"], both["denoiser.x"]) and not torch.equal(both["denoiser.y"], both["denoiser.x"])
    assert not torch.equal(alone["denoiser.x"], other["denoiser.x"])
    doubled = 4 * changes(adapter("a", x=lora(1)))["denoiser.x"]  # both kept: 2 D + 2 D; one: 2 D; none: 0
    shares = [float((alone["denoiser.x"] - k * doubled / 2).abs().lt(1e-12).double().mean()) for k in (0, 1, 2)]
    assert sum(shares) == 1 and min(shares) > 0.1


def test_dare_of_everything_is_the_sum_and_its_ties_is_untrimmed():
    made, _ = sparse_merge(three(), [1.0, 0.3, -0.5], Sparse("dare", 1.0))
    exact, _ = weighted_sum(three(), [1.0, 0.3, -0.5])
    torch.testing.assert_close(changes(made)["denoiser.x"], changes(exact)["denoiser.x"], rtol=1e-12, atol=1e-12)
    made, _ = sparse_merge(three(), None, Sparse("dare_ties", 1.0))
    plain, _ = sparse_merge(three(), None, Sparse("ties", 1.0))
    torch.testing.assert_close(changes(made)["denoiser.x"], changes(plain)["denoiser.x"], rtol=1e-12, atol=1e-12)
    made, _ = sparse_merge(three(), None, Sparse("dare_ties", 0.5, seed=9))
    dropped = [drop(changes(part)["denoiser.x"], 0.5, 9, f"denoiser.x\0{i}") for i, part in enumerate(three())]
    torch.testing.assert_close(changes(made)["denoiser.x"], elect(dropped), rtol=1e-12, atol=1e-12)


def test_a_sparse_merge_to_a_rank_is_its_truncated_decomposition():
    whole, _ = sparse_merge(three(), None, Sparse("ties", 0.5))
    made, [report] = sparse_merge(three(), None, Sparse("ties", 0.5), keep=Keep(rank=3))
    p, s, wt = torch.linalg.svd(changes(whole)["denoiser.x"])
    best = (p[:, :3] * s[:3]) @ wt[:3]
    torch.testing.assert_close(changes(made)["denoiser.x"], best, rtol=1e-10, atol=1e-10)
    assert made.layers["denoiser.x"].rank == report.rank == 3
    assert report.error == pytest.approx(float(s[3:].norm() / s.norm()), abs=1e-9)


def test_biases_and_layers_of_one_adapter():
    one = adapter("a", x=Delta({**lora(1).factors, "bias": normal(3, 10)}, 0.5), n=Delta({"bias": normal(4, 5)}))
    made, _ = sparse_merge([one, adapter("b", x=lora(3))], [2.0, 1.0], Sparse("ties", 0.5))
    torch.testing.assert_close(made.layers["denoiser.x"].bias(torch.float64), 2 * normal(3, 10))
    torch.testing.assert_close(made.layers["denoiser.n"].bias(torch.float64), 2 * normal(4, 5))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("tie",), "Unknown merge 'tie'"),
        (("ties", 0.0), "The density is"),
        (("dare", 1.5), "density"),
        (("dare", 0.5, -1), "seed"),
    ],
)
def test_settings_that_make_no_sense(options, reason):
    with pytest.raises(AdapterError, match=reason):
        Sparse(*options)
