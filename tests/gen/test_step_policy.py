"""A policy of steps as a network, a folder and an option of the command line (tests/distill/test_step_policy.py trains one)."""

from __future__ import annotations

import re

import pytest
import torch

from gen.generator import Generator
from gen.models.components import load_component, save_component
from gen.nn.registry import build
from gen.nn.step_policy import StepPolicy, StepPolicyConfig
from gen.pipeline.step_policy import choose_steps
from samplers.denoiser import Condition

CHOICES = (10, 20, 50)


def test_text_without_a_token_and_padding_do_not_matter(tmp_path):
    network = StepPolicy(StepPolicyConfig(choices=CHOICES, text_dim=8, dim=16, heads=2))
    torch.nn.init.normal_(network.head.weight)
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, False, False, False], [False] * 5])
    said = network(Condition(tokens=tokens, mask=mask), 2)
    torch.testing.assert_close(said[:1], network(Condition(tokens=tokens[:1, :2]), 1))
    torch.testing.assert_close(said[1:], network(Condition(), 1))
    save_component(network, tmp_path / "policy")
    again = load_component(tmp_path / "policy", "step_policy")
    torch.testing.assert_close(again(Condition(tokens=tokens, mask=mask), 2), said)


def text_policy(width: int) -> StepPolicy:
    torch.manual_seed(2)
    network = StepPolicy(StepPolicyConfig(choices=(2, 3), text_dim=width, dim=16, heads=2))
    torch.nn.init.normal_(network.head.weight, std=5.0)
    return network


def test_the_command_takes_the_steps_that_the_policy_says(tiny, tiny_model, tmp_path, fewstep):
    network = text_policy(tiny.text_encoder.condition("a").tokens.shape[2])
    prompts = ["a red cat", "a cat", "a red heart", "heart", "red"]
    with torch.no_grad():  # the middle one of them is where it changes its mind
        logits = torch.cat([network(tiny.text_encoder.condition(prompt), 1) for prompt in prompts])
        network.head.bias[1] += (logits[:, 0] - logits[:, 1]).sort().values[2:4].mean()
    chosen = choose_steps(tiny, network, prompts)
    few, many = (prompts[chosen.index(count)] for count in (2, 3))  # both occur
    save_component(network, tmp_path / "policy")
    code, out, err = fewstep("image", few, many, "--seed", 1, "--model", tiny_model, "--step-policy", tmp_path / "policy")
    assert code == 0, err
    files = out.split()
    for name, count in zip(files, (2, 3), strict=True):
        said = fewstep("info", name)[1]
        assert re.search(rf"num inference steps +{count}\n", said) and re.search(r"\nseed +1\n", said)
    code, _, err = fewstep("image", few, "--steps", 2, "--model", tiny_model, "--step-policy", tmp_path / "policy")
    assert code == 2 and "leave --steps and --wildcards out" in err


def test_a_policy_of_another_model_is_refused(tiny):
    with pytest.raises(ValueError, match="does not read text of this width"):
        choose_steps(tiny, text_policy(5), ["a cat"])
    for wrong, words in (
        ({"choices": [20, 10], "num_classes": 2}, "must be rising"),
        ({"choices": [10, 20]}, "give text_dim or num_classes"),
        ({"choices": [10, 20], "text_dim": 8, "dim": 10, "heads": 4}, "multiple of heads"),
    ):
        with pytest.raises(ValueError, match=words):
            build({"type": "step_policy", **wrong})


def test_classes_are_known_by_their_names(class_model):
    model = Generator.from_pretrained(class_model, device="cpu", dtype="float32")
    network = StepPolicy(StepPolicyConfig(choices=CHOICES, num_classes=3, dim=16, heads=2))
    torch.manual_seed(3)
    torch.nn.init.normal_(network.head.weight, std=5.0)
    names = list(model.config.classes)
    assert choose_steps(model, network, names) == network.choose(Condition(label=torch.arange(3)), 3)
    assert choose_steps(model, network, ["2"]) == choose_steps(model, network, names[2:])
    with pytest.raises(ValueError, match="class"):
        choose_steps(model, network, ["no such thing"])
