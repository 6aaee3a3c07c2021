import math

import pytest
import torch
from scipy import linalg

from distill.eval.metrics import frechet_distance, kernel_distance, near_copies, nearest, precision_recall, top_k
from distill.losses.distances import psnr


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def with_moments(mean, covariance, generator, count=64):
    """Samples whose sample mean and unbiased covariance are exactly these."""
    x = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return x @ torch.linalg.cholesky(covariance).T + mean


def test_psnr_by_hand():
    x = torch.zeros(2, 3, 4, 4)
    assert float(psnr(x + 0.2, x)) == pytest.approx(-10 * math.log10(0.04 / 4), abs=1e-4)
    assert float(psnr(x + 5, x)) == pytest.approx(-10 * math.log10(1 / 4), abs=1e-4)  # clamped to 1
    halves = torch.cat([x[:1] + 0.2, x[1:]])
    assert float(psnr(halves, x)) == pytest.approx(-10 * math.log10(0.02 / 4), abs=1e-4)


def test_frechet_distance_of_gaussians_on_common_axes(generator):
    """Diagonal covariances: |difference of means|^2 + sum of (difference of standard deviations)^2."""
    mean_a, mean_b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([1.5, 2.0, 1.0]).double()
    std_a, std_b = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 2.0, 0.1]).double()
    a = with_moments(mean_a, torch.diag(std_a**2), generator)
    b = with_moments(mean_b, torch.diag(std_b**2), generator, 200)
    expected = float((mean_a - mean_b).square().sum() + (std_a - std_b).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_any_gaussians_against_scipy(generator):
    covariances = []
    for _ in range(2):
        root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
        covariances.append(root @ root.T + 0.1 * torch.eye(5))
    means = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    a, b = (with_moments(m, c, generator) for m, c in zip(means, covariances, strict=True))
    product = linalg.sqrtm((covariances[0] @ covariances[1]).numpy()).real
    expected = float((means[0] - means[1]).square().sum() + (covariances[0] + covariances[1]).trace()) - 2 * product.trace()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert abs(frechet_distance(a, a)) < 1e-9


def test_frechet_distance_with_more_dimensions_than_samples(generator):
    a = torch.randn(6, 20, generator=generator)
    assert abs(frechet_distance(a, a)) < 1e-6
    assert frechet_distance(a, a + 2) == pytest.approx(4 * 20, rel=1e-6)


def test_kernel_distance_by_brute_force(generator):
    a, b = torch.randn(5, 3, generator=generator), torch.randn(4, 3, generator=generator) + 0.5
    k = lambda x, y: (float(x.double() @ y.double()) / 3 + 1) ** 3  # noqa: E731
    aa = sum(k(a[i], a[j]) for i in range(5) for j in range(5) if i != j) / 20
    bb = sum(k(b[i], b[j]) for i in range(4) for j in range(4) if i != j) / 12
    ab = sum(k(x, y) for x in a for y in b) / 20
    assert kernel_distance(a, b) == pytest.approx(aa + bb - 2 * ab, rel=1e-9)


def test_kernel_distance_is_unbiased(generator):
    """Zero on average between sets of one distribution, unlike the Fréchet distance."""
    values = [kernel_distance(*torch.randn(2, 20, 4, generator=generator)) for _ in range(300)]
    mean, error = sum(values) / 300, torch.tensor(values).std() / 300**0.5
    assert abs(mean) < 3 * error
    assert kernel_distance(torch.randn(50, 4, generator=generator), torch.randn(50, 4, generator=generator) + 1) > 10 * error


def test_precision_and_recall_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    generated = torch.tensor([[0.4], [1.5], [10.0], [20.0], [30.0]])
    # balls to the nearest other: radius 1 around each real point; around generated 1.1, 1.1, 8.5, 10, 10
    assert precision_recall(real, generated, k=1) == (2 / 5, 1.0)
    # 12 lies in the balls of 10 and 20 only, -5 in none
    assert precision_recall(torch.tensor([[12.0], [-5.0]]), generated, k=1)[1] == 0.5


def test_precision_and_recall_of_equal_sets_are_one(generator):
    a = torch.randn(30, 8, generator=generator)
    assert precision_recall(a, a) == (1.0, 1.0)
    assert precision_recall(a, a + 100) == (0.0, 0.0)


def test_features_must_agree():
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(3, 4\)"):
        frechet_distance(torch.zeros(3, 2), torch.zeros(3, 4))
    with pytest.raises(ValueError, match="at least 4 rows"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))


