"""Which packaged model a call gets, and how the student shares its teacher's parts."""

import pytest
import torch

from gen import Generator
from gen.cli.choose import SCALES, STEPS, choose_model
from gen.models.pretrained import DEFAULT, FAST, find_model

PLAIN = {"num_images_per_prompt": 2, "seed": 3, "sampler": None, "lora": [], "guidance_options": {}, "negative_prompt": ""}


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"num_inference_steps": STEPS},
        {"guidance_scale": SCALES[0]},
        {"guidance_scale": SCALES[1]},
        {"height": 64},
        {"quantize": "int8", "offload": "model", "vae_tile": 64},
        {"translate": "a.png", "translator": "default", "translate_direction": "icon", "translate_strength": 0.5},
    ],
)
def test_the_student_serves_where_it_was_made_to(asked):
    assert choose_model(None, None, PLAIN | asked) == choose_model(None, True, PLAIN | asked) == "fast"
    assert choose_model(None, False, PLAIN | asked) == "default"


@pytest.mark.parametrize(
    "asked, option",
    [
        ({"num_inference_steps": STEPS + 1}, "--steps"),
        ({"guidance_scale": 1.0}, "--guidance-scale"),
        ({"negative_prompt": "red"}, "--negative"),
        ({"sampler": "euler"}, "--sampler"),
        ({"guidance": "nag + rescale", "negative_prompt": "red"}, "--guidance"),
        ({"lora": ["a"]}, "--lora"),
        ({"guide": max}, "--guide"),
        ({"translate": "a.png", "translator": "a_folder"}, "--translator"),
        ({"some_new_option": 0}, "--some-new-option"),
    ],
)
def test_anything_else_goes_to_the_teacher_or_is_refused(asked, option):
    assert choose_model(None, None, PLAIN | asked) == "default"
    with pytest.raises(ValueError, match=f"leave out {option}, or --fast"):
        choose_model(None, True, PLAIN | asked)


@pytest.mark.parametrize("fast", [True, False])
def test_a_named_model_and_a_choice_exclude_each_other(fast):
    assert choose_model("mine", None, PLAIN | {"sampler": "euler"}) == "mine"
    with pytest.raises(ValueError, match="give one of them"):
        choose_model("mine", fast, PLAIN)


def test_the_packaged_student_has_its_teachers_other_parts():
    assert find_model("fast") == ("fast", FAST)
    student, teacher = Generator.from_pretrained("fast", dtype="float32"), Generator.from_pretrained(dtype="float32")
    assert student.name == "fast" and sorted(p.name for p in FAST.iterdir()) == ["README.md", "config.json", "denoiser"]
    assert student.weights["denoiser"] != teacher.weights["denoiser"]
    assert {k: v for k, v in student.weights.items() if k != "denoiser"} == {
        k: v for k, v in teacher.weights.items() if k != "denoiser"
    }
    for part in ("autoencoder", "text_encoder"):
        own, others = getattr(student, part).state_dict(), getattr(teacher, part).state_dict()
        assert all(torch.equal(own[name], others[name]) for name in others)
    assert DEFAULT != FAST


def test_the_student_draws_in_few_evaluations():
    output = Generator.from_pretrained("fast", dtype="float32")("a red heart", seed=0, output_type="pt", progress=False)
    assert output.nfe == 4  # guidance is inside the network: no second branch
    red, green, blue = output.images[0, :, 48:80, 48:80].mean((1, 2))
    assert red > 0.7 > 0.4 > max(green, blue)


def test_the_student_reads_the_guidance_scale():
    generator = Generator.from_pretrained("fast", dtype="float32")
    weak, strong = (
        generator("a cat", seed=0, guidance_scale=scale, output_type="latent", progress=False).images for scale in SCALES
    )
    assert (weak - strong).abs().mean() > 0.01
