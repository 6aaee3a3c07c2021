"""UniPC: a unified predictor and corrector, the corrector free of evaluations.

With D_m = x0_m - x0_s at the remembered predictions and r_m their places in units of the step, the step of order p is

    x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - e^{-h}) x0_s + alpha_t B(h) sum_{m < p} a_m D_m / r_m

for the predictor UniP-p, and with the prediction made at t among the D_m (r = 1) for the corrector UniC-p. The a_m match the
integral of the polynomial through the points; with one D_m they are 1/2 for any B(h): h (bh1) or 1 - e^{-h} (bh2).

Source: arXiv 2302.04867, Algorithms 5 and 6. ComfyUI's form is in `samplers.solvers.comfy.predictor_corrector`.
"""

from __future__ import annotations

from samplers.solvers.multistep import Multistep


def unipc(ending: str = "bounded", rule: str = "bh2", order: int = 3, corrector_order: int = 4) -> Multistep:
    """UniPC of an order.

    ending: what a long step keeps of its memory, see `samplers.solvers.ending`.
    rule: "bh2", "bh1" or "exact".
    order: points of the predictor. corrector_order: points of the corrector, the new one included; 0 for none.
    """
    return Multistep(order, rule=rule, corrector_order=corrector_order, ending=ending)
