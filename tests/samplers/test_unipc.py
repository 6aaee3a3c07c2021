"""UniPC against its paper's own statement of the method, written out here with its matrices R and vectors g."""

import math
from itertools import pairwise

import pytest
import torch

from samplers import Condition, Context, Multistep, RectifiedFlow, VarianceExploding, VariancePreserving, get_solver, sample
from samplers.analytic import Mixture


def unipc(model, x, levels, order: int, variant: str):
    """Algorithms 5 to 8 of arXiv 2302.04867 (data prediction, multistep), in the order p = min(p, evaluations so far)."""

    def rhos(h, ratios):
        """R_p(h) rho = phi_p(h) / B(h) of equation 5, with the data-prediction varphi functions."""
        hh = -h
        base = hh if variant == "bh1" else math.expm1(hh)
        varphi, factorial, rows, right = math.expm1(hh) / hh - 1, 1, [], []
        for n in range(1, len(ratios) + 1):
            rows.append([r ** (n - 1) for r in ratios])
            right.append(varphi * factorial / base)
            factorial *= n + 1
            varphi = varphi / hh - 1 / factorial
        return base, torch.linalg.solve(torch.tensor(rows, dtype=torch.float64), torch.tensor(right, dtype=torch.float64))

    def update(x, s, t, past, ahead):
        """x_t = sigma_t/sigma_s x - alpha_t (e^{-h} - 1) m_0 - alpha_t B(h) sum_i rho_i D_i / r_i."""
        h = t.logsnr - s.logsnr
        m0 = past[-1][1]
        ratios = [(level.logsnr - s.logsnr) / h for level, _ in reversed(past[:-1])]
        slopes = [(m - m0) / r for (_, m), r in zip(reversed(past[:-1]), ratios, strict=True)]
        if ahead is not None:
            ratios, slopes = [*ratios, 1.0], [*slopes, ahead - m0]
        out = t.sigma / s.sigma * x - t.alpha * math.expm1(-h) * m0
        if slopes:
            base, rho = rhos(h, ratios)
            if len(slopes) == 1:
                rho = torch.tensor([0.5], dtype=torch.float64)  # the paper's a_1 = 1/2, which makes B(h) matter
            out = out - t.alpha * base * sum(r * d for r, d in zip(rho, slopes, strict=True))
        return out

    past = [(levels[0], model(x, levels[0]))]
    for i, (s, t) in enumerate(pairwise(levels)):
        p = min(order, len(past))
        predicted = update(x, s, t, past[-p:], None)
        if i == len(levels) - 2:
            return predicted
        new = model(predicted, t)
        x = update(x, s, t, past[-p:], new)
        past.append((t, new))


@pytest.mark.parametrize(
    "path", [VarianceExploding(), VariancePreserving.linear(), RectifiedFlow()], ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, variant, path):
    levels = [path.at_logsnr(-3 + 0.05 * i**2 + 0.2 * i) for i in range(10)]
    denoiser = Mixture.example(path)
    x = levels[0].sigma * torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    theirs = unipc(lambda x, level: denoiser(x, level, Condition(), Context()).x0, x, levels, order, variant)
    ours = sample(denoiser, Multistep(order, rule=variant, corrector_order=order + 1), x, levels)
    assert (ours - theirs).abs().max() < 1e-12


def test_the_named_solver_is_unipc_3_bh2():
    assert get_solver("UniPC", ending="full") == Multistep(3, rule="bh2", corrector_order=4)