def test_top_k():
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.2, 0.1]])
    targets = torch.tensor([2, 2])
    assert [top_k(scores, targets, k) for k in (1, 2, 3, 9)] == [0.0, 0.5, 1.0, 1.0]


def test_nearest_by_brute_force(generator):
    a, b = torch.randn(300, 4, generator=generator), torch.randn(7, 4, generator=generator)
    allowed = torch.rand(300, 7, generator=generator) < 0.6
    allowed[0] = False
    distance, index = nearest(a, b, allowed)
    for i in range(300):
        options = [(float((a[i] - b[j]).double().square().mean().sqrt()), j) for j in range(7) if allowed[i, j]]
        expected, at = min(options, default=(math.inf, 0))
        assert float(distance[i]) == pytest.approx(expected, rel=1e-6) and int(index[i]) == at


def test_near_copies_finds_copies_and_only_as_many_new_drawings_as_it_says(generator):
    training = torch.randn(400, 3, 8, 8, generator=generator)
    vendors = [f"vendor{i % 4}" for i in range(400)]
    copies = near_copies(training[:50] + 0.05 * torch.randn(50, 3, 8, 8, generator=generator), training, vendors)
    assert copies.share == 1.0 and copies.index.tolist() == list(range(50))
    assert copies.distance.mean() == pytest.approx(0.05, rel=0.1)
    fresh = near_copies(torch.randn(1000, 3, 8, 8, generator=generator), training, vendors)
    assert 0.02 < fresh.share < 0.12  # 5 % up to sampling, and one vendor more to be near to


def test_near_copies_compares_between_vendors_only(generator):
    """Each vendor repeats its own picture: that must not make the threshold zero."""
    training = torch.randn(20, 3, 8, 8, generator=generator).repeat_interleave(2, 0)
    vendors = [name for i in range(20) for name in [f"vendor{i % 3}"] * 2]
    assert near_copies(training, training, vendors).threshold > 0.5
    with pytest.raises(ValueError, match="at least two"):
        near_copies(training, training, ["one"] * 40)


def test_equal_pictures_have_a_finite_ratio():
    x = torch.zeros(1, 3, 2, 2)
    assert psnr(x, x) == pytest.approx(120)


def test_a_point_on_the_edge_of_a_ball_is_within_it_far_from_the_origin_too():
    """On a line of whole numbers the third neighbour of the last one is 3 away."""
    real = 1e7 + torch.arange(30, dtype=torch.float64)[:, None]
    assert precision_recall(real, real[-1:] + torch.tensor([[3.0], [3.5], [4.0], [5.0]]))[0] == 0.25


def test_near_copies_takes_the_quantile_it_is_asked_for_of_pictures_of_32_pixels():
    levels = torch.tensor([0.0, 1.0, 0.1, 1.4])
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).tile(16, 16)  # averages to nothing over 2 x 2 pixels
    training = (levels[:, None, None] + checks)[:, None]
    found = near_copies(training[:1] - checks, training, ["a", "a", "b", "b"], expected=0.5)
    between = torch.tensor([0.1, 0.4, 0.1, 0.4], dtype=torch.float64)
    assert found.threshold == pytest.approx(float(between.quantile(0.5)), rel=1e-5)
    assert found.distance == pytest.approx([1.0])
