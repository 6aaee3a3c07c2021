"""Counter-based noise: a function of seed and purpose, unit normal, independent of the batch."""

import torch

from samplers import RectifiedFlow, fold, normal, seeded_noise

PATH = RectifiedFlow()


def test_rows_do_not_depend_on_the_batch():
    together = normal([5, 6, 7], (3, 4), "start")
    assert torch.equal(together[1], normal([6], (3, 4), "start")[0])
    assert torch.equal(normal([7, 5], (3, 4), "start"), together[[2, 0]])


def test_purpose_and_seed_matter():
    draws = [normal([s], (64,), *p) for s in (0, 1) for p in (("a",), ("b",), ("a", 1), ("a", 1.0), ("a", 2))]
    for i, a in enumerate(draws):
        for b in draws[:i]:
            assert abs((a * b).mean()) < 0.5 and not torch.equal(a, b)


def test_noise_of_a_step_is_its_own():
    like = torch.zeros(2, 3, dtype=torch.float64)
    noise = seeded_noise([1, 2], like)
    a, b, c = PATH(0.9), PATH(0.5), PATH(0.2)
    assert torch.equal(noise(a, b), noise(a, b)) and noise(a, b).dtype == like.dtype
    assert not torch.equal(noise(a, b), noise(b, c)) and not torch.equal(noise(a, b), noise(a, c))


def test_it_is_unit_normal():
    x = normal(range(200), (100,), "moments").double()
    n = x.numel()
    assert abs(x.mean()) < 4 / n**0.5 and abs(x.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((x[:, 1:] * x[:, :-1]).mean()) < 4 / n**0.5
    assert abs((x[1:] * x[:-1]).mean()) < 4 / n**0.5  # neighbouring seeds


def test_fold_tells_its_words_apart():
    words = [(0,), (1,), (0, 0), (-1,), (1.0,), (-0.5,), ("0",), ("a", "b"), ("ab",), ("b", "a"), (1, "a"), ("a", 1), (2**40,)]
    values = [fold(seed, *w) for seed in (10, 2**40) for w in words]
    assert len(set(values)) == len(values)
    assert all(0 <= v < 2**63 for v in values)


def test_a_seed_does_not_trade_places_with_a_counter():
    assert fold(0, 1, "noise") != fold(1, 0, "noise")
    assert fold(0) != fold(1)
    assert len({fold(a, b) for a in range(60) for b in range(60)}) == 3600
