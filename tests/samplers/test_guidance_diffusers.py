"""Guidance rules against diffusers' guiders, where the two agree: theirs act on the network's own output."""

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow
from samplers.analytic import Mixture
from samplers.guidance import AdaptiveProjected, CFGZeroStar, ClassifierFree, NormRescale, Rescale

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


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_norm_rescale_of_patches(kind):
    """Qwen-Image's: over every token of 2 x 2 latent pixels, by its pipeline's own packing and formula."""
    from diffusers import QwenImagePipeline

    mixture = Mixture.example(FLOW, kind, labelled=True, shape=(2, 4, 6))
    x = torch.randn(4, 2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cond, null = (mixture(x, FLOW(0.6), c, Context()).raw for c in (LABELS, LABELS.null()))
    packed_cond, packed_null = (QwenImagePipeline._pack_latents(v, 4, 2, 4, 6) for v in (cond, null))
    packed = packed_null + 4 * (packed_cond - packed_null)
    packed = packed * (torch.norm(packed_cond, dim=-1, keepdim=True) / torch.norm(packed, dim=-1, keepdim=True))
    theirs = QwenImagePipeline._unpack_latents(packed, 32, 48, 8)[:, :, 0]
    ours = NormRescale(ClassifierFree(mixture, 4.0), patch=2)(x, FLOW(0.6), LABELS, Context()).raw
    assert (ours - theirs).abs().max() < 1e-12
    assert (ours - NormRescale(ClassifierFree(mixture, 4.0))(x, FLOW(0.6), LABELS, Context()).raw).abs().max() > 1e-3


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_norm_rescale_of_the_picture_shrinks_only(scale):
    """Z-Image's: the norm of a picture is at most that of the conditional output."""
    mixture, cond, null = branches("flow", 0.6)
    guided = null + scale * (cond - null)
    ours = NormRescale(ClassifierFree(mixture, scale), patch=0, shrink=True)(X, FLOW(0.6), LABELS, Context()).raw
    for i in range(len(X)):  # its loop over pictures
        new, original = torch.linalg.vector_norm(guided[i]), torch.linalg.vector_norm(cond[i])
        reference = guided[i] * (original / new) if new > original else guided[i]
        assert (ours[i] - reference).abs().max() < 1e-12
    either = NormRescale(ClassifierFree(mixture, scale), patch=0)(X, FLOW(0.6), LABELS, Context()).raw
    torch.testing.assert_close(either.flatten(1).norm(dim=1), cond.flatten(1).norm(dim=1))


def test_norm_rescale_of_rows():
    """Lumina 2's pipeline takes the norm of the last axis: of every row of every channel."""
    mixture, cond, null = branches("flow", 0.6)
    guided = null + 4.0 * (cond - null)
    theirs = guided * (torch.norm(cond, dim=-1, keepdim=True) / torch.norm(guided, dim=-1, keepdim=True))
    ours = NormRescale(ClassifierFree(mixture, 4.0), rows=True)(X, FLOW(0.6), LABELS, Context()).raw
    assert (ours - theirs).abs().max() < 1e-12


def test_norm_rescale_refuses_what_it_cannot_do():
    mixture, _, _ = branches("flow", 0.6)
    for patch in (-1, True, 1.5):
        with pytest.raises(ValueError, match="give pixels on its side, or 0 for the whole picture"):
            NormRescale(ClassifierFree(mixture, 4.0), patch=patch)
    with pytest.raises(ValueError, match="got rows and a patch of 2; give one of the two"):
        NormRescale(ClassifierFree(mixture, 4.0), patch=2, rows=True)
    with pytest.raises(ValueError, match="Patches of 2 do not divide pictures of 3 x 3; choose another"):
        NormRescale(ClassifierFree(mixture, 4.0), patch=2)(X, FLOW(0.6), LABELS, Context())
    with pytest.raises(ValueError, match="the denoiser under it does not guide"):
        NormRescale(mixture)(X, FLOW(0.6), LABELS, Context())


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
