"""Settings that keep a picture: limits and layers that come from the model, sizes that it was made for."""

from __future__ import annotations

import warnings

import pytest
import torch

from gen.generator import Generator
from gen.nn.autoencoder import LATENT_BOUND
from gen.pipeline.settings import ASTRAY, ENOUGH
from samplers.guidance import PerturbedAttention, SkipLayer, SmoothedEnergy
from samplers.guidance.perturbed import layers_within
from samplers.registry import solver_names


def latents(generator, **call) -> torch.Tensor:
    call = {"num_inference_steps": 5, "guidance_scale": 2.5, "seed": 7, "output_type": "latent", "progress": False} | call
    return generator(["a red heart"], **call).images


@pytest.mark.parametrize("rule", ["clip", "cfg + dynamic_threshold", "dynamic_thresholding"])
def test_a_threshold_takes_the_models_own_limit_and_records_it(tiny, rule):
    assert tiny.limit == LATENT_BOUND * tiny.config.latent_scale
    made = tiny(["a red heart"], seed=7, num_inference_steps=5, guidance=rule, output_type="latent", progress=False)
    assert made.recipes[0].guidance_options["limit"] == tiny.limit
    assert torch.equal(made.images, latents(tiny, guidance=rule, guidance_options={"limit": tiny.limit}, guidance_scale=None))
    assert made.images.abs().max() > 1  # which a limit for pixels would have cut
    own = latents(tiny, guidance=rule, guidance_options={"limit": 0.5})
    assert own.abs().max() <= 0.5 + 1e-5


def test_limits_of_other_models(pixel_model, tiny):
    assert Generator.from_pretrained(pixel_model, device="cpu", dtype="float32").limit == 1

    class Unbounded(torch.nn.Module):
        factor = 8

    other = Generator.__new__(Generator)
    other.autoencoder, other.config = Unbounded(), tiny.config
    assert other.limit == 4


def test_published_layers_are_the_usual_ones():
    assert layers_within(SkipLayer.usual, 24) == (7, 8, 9)  # Stable Diffusion 3.5 medium
    assert layers_within(PerturbedAttention.usual, 16) == (6,)  # the middle of Stable Diffusion 1's attentions
    assert layers_within(PerturbedAttention.usual, 70) == tuple(range(24, 33))  # nine of the ten in the middle of SDXL
    for rule in (SkipLayer, PerturbedAttention, SmoothedEnergy):
        for count in range(1, 120):
            chosen = layers_within(rule.usual, count)
            assert chosen and all(0 <= index < count for index in chosen) and (count < 3 or len(chosen) < count / 2)


@pytest.mark.parametrize("rule", ["pag", "slg", "seg"])
def test_without_layers_the_usual_ones_are_perturbed(tiny, rule):
    blocks = tiny.network.config.depth + 1  # of a U-ViT: half of them on the way down, one in the middle, half on the way up
    kind = {"pag": PerturbedAttention, "slg": SkipLayer, "seg": SmoothedEnergy}[rule]
    given = latents(tiny, guidance=rule, guidance_options={"layers": layers_within(kind.usual, blocks)})
    assert torch.equal(latents(tiny, guidance=rule), given)
    assert not torch.equal(given, latents(tiny))


@pytest.mark.parametrize("width", [128, 96])
def test_sizes_that_the_model_was_made_for_are_not_remarked_on(tiny, width):
    side = tiny.config.sample_size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        latents(tiny, width=side * width // 128, height=side)


def test_other_sizes_get_a_note_and_the_way_out(tiny):
    side = tiny.config.sample_size
    with pytest.warns(UserWarning, match=f"made for pictures of {side} x {side}.*panorama.*upscale"):
        latents(tiny, width=2 * side, height=2 * side)
    with pytest.warns(UserWarning, match=f"made for pictures of {side} x {side}.*scale it down"):
        latents(tiny, width=side // 2, height=side // 2)


@pytest.mark.parametrize(("layers", "said"), [((0,), True), ((2,), True), ((1,), False), (None, False)])
def test_leaving_out_the_first_or_last_block_is_remarked_on(tiny, layers, said):
    options = {} if layers is None else {"layers": layers}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latents(tiny, guidance="slg", guidance_options=options)
    assert any("destroys the picture" in str(one.message) for one in caught) == said


@pytest.mark.parametrize(
    ("call", "said"),
    [
        *(
            ({"sampler": name}, True)
            for name in ("pndm", "comfy:lms", "dpm_2_a", "res_multistep_a", "sa_solver", "dpmpp_2m_cfg_pp")
        ),
        *(({"sampler": name}, False) for name in ("euler_a", "dpmpp_2s_a", "comfy:dpm_2_ancestral", "er_sde", "heunpp2")),
        ({}, False),
    ],
)
def test_samplers_that_go_astray_at_few_steps_are_remarked_on(tiny, call, said):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        latents(tiny, **call)
        many = len([one for one in caught if "spoil pictures" in str(one.message)])
        latents(tiny, **call, num_inference_steps=ENOUGH)
    assert many == len([one for one in caught if "spoil pictures" in str(one.message)]) == said


def test_every_sampler_that_goes_astray_exists():
    assert set(solver_names()) >= ASTRAY


def test_a_layout_of_many_regions_is_not_remarked_on(tiny):
    side = tiny.config.sample_size
    layout = {"height": 2 * side, "width": 2 * side, "regions": [{"prompt": "a cat", "box": [0, 0, 1, 1]}]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.layout(layout, seed=1, num_inference_steps=2, progress=False)
    assert not any("made for pictures" in str(one.message) for one in caught)
