"""Numbers that compare pictures, or sets of feature vectors. Features are (N, D); all arithmetic is in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.networks.feature_moments import root
from gen.rewards.pixels import LUMA

STRONG = 0.25  # of the range from black to white, from one pixel to the next
WHITE = 254.5 / 255


def edges(images: Tensor) -> dict[str, float]:
    """What the eye sees first, of pictures (N, 3, H, W) in [-1, 1]. edge_energy: mean squared difference in brightness (BT.601,
    black 0 to white 1) between neighbours, right and down; blotches and dirty edges raise it. strong_edges: the share of
    pixels where that difference is above a quarter; soft outlines lower it. white_border: the share of the outermost pixels
    that are pure white in 8 bits."""
    levels = (images.float().clamp(-1, 1) + 1) / 2
    brightness = torch.einsum("nchw,c->nhw", levels, levels.new_tensor(LUMA)).double()
    squared = (brightness[:, :-1, 1:] - brightness[:, :-1, :-1]) ** 2 + (brightness[:, 1:, :-1] - brightness[:, :-1, :-1]) ** 2
    border = torch.cat([levels[..., 0, :], levels[..., -1, :], levels[..., 1:-1, 0], levels[..., 1:-1, -1]], -1)
    return {
        "edge_energy": float(squared.mean()),
        "strong_edges": float((squared > STRONG**2).double().mean()),
        "white_border": float((border >= WHITE).all(1).double().mean()),
    }


def _features(*sets: Tensor, least: int) -> list[Tensor]:
    for features in sets:
        if features.ndim != 2 or len(features) < least or features.shape[1] != sets[0].shape[1]:
            shapes = " and ".join(str(tuple(f.shape)) for f in sets)
            raise ValueError(f"Features must be (N, D) with at least {least} rows and one D; given {shapes}.")
    return [features.detach().double() for features in sets]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to features a (N, D) and b (M, D).

    |mu_a - mu_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), with unbiased covariances A and B
    (Heusel et al. 2017, arXiv 1706.08500, equation 6; the product in its symmetric form, whose trace is the same).
    Biased upwards for few samples: compare values of equal N only.
    """
    a, b = _features(a, b, least=2)
    cov_a, cov_b = (torch.cov(features.T).reshape(a.shape[1], -1) for features in (a, b))
    half = root(cov_a)
    cross = torch.linalg.eigvalsh(half @ cov_b @ half).clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def frechet_ratios(
    generated: Mapping[str, Tensor], training: Mapping[str, Tensor], held_out: Mapping[str, Tensor]
) -> tuple[float, dict[str, float]]:
    """(FDr^k, FDr by representation): the Fréchet distance of generated pictures to the training pictures over that of
    held-out ones, and its mean over k representations, whose distances themselves have nothing to do with one another. 1 is as
    good as pictures of the data that were not trained on.

    Each maps representations to features (N, D). generated and held_out must have as many rows, as the distance of few samples
    is biased. Source: arXiv 2604.28190.
    """
    if not generated or not generated.keys() == training.keys() == held_out.keys():
        named = " and ".join(str(sorted(each)) for each in (generated, training, held_out))
        raise ValueError(f"Ratios need the same representations of all three sets, one at least; given {named}.")
    for name, features in generated.items():
        if len(features) != len(held_out[name]):
            raise ValueError(
                f"{len(features)} generated and {len(held_out[name])} held-out pictures: give as many, as the distance of few "
                "samples is biased."
            )
    ratios = {
        name: frechet_distance(features, training[name]) / frechet_distance(held_out[name], training[name])
        for name, features in generated.items()
    }
    # arXiv 2604.28190: the mean of the ratios
    return sum(ratios.values()) / len(ratios), ratios


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """KID: the unbiased estimate of the squared maximum mean discrepancy under the kernel (x.y / D + 1)^3.

    Binkowski et al. 2018, arXiv 1801.01401, section 4 and equation 4 there (both diagonals left out). May be negative.
    """
    a, b = _features(a, b, least=2)
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    aa, bb, n, m = kernel(a, a), kernel(b, b), len(a), len(b)
    within = (aa.sum() - aa.trace()) / (n * (n - 1)) + (bb.sum() - bb.trace()) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def precision_recall(real: Tensor, generated: Tensor, k: int = 3) -> tuple[float, float]:
    """(precision, recall): the share of generated features within the k-nearest-neighbour balls of real ones, and the
    reverse (Kynkäänniemi et al. 2019, arXiv 1904.06991, equations 1 and 2)."""
    real, generated = _features(real, generated, least=k + 1)

    def covered(points: Tensor, manifold: Tensor) -> float:
        exact = "donot_use_mm_for_euclid_dist"  # or a point would not lie on its own ball
        radii = torch.cdist(manifold, manifold, compute_mode=exact).kthvalue(k + 1, dim=1).values  # the nearest is itself
        return float((torch.cdist(points, manifold, compute_mode=exact) <= radii).any(1).double().mean())

    return covered(generated, real), covered(real, generated)


def top_k(scores: Tensor, targets: Tensor, k: int) -> float:
    """The share of rows of scores (N, L) whose target (N,) is among the k highest (k is cut to L)."""
    return float((scores.topk(min(k, scores.shape[1]), dim=1).indices == targets[:, None]).any(1).double().mean())


def nearest(a: Tensor, b: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(root-mean-square distance (N,), index (N,)) of the row of b (M, D) that is nearest to each row of a (N, D); with
    `allowed` (N, M), among those marked True. inf and 0 where none is."""
    a, b = _features(a, b, least=1)
    distances, indices = [], []
    for start in range(0, len(a), 256):
        distance = torch.cdist(a[start : start + 256], b) / a.shape[1] ** 0.5
        if allowed is not None:
            distance = distance.masked_fill(~allowed[start : start + 256], torch.inf)
        least, index = distance.min(1)
        distances.append(least)
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


@dataclass(frozen=True)
class NearCopies:
    """How close pictures come to training pictures. `share` of them are nearer to one than `threshold`, which by chance
    `expected` of independent drawings would be; distance (N,) and index (N,) are those of the nearest."""

    share: float
    expected: float
    threshold: float
    distance: Tensor
    index: Tensor


def near_copies(pictures: Tensor, training: Tensor, vendors: Sequence[str], expected: float = 0.05) -> NearCopies:
    """Which pictures (N, C, H, W) nearly copy one of the training pictures (M, C, H, W).

    Vendors draw the same things independently, so a training picture's distance to the nearest picture of any other vendor
    is what a new drawing would show. The threshold is the `expected` quantile of that distance: nearer than all but 5 % of
    independent drawings. `vendors` (M) names each training picture's. Distances are root mean squares over pixels averaged
    down to at most 32 x 32, so they do not hang on single pixels; a shifted or recoloured copy is not found.
    """
    if len(vendors) != len(training) or len(set(vendors)) < 2:
        raise ValueError("Near-copies are judged by the distance between vendors: give every training picture's vendor, "
                         "at least two different ones.")  # fmt: skip
    small = [F.adaptive_avg_pool2d(x.float(), min(32, x.shape[-1])).flatten(1) for x in (pictures, training)]
    numbers = {vendor: number for number, vendor in enumerate(dict.fromkeys(vendors))}
    vendor = torch.tensor([numbers[name] for name in vendors])
    between, _ = nearest(small[1], small[1], vendor[:, None] != vendor)
    threshold = float(between.quantile(expected))
    distance, index = nearest(*small)
    return NearCopies(float((distance < threshold).double().mean()), expected, threshold, distance, index)
