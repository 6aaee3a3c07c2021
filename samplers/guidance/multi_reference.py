"""Multi-reference self-attention: a picture attends to the tokens of references, within their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.reference_batch import References, acts_in, check_places, predict_with_references
from samplers.guidance.two_branch import check_scale, count_conditional_rows
from samplers.hooks import Site
from samplers.interval import EVERYWHERE, Interval
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper

METHOD = "Multi-reference self-attention"


@dataclass(frozen=True)
class MultiReference(DenoiserWrapper):
    """Self-attention over K' = [K, K_1, K_2, ...] and V' likewise, of the picture and then of every reference at its level:

        softmax(Q K'^T / sqrt(d) + b) V',  b = 0 for the picture itself, weight_r inside the mask of reference r, -inf outside.

    The weight counts a reference's tokens e^weight times (FreeCustom's code; its paper multiplies scores by weights, which
    turns round where they are negative). weights: one for all references, or one each. With masks that are empty it is the
    network's own attention. layers: the blocks where it acts, None for the last three eighths of them; interval: (lowest,
    highest) log-SNR. null: the unconditional branch sees the references too. Each reference costs one more evaluation per
    branch. Put it around the network and its caches, under guidance. Needs the network's "heads" hook.

    Source: FreeCustom, arXiv 2405.13870, section 3.2.
    """

    denoiser: Denoiser
    references: References
    weights: float | Sequence[float] = 3.0
    layers: tuple[int, ...] | None = None
    interval: Interval = EVERYWHERE
    null: bool = False

    def __post_init__(self) -> None:
        count = len(self.references.images)
        if isinstance(self.weights, Sequence) and len(self.weights) != count:
            raise ValueError(f"{METHOD} got {len(self.weights)} weights for {count} references; give one for all, or one each.")
        for weight in self._weights():
            check_scale(weight, f"{METHOD.lower()} weight")
        check_places(METHOD, self.layers, self.interval)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        low, high = self.interval
        rows = len(x)
        seeing = rows if self.null else count_conditional_rows(context, rows)
        nothing = self.references.masks is not None and not bool((self.references.masks > 0).any())
        if isinstance(level.logsnr, Tensor) or not low <= level.logsnr <= high or not seeing or nothing:
            return self.denoiser(x, level, condition, context)
        hook = ("heads", self._hook(rows, seeing))
        return predict_with_references(self.denoiser, self.references, x, level, condition, context, hook, METHOD)

    def _weights(self) -> list[float]:
        if isinstance(self.weights, Sequence):
            return list(self.weights)
        return [self.weights] * len(self.references.images)

    def _acts(self, site: Site) -> bool:
        if self.layers is None:
            return site.index >= site.count - max(1, 3 * site.count // 8)
        return acts_in(METHOD, self.layers, site)

    def _hook(self, rows: int, seeing: int) -> Any:
        """The first `seeing` of `rows` rows see the references; the rest, and the references, themselves."""
        count = len(self.references.images)

        def hook(site: Site, q: Tensor, k: Tensor, v: Tensor, run: Any) -> Tensor:
            allowed = self.references.allowed(site)
            if not self._acts(site) or (allowed is not None and not bool(allowed.any())):
                return run(q, k, v)
            rest = run(q[seeing:], k[seeing:], v[seeing:])
            keys, values, bias = [k[:seeing]], [v[:seeing]], [k.new_zeros(k.shape[1])]
            for r, weight in zip(range(count), self._weights(), strict=True):
                there = slice((r + 1) * rows, (r + 1) * rows + seeing)
                key, value = k[there, site.extras :], v[there, site.extras :]
                if allowed is not None:  # what is outside has no weight at all
                    inside = allowed[r].to(k.device)
                    key, value = key[:, inside], value[:, inside]
                keys.append(key)
                values.append(value)
                bias.append(k.new_full((key.shape[1],), weight))
            # arXiv 2405.13870, section 3.2: keys and values of the references beside the picture's own, weighted
            own = attend(q[:seeing], torch.cat(keys, dim=1), torch.cat(values, dim=1), torch.cat(bias))
            return torch.cat([own, rest])

        return hook


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v on (B, L, H, D), with a bias (K,) on the keys."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    mask = bias if bool((bias != 0).any()) else None
    if mask is not None:
        mask = mask.expand(q.shape[2], -1).contiguous()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
