"""Number formats of training: float32 weights, the network's arithmetic in bfloat16 or float16, and loss scaling for float16.

Float16 gradients below 6e-8 vanish, so the loss is multiplied by a large power of two and the gradients are divided by it. The
scale halves whenever a gradient overflows, and that update is left out; it doubles after 2000 updates without overflow
(Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).

A CPU that does not multiply bfloat16 emulates it, many times slower than float32; there bf16 stands for float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from gen.models.pretrained import fast_bfloat16

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST = 1.0


def product_dtype(device: torch.device, precision: str) -> torch.dtype:
    """The dtype that matrices are multiplied in."""
    if precision == "bf16" and device.type == "cpu" and not fast_bfloat16(device):
        return torch.float32
    return DTYPES.get(precision, torch.float32)


def autocast(device: torch.device, precision: str = "bf16") -> torch.autocast:
    """The context a loss is computed in, or a preview drawn."""
    dtype = product_dtype(device, precision)
    low = dtype != torch.float32
    return torch.autocast(device.type, dtype if low else torch.bfloat16, enabled=low)


class LossScaler:
    """One role's loss scale. Disabled, the scale is 1 and stays so."""

    def __init__(self, enabled: bool, scale: float = 2.0**16, interval: int = 2000):
        self.enabled, self.interval = enabled, interval
        self.scale, self.good = (scale if enabled else 1.0), 0

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divide the gradients by the scale, in place."""
        grads = [p.grad for p in parameters if p.grad is not None]
        if self.enabled and grads:
            torch._foreach_mul_(grads, 1 / self.scale)

    def update(self, overflow: bool) -> None:
        """Once per update: was a gradient infinite or NaN?"""
        if not self.enabled:
            return
        if overflow:
            self.scale, self.good = self.scale / 2, 0
            return
        self.good += 1
        if self.good == self.interval:
            self.scale, self.good = self.scale * 2, 0

    @property
    def exhausted(self) -> bool:
        """No scale is small enough: the gradients are infinite for another reason."""
        return self.enabled and self.scale < SMALLEST

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": torch.tensor(self.scale, dtype=torch.float64), "good": torch.tensor(self.good)} if self.enabled else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """An empty state, of a run in another precision, leaves the start value."""
        if self.enabled and state:
            self.scale, self.good = float(state["scale"]), int(state["good"])
