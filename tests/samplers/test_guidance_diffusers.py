"""Guidance rules against diffusers' guiders, where the two agree: theirs act on the network's own output."""

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow
from samplers.analytic import Mixture
from samplers.guidance import AdaptiveProjected, CFGZeroStar, ClassifierFree, Rescale

apg = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance", reason="diffusers is not installed")
zero = pytest.importorskip("diffusers.guiders.classifier_free_zero_star_guidance")
utils = pytest.importorskip("diffusers.guiders.guider_utils")

FLOW = RectifiedFlow()
X = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = Condition(label=torch.tensor([0, 1, 2, 1]))
CLOCK = (0.9, 0.7, 0.5, 0.3)


def branches(kind, t):
    mixture = Mixture.example(FLOW, kind, labelled=True, shape=(2, 3, 3))
    return mixture, *(mixture(X, FLOW(t), c, Context()).raw for c in (LABELS, LABELS.null()))


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@pytest.mark.parametrize("factor", [0.3, 1.0])
def test_rescale_on_raw(kind, factor):
    mixture, cond, null = branches(kind, 0.6)
    theirs = utils.rescale_noise_cfg(null + 4 * (cond - null), cond, factor)
    ours = Rescale(ClassifierFree(mixture, 4.0), factor, on="raw")(X, FLOW(0.6), LABELS, Context()).raw
    assert (ours - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_apg_over_a_run(eta):
    """For a model that predicts x0, momentum and threshold included.

    Their formula has cond + scale * update (`use_original_formulation`), so our scale is theirs plus one. Their default,
    null + scale * update, is not the paper's: the gap from null to cond is filtered there too.
    """
    context, buffer = Context(), apg.MomentumBuffer(-0.6)
    rule = AdaptiveProjected(branches("x0", 0.5)[0], 4.0, eta=eta, threshold=7.0, momentum=-0.6)
    for step, t in enumerate(CLOCK):
        _, cond, null = branches("x0", t)
        theirs = apg.normalized_guidance(cond, null, 3.0, buffer, eta, 7.0, use_original_formulation=True)
        ours = rule(X, FLOW(t), LABELS, context.at(step)).x0
        assert (ours - theirs).abs().max() < 1e-11


@pytest.mark.parametrize("t", CLOCK)
def test_zero_star(t):
    """On the velocity of a flow model; their scale is computed in float32."""
    mixture, cond, null = branches("flow", t)
    s = zero.cfg_zero_star_scale(cond.flatten(1), null.flatten(1)).reshape(-1, 1, 1, 1)
    theirs = null * s + 3.0 * (cond - null * s)
    ours = CFGZeroStar(mixture, 3.0)(X, FLOW(t), LABELS, Context()).raw
    assert (ours - theirs).abs().max() < 1e-5
