"""The constrained merge of Custom Diffusion (arXiv 2212.04488, section 3.2 and appendix A), in closed form.

    W = argmin |(W - W_0) C_reg^T|_F   such that  W C^T = V^T
      = W_0 + (V^T - W_0 C^T) (d C^T)^-1 d,   d = C G^-1,   G = C_reg^T C_reg

C (k, in): what the text encoder makes of the tokens that name the concepts; V = [C_i W_i^T]: what each concept's own weights
make of its tokens; C_reg (n, in): ordinary captions, for which the weights should stay as they are. With W_i = W_0 + D_i the
base weight cancels, V^T - W_0 C^T = [D_1 C_1^T, D_2 C_2^T, ...]: the merge is a LoRA of rank k, whose lower half d is the same
for every layer that reads the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customization.algebra.align import Aligned, align, names_of
from customization.algebra.factors import WIDE, dense_of, dtype_of, factors_of, flat, is_dense, lora, refuse_dora
from customization.algebra.sum import LayerReport, Merged, Track, assembled, product_norm
from gen.adapters import Adapter, AdapterError, Delta

TOLERANCE = 1e-8  # how far a constraint may be missed, relative to what it asks for


def constrained_merge(
    adapters: Sequence[Adapter],
    targets: Sequence[Tensor],
    regular: Tensor,
    *,
    ridge: float = 0.0,
    name: str = "constrained",
    dtype: torch.dtype | None = None,
    track: Track = iter,
) -> Merged:
    """One adapter that acts on each concept's tokens exactly as that concept's own adapter, and least on ordinary captions.

    targets: per adapter C_i (k_i, in), the rows that its layers see for the tokens of its concept. regular: C_reg (n, in),
    rows of ordinary captions; at least `in` of them that are independent, or a ridge, a share of G's mean eigenvalue that is
    added to it. All layers must read the same text, as the keys and values of cross-attention do.
    The report's errors are by how much the constraints are missed, relative.
    AdapterError, with the condition number, for tokens that depend on one another and ask for different values.
    """
    if len(targets) != len(adapters):
        raise AdapterError(f"There are {len(adapters)} adapters and {len(targets)} sets of tokens; give one set to each.")
    names = names_of(adapters)
    for concept, rows in zip(names, targets, strict=True):
        if rows.ndim != 2 or not len(rows) or not bool(rows.isfinite().all()):
            raise AdapterError(f"The tokens of {concept} are {tuple(rows.shape)}; give finite rows, (tokens, in).")
    widths = {rows.shape[1] for rows in targets} | {regular.shape[-1]}
    if len(widths) > 1:
        raise AdapterError(f"The tokens have {' and '.join(map(str, sorted(widths)))} values; all must be of one text encoder.")
    rows = torch.cat([one.to(WIDE) for one in targets])
    down = directions(rows, regular.to(WIDE), ridge)
    gram = down @ rows.T
    layers, reports = {}, []
    for entry in track(align(adapters, disjoint=True)):
        layers[entry.layer], report = _layer(entry, targets, rows, down, gram, dtype)
        reports.append(report)
    made = {"method": "constrained", "tokens": [len(one) for one in targets], "ridge": ridge}
    return assembled(adapters, layers, name, made), reports


def directions(rows: Tensor, regular: Tensor, ridge: float = 0.0) -> Tensor:
    """d = C G^-1 (k, in)."""
    moment = regular.T @ regular
    n = len(moment)
    moment = moment + ridge * moment.trace() / n * torch.eye(n, dtype=moment.dtype)
    values = torch.linalg.eigvalsh(moment)
    if not float(values[0]) > 1e-13 * float(values[-1]):
        rank = int((values > 1e-13 * values[-1]).sum())
        raise AdapterError(
            f"The ordinary captions span {rank} of {n} directions; give at least {n} rows that are independent, or a "
            "ridge such as 1e-4."
        )
    # d = C G^-1 of arXiv 2212.04488, appendix A
    return torch.cholesky_solve(rows.T, torch.linalg.cholesky(moment)).T


def solve(asked: Tensor, gram: Tensor) -> Tensor:
    """U (out, k) with U (d C^T) = what is asked (out, k), by least squares where tokens depend on one another."""
    s = torch.linalg.svdvals(gram)
    if float(s[-1]) > 1e-12 * float(s[0]):
        return torch.linalg.solve(gram.T, asked.T).T
    return torch.linalg.lstsq(gram.T, asked.T, rcond=1e-12, driver="gelsd").solution.T


def _layer(
    entry: Aligned, targets: Sequence[Tensor], rows: Tensor, down: Tensor, gram: Tensor, dtype: torch.dtype | None
) -> tuple[Delta, LayerReport]:
    for delta in entry.present:
        refuse_dora(entry.layer, delta)
        if delta.bias() is not None:
            raise AdapterError(f"{entry.layer} changes a bias, which every token shares; the constrained merge has none.")
    out, width = flat(entry.shape)
    if width != rows.shape[1]:
        raise AdapterError(
            f"{entry.layer} has {width} inputs and the tokens {rows.shape[1]} values; merge only layers that read the text."
        )
    wanted = torch.cat([_action(delta, one.to(WIDE), out) for delta, one in zip(entry.deltas, targets, strict=True)], 1)
    up = solve(wanted, gram)  # (V^T - W_0 C^T) (d C^T)^-1 of arXiv 2212.04488, section 3.2
    size = float(wanted.norm())
    missed = float((up @ gram - wanted).norm()) / size if size else 0.0
    if missed > TOLERANCE:
        raise AdapterError(
            f"{entry.layer}: the concepts ask for different values of tokens that depend on one another (condition number "
            f"{float(torch.linalg.cond(gram)):.1e}, missed by {missed:.1%}); leave shared tokens out of all concepts but one."
        )
    made = lora(up, down, entry.shape, 1.0, dtype or dtype_of(entry.present))
    ranks = tuple(delta.rank for delta in entry.present)
    return made, LayerReport(entry.layer, len(down), ranks, product_norm(up, down), missed)


def _action(delta: Delta | None, rows: Tensor, out: int) -> Tensor:
    """D_i C_i^T (out, k_i)."""
    if delta is None:
        return torch.zeros(out, len(rows), dtype=WIDE)
    if is_dense(delta):
        return dense_of(delta) @ rows.T
    up, down = factors_of(delta)
    return delta.scale * (up @ (down @ rows.T))
